"""An index built on its own: from the vectors that a catalog has, or from a folder of vectors from elsewhere."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import orjson

from ..configs import CatalogConfig, ConfigError, MetadataType
from ..configs.load import parse_settings
from ..index.layout import report_name, run_folder
from ..index.manifest import CatalogError, Manifest, read_latest, read_manifest
from ..index.store import Store
from ..transforms.compare import Changes
from ..transforms.imports import Survey, survey_folder
from ..transforms.plan import Plan
from ..transforms.setup import VersionSetup, public_settings
from ..transforms.sources import SourceError
from .launch import RunFailed, Watch, check_not_lost, holding, new_version, run_pipeline, software, unwritable
from .logs import tell

UNKNOWN_MODEL = "unknown"
"""What made vectors from elsewhere, unless it is said."""
_SETTABLE = ("index", "guards", "runner")


def import_vectors(
    url: str,
    folder: str,
    overrides: Sequence[str] = (),
    *,
    embedding: str | None = None,
    model: str | None = None,
    metadata: Sequence[str] = (),
    beam_options: Sequence[str] = (),
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Makes a version of a new or an existing catalog from Parquet files with `id`, `kind` and vectors.

    The catalog's assets become those of the folder, as if it were the sources of a run. Returns the report.

    Args:
        url: The catalog's path.
        folder: A folder of Parquet files, or one, as a path or fsspec URL.
        overrides: `key.path=value` pairs of index, guards and runner.
        embedding: The column of vectors; absent: `embedding` or `vector`.
        model: What made the vectors.
        metadata: `name:type` of columns that are kept with each asset.
        beam_options: Beam's own command-line options.
        watch: Sees the progress.

    Raises:
        ConfigError: When the folder has no files with these columns, or a setting is wrong.
        CatalogBusy: When another run holds the catalog.
        RunFailed: When nothing was published.
    """
    started_at_s = time.time()
    url = _absolute(url)
    types = _metadata_types(metadata)
    raw: dict[str, Any] = {"catalog": url, "embed": {"model": model or UNKNOWN_MODEL}}
    parse_settings(raw, overrides, _SETTABLE)  # before anything is read

    def prepare(_: Manifest | None) -> tuple[CatalogConfig, Survey]:
        survey = survey_folder(folder, embedding, types)
        dimension = survey.folder.dimension
        embed = {**raw["embed"], "dimension": dimension}
        return parse_settings({**raw, "embed": embed}, overrides, _SETTABLE), survey

    return _write_version(url, prepare, beam_options, watch, started_at_s)


def _write_version(
    url: str,
    prepare: Callable[[Manifest | None], tuple[CatalogConfig, Survey]],
    beam_options: Sequence[str],
    watch: Watch | None,
    started_at_s: float,
) -> dict[str, Any]:
    store = Store(url)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(holding(store))
            # Only now: what another run publishes before it lets go of the catalog is what this one starts from.
            latest = read_latest(store)
            if latest is None:
                check_not_lost(store)
            before = None
            if latest is not None:
                with contextlib.suppress(CatalogError):
                    before = read_manifest(store, latest[1], latest[2])
            version = new_version(store, latest, stack)
            store.write(f"{run_folder(version)}/started", b"")
        except OSError as error:
            raise unwritable(url, error) from error
        try:
            config, survey = prepare(before)
        except SourceError as error:
            raise RunFailed(str(error)) from error
        setup = VersionSetup(
            config=config,
            metadata_types=survey.folder.metadata,
            settings=public_settings(config),
            version=version,
            plan=_plan(survey),
            folder=survey.folder,
            previous=latest[1] if latest else None,
            rows_before=before.counts.per_kind if before else None,
            latest=latest[0] if latest else None,
            software=software(),
            started_at_s=started_at_s,
        )
        tell("planned", assets=survey.assets, files=len(survey.folder.files), dimension=survey.folder.dimension)

        def wire(pipeline: Any) -> None:
            import apache_beam as beam

            from ..transforms.version import Begin, WriteVersion

            parts = pipeline | "Imported" >> beam.Create((Begin(), *survey.groups))
            _ = parts | "WriteVersion" >> WriteVersion(setup=setup)

        run_pipeline(config, version, wire, beam_options, watch)
        report: dict[str, Any] = orjson.loads(store.read(report_name(version)))
        return {**report, "every_vector_is_new_because": []}


def _plan(survey: Survey) -> Plan:
    return Plan(
        name="",
        units=(),
        carried=(),
        changes=Changes(
            assets=survey.assets,
            size_bytes={},
            unchanged={},
            dead={},
            new=survey.assets,
            differing={},
            deleted={},
            other_metadata=0,
        ),
        base=None,
    )


def _absolute(url: str) -> str:
    """The catalog's place as it stands in the manifest: the same wherever the next command is started."""
    return url if "://" in url or "::" in url else os.path.abspath(Path(url).expanduser())  # noqa: PTH100 - links stay


def _metadata_types(pairs: Sequence[str]) -> dict[str, str]:
    known = get_args(MetadataType)
    types: dict[str, str] = {}
    for pair in pairs:
        name, _, kind = pair.rpartition(":")
        if not name or kind not in known:
            raise ConfigError(f"--metadata takes NAME:TYPE with a type of {', '.join(known)}, got {pair!r}.")
        if name in types:
            raise ConfigError(f"--metadata must name each column once, got {name!r} twice.")
        types[name] = kind
    return types

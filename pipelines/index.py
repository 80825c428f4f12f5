"""An index built on its own: from the vectors that a catalog has, or from a folder of vectors from elsewhere."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import orjson

from ..configs import CatalogConfig, ConfigError, MetadataType
from ..configs.load import parse_settings
from ..configs.schema import UNKNOWN_MODEL
from ..index.layout import report_name
from ..index.manifest import CatalogError, nothing_published, read_latest, read_manifest
from ..index.store import Store
from ..index.units import CarriedGroup, DamagedFileError
from ..transforms.carry import iterate_dead_letters, plan_all_carried
from ..transforms.compare import Changes
from ..transforms.imports import ImportedGroup, Survey, VectorFolder, survey_folder
from ..transforms.plan import Plan
from ..transforms.report import unchanged_report
from ..transforms.setup import VersionSetup, public_settings
from ..transforms.sources import SourceError
from .base import is_whole
from .endings import RunFailed
from .launch import Latest, Watch, begin, run_pipeline, software
from .logs import tell

_SETTABLE = ("index", "guards", "runner")


def build_index(
    url: str,
    overrides: Sequence[str] = (),
    *,
    rebuild: bool = False,
    beam_options: Sequence[str] = (),
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Makes a version with the vectors of the one in force and other settings. Returns the report.

    No source is listed and nothing is sent. Where the settings are what they were and the version is whole, no
    version is written, and the report says that it is `unchanged`.

    Args:
        url: The catalog's path.
        overrides: `key.path=value` pairs of index, guards and runner; what they do not say stays as it was.
        rebuild: Write a version even so.
        beam_options: Beam's own command-line options.
        watch: Sees the progress.

    Raises:
        ConfigError: When a setting is wrong, or needs other vectors.
        CatalogBusy: When another run holds the catalog.
        CatalogError: When nothing is published, or the manifest is damaged.
        RunFailed: When nothing was published.
    """
    url = _absolute(url)
    parse_settings({"catalog": url}, overrides, _SETTABLE)  # before anything is written
    if read_latest(Store(url)) is None:
        raise nothing_published(Store(url))
    with _launched(url) as launch:
        if launch.latest is None:
            raise CatalogError(f"{url} has no published version any more.")
        manifest = read_manifest(launch.store, *launch.latest[1:])
        config = parse_settings({**manifest.config, "catalog": url}, overrides, _SETTABLE)
        stored = manifest.config.get("index", {}).get("vector_type", "float32")
        if stored not in {config.index.vector_type, "float32"}:
            raise ConfigError(
                f"index.vector_type cannot be {config.index.vector_type} without embedding again, for the vectors are "
                f"stored as {stored}: use `run`."
            )
        try:
            if not rebuild and is_whole(launch.store, manifest, config.index, manifest.metadata_types):
                letters = iterate_dead_letters(launch.store, manifest)
                rows = sum(manifest.counts.per_kind.values())
                seconds = max(0.0, time.time() - launch.started_at_s)
                return unchanged_report(manifest, rows, letters, config.embed, seconds)
            plan = plan_all_carried(launch.store, launch.version, manifest)
            setup = launch.setup(
                config,
                {**manifest.config, **public_settings(config)},
                replace(plan, carried=()),
                manifest.metadata_types,
                model_fingerprint=manifest.model_fingerprint,
                rows_before=manifest.counts.per_kind,
            )
            tell("planned", assets=dict(plan.changes.assets), base=manifest.version)
            return launch.write(setup, plan.carried, beam_options, watch)
        except DamagedFileError as error:
            raise RunFailed(
                f"{error} Nothing was published: `run` makes its vectors anew, `versions rollback` goes back."
            ) from error


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
        overrides: `key.path=value` pairs of index, guards and runner, and of embed where others embed queries.
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
    url = _absolute(url)
    types = _metadata_types(metadata)
    sections = (*_SETTABLE, "embed")
    raw: dict[str, Any] = {"catalog": url, "embed": {"model": model or UNKNOWN_MODEL}}
    said = parse_settings(raw, overrides, sections)  # before anything is written
    with _launched(url) as launch:
        before = None
        if launch.latest is not None:
            with contextlib.suppress(CatalogError):
                before = read_manifest(launch.store, *launch.latest[1:])
        try:
            survey = survey_folder(folder, embedding, types)
        except SourceError as error:
            raise RunFailed(str(error)) from error
        dimension = survey.folder.dimension
        if "dimension" in said.embed.model_fields_set and said.embed.dimension != dimension:
            raise ConfigError(
                f"embed.dimension must be that of the vectors, {dimension}, got {said.embed.dimension}: leave it away."
            )
        config = parse_settings({**raw, "embed": {**raw["embed"], "dimension": dimension}}, overrides, sections)
        setup = launch.setup(
            config,
            public_settings(config),
            _plan(survey),
            types,
            folder=survey.folder,
            rows_before=before.counts.per_kind if before else None,
        )
        tell("planned", assets=survey.assets, files=len(survey.folder.files), dimension=dimension)
        return launch.write(setup, survey.groups, beam_options, watch)


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """A catalog that is held, and the version that is to be written."""

    store: Store
    version: str
    latest: Latest | None
    """What `read_latest` gave when the catalog was taken."""
    started_at_s: float

    def setup(
        self,
        config: CatalogConfig,
        settings: Mapping[str, Any],
        plan: Plan,
        metadata_types: Mapping[str, str],
        *,
        folder: VectorFolder | None = None,
        model_fingerprint: str | None = None,
        rows_before: Mapping[str, int] | None = None,
    ) -> VersionSetup:
        return VersionSetup(
            config=config,
            metadata_types=metadata_types,
            settings=settings,
            version=self.version,
            plan=plan,
            folder=folder,
            model_fingerprint=model_fingerprint,
            previous=self.latest[1] if self.latest else None,
            rows_before=rows_before,
            latest=self.latest[0] if self.latest else None,
            software=software(),
            started_at_s=self.started_at_s,
        )

    def write(
        self,
        setup: VersionSetup,
        parts: Sequence[CarriedGroup | ImportedGroup],
        beam_options: Sequence[str],
        watch: Watch | None,
    ) -> dict[str, Any]:
        """Writes the version that these parts amount to, and returns its report."""

        def wire(pipeline: Any) -> None:
            import apache_beam as beam

            from ..transforms.version import Begin, WriteVersion

            _ = pipeline | "Parts" >> beam.Create((Begin(), *parts)) | "WriteVersion" >> WriteVersion(setup=setup)

        run_pipeline(setup.config, setup.version, wire, beam_options, watch)
        report: dict[str, Any] = orjson.loads(self.store.read(report_name(self.version)))
        return {**report, "every_vector_is_new_because": []}


@contextlib.contextmanager
def _launched(url: str) -> Iterator[_Launch]:
    """Holds the catalog for as long as the block runs.

    Raises:
        CatalogBusy: When another run holds it.
        RunFailed: When it cannot be written, or its LATEST.json was lost.
    """
    started_at_s = time.time()
    store = Store(url)
    with contextlib.ExitStack() as stack:
        latest, version = begin(store, stack)
        yield _Launch(store=store, version=version, latest=latest, started_at_s=started_at_s)


def _plan(survey: Survey) -> Plan:
    """Everything is new."""
    changes = Changes(
        assets=survey.assets,
        size_bytes={},
        unchanged={},
        dead={},
        new=survey.assets,
        differing={},
        deleted={},
        other_metadata=0,
    )
    return Plan(name="", units=(), carried=(), changes=changes, base=None)


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

"""Build an index without embedding: from a catalog's own vectors, or from a folder of imported vectors."""

import contextlib
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import orjson

from ...configs import CatalogConfig, MetadataType
from ...configs.errors import CatalogError, ConfigError, DamagedFileError
from ...configs.load import parse_settings
from ...configs.schema import check_metadata_name
from ...index.local.trust import Trust, check_rebuild
from ...index.storage.store import Store
from ...index.vectors.units import ReusedGroup
from ...index.versions.latest import nothing_published, read_latest
from ...index.versions.layout import report_name
from ...index.versions.manifest import read_manifest
from ...transforms.planning.compare import Changes, Comparison
from ...transforms.planning.job_identity import identity_of_import, other_job
from ...transforms.planning.plan import Plan
from ...transforms.reports.report import Report, unchanged_report
from ...transforms.versions.import_model import import_model
from ...transforms.versions.imports import ImportedGroup, Scan, scan_folder
from ...transforms.versions.reused_rows import iterate_dead_letters, plan_all_reused
from ...transforms.versions.setup import VersionSetup, public_settings
from ..console.logs import log_event
from .base import check_adoption, is_whole
from .launch import Runner, hold_catalog, software

_SETTABLE = ("index", "gates", "runner")


def build_index(
    url: str, overrides: Sequence[str] = (), *, rebuild: bool = False, runner: Runner | None = None
) -> Report:
    """Write a version with the vectors of the current version and new settings, and return its report.

    No source is listed and nothing is sent. If the settings are the same and the current version is complete, no
    version is written and the report is marked `unchanged`.

    Args:
        url: The catalog's path.
        overrides: `key.path=value` pairs of index, gates and runner; other settings stay as they are.
        rebuild: Write a version even if nothing changes.
        runner: Beam's options and the progress callbacks.

    Raises:
        ConfigError: When a setting is invalid, or needs other vectors.
        UntrustedCatalogError: When the manifest names a runner or options that this user has not allowed.
        CatalogBusyError: When another run holds the catalog.
        CatalogError: When nothing is published, or the manifest is damaged.
        EpithreBeamError: When nothing was published.
    """
    started_at_s = time.time()
    runner = runner or Runner()
    url = _absolute(url)
    parse_settings({"catalog": url}, overrides, _SETTABLE)  # before anything is written
    if read_latest(Store(url)) is None:
        raise nothing_published(Store(url))
    with contextlib.ExitStack() as stack:
        held = hold_catalog(url, stack)
        if held.latest is None:
            raise CatalogError(f"{url}: the catalog no longer has a current version.")
        manifest = read_manifest(held.store, held.latest.version, held.latest.manifest_sha256)
        config = parse_settings({**manifest.config, "catalog": url}, overrides, _SETTABLE)
        check_rebuild(manifest.config, config, url)
        runner.check(config.runner, config.beam_options)
        Trust().remember_job(config, before=manifest.config)
        stored = manifest.config.get("index", {}).get("vector_type", "float32")
        if stored not in {config.index.vector_type, "float32"}:
            raise ConfigError(
                f"index.vector_type cannot be {config.index.vector_type}: the vectors are stored as {stored}. "
                "Use `run` to embed again."
            )
        try:
            if not rebuild and is_whole(held.store, manifest, config.index, manifest.metadata_types):
                letters = iterate_dead_letters(held.store, manifest)
                rows = sum(manifest.counts.per_kind.values())
                seconds = max(0.0, time.time() - started_at_s)
                return unchanged_report(manifest, rows, letters, config.embed, seconds)
            plan = plan_all_reused(held.store, held.run.version, manifest)
            setup = VersionSetup(
                run=held.run,
                embed=config.embed,
                index=config.index,
                gates=config.gates,
                metadata_types=manifest.metadata_types,
                settings={**manifest.config, **public_settings(config)},
                plan=replace(plan, reused_groups=()),
                model_fingerprint=manifest.model_fingerprint,
                prepare_rules=manifest.prepare_rules,
                latest=held.latest,
                rows_before=manifest.counts.per_kind,
                job=manifest.job,
                software=software(),
                started_at_s=started_at_s,
            )
            log_event("planned", assets=dict(plan.changes.assets), base=manifest.version)
            return _write(setup, plan.reused_groups, config, runner)
        except DamagedFileError as error:
            raise CatalogError(
                f"{error} Nothing was published. Use `run` to embed again, or go back with "
                f"`epithre-beam versions rollback {shlex.quote(url)}`."
            ) from error


def import_vectors(
    url: str,
    folder: str,
    overrides: Sequence[str] = (),
    *,
    embedding: str | None = None,
    model: str | None = None,
    metadata: Sequence[str] = (),
    adopt: bool = False,
    runner: Runner | None = None,
) -> Report:
    """Write a version of a new or existing catalog from Parquet files with `id`, `kind` and vectors.

    The folder replaces the catalog's assets, as the sources of a run would. Returns the report.

    Args:
        url: The catalog's path.
        folder: A folder of Parquet files, or a single file, as a path or fsspec URL.
        overrides: `key.path=value` pairs of index, gates, runner and job, and of embed for the queries.
        embedding: The column of vectors; None: `embedding` or `vector`.
        model: Name of the model that made the vectors; None: as `WriteVectors` recorded it in the folder.
        metadata: `name:type` of the columns to keep with each asset.
        adopt: Use the catalog even if it belongs to another job.
        runner: Beam's options and the progress callbacks.

    Raises:
        ConfigError: When the folder has no files with these columns, or a setting is invalid.
        OtherJobError: When the catalog belongs to another job.
        CatalogBusyError: When another run holds the catalog.
        EpithreBeamError: When nothing was published.
    """
    started_at_s = time.time()
    runner = runner or Runner()
    url = _absolute(url)
    types = _metadata_types(metadata)
    sections = (*_SETTABLE, "embed", "job")
    made = import_model(_absolute(folder), model)
    raw: dict[str, Any] = {"catalog": url, "embed": made.embed}
    said = parse_settings(raw, overrides, sections)  # before anything is written
    runner.check(said.runner, said.beam_options)
    with contextlib.ExitStack() as stack:
        held = hold_catalog(url, stack)
        before = None
        if held.latest is not None:
            with contextlib.suppress(CatalogError):
                before = read_manifest(held.store, held.latest.version, held.latest.manifest_sha256)
        listed = stack.enter_context(Comparison({}))
        scan = scan_folder(folder, embedding, types, ids=listed)
        job = identity_of_import(said.job, _absolute(folder))
        gone: Mapping[str, int] = {}
        sentence = None
        if before is not None:
            listed.set_base(held.store, before, is_reusable=False)
            sentence = other_job(url, before, job, listed.overlap)
            check_adoption(sentence, adopt=adopt)
            gone = listed.changes().gone
        dimension = scan.folder.dimension
        if "dimension" in said.embed.model_fields_set and said.embed.dimension != dimension:
            raise ConfigError(
                f"embed.dimension must be {dimension} like the vectors, got {said.embed.dimension}. Remove the setting."
            )
        config = parse_settings({**raw, "embed": {**raw["embed"], "dimension": dimension}}, overrides, sections)
        Trust().remember_job(config)
        setup = VersionSetup(
            run=held.run,
            embed=config.embed,
            index=config.index,
            gates=config.gates,
            metadata_types=types,
            settings=public_settings(config),
            plan=_plan(scan, gone),
            folder=scan.folder,
            model_fingerprint=made.fingerprint,
            latest=held.latest,
            rows_before=before.counts.per_kind if before else None,
            job=job,
            is_taken_over=sentence is not None,
            software=software(),
            started_at_s=started_at_s,
        )
        log_event("planned", assets=scan.assets, files=len(scan.folder.files), dimension=dimension)
        return _write(setup, scan.groups, config, runner)


def _write(
    setup: VersionSetup, parts: Sequence[ReusedGroup | ImportedGroup], config: CatalogConfig, runner: Runner
) -> Report:
    """Write the version made of these parts and return its report."""

    def wire(pipeline: Any) -> None:
        import apache_beam as beam

        from ...transforms.write_version import Begin, WriteVersion

        _ = pipeline | "Parts" >> beam.Create((Begin(), *parts)) | "WriteVersion" >> WriteVersion(setup=setup)

    runner.run(setup.run, wire, config.runner, config.beam_options)
    report: Report = orjson.loads(setup.run.store().read(report_name(setup.run.version)))
    report["every_vector_is_new_because"] = []
    return report


def _plan(scan: Scan, gone: Mapping[str, int]) -> Plan:
    """Make a plan in which all assets are new; only ids are compared with the current version."""
    changes = Changes(
        assets=scan.assets,
        size_bytes={},
        unchanged={},
        dead={},
        new=scan.assets,
        differing={},
        deleted={},
        other_metadata=0,
        gone=gone,
    )
    return Plan(name="", units=(), reused_groups=(), changes=changes, base=None)


def _absolute(url: str) -> str:
    """Make the catalog's path absolute, so that the manifest does not depend on the working directory."""
    return url if "://" in url or "::" in url else os.path.abspath(Path(url).expanduser())  # noqa: PTH100 - links stay


def _metadata_types(pairs: Sequence[str]) -> dict[str, str]:
    known = get_args(MetadataType)
    types: dict[str, str] = {}
    for pair in pairs:
        name, _, kind = pair.rpartition(":")
        if not name or kind not in known:
            raise ConfigError(f"--metadata must be NAME:TYPE with a type of {', '.join(known)}, got {pair!r}.")
        if name in types:
            raise ConfigError(f"--metadata must name each column once, got {name!r} twice.")
        try:
            check_metadata_name(name)
        except ValueError as error:
            raise ConfigError(f"--metadata: {error}.") from None
        types[name] = kind
    return types

"""The bulk search: search many queries and write the hits as Parquet."""

import contextlib
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from ...configs import RunConfig
from ...configs.address import ApiAddress
from ...configs.caller import JOB
from ...configs.errors import ArgumentError, CatalogError, ConfigError, StoreError
from ...configs.load import parse_query_settings
from ...configs.schema import UNKNOWN_MODEL
from ...configs.search_schema import SAME, SearchJob
from ...index.ann.kind_index import operating_point
from ...index.ann.parts import IndexPart, group_parts, index_parts
from ...index.local.trust import allowed_embed, allowed_prepare
from ...index.search.merge import check_merge
from ...index.search.where import parse_where
from ...index.storage.store import Store
from ...index.versions.history import find_version
from ...index.versions.latest import Latest, published_manifest
from ...index.versions.layout import UNITS, DeadLetter, assets_schema
from ...index.versions.manifest import Manifest, read_manifest
from ...index.versions.readers import VersionHold
from ...index.versions.stored_names import GATE_FAILURES
from ...transforms.batch_search.blocks import RESULTS, SearchSetup, block_dead_name, write_dead_letters
from ...transforms.batch_search.last_step import SearchReport, report_of
from ...transforms.batch_search.query_blocks import (
    Block,
    QueryGroup,
    UnitQueries,
    VectorGroup,
    cut_blocks,
    find_assets,
    missing_letters,
)
from ...transforms.embedding.endpoint import open_endpoint
from ...transforms.embedding.lane import LaneSetup, api_key
from ...transforms.embedding.limiters import remove_host_limiter
from ...transforms.embedding.shared_limit import set_up_shared_backend
from ...transforms.planning.embedding_config import (
    embedding_config_hash,
    first_embedding_config_hash,
    request_config_hash,
)
from ...transforms.planning.plan import Plan, write_plan
from ...transforms.query.query_endpoint import as_queries, check_made_by
from ...transforms.sources.files import filesystem
from ...transforms.sources.list_sources import read_ids
from ...transforms.sources.references import file_fingerprint
from ...transforms.versions.imports import VectorFolder, scan_folder
from ...transforms.workers.progress import read_progress
from ..console.logs import log_event
from .base import compare
from .launch import Held, Runner, hold_folder

_HOLD_S = 900.0
MARK = "search-batch.json"
"""Marks a folder as one of results, in which old files may be deleted."""
LATEST_RESULT = "LATEST.json"
"""{"result": folder of the newest result below `output`, "results": all that are kept}."""

_log = logging.getLogger(__name__)


def search_batch(job: SearchJob, runner: Runner | None = None) -> SearchReport:
    """Run the job and return its report, the content of the result's `report.json`.

    The name of a result is a hash of its inputs. A job that was killed therefore resumes, and a finished job with the
    same queries and catalog does no work.

    Raises:
        ConfigError: Before anything is sent: a source matches no file, the catalog lacks a column.
        CatalogBusyError: When another run holds the output.
        CatalogError: When the catalog cannot be opened.
        EpithreBeamError: When there is no result. Finished work is kept for the next run.
    """
    started_at_s = time.time()
    runner = runner or Runner()
    runner.check(job.runner)
    searched = _searched(job)
    _check_output(job.output, Store(job.output))
    with contextlib.ExitStack() as stack:
        _hold(Store(job.catalog), searched.version, stack)
        held = hold_folder(job.output, "output", stack, _mark)
        report = _Launch(job, searched, held).run(runner)
        report["seconds"] = max(0.0, time.time() - started_at_s)
        return report


def _mark(output: Store) -> Latest | None:
    """Mark the folder as one of results. Returns None: it has no versions."""
    output.write(MARK, b'{"made_by": "epithre-beam search-batch"}\n')
    return None


def _searched(job: SearchJob) -> Manifest:
    """Return the manifest of the version to search, after checking that it has what the job asks for."""
    store = Store(job.catalog)
    if job.version is None:
        manifest = published_manifest(store)
    else:
        manifest = read_manifest(store, find_version(store, job.version))
    kinds = [entry.kind for entry in manifest.indexes]
    for kind in job.search.kinds or ():
        if kind not in kinds:
            raise ConfigError(f"search.kinds must be among those of the catalog, {', '.join(kinds)}, got {kind!r}.")
    if not kinds:
        raise CatalogError(f"{job.catalog}: version {manifest.version} has no assets to search.")
    for name in job.search.metadata:
        if name not in manifest.metadata_types:
            known = ", ".join(manifest.metadata_types) or "none"
            raise ConfigError(f"search.metadata must name metadata columns of the catalog ({known}), got {name!r}.")
    entries = {e.kind: e for e in manifest.indexes if job.search.kinds is None or e.kind in job.search.kinds}
    asked = {source.kind for source in job.queries} | {entry.kind for entry in job.assets if entry.kind}
    try:
        if job.search.where is not None:
            parse_where(job.search.where, assets_schema(manifest.metadata_types))
        for entry in entries.values():
            operating_point(entry, job.search.recall)
        for query_kind in sorted(asked):
            check_merge(job.search.merge, entries, query_kind)
    except ArgumentError as error:
        raise ConfigError(f"search.{error}") from error
    if job.queries and manifest.model == UNKNOWN_MODEL:
        raise ConfigError(
            f"queries cannot be embedded: {job.catalog} has imported vectors of an unknown model. "
            "Use `vectors` of the same model, or name the model (`index --from … --model NAME`)."
        )
    return manifest


def _check_output(url: str, output: Store) -> None:
    """Refuse a folder that has anything but results, because old files in it are deleted.

    Raises:
        ConfigError: When the folder has other content.
    """
    try:
        found = output.fs.ls(output.path(""), detail=False)
    except (FileNotFoundError, NotADirectoryError):
        found = []
    if [str(path).rstrip("/") for path in found] == [output.path("")]:
        raise ConfigError(f"output: {url!r} is a file. Name a folder.")
    names = sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)
    if MARK in names:
        return
    other = next((name for name in names if not name.startswith(".")), None)
    if "versions" in names:
        raise ConfigError(f"output: {url!r} is a catalog. Name a separate folder for the results.")
    if other is not None:
        raise ConfigError(
            f"output: {url!r} contains {other!r}, which search-batch did not write. Name a new or empty folder."
        )


def _hold(store: Store, version: str, stack: contextlib.ExitStack) -> None:
    """Protect the version from pruning during the search, if this process may write to the catalog."""
    try:
        stack.callback(VersionHold(store, version, _HOLD_S).release)
    except (OSError, StoreError) as error:
        _log.warning(
            "%s cannot be written (%s). Do not prune version %s during this search.", store.url, error, version
        )


class _Launch:
    """One bulk search, in the launcher."""

    def __init__(self, job: SearchJob, searched: Manifest, held: Held) -> None:
        self._job = job
        self._searched = searched
        self._held = held
        self._asked: Counter[str] = Counter()
        self._missing: list[DeadLetter] = []

    def run(self, runner: Runner) -> SearchReport:
        job, run = self._job, self._held.run
        config = parse_query_settings(self._settings(), job)
        groups, folders = self._vector_groups()
        groups += self._asset_groups()
        lane, plan = self._plan(config) if isinstance(config, RunConfig) else (None, None)
        if plan is not None:
            groups += [UnitQueries(unit=unit) for unit in plan.units]
        for group in groups:
            self._asked[group.kind] += group.rows
        for letter in self._missing:
            self._asked[letter.kind] += 1
        blocks = cut_blocks(groups, job.block_queries)
        setup = SearchSetup(
            run=run,
            embed=lane.embed if lane else config.embed,
            job=job,
            searched=self._searched.version,
            result=self._name(groups),
            blocks=len(blocks),
            plan=plan.name if plan else None,
            folders=folders,
            asked=dict(self._asked),
            requests_spent=lane.requests_spent if lane else 0,
            metadata_types={name: self._searched.metadata_types[name] for name in job.search.metadata},
            groups=self._groups(),
        )
        if self._missing:
            write_dead_letters(run.store(), block_dead_name(setup.result, "assets"), self._missing)
        if runner.expect is not None and plan is not None:
            runner.expect(sum(unit.references for unit in plan.units))
        log_event("planned", queries=dict(self._asked), blocks=len(blocks), searched=self._searched.version)
        runner.run(run, _wiring(setup, lane, plan, blocks), config.runner)
        if lane is not None:
            remove_host_limiter(lane.embed, lane.run.version)
        try:
            return self._publish(setup, plan)
        except OSError as error:
            raise run.unwritable(error) from error

    def _settings(self) -> dict[str, Any]:
        """Return the catalog's settings, with the address and the sources that this user trusts."""
        job, stated = self._job, self._searched.config
        if not job.queries:
            return stated  # nothing is sent
        named: dict[str, Any] = {name: job.embed[name] for name in ("base_url", "api_key_env") if name in job.embed}
        embed = allowed_embed(stated, job.catalog, {**ApiAddress().said(), **named}, JOB)
        return {**stated, "embed": embed, "prepare": allowed_prepare(stated, job.catalog)}

    def _plan(self, config: RunConfig) -> tuple[LaneSetup, Plan]:
        """Return the settings of the lane and the plan of units for the queries to embed."""
        held, embed = self._held, as_queries(config.embed)
        comparison = held.stack.enter_context(compare(config.sources, config.metadata_types, "queries"))
        endpoint = held.stack.enter_context(open_endpoint(embed, held.store))
        check_made_by(self._searched, self._job.catalog, endpoint)
        made_with = embedding_config_hash(embed, config.prepare, endpoint.fingerprint)
        references = embed.unit_references
        try:
            plan = write_plan(
                held.store,
                held.run.version,
                comparison,
                embedding_config_hash=made_with,
                unit_references=references,
                base=None,
            )
        except OSError as error:
            raise held.run.unwritable(error) from error
        lane = LaneSetup(
            run=held.run,
            plan=plan.name,
            embed=endpoint.embed,
            prepare=config.prepare,
            sources=config.sources,
            embedding_config_hash=request_config_hash(embed, endpoint.fingerprint),
            first_embedding_config_hash=first_embedding_config_hash(embed, config.prepare, endpoint.fingerprint),
            requests_spent=endpoint.requests,
        )
        return lane, replace(plan, reused_groups=())

    def _vector_groups(self) -> tuple[list[QueryGroup], tuple[VectorFolder, ...]]:
        groups: list[QueryGroup] = []
        folders = []
        for number, entry in enumerate(self._job.vectors):
            scan = scan_folder(entry.files, entry.embedding, label=f"vectors[{number}].files")
            if scan.folder.dimension != self._searched.dimension:
                raise ConfigError(
                    f"vectors[{number}].files must have vectors of {self._searched.dimension} dimensions like the "
                    f"catalog, got {scan.folder.dimension} in {entry.files}."
                )
            folders.append(scan.folder)
            prints = [_fingerprint(scan.folder, i) for i in range(len(scan.folder.files))]
            groups += [VectorGroup(source=number, group=g, fingerprint=prints[g.file]) for g in scan.groups]
        return groups, tuple(folders)

    def _asset_groups(self) -> list[QueryGroup]:
        groups: list[QueryGroup] = []
        for number, entry in enumerate(self._job.assets):
            url = self._job.catalog if entry.catalog == SAME else entry.catalog
            manifest = self._searched
            if entry.catalog != SAME:
                manifest = _published(Store(url), number)
                self._check_comparable(number, url, manifest)
                _hold(Store(url), manifest.version, self._held.stack)
            ids = None if entry.ids is None else read_ids(entry.ids, entry.id, f"assets[{number}]", "ids")
            found, missing = find_assets(
                Store(url), manifest, kind=entry.kind, ids=ids, source=number, is_same=entry.catalog == SAME
            )
            groups += found
            self._missing += missing_letters(entry.kind or "", missing, number, url)
            if not found and not missing:
                raise ConfigError(f"assets[{number}]: {url} has none of these assets.")
        return groups

    def _check_comparable(self, number: int, url: str, other: Manifest) -> None:
        for name, ours, theirs in self._searched.made_by.differences(other.made_by):
            raise ConfigError(
                f"assets[{number}].catalog must have the same model: {name} is {theirs!r} in {url} "
                f"and {ours!r} in {self._job.catalog}."
            )

    def _name(self, groups: Sequence[QueryGroup]) -> str:
        """Return the name of the result: a hash of the catalog version, the queries and the settings."""
        job = self._job
        decides: list[Any] = [job.catalog, self._searched.version, self._searched.nonce, job.block_queries]
        decides += [job.search.model_dump(mode="json"), [group.key for group in groups]]
        decides.append([(letter.kind, letter.asset_id) for letter in self._missing])
        return hashlib.sha256(orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)).hexdigest()[:20]

    def _groups(self) -> tuple[tuple[IndexPart, ...], ...]:
        """Return groups of index files that a worker opens together; empty when all fit in memory at once."""
        kinds = self._job.search.kinds or [entry.kind for entry in self._searched.indexes]
        parts, limit = index_parts(self._searched, kinds), int(self._job.worker_index_mb * 1_000_000)
        is_small = sum(part.size_bytes for part in parts) <= limit
        return () if is_small else tuple(group_parts(parts, limit))

    def _publish(self, setup: SearchSetup, plan: Plan | None) -> SearchReport:
        """Record the result in LATEST.json, unless a gate holds it, and remove old results and unused units."""
        output = setup.run.store()
        report: SearchReport = orjson.loads(output.read(report_of(setup.result)))
        report["requests"] = sum(lane["meter"]["requests"] for lane in read_progress(setup.run))
        if report[GATE_FAILURES]:
            return report
        try:
            kept = orjson.loads(output.read(LATEST_RESULT)).get("results", [])
        except (FileNotFoundError, orjson.JSONDecodeError, AttributeError):
            kept = []
        kept = [name for name in kept if isinstance(name, str)] if isinstance(kept, list) else []
        results = [report["result"], *(name for name in kept if name != report["result"])][: self._job.keep_results]
        output.write(LATEST_RESULT, orjson.dumps({"result": report["result"], "results": results}) + b"\n")
        units = {unit.name for unit in plan.units} if plan else set()
        for folder in {"/".join(name.split("/")[:2]) for name in output.names(RESULTS)} - set(results):
            output.delete(folder)
        if plan is not None:
            for name in output.names(UNITS):
                if name.removeprefix(f"{UNITS}/").partition(".")[0] not in units:
                    output.delete(name)
        return report


def _wiring(setup: SearchSetup, lane: LaneSetup | None, plan: Plan | None, blocks: Sequence[Block]) -> Any:
    def wire(pipeline: Any) -> None:
        import apache_beam as beam

        from ...transforms.embed_units import EmbedUnits
        from ...transforms.search_all import SearchAll
        from ...transforms.write_version import Begin

        parts = [pipeline | "Blocks" >> beam.Create((Begin(), *blocks))]
        if lane is not None and plan is not None:
            set_up_shared_backend(lane.embed, api_key(lane.embed.api_key_env), lane.run.version, lane.requests_spent)
            parts.append(pipeline | "Units" >> beam.Create(plan.units) | "EmbedUnits" >> EmbedUnits(setup=lane))
        _ = parts | "Parts" >> beam.Flatten() | "SearchAll" >> SearchAll(setup=setup)

    return wire


def _published(store: Store, number: int) -> Manifest:
    """Return the manifest of a catalog whose assets are queries."""
    try:
        return published_manifest(store)
    except CatalogError as error:
        raise CatalogError(f"assets[{number}].catalog: {error}") from error


def _fingerprint(folder: VectorFolder, number: int) -> str:
    fs, path = filesystem(folder.url, {})
    name = folder.files[number]
    return file_fingerprint(fs.info(f"{path.rstrip('/')}/{name}" if name else path))

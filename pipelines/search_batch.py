"""The bulk search: queries in, Parquet of hits out."""

import contextlib
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson

from ..configs import ConfigError, RunConfig, SourceConfig
from ..configs.load import parse_query_settings
from ..configs.schema import UNKNOWN_MODEL
from ..configs.search_schema import SAME, SearchJob
from ..index.kind_index import operating_point
from ..index.layout import UNITS, DeadLetter, assets_schema, run_folder
from ..index.lease import CatalogBusy
from ..index.manifest import CatalogError, Manifest, nothing_published, read_latest, read_manifest
from ..index.merge import check_merge
from ..index.parts import IndexPart, group_parts, index_parts
from ..index.readers import VersionHold
from ..index.store import Store, StoreError
from ..index.units import DamagedFileError
from ..index.where import parse_where
from ..transforms.endpoint import Endpoint, open_endpoint
from ..transforms.epithre.client import RunStopped
from ..transforms.epithre.dialects import DIALECTS
from ..transforms.epithre.ledger import LedgerLostError
from ..transforms.epithre.redis_ledger import RedisLedger
from ..transforms.imports import VectorFolder, survey_folder
from ..transforms.lane import LaneSetup, read_progress, shared_ledger
from ..transforms.plan import Plan, write_plan
from ..transforms.references import file_fingerprint
from ..transforms.search_blocks import RESULTS, SearchSetup, block_dead_name, result_folder, write_dead_letters
from ..transforms.search_queries import (
    Block,
    QueryGroup,
    UnitQueries,
    VectorGroup,
    cut_blocks,
    find_assets,
    missing_letters,
)
from ..transforms.sources import SourceError, filesystem, list_references
from .base import compare
from .endings import RunFailed, misplaced
from .launch import Watch, holding, new_version, run_pipeline, unwritable
from .logs import tell

_HOLD_S = 900.0
MARK = "search-batch.json"
"""Says that a folder is for results, so that what is old in it may be deleted."""
LATEST_RESULT = "LATEST.json"
"""{"result": the folder of the newest result below `output`}."""

_log = logging.getLogger(__name__)


def search_batch(job: SearchJob, beam_options: Sequence[str] = (), watch: Watch | None = None) -> dict[str, Any]:
    """Runs the job and returns its report, the content of the result's `report.json`.

    A result has a name made of all that decides it, so a job that was killed goes on where it was, and one that is
    done and whose queries and catalog are what they were does nothing again.

    Raises:
        ConfigError: Before anything is sent: a source matches nothing, the catalog lacks a column.
        CatalogBusy: When another run holds the output.
        CatalogError: When the catalog cannot be opened.
        RunFailed: When there is no result. What was embedded and searched is kept for the next run.
    """
    started_at_s = time.time()
    searched = _searched(job)
    output = Store(job.output)
    _check_output(job.output, output)
    with _told_of_output(output), contextlib.ExitStack() as stack:
        _hold(Store(job.catalog), searched.version, stack)
        try:
            stack.enter_context(holding(output))
            output.write(MARK, b'{"made_by": "epithre-beam search-batch"}\n')
            version = new_version(output, None, stack)
            output.write(f"{run_folder(version)}/started", b"")  # a job whose result cannot be kept must not be paid
        except OSError as error:
            raise misplaced("output", output, error) or unwritable(job.output, error) from error
        try:
            report = _Launch(job, searched, output, version, stack).run(beam_options, watch)
        except (SourceError, RunStopped, LedgerLostError, DamagedFileError) as error:
            raise RunFailed(str(error)) from error
        report["seconds"] = max(0.0, time.time() - started_at_s)
        return report


@contextlib.contextmanager
def _told_of_output(output: Store) -> Iterator[None]:
    """What a search shares with a run speaks of a catalog that is written, and of a version; here they are others."""
    try:
        yield
    except (CatalogBusy, RunFailed, StoreError) as error:
        said = str(error).replace(f"catalog {output.url}", f"output {output.url}")
        error.args = (said.replace("nothing was published", "there is no result"),)
        raise


def _searched(job: SearchJob) -> Manifest:
    """The manifest of the version that is searched, which must have what the job asks for."""
    store = Store(job.catalog)
    if job.version is not None:
        manifest = read_manifest(store, job.version)
    else:
        latest = read_latest(store)
        if latest is None:
            raise nothing_published(store)
        manifest = read_manifest(store, *latest[1:])
    kinds = [entry.kind for entry in manifest.indexes]
    for kind in job.search.kinds or ():
        if kind not in kinds:
            raise ConfigError(f"search.kinds must be among those of the catalog, {', '.join(kinds)}, got {kind!r}.")
    if not kinds:
        raise CatalogError(f"{job.catalog} has no assets in {manifest.version}: there is nothing to search.")
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
    except ValueError as error:
        raise ConfigError(f"search.{error}") from error
    if job.queries and manifest.model == UNKNOWN_MODEL:
        raise ConfigError(
            f"{job.catalog} has vectors from elsewhere, and it is not known what made them, so `queries` cannot be "
            "embedded: give `vectors` of the same model, or name it (`index --from … --model NAME`)."
        )
    return manifest


def _check_output(url: str, output: Store) -> None:
    """Refuses a folder that has anything but results: what is old in it is deleted, and a catalog has its own names.

    Raises:
        ConfigError: With what stands there.
    """
    try:
        found = output.fs.ls(output.path(""), detail=False)
    except (FileNotFoundError, NotADirectoryError):
        found = []
    if [str(path).rstrip("/") for path in found] == [output.path("")]:
        raise ConfigError(f"output must be a folder, got {url!r}, which is a file: name another place.")
    names = sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)
    if MARK in names:
        return
    other = next((name for name in names if not name.startswith(".")), None)
    if "versions" in names:
        raise ConfigError(f"output must be a folder of its own, got {url!r}, which is a catalog: name one elsewhere.")
    if other is not None:
        raise ConfigError(
            f"output must be a new or empty folder, or one that search-batch made, got {url!r}, which has {other!r} in "
            "it."
        )


def _hold(store: Store, version: str, stack: contextlib.ExitStack) -> None:
    """Keeps the version from being pruned while it is searched, where this process may write there."""
    try:
        stack.callback(VersionHold(store, version, _HOLD_S).release)
    except (OSError, StoreError) as error:
        _log.warning("%s cannot be written (%s), so %s is not held: do not prune it now.", store.url, error, version)


class _Launch:
    """A bulk search under way in its launcher."""

    def __init__(
        self, job: SearchJob, searched: Manifest, output: Store, version: str, stack: contextlib.ExitStack
    ) -> None:
        self._job = job
        self._searched = searched
        self._output = output
        self._version = version
        self._stack = stack
        self._asked: Counter[str] = Counter()
        self._missing: list[DeadLetter] = []

    def run(self, beam_options: Sequence[str], watch: Watch | None) -> dict[str, Any]:
        job, output = self._job, self._output
        config = parse_query_settings(self._searched.config, job)
        groups, folders = self._vector_groups()
        groups += self._asset_groups()
        lane: LaneSetup | None = None
        plan: Plan | None = None
        if isinstance(config, RunConfig):
            config, lane, plan = self._plan(config)
            groups += [UnitQueries(unit=unit) for unit in plan.units]
        for group in groups:
            self._asked[group.kind] += group.rows
        for letter in self._missing:
            self._asked[letter.kind] += 1
        blocks = cut_blocks(groups, job.block_queries)
        setup = SearchSetup(
            config=config,
            version=self._version,
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
            write_dead_letters(output, block_dead_name(setup.result, "assets"), self._missing)
        tell("planned", queries=dict(self._asked), blocks=len(blocks), searched=self._searched.version)
        self._run_pipeline(setup, lane, plan, blocks, beam_options, watch)
        try:
            return self._publish(setup, plan)
        except OSError as error:
            raise unwritable(job.output, error) from error

    def _plan(self, config: RunConfig) -> tuple[RunConfig, LaneSetup, Plan]:
        """The queries that must be embedded, cut into units, and how that is done."""
        query_type = DIALECTS[config.embed.dialect](config.embed).query_type
        if query_type is not None:  # some providers embed queries differently
            embed = config.embed.model_copy(update={"input_type": query_type})
            config = config.model_copy(update={"embed": embed})
        try:
            comparison = self._stack.enter_context(compare(config))
        except (ConfigError, SourceError) as error:  # what are sources of a run are queries here
            raise type(error)(str(error).replace("sources[", "queries[")) from error
        endpoint = self._stack.enter_context(open_endpoint(config))
        self._check_model(endpoint)
        comparison.clear_base()
        try:
            plan = write_plan(self._output, self._version, config, comparison, endpoint.fingerprint, None)
        except OSError as error:
            raise unwritable(self._job.output, error) from error
        lane = LaneSetup(
            config=config,
            version=self._version,
            plan=plan.name,
            base_url=endpoint.base_url,
            api_key_env=endpoint.api_key_env,
            model_fingerprint=endpoint.fingerprint,
            requests_spent=endpoint.requests,
        )
        return config, lane, replace(plan, carried=())

    def _check_model(self, endpoint: Endpoint) -> None:
        made_by = self._searched.model_fingerprint
        if endpoint.fingerprint != made_by:
            raise CatalogError(
                f"{self._job.catalog} was made by {made_by or self._searched.model}, and {endpoint.base_url} is "
                f"{endpoint.fingerprint or 'no emulator'}: their vectors cannot be compared. Search with the model "
                "that made the catalog, or embed it again."
            )

    def _vector_groups(self) -> tuple[list[QueryGroup], tuple[VectorFolder, ...]]:
        groups: list[QueryGroup] = []
        folders = []
        for number, entry in enumerate(self._job.vectors):
            try:
                survey = survey_folder(entry.files, entry.embedding)
            except ConfigError as error:
                raise ConfigError(str(error).replace("--from", f"vectors[{number}].files")) from error
            if survey.folder.dimension != self._searched.dimension:
                raise ConfigError(
                    f"vectors[{number}].files must have vectors of {self._searched.dimension} dimensions as the "
                    f"catalog has, got {survey.folder.dimension} in {entry.files}."
                )
            folders.append(survey.folder)
            prints = [_fingerprint(survey.folder, i) for i in range(len(survey.folder.files))]
            groups += [VectorGroup(source=number, group=g, fingerprint=prints[g.file]) for g in survey.groups]
        return groups, tuple(folders)

    def _asset_groups(self) -> list[QueryGroup]:
        groups: list[QueryGroup] = []
        for number, entry in enumerate(self._job.assets):
            url = self._job.catalog if entry.catalog == SAME else entry.catalog
            manifest = self._searched
            if entry.catalog != SAME:
                latest = read_latest(Store(url))
                if latest is None:
                    raise CatalogError(f"assets[{number}].catalog: {nothing_published(Store(url))}")
                manifest = read_manifest(Store(url), *latest[1:])
                self._check_comparable(number, url, manifest)
                _hold(Store(url), manifest.version, self._stack)
            ids = None if entry.ids is None else _read_ids(entry.ids, entry.id, number)
            found, missing = find_assets(
                Store(url), manifest, kind=entry.kind, ids=ids, source=number, is_same=entry.catalog == SAME
            )
            groups += found
            self._missing += missing_letters(entry.kind or "", missing, number, url)
            if not found and not missing:
                raise ConfigError(f"assets[{number}] must name assets, and {url} has none of them.")
        return groups

    def _check_comparable(self, number: int, url: str, other: Manifest) -> None:
        ours = self._searched
        for name in ("model", "model_fingerprint", "dimension"):
            if getattr(other, name) != getattr(ours, name):
                raise ConfigError(
                    f"assets[{number}].catalog must be of the same model: {name} of {url} is {getattr(other, name)!r} "
                    f"and of {self._job.catalog} {getattr(ours, name)!r}, so their vectors cannot be compared."
                )

    def _name(self, groups: Sequence[QueryGroup]) -> str:
        """The name of the result: a hash of what is searched, with what, and how."""
        job = self._job
        decides: list[Any] = [job.catalog, self._searched.version, self._searched.nonce, job.block_queries]
        decides += [job.search.model_dump(mode="json"), [group.key for group in groups]]
        decides.append([(letter.kind, letter.asset_id) for letter in self._missing])
        return hashlib.sha256(orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)).hexdigest()[:20]

    def _groups(self) -> tuple[tuple[IndexPart, ...], ...]:
        """The index files that a worker opens together, where they are too large to be opened all."""
        kinds = self._job.search.kinds or [entry.kind for entry in self._searched.indexes]
        parts, limit = index_parts(self._searched, kinds), int(self._job.worker_index_mb * 1_000_000)
        is_small = sum(part.size_bytes for part in parts) <= limit
        return () if is_small else tuple(group_parts(parts, limit))

    def _run_pipeline(
        self,
        setup: SearchSetup,
        lane: LaneSetup | None,
        plan: Plan | None,
        blocks: Sequence[Block],
        beam_options: Sequence[str],
        watch: Watch | None,
    ) -> None:
        def wire(pipeline: Any) -> None:
            import apache_beam as beam

            from ..transforms.embed import EmbedUnits
            from ..transforms.search_steps import SearchAll
            from ..transforms.version import Begin

            parts = [pipeline | "Blocks" >> beam.Create((Begin(), *blocks))]
            if lane is not None and plan is not None:
                ledger = shared_ledger(lane)
                if isinstance(ledger, RedisLedger):
                    ledger.create(spent=lane.requests_spent)
                parts.append(pipeline | "Units" >> beam.Create(plan.units) | "EmbedUnits" >> EmbedUnits(setup=lane))
            _ = parts | "Parts" >> beam.Flatten() | "SearchAll" >> SearchAll(setup=setup)

        run_pipeline(setup.config, self._version, wire, beam_options, watch)

    def _publish(self, setup: SearchSetup, plan: Plan | None) -> dict[str, Any]:
        """Names the result in LATEST.json, unless a guard objects, and removes what no longer counts."""
        output = self._output
        report: dict[str, Any] = orjson.loads(output.read(f"{result_folder(setup.result)}/report.json"))
        lanes = read_progress(output, self._version)
        report["requests"] = sum(lane["meter"]["requests"] for lane in lanes)
        if report["held_back"]:
            return report
        try:
            kept = orjson.loads(output.read(LATEST_RESULT)).get("results", [])
        except (FileNotFoundError, orjson.JSONDecodeError, AttributeError):
            kept = []
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


def _fingerprint(folder: VectorFolder, number: int) -> str:
    fs, path = filesystem(folder.url, {})
    name = folder.files[number]
    return file_fingerprint(fs.info(f"{path.rstrip('/')}/{name}" if name else path))


def _read_ids(table: str, column: str, number: int) -> list[str]:
    source = SourceConfig(kind="text", table=table, id=column, text=column)
    try:
        return [name for part in list_references(source, 0, {}) for name in part.column("asset_id").to_pylist()]
    except (ConfigError, SourceError) as error:
        said = str(error).replace("sources[0].table", "sources[0].ids").replace("sources[0]", f"assets[{number}]")
        raise type(error)(said) from error

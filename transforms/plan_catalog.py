"""The first half of `WriteCatalog`: hold the catalog, write rows where they are, and plan the version."""

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsDict, AsSingleton
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from ..configs.errors import ArgumentError, GateError
from ..index.storage.store import Store
from ..index.versions.layout import KINDS, RUNS, DeadLetter, Reason, run_folder
from ..index.versions.manifest import Manifest, read_manifest
from ..index.versions.shared_lease import end, leave, use, used
from .catalog_elements import CatalogOutcome
from .elements import DeadAsset, as_row, warn_of_empty
from .embedding.engine import EngineSetup, fingerprint_of
from .versions.begun import Begun, PipelineSetup, begin
from .versions.incoming_rows import IncomingPart, IncomingWriter
from .versions.last_step import Outcome
from .versions.pipeline_version import IdPart, NothingToDo, plan_version, write_dead, write_deleted
from .versions.setup import VersionSetup
from .workers.steps import under_one_key
from .write_version import Begin

_NAMESPACE = "epithre_beam"
_IDS_HELD = 20_000


class PlannedCatalog(NamedTuple):
    """The output of `PlanCatalog`."""

    planned: beam.PCollection
    """The settings of the version (`VersionSetup`) and its parts, or a `CatalogOutcome` if there is nothing to do."""
    dead: beam.PCollection[DeadAsset]
    """Assets whose vectors are invalid."""


@dataclass(eq=False, kw_only=True)
class PlanCatalog(beam.PTransform):  # type: ignore[misc]
    """Hold the catalog, write rows where they are, and plan the version when all are there.

    Input: a bounded PCollection of `EmbeddedAsset`. Output: `PlannedCatalog`.
    """

    setup: PipelineSetup
    engine: EngineSetup | None
    """What embeds; it is asked which model it has."""
    dead: beam.PCollection | None
    delete: beam.PCollection | None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, embedded: beam.PCollection) -> Any:
        # A side input: writing, and embedding in the same stage, waits until the catalog is held.
        start = embedded.pipeline | "Start" >> beam.Create([0])
        begun = AsSingleton(start | "Begin" >> beam.ParDo(_BeginVersion(self.setup, self.engine)))
        rows = (
            embedded
            | "GlobalWindow" >> beam.WindowInto(GlobalWindows())
            | "WriteRows" >> beam.ParDo(_WriteRows(self.setup), begun).with_output_types(beam.typehints.Any)
        )
        written = [rows]
        for name, ids, write in (
            ("Dead", self.dead, _WriteIds(self.setup, _letter_of, write_dead)),
            ("Deleted", self.delete, _WriteIds(self.setup, _id_of, write_deleted)),
        ):
            if ids is not None:
                written.append(
                    ids
                    | f"GlobalWindow{name}" >> beam.WindowInto(GlobalWindows())
                    | f"Write{name}" >> beam.ParDo(write, begun).with_output_types(beam.typehints.Any)
                )
        everything = written | "JoinWritten" >> beam.Flatten()
        seen = (
            everything
            | "Seen" >> beam.Filter(is_a, _Seen)
            | "SeenOfKind" >> beam.Map(_pair_of).with_output_types(tuple[str, int])
            | "CountSeen" >> beam.CombinePerKey(sum)
        )
        planned = (
            (
                embedded.pipeline | "Once" >> beam.Create([None]) | "OnceUnderOneKey" >> beam.Map(under_one_key),
                everything | "Parts" >> beam.Filter(is_a, (IncomingPart, IdPart)) | beam.Map(under_one_key),
            )
            | "JoinParts" >> beam.Flatten()
            | "GroupParts" >> beam.GroupByKey()
            | "PlanVersion" >> beam.FlatMap(plan, begun, AsDict(seen), self.setup)
        )
        invalid = rows | "Invalid" >> beam.Filter(is_a, DeadAsset).with_output_types(DeadAsset)
        return PlannedCatalog(planned, invalid)


class _Seen(NamedTuple):
    """Assets that came in, counted apart from what is written of them."""

    kind: str
    assets: int


def is_a(element: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(element, kinds)


def is_group(element: Any) -> bool:
    return not isinstance(element, (VersionSetup, CatalogOutcome))


def _pair_of(seen: _Seen) -> tuple[str, int]:
    return seen.kind, seen.assets


def held(nonce: str, setup: VersionSetup) -> AbstractContextManager[None]:
    return used(setup.run.store(), nonce)


class _Holding(beam.DoFn):  # type: ignore[misc]
    """A DoFn that holds the catalog from its first element until it is torn down."""

    def __init__(self, setup: PipelineSetup) -> None:
        self._setup = setup
        self._holds = False

    def hold(self) -> Store:
        store = self._setup.store
        if not self._holds:
            use(store, self._setup.nonce)
            self._holds = True
        return store

    def teardown(self) -> None:
        if self._holds:
            leave(self._setup.store, self._setup.nonce)
            self._holds = False


class _BeginVersion(_Holding):
    """Hold the catalog and begin a version."""

    def __init__(self, setup: PipelineSetup, engine: EngineSetup | None) -> None:
        super().__init__(setup)
        self._engine = engine

    def process(self, _: int) -> Iterator[Begun]:
        self.hold()
        try:
            fingerprint = None if self._engine is None else fingerprint_of(self._engine)
            yield begin(self._setup, fingerprint)
        except Exception:
            end(self._setup.store, self._setup.nonce)
            raise


class _WriteRows(_Holding):
    """Write the rows of a bundle. What is written is only used if the bundle succeeds."""

    _writer: IncomingWriter | None = None

    def start_bundle(self) -> None:
        self._abandon()  # what a failed bundle left
        self._seen: Counter[str] = Counter()
        self._letters: list[DeadLetter] = []

    def process(self, element: Any, begun: Begun) -> Iterator[DeadAsset]:
        store = self.hold()
        if self._writer is None:
            self._version = begun.run.version
            self._writer = IncomingWriter(store, self._version, begun.metadata, begun.dimension)
        row = as_row(element, "WriteCatalog")
        yield from self._dead(self._writer.add(row, row["embedding"]))
        self._seen[row["kind"]] += 1

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._writer is None:
            return
        part, letters = self._writer.finish()
        self._writer = None
        found: list[Any] = list(self._dead(letters))
        if part is not None:
            Metrics.counter(_NAMESPACE, "vectors_written").inc(sum(part.rows.values()))
            found.append(part)
        if self._letters:
            found.append(write_dead(self._setup.store, self._version, uuid.uuid4().hex, self._letters))
        found += [_Seen(kind, count) for kind, count in sorted(self._seen.items())]
        for element in found:
            yield GlobalWindows.windowed_value_at_end_of_window(element)

    def teardown(self) -> None:
        self._abandon()
        super().teardown()

    def _abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    def _dead(self, letters: Iterable[DeadLetter]) -> Iterator[DeadAsset]:
        for letter in letters:
            Metrics.counter(_NAMESPACE, "dead_assets").inc()
            self._letters.append(letter)
            yield DeadAsset(
                id=letter.asset_id,
                kind=letter.kind,
                uri=letter.uri,
                stage=letter.stage,
                reason=letter.reason.value,
                detail=letter.detail,
                attempts=letter.attempts,
            )


class _WriteIds(_Holding):
    """Write ids that get no row, so that they do not cross a shuffle either."""

    def __init__(
        self, setup: PipelineSetup, convert: Callable[[Any], Any], write: Callable[[Store, str, str, list[Any]], IdPart]
    ) -> None:
        super().__init__(setup)
        self._convert = convert
        self._write = write

    def start_bundle(self) -> None:
        self._ids: list[Any] = []

    def process(self, element: Any, begun: Begun) -> Iterator[IdPart | _Seen]:
        self.hold()
        self._version = begun.run.version
        self._ids.append(self._convert(element))
        if len(self._ids) >= _IDS_HELD:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._ids:
            for element in self._flush():
                yield GlobalWindows.windowed_value_at_end_of_window(element)

    def _flush(self) -> Iterator[IdPart | _Seen]:
        part = self._write(self._setup.store, self._version, uuid.uuid4().hex, self._ids)
        yield part
        if part.is_dead:
            for kind, count in Counter(letter.kind for letter in self._ids).items():
                yield _Seen(kind, count)
        self._ids = []


def _letter_of(element: Any) -> DeadLetter:
    try:
        return DeadLetter(
            asset_id=element.id,
            kind=element.kind,
            uri=element.uri,
            stage=element.stage,
            reason=Reason(element.reason),
            detail=element.detail,
            attempts=element.attempts,
        )
    except (AttributeError, ValueError) as error:
        raise ArgumentError(f"WriteCatalog: dead takes elements of type DeadAsset ({error}).") from error


def _id_of(element: Any) -> tuple[str | None, str]:
    is_pair = isinstance(element, (tuple, list)) and len(element) == 2
    kind, name = element if is_pair else (None, element)
    if not isinstance(name, str) or not name or kind not in (None, *KINDS):
        raise ArgumentError(
            f"WriteCatalog: delete takes ids, or pairs of kind (image or text) and id, got {element!r:.80}."
        )
    return kind, name


def plan(element: tuple[int, Iterable[Any]], begun: Begun, seen: Mapping[str, int], setup: PipelineSetup) -> list[Any]:
    """Plan the version; return its settings and what it is made of, or the outcome if there is nothing to do."""
    parts = [part for part in element[1] if part is not None]
    if written := [part.filled for part in parts if isinstance(part, IncomingPart)]:
        warn_of_empty(begun.metadata, written, "WriteCatalog")
    with used(setup.store, setup.nonce):
        planned = plan_version(begun, parts, seen, setup)
    if isinstance(planned, NothingToDo):
        return [_outcome(planned.manifest, is_published=True, is_new=False)]
    return [planned.setup, Begin(), *planned.groups]


def finish(outcome: Outcome, setup: PipelineSetup, fail_if_held: bool) -> CatalogOutcome:
    """Release the catalog, and say what happened.

    Raises:
        GateError: When a gate holds the version, and this is to be an error.
    """
    manifest = read_manifest(setup.store, outcome.version)
    _clear(setup, outcome.version)
    if outcome.gate_failures and fail_if_held:
        raise GateError(
            f"{setup.url}: version {outcome.version} was written, but not published. {' '.join(outcome.gate_failures)} "
            f"Publish it after a look: epithre-beam versions publish {setup.url} {outcome.version}"
        )
    return _outcome(manifest, is_published=not outcome.gate_failures, is_new=True)


def clear(outcome: CatalogOutcome, setup: PipelineSetup) -> CatalogOutcome:
    """Delete the files of a pipeline that had nothing to do, in a later stage: a repeated plan still needs them."""
    with used(setup.store, setup.nonce):
        setup.store.delete(RUNS)
    end(setup.store, setup.nonce)
    return outcome


def _clear(setup: PipelineSetup, version: str) -> None:
    setup.store.delete(run_folder(version))
    end(setup.store, setup.nonce)


def _outcome(manifest: Manifest, *, is_published: bool, is_new: bool) -> CatalogOutcome:
    counts = manifest.counts
    return CatalogOutcome(
        version=manifest.version,
        is_published=is_published,
        gate_failures=list(manifest.gate_failures) if is_new else [],
        embedded=counts.embedded if is_new else 0,
        reused=counts.reused if is_new else sum(counts.per_kind.values()),
        deleted=counts.deleted if is_new else 0,
        dead=counts.dead,
    )

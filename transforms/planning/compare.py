"""Compare the references of a run with the assets of the current version.

Both are loaded into a temporary database on the local disk, which joins and sorts within a fixed memory, for any number
of references.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...configs import PrepareConfig, SourceConfig
from ...configs.errors import SourceError
from ...configs.schema import stored_prepare
from ...configs.words import of_count
from ...index.storage.store import Store
from ...index.vectors.letters import iterate_letters
from ...index.vectors.units import open_vectors
from ...index.versions.files import check_file
from ...index.versions.layout import DEAD_LETTER_SCHEMA, Reason, metadata_type, version_folder
from ...index.versions.manifest import FileEntry, Manifest
from ..sources.effective import Row, is_of_today, why_again, why_again_dead
from ..sources.files import PassedOver
from ..sources.list_sources import places_of_id
from ..sources.references import UNKNOWN, reference_schema
from .payloads import Payloads

_MEMORY_MB = 128
_BATCH_ROWS = 8192
_INSERT_ROWS = 16_384
DELETED_SCHEMA = pa.schema([("kind", pa.string()), ("content_sha256", pa.string())])
_AGAIN = pa.field("again", pa.string())
_PAYLOAD = ("text", "metadata")
"""Columns of a reference that may be long and are therefore not sorted."""
_NUMBER = pa.field("payload", pa.int64())
_METADATA_HASH = pa.field("metadata_hash", pa.uint64())
_BASE_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("asset_id", pa.string()),
        ("uri", pa.string()),
        ("fingerprint", pa.string()),
        ("content_sha256", pa.string()),
        ("size_bytes", pa.int64()),
        _AGAIN,
        ("file", pa.int32()),
        ("row_group", pa.int32()),
        ("position", pa.int32()),
    ]
)
_PREVIOUS = (pa.field("previous_sha256", pa.string()), _AGAIN)
_ROW = [name for name in Row._fields if name != "kind"]
_TODO = "('new', 'differing', 'again')"
_SAME = f"r.fingerprint <> '{UNKNOWN}' AND {{0}}.fingerprint = r.fingerprint AND {{0}}.uri IS NOT DISTINCT FROM r.uri"

_OTHER = (
    "CASE WHEN b.size_bytes IS NULL OR r.fingerprint = b.fingerprint THEN false "
    "WHEN r.fingerprint LIKE 'sha256:%' THEN r.fingerprint <> 'sha256:' || b.content_sha256 "
    "ELSE coalesce(r.size_bytes <> b.size_bytes, false) END"
)
"""The content certainly differs. A row without a size is an imported vector, whose content is unknown."""


def plan_schema(metadata: Mapping[str, str]) -> pa.Schema:
    """Return the schema of a plan: a reference, the current content of its id, and why it is prepared again, if so."""
    return pa.schema([*reference_schema(metadata), *_PREVIOUS])


def reused_schema(metadata: Mapping[str, str]) -> pa.Schema:
    """Return the schema of the reused rows of a row group, with their current metadata."""
    struct = metadata_type(metadata)
    return pa.schema(
        [
            pa.field("position", pa.int32(), nullable=False),
            pa.field("asset_id", pa.string(), nullable=False),
            *([] if struct is None else [pa.field("metadata", struct)]),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Number of assets by kind and state in a listing. Touched and moved assets are known only after reading."""

    assets: Mapping[str, int]
    size_bytes: Mapping[str, int]
    """As listed; unknown sizes are not counted."""
    unchanged: Mapping[str, int]
    """Assets with the same id, URI and fingerprint: the vector is reused without reading the asset."""
    dead: Mapping[str, int]
    """Unchanged assets with a permanent failure, which are not retried."""
    new: Mapping[str, int]
    """Ids that the current version does not have."""
    differing: Mapping[str, int]
    """Ids of the current version with another fingerprint or URI, or with a transient failure."""
    deleted: Mapping[str, int]
    """Rows of the current version that are not listed any more."""
    other_metadata: int
    """Unchanged assets with other metadata."""
    gone: Mapping[str, int] = field(default_factory=dict)
    """As `deleted`, but counted also when no vector of the current version is reused."""
    again: Mapping[str, int] = field(default_factory=dict)
    """Unchanged assets that may be prepared differently now: they are read, and sent if the preparation differs."""
    again_because: Mapping[str, int] = field(default_factory=dict)
    """The same, by reason."""

    @property
    def todo(self) -> int:
        """Number of assets that must be read."""
        return sum(self.new.values()) + sum(self.differing.values()) + sum(self.again.values())

    @property
    def is_nothing(self) -> bool:
        """Whether a run would write the same rows again."""
        return not (self.todo or sum(self.deleted.values()) or self.other_metadata)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The reused rows of one row group of the current version."""

    kind: str
    file: str
    """Name of the file of vectors in the store."""
    group: int
    rows: pa.Table = field(repr=False)
    """Columns of `reused_schema`, sorted by position."""


class Overlap(NamedTuple):
    """The overlap of a listing and the current version."""

    listed: int
    rows: int
    """Rows of the current version."""
    shared: int
    """Rows whose id is listed and whose content may be the same."""


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """An id that is not unique within its kind, with two of its places."""

    kind: str
    asset_id: str
    times: int
    ids: int
    """Number of duplicate ids."""
    sources: tuple[int, ...]
    uris: tuple[str | None, ...]


class Comparison:
    """The references of a run and the assets of the current version, in a temporary file. Use it in a `with` block."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self.metadata_types = self._types = dict(metadata)
        self.passed_over = PassedOver()
        """Files in the folders of the sources that are skipped."""
        self._files: list[str] = []
        self._prepare: tuple[PrepareConfig, PrepareConfig] | None = None
        """The settings of the base, and the current settings."""
        self._stack = contextlib.ExitStack()
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="epithre-beam-")))
        settings: dict[str, Any] = {
            "memory_limit": f"{_MEMORY_MB}MB",
            "temp_directory": str(folder / "spilled"),
            "threads": 2,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        self._db = duckdb.connect(str(folder / "references.duckdb"), config=settings)
        self._stack.callback(self._db.close)
        listed = reference_schema(metadata)
        self._payloads = Payloads(folder / "payloads.arrow", pa.schema([f for f in listed if f.name in _PAYLOAD]))
        self._stack.callback(self._payloads.close)
        self._db.execute("SET TimeZone = 'UTC'")
        self._db.execute("PRAGMA disable_checkpoint_on_shutdown")  # the file is deleted
        self._db.execute("SET enable_progress_bar = false")  # it would be mixed into JSON on the output
        compared = [field for field in listed if field.name not in _PAYLOAD]
        self._create("listed", self._with_hash(pa.schema([*compared, _NUMBER])))
        self.clear_base()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add_references(self, table: pa.Table) -> None:
        """Add references, with the columns of `reference_schema`."""
        numbers = pa.array(self._payloads.add(table))
        self._insert("listed", table.drop_columns(["text"]).append_column(_NUMBER, numbers))

    def check_ids(self, sources: Sequence[SourceConfig], label: str = "sources") -> None:
        """Raise SourceError when two assets of a kind have the same id. The message names two of their rows or files.

        Args:
            sources: The sources of the references.
            label: The name of the sources in messages.
        """
        duplicate = self.duplicate()
        if duplicate is None:
            return
        places: dict[str, None] = {}
        for position, uri in zip(duplicate.sources, duplicate.uris, strict=True):
            source = sources[position]
            rows = places_of_id(source, duplicate.asset_id, 2) if source.table else []
            places |= {f"{label}[{position}] ({place})": None for place in rows or [uri or source.table or ""]}
        where = " and ".join(list(places)[:2])
        raise SourceError(
            f"{label}: an id must be unique within its kind, but {duplicate.kind} {duplicate.asset_id!r} occurs "
            f"{duplicate.times} times, in {where} ({of_count(duplicate.ids, 'duplicate id')}). Nothing was sent."
        )

    def duplicate(self) -> Duplicate | None:
        """Return the first duplicate id within a kind; None when there is none."""
        found = self._db.execute(
            "SELECT kind, asset_id, count(*), count(*) OVER () FROM listed GROUP BY kind, asset_id HAVING count(*) > 1 "
            "ORDER BY kind, asset_id LIMIT 1"
        ).fetchall()
        if not found:
            return None
        kind, asset_id, times, ids = found[0]
        places = self._db.execute(
            "SELECT source, uri FROM listed WHERE kind = ? AND asset_id = ? ORDER BY source, uri LIMIT 2",
            [kind, asset_id],
        ).fetchall()
        sources, uris = zip(*places, strict=True)
        return Duplicate(kind=kind, asset_id=asset_id, times=times, ids=ids, sources=sources, uris=uris)

    def clear_base(self) -> None:
        """Remove the base, so that every reference is new."""
        self._clear()

    def _clear(self, *, is_reusable: bool = True) -> None:
        self._files = []
        self._is_reusable = is_reusable
        self._create("base", self._with_hash(_BASE_SCHEMA))
        self._create("failed", DEAD_LETTER_SCHEMA.append(pa.field("is_transient", pa.bool_())).append(_AGAIN))
        self._db.execute(
            "CREATE OR REPLACE VIEW compared AS SELECT r.*, b.file, b.row_group, b.position, "
            "b.content_sha256 AS previous_sha256, f.stage, f.reason, f.detail, f.attempts, "
            "coalesce(b.again, f.again) AS again, "
            f"CASE WHEN NOT {is_reusable} THEN 'new' "
            f"WHEN b.position IS NOT NULL AND {_SAME.format('b')} "
            "THEN CASE WHEN b.again IS NULL THEN 'unchanged' ELSE 'again' END "
            f"WHEN f.asset_id IS NOT NULL AND NOT f.is_transient AND {_SAME.format('f')} "
            "THEN CASE WHEN f.again IS NULL THEN 'dead' ELSE 'again' END "
            "WHEN b.position IS NULL AND f.asset_id IS NULL THEN 'new' ELSE 'differing' END AS fate"
            + (", b.metadata_hash IS DISTINCT FROM r.metadata_hash AS has_other_metadata" if self._types else "")
            + " FROM listed r LEFT JOIN base b USING (kind, asset_id) LEFT JOIN failed f USING (kind, asset_id)"
        )
        self._db.execute(
            "CREATE OR REPLACE VIEW gone AS SELECT b.kind, b.content_sha256 "
            "FROM base b ANTI JOIN listed USING (kind, asset_id)"
        )

    def set_base(
        self,
        store: Store,
        manifest: Manifest,
        *,
        damaged: Sequence[str] = (),
        prepare: PrepareConfig | None = None,
        retry_dead: bool = False,
        is_reusable: bool = True,
    ) -> list[str]:
        """Compare with a version.

        Args:
            store: The catalog.
            manifest: The manifest of the version.
            damaged: Names, in the store, of files of vectors whose rows must not be used.
            prepare: The current prepare settings; absent: those of the version.
            retry_dead: Whether to retry dead letters whatever their reason.
            is_reusable: Whether its vectors may be reused. If not, every reference counts as new.

        Returns:
            The files of vectors that cannot be read, including `damaged`. Their assets count as new.
        """
        self._clear(is_reusable=is_reusable)
        bad = list(damaged)
        self._prepare = None
        if prepare is not None and is_reusable:
            self._prepare = (stored_prepare(manifest.config) or prepare, prepare)
        prefix = version_folder(manifest.version)
        for entry in manifest.files:
            name = f"{prefix}/{entry.name}"
            if entry.name.startswith("dead_letters/") and is_reusable and not retry_dead:
                self._add_failed(store, manifest, entry)
            if not entry.name.startswith("vectors/") or name in bad:
                continue
            self._files.append(name)
            try:
                if store.size(name) != entry.size_bytes:
                    raise OSError("its size differs from the manifest")
                rows = self._add_rows(store, manifest, entry, len(self._files) - 1)
                if rows != entry.rows:
                    raise OSError("its number of rows differs from the manifest")
            except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError):
                self._db.execute("DELETE FROM base WHERE file = ?", [len(self._files) - 1])
                bad.append(name)
        return bad

    def changes(self) -> Changes:
        sums: dict[str, dict[str, int]] = {f: {} for f in ("unchanged", "dead", "new", "differing", "again")}
        assets: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for kind, fate, count, size in self._db.execute(
            "SELECT kind, fate, count(*), coalesce(sum(size_bytes), 0)::BIGINT FROM compared GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            sums[fate][kind] = count
            assets[kind] = assets.get(kind, 0) + count
            sizes[kind] = sizes.get(kind, 0) + size
        gone = dict(self._db.execute("SELECT kind, count(*) FROM gone GROUP BY ALL ORDER BY ALL").fetchall())
        other = 0
        if self._types:
            other = self._number("SELECT count(*) FROM compared WHERE fate = 'unchanged' AND has_other_metadata")
        because = self._db.execute(
            "SELECT again, count(*) FROM compared WHERE fate = 'again' GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        return Changes(
            assets=assets,
            size_bytes=sizes,
            **sums,
            deleted=gone if self._is_reusable else {},
            other_metadata=other,
            gone=gone,
            again_because=dict(because),
        )

    def overlap(self) -> Overlap:
        """Return the overlap of the listing and the version. If a content is unknown, the id decides."""
        return Overlap(
            listed=self._number("SELECT count(*) FROM listed"),
            rows=self._number("SELECT count(*) FROM base"),
            shared=self._number(
                f"SELECT count(*) FROM listed r JOIN base b USING (kind, asset_id) WHERE NOT ({_OTHER})"
            ),
        )

    def replaced(self) -> dict[str, tuple[int, int]]:
        """Return, by kind, the rows of the version whose content certainly differs, and those where it may differ."""
        is_open = f"NOT ({_OTHER}) AND NOT ({_SAME.format('b')}) AND r.fingerprint <> 'sha256:' || b.content_sha256"
        rows = self._db.execute(
            f"SELECT kind, count(*) FILTER ({_OTHER}), count(*) FILTER ({is_open}) "
            "FROM listed r JOIN base b USING (kind, asset_id) WHERE b.size_bytes IS NOT NULL GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        return {kind: (certain, possible) for kind, certain, possible in rows}

    def todo(self) -> Iterator[pa.Table]:
        """Yield the references to read, by kind, size, fingerprint and id, so that possible copies are adjacent."""
        yield from self._select_with_payload(
            "SELECT {} "
            f"FROM compared WHERE fate IN {_TODO} ORDER BY kind, size_bytes NULLS LAST, fingerprint, asset_id",
            plan_schema(self._types),
        )

    def known_texts(self) -> set[str]:
        """Return the fingerprints of the texts to read whose content the current version has: they are not sent."""
        if not self._is_reusable:
            return set()
        rows = self._db.execute(
            f"SELECT DISTINCT fingerprint FROM compared c WHERE fate IN {_TODO} AND uri IS NULL "
            "AND EXISTS (FROM base b WHERE b.kind = c.kind AND 'sha256:' || b.content_sha256 = c.fingerprint)"
        ).fetchall()
        return {fingerprint for (fingerprint,) in rows}

    def likely_moved(self) -> int:
        """Return the number of new files that are likely moved or copied: the current version has their fingerprint."""
        if not self._is_reusable:
            return 0
        return self._number(
            f"SELECT count(*) FROM compared c WHERE fate = 'new' AND uri IS NOT NULL AND fingerprint <> '{UNKNOWN}' "
            "AND EXISTS (FROM base b WHERE b.kind = c.kind AND b.fingerprint = c.fingerprint)"
        )

    def kept(self) -> Iterator[Kept]:
        """Yield the unchanged rows, one row group of the current version at a time, in its order."""
        schema = reused_schema(self._types)
        places = pa.schema([("kind", pa.string()), ("file", pa.int32()), ("row_group", pa.int32()), *schema])
        held: list[pa.Table] = []
        at: tuple[int, int] | None = None
        for table in self._select_with_payload(
            "SELECT {} FROM compared WHERE fate = 'unchanged' ORDER BY file, row_group, position", places
        ):
            files, groups = (table.column(name).to_numpy() for name in ("file", "row_group"))
            cuts = np.flatnonzero((files[1:] != files[:-1]) | (groups[1:] != groups[:-1])) + 1
            for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(table)], strict=True):
                place = int(files[start]), int(groups[start])
                if held and place != at:
                    yield self._group(held, schema)
                    held = []
                at = place
                held.append(table.slice(start, end - start))
        if held:
            yield self._group(held, schema)

    def dead_letters(self) -> Iterator[pa.Table]:
        """Yield the dead letters that are reused."""
        names = ", ".join(DEAD_LETTER_SCHEMA.names)
        yield from self._select(
            f"SELECT {names} FROM compared WHERE fate = 'dead' ORDER BY kind, asset_id", DEAD_LETTER_SCHEMA
        )

    def deleted_contents(self) -> Iterator[pa.Table]:
        """Yield kind and content of the rows whose id is not listed any more."""
        yield from self._select("SELECT DISTINCT kind, content_sha256 FROM gone ORDER BY ALL", DELETED_SCHEMA)

    def _group(self, held: list[pa.Table], schema: pa.Schema) -> Kept:
        rows = pa.concat_tables(held)
        first = rows.slice(0, 1).to_pylist()[0]
        file = self._files[first["file"]]
        return Kept(
            kind=first["kind"], file=file, group=first["row_group"], rows=rows.select(schema.names).cast(schema)
        )

    def _add_rows(self, store: Store, manifest: Manifest, entry: FileEntry, number: int) -> int:
        names = [*_BASE_SCHEMA.names, *(["metadata"] if self._types else [])]
        columns = ["asset_id", "kind", "uri", "fingerprint", "content_sha256", *_ROW]
        with_metadata = bool(self._types) and manifest.metadata_types == self._types
        rows = 0
        with store.open_read(self._files[number]) as handle:
            file = open_vectors(handle, manifest, entry)
            for groups in _together([file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]):
                numbers, sizes = zip(*groups, strict=True)
                table = file.read_row_groups(
                    list(numbers),
                    columns=[*columns, *(["metadata"] if with_metadata else [])],
                    use_threads=False,
                )
                for field_, values in (
                    ("file", np.full(len(table), number)),
                    ("row_group", np.repeat(numbers, sizes)),
                    ("position", np.concatenate([np.arange(size) for size in sizes])),
                ):
                    table = table.append_column(field_, pa.array(values, pa.int32()))
                table = table.append_column(_AGAIN, self._why_again(table))
                if self._types and not with_metadata:
                    table = table.append_column("metadata", pa.nulls(len(table), metadata_type(self._types)))
                self._insert("base", table.select(names))
                rows += len(table)
        return rows

    def _why_again(self, table: pa.Table) -> pa.Array:
        """Return the reason why each row is prepared again; null if its preparation is unchanged."""
        found: list[str | None] = [None] * len(table)
        if self._prepare is not None:
            rows = table.select(["kind", *_ROW])
            for position in _in_doubt(table, *self._prepare).tolist():
                (row,) = rows.slice(position, 1).to_pylist()
                found[position] = why_again(Row(**row), *self._prepare)
        return pa.array(found, pa.string())

    def _add_failed(self, store: Store, manifest: Manifest, entry: FileEntry) -> None:
        """Add the dead letters of the current version. If their file is damaged, their assets are retried."""
        if check_file(store, manifest.version, entry):
            return
        with store.open_read(f"{version_folder(manifest.version)}/{entry.name}") as handle:
            try:
                for table in iterate_letters(handle, _BATCH_ROWS):
                    reasons = [Reason(reason) for reason in table.column("reason").to_pylist()]
                    transient = pa.array([reason.is_transient for reason in reasons])
                    again = pa.array([self._why_again_dead(reason, manifest) for reason in reasons], pa.string())
                    self._insert("failed", table.append_column("is_transient", transient).append_column(_AGAIN, again))
            except pa.ArrowInvalid:
                self._db.execute("DELETE FROM failed")

    def _why_again_dead(self, reason: Reason, manifest: Manifest) -> str | None:
        if self._prepare is None:
            return None
        return why_again_dead(reason, manifest.prepare_rules, *self._prepare)

    def _with_hash(self, schema: pa.Schema) -> pa.Schema:
        return schema.append(_METADATA_HASH) if self._types else schema

    def _create(self, name: str, schema: pa.Schema) -> None:
        self._db.register("empty", schema.empty_table())
        self._db.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM empty")
        self._db.unregister("empty")

    def _insert(self, name: str, table: pa.Table) -> None:
        columns = [column for column in table.column_names if column != "metadata"]
        if len(columns) < table.num_columns:
            columns.append(f"hash(metadata) AS {_METADATA_HASH.name}")
        with _memory_errors():
            self._db.register("part", table)
            self._db.execute(f"INSERT INTO {name} BY NAME SELECT {', '.join(columns)} FROM part")
            self._db.unregister("part")

    def _select_with_payload(self, query: str, schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield rows of `compared` with their payload columns. `{}` in the query is replaced by the other columns."""
        payload = [name for name in schema.names if name in _PAYLOAD]
        if not payload:
            yield from self._select(query.format(", ".join(map(_shown, schema.names))), schema)
            return
        sorted_ = pa.schema([*(field for field in schema if field.name not in payload), _NUMBER])
        for table in self._select(query.format(", ".join(map(_shown, sorted_.names))), sorted_):
            rest = self._payloads.take(table.column(_NUMBER.name).to_numpy())
            columns = [rest.column(name) if name in payload else table.column(name) for name in schema.names]
            yield pa.table(columns, schema=schema)

    def _select(self, query: str, schema: pa.Schema) -> Iterator[pa.Table]:
        # A separate cursor, because another query on the same cursor would discard the remaining rows.
        with _memory_errors(), self._db.cursor() as cursor:
            for batch in cursor.sql(query).to_arrow_reader(_BATCH_ROWS):
                yield pa.Table.from_batches([batch]).cast(schema)

    def _number(self, query: str) -> int:
        return int(self._db.execute(query).fetchall()[0][0])


def _shown(name: str) -> str:
    """Return the SQL of a plan column. The reason to prepare again applies only to otherwise unchanged assets."""
    return "CASE WHEN fate = 'again' THEN again END AS again" if name == _AGAIN.name else name


def _in_doubt(table: pa.Table, before: PrepareConfig, now: PrepareConfig) -> npt.NDArray[np.int64]:
    """Return the rows that must be checked one by one; with unchanged settings, few or none."""
    if before != now:
        return np.arange(len(table))
    prepared = table.column("prepared")
    if prepared.null_count == len(prepared):
        return np.empty(0, np.int64)
    is_old = pc.and_(pc.is_valid(prepared), pc.invert(pc.ends_with(prepared, is_of_today())))
    return np.asarray(pc.indices_nonzero(is_old), np.int64)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Convert an out-of-memory error of the database to a SourceError, because the sources cause it."""
    try:
        yield
    except duckdb.Error as error:
        if not re.search(r"(?i)out of memory|allocate|pin block", str(error)):
            raise
        raise SourceError(
            f"sources: comparing the texts needs more than {_MEMORY_MB} MB of memory. Shorten the texts, or distribute "
            "the sources over several jobs."
        ) from error


def _together(sizes: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Yield lists of row groups as (number, rows), each list large enough for one INSERT."""
    held: list[tuple[int, int]] = []
    for number, size in enumerate(sizes):
        held.append((number, size))
        if sum(rows for _, rows in held) >= _INSERT_ROWS:
            yield held
            held = []
    if held:
        yield held

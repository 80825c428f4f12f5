"""Embed one unit (a unit of work): from its references to its file of vectors.

This module does not use Beam. A unit is a journal around `AssetEmbedder`: what is finished is not done again.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...index.storage.store import Store
from ...index.vectors.units import (
    UnitFooter,
    UnitRecord,
    read_unit,
    read_unit_dead_letters,
    read_unit_footer,
    write_unit,
)
from ...index.versions.layout import DeadLetter, Reason, asset_fields
from ..planning.plan import Unit
from ..sources.references import Reference
from .assets import AssetEmbedder, Facts, Origin, cut_batches, row_of

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class UnitContext:
    """Resources that the units of one lane share."""

    store: Store
    embedder: AssetEmbedder
    embedding_config_hash: str
    """The embedding config hash of the vectors."""
    note_progress: Callable[[int, int], None]
    """Called with (finished assets, dead letters among them) whenever assets are finished."""

    def tried_again(self, footer: UnitFooter) -> int:
        """Return the number of dead letters of a finished unit that are retried."""
        return footer.dead if self.embedder.embed.retry_dead else footer.transient

    async def in_thread(self, function: Callable[[], _T]) -> _T:
        return await self.embedder.in_thread(function)


@dataclass
class _Work:
    """A unit in progress: the results by the position of their references."""

    references: Sequence[Reference]
    vectors: npt.NDArray[np.float32]
    note_progress: Callable[[int, int], None]
    rows: dict[int, Facts] = field(default_factory=dict)
    letters: dict[int, DeadLetter] = field(default_factory=dict)
    deduplicated: int = 0
    reused_rows: int = 0

    def embedded(self, position: int, facts: Facts, vector: npt.NDArray[np.float32], origin: Origin) -> None:
        self.vectors[position] = vector
        self.rows[position] = facts
        self.deduplicated += origin == "copy"
        self.reused_rows += origin == "reused"
        self.note_progress(1, 0)

    def dead(self, position: int, letter: DeadLetter) -> None:
        self.letters[position] = letter
        if letter.reason is not Reason.NOT_SENT:
            self.note_progress(1, 1)


async def embed_unit(unit: Unit, references: Sequence[Reference], context: UnitContext) -> UnitRecord:
    """Embed a unit, or reuse it if it is finished.

    Of a finished unit, only references with a transient failure are retried; its existing vectors are kept.

    Raises:
        ApiError: When the API is not available.
    """
    embedder = context.embedder
    footer = await context.in_thread(lambda: read_unit_footer(context.store, unit.name))
    if footer is not None and not context.tried_again(footer):
        context.note_progress(unit.references, footer.dead)
        return _record(unit, footer, reused=True)
    if embedder.client.is_spent:
        return _left(unit, footer, context)
    old: pa.Table | None = None
    todo = list(range(len(references)))
    resolved: list[DeadLetter] = []
    if footer is not None:
        old = await context.in_thread(lambda: read_unit(context.store, unit.name))
        letters = await context.in_thread(lambda: read_unit_dead_letters(context.store, unit.name))
        again = {letter.asset_id for letter in letters if embedder.embed.retry_dead or letter.reason.is_transient}
        resolved = [letter for letter in letters if letter.asset_id not in again]
        todo = [i for i in todo if references[i].asset_id in again]
        context.note_progress(unit.references - len(todo), len(resolved))
    work = _Work(
        references=references,
        vectors=np.empty((len(references), embedder.embed.dimension), np.float32),
        note_progress=context.note_progress,
    )
    try:
        async with asyncio.TaskGroup() as group:
            for batch in cut_batches([(i, references[i]) for i in todo], embedder.embed, embedder.prepare):
                group.create_task(embedder.embed_batch(batch, work))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    dead = [*resolved, *(work.letters[i] for i in sorted(work.letters))]
    not_sent = sum(letter.reason is Reason.NOT_SENT for letter in work.letters.values())
    if not_sent == len(todo):
        return _left(unit, footer, context)
    before = footer or UnitFooter(rows=0)
    deduplicated, reused_rows = work.deduplicated + before.deduplicated, work.reused_rows + before.reused_rows
    rows = await context.in_thread(lambda: _write(unit, work, old, dead, deduplicated, reused_rows, context))
    counts = UnitFooter(rows=rows, dead=len(dead) - not_sent, deduplicated=deduplicated, reused_rows=reused_rows)
    return _record(unit, counts, reused=False, not_sent=not_sent)


def _left(unit: Unit, footer: UnitFooter | None, context: UnitContext) -> UnitRecord:
    """Return the record of a unit that stays unchanged because the run reached its spending limit."""
    if footer is None:
        return _record(unit, UnitFooter(rows=0), reused=True, not_sent=unit.references)
    left = context.tried_again(footer)
    return _record(unit, replace(footer, dead=footer.dead - left), reused=True, not_sent=left)


def _record(unit: Unit, counts: UnitFooter, *, reused: bool, not_sent: int = 0) -> UnitRecord:
    return UnitRecord(
        unit=unit.name,
        kind=unit.kind,
        row_group=unit.row_group,
        rows=counts.rows,
        dead=counts.dead,
        deduplicated=counts.deduplicated,
        reused_rows=counts.reused_rows,
        not_sent=not_sent,
        reused=reused,
    )


def _write(
    unit: Unit,
    work: _Work,
    old: pa.Table | None,
    dead: Sequence[DeadLetter],
    deduplicated: int,
    reused_rows: int,
    context: UnitContext,
) -> int:
    """Write the unit's file, with rows in the order of its references, and return the number of rows."""
    schema = pa.schema(asset_fields())
    positions = sorted(work.rows)
    assets = pa.Table.from_pylist([row_of(work.references[i], work.rows[i]) for i in positions], schema=schema)
    vectors = work.vectors if len(positions) == len(work.vectors) else work.vectors[positions]
    if old is not None:
        order = {reference.asset_id: i for i, reference in enumerate(work.references)}
        dimension = vectors.shape[1]
        kept = np.asarray(old.column("embedding").combine_chunks().flatten(), np.float32).reshape(-1, dimension)
        assets = pa.concat_tables([old.select(schema.names).cast(schema), assets])
        sequence = np.argsort([order[name] for name in assets.column("asset_id").to_pylist()], kind="stable")
        assets, vectors = assets.take(sequence), np.concatenate([kept, vectors])[sequence]
    write_unit(
        context.store,
        unit.name,
        assets,
        vectors,
        dead,
        deduplicated=deduplicated,
        reused_rows=reused_rows,
        embedding_config_hash=context.embedding_config_hash,
    )
    return len(vectors)

"""Find out before a version is written whether it would equal the current one."""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from ...index.vectors.letters import iterate_letters
from ...index.vectors.units import UnitRecord, read_dead_letter_table
from ...index.versions.manifest import read_manifest
from ..planning.plan import reused_dead_name
from .reused_rows import iterate_dead_letters
from .setup import VersionSetup


def is_as_before(records: Sequence[UnitRecord], setup: VersionSetup) -> bool:
    """Whether a run changes nothing: all it has read failed again, each asset for the same reason as before.

    Args:
        records: The units of the run.
        setup: The settings of the version.
    """
    changes, base = setup.plan.changes, setup.plan.base
    if not setup.may_stay or base is None or any(record.rows for record in records):
        return False
    if sum(changes.deleted.values()) or sum(changes.again.values()) or changes.other_metadata:
        return False
    if any(record.not_sent for record in records):
        return False
    store = setup.run.store()
    before = _letters(iterate_dead_letters(store, read_manifest(store, base)))
    now = _letters(read_dead_letter_table(store, record.unit) for record in records if record.dead)
    if sum(changes.dead.values()):
        with store.open_read(reused_dead_name(setup.run.version)) as file:
            now |= _letters(iterate_letters(file))
    return before == now


def _letters(tables: Iterable[pa.Table]) -> set[tuple[str | None, ...]]:
    # The fingerprint too: if that of a new file were not stored, every run would read the file again.
    names = ("kind", "asset_id", "reason", "fingerprint")
    return {letter for table in tables for letter in zip(*(table.column(n).to_pylist() for n in names), strict=True)}

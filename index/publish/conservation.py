"""Assets in = vectors + dead letters: what is checked before anything is published."""

from collections.abc import Mapping, Sequence

from ...configs.errors import CatalogError
from ..vectors.shards import ShardRecord
from ..vectors.units import ReusedGroup, UnitRecord


def check_conservation(
    planned: Mapping[str, int],
    records: Sequence[UnitRecord],
    shards: Sequence[ShardRecord],
    reused_groups: Sequence[ReusedGroup] = (),
    reused_dead: Mapping[str, int] | None = None,
    imported: Mapping[str, int] | None = None,
) -> None:
    """Assets in = vectors + dead letters, for each kind, old ones and new ones together.

    Args:
        planned: Assets by kind.
        records: Of the units.
        shards: The files that were written.
        reused_groups: Rows of the version before.
        reused_dead: Its dead letters that are taken over, by kind.
        imported: Rows of vectors from elsewhere, by kind; the shards say which of them are dead.

    Raises:
        CatalogError: When an asset was lost or doubled on the way; nothing may be published then.
    """
    old_dead = reused_dead or {}
    kinds = {*planned, *old_dead, *(r.kind for r in records), *(s.kind for s in shards), *(g.kind for g in reused_groups)}
    for kind in sorted(kinds):
        assets = planned.get(kind, 0)
        units = [record for record in records if record.kind == kind]
        rows = sum(u.rows for u in units) + sum(group.rows for group in reused_groups if group.kind == kind)
        rejected = sum(s.dead for s in shards if s.kind == kind)
        rows += (imported or {}).get(kind, 0) - rejected
        dead = sum(u.dead for u in units) + old_dead.get(kind, 0) + rejected
        stored = sum(s.file.rows or 0 for s in shards if s.kind == kind)
        if assets != rows + dead or stored != rows:
            raise CatalogError(
                f"{assets} {kind} assets must become as many vectors and dead letters, got {rows} vectors "
                f"({stored} of them stored) and {dead} dead letters: nothing was published, please report this."
            )

"""The check before publishing that assets in = vectors + dead letters."""

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
    """Check that assets in = vectors + dead letters for each kind, over new and reused assets.

    Args:
        planned: Number of assets by kind.
        records: Records of the units.
        shards: Records of the written files.
        reused_groups: Rows reused from the previous version.
        reused_dead: Number of dead letters reused from the previous version, by kind.
        imported: Number of imported vectors by kind. The shards count the rejected ones as dead.

    Raises:
        CatalogError: If an asset was lost or duplicated. Nothing may be published then.
    """
    old_dead = reused_dead or {}
    kinds = {
        *planned,
        *old_dead,
        *(r.kind for r in records),
        *(s.kind for s in shards),
        *(g.kind for g in reused_groups),
    }
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
                f"{assets} {kind} assets must give {assets} vectors and dead letters, got {rows} vectors "
                f"({stored} stored) and {dead} dead letters. Nothing was published. Please report this bug."
            )

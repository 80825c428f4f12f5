"""Records of units, as a run leaves them."""

from epithre_beam.index.vectors.units import UnitRecord


def unit(kind: str, name: str, rows: int, dead: int = 0) -> UnitRecord:
    return UnitRecord(unit=name, kind=kind, row_group=0, rows=rows, dead=dead, deduplicated=0, reused=False)

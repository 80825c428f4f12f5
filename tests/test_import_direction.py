"""Imports run one way: configs ← index, configs ← transforms/epithre, both ← transforms ← pipelines."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "configs": {"configs"},
    "index": {"configs", "index"},
    "transforms/epithre": {"configs", "transforms/epithre"},
    "transforms": {"configs", "index", "transforms/epithre", "transforms"},
    "pipelines": {"configs", "index", "transforms/epithre", "transforms", "pipelines"},
}


def room_of(parts: tuple[str, ...]) -> str:
    return "transforms/epithre" if parts[:2] == ("transforms", "epithre") else parts[0]


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a module's relative imports reach; absolute ones of our own are not allowed in the folders."""
    package = path.relative_to(ROOT).parts[:-1]
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("epithre_beam") for alias in node.names), path
        if isinstance(node, ast.ImportFrom):
            assert node.level or not (node.module or "").startswith("epithre_beam"), path
            if node.level:
                base = package[: len(package) - (node.level - 1)]
                names = [(*base, *node.module.split("."))] if node.module else [(*base, a.name) for a in node.names]
                rooms |= {room_of(parts) for parts in names}
    return rooms


@pytest.mark.parametrize(
    "path",
    sorted(p for folder in ("configs", "index", "transforms", "pipelines") for p in (ROOT / folder).rglob("*.py")),
)
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path.relative_to(ROOT).parts)
    assert imported_rooms(path) <= MAY_IMPORT[room]

"""Each room imports only rooms above it, as drawn in ARCHITECTURE.md, and there are no import cycles."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "index", "transforms", "pipelines")
TOPS = ("index", "transforms", "pipelines")
"""Folders whose top-level modules are a separate room, next to the rooms below them."""
MODULES = {
    path.relative_to(ROOT).with_suffix("").parts
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
}


def room_of(parts: tuple[str, ...]) -> str:
    """Return the first two folders of a module; `index` for the `__init__` of a folder."""
    if parts[0] == "configs":
        return "configs"
    folders = parts[:-1] if parts in MODULES else parts
    return "/".join(folders[:2])


def imported_modules(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Return the targets of a module's relative imports. Absolute imports of this library are not allowed."""
    path = ROOT.joinpath(*parts).with_suffix(".py")
    package = parts[:-1]
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("epithre_beam") for alias in node.names), path
        if isinstance(node, ast.ImportFrom):
            assert node.level or not (node.module or "").startswith("epithre_beam"), path
            if node.level:
                base = package[: len(package) - (node.level - 1)]
                whole = (*base, *(node.module or "").split(".")) if node.module else base
                if whole and whole[0] in FOLDERS:  # otherwise it is the package itself, which imports no room
                    yield from {(*whole, a.name) if (*whole, a.name) in MODULES else whole for a in node.names}


def imports_between_rooms() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for parts in MODULES | {(folder, "__init__") for folder in TOPS}:
        here = parts[0] if parts[-1] == "__init__" else room_of(parts)
        found[here] |= {room_of(other) for other in imported_modules(parts)} - {here}
    return dict(found)


def drawn() -> dict[str, set[str]]:
    """Return the graph in ARCHITECTURE.md: one room per line, with the rooms that it imports after the arrow."""
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    (block,) = re.findall(r"<!-- rooms -->\n```\n(.*?)```", text, re.DOTALL)
    graph: dict[str, set[str]] = {}
    for line in block.splitlines():
        if line.startswith(" "):
            graph[next(reversed(graph))] |= set(line.split())
        else:
            room, _, others = line.partition("→")
            graph[room.strip()] = set(others.split())
    return graph


def test_room_imports_match_architecture() -> None:
    found, expected = imports_between_rooms(), drawn()
    assert {room: sorted(others) for room, others in sorted(found.items())} == {
        room: sorted(others) for room, others in sorted(expected.items())
    }


def test_rooms_import_only_rooms_above_them() -> None:
    above: set[str] = set()
    for room, others in drawn().items():
        assert others <= above, (room, others - above)
        above.add(room)


def circle_in(graph: Mapping[tuple[str, ...], set[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """Return the modules of one import cycle; empty if there is none."""
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], way: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            if circle := visit(other, [*way, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := visit(module, []))), [])


def test_modules_have_no_import_cycle() -> None:
    graph = {parts: {other for other in imported_modules(parts) if other in MODULES} for parts in MODULES}
    assert circle_in(graph) == []


def test_import_cycle_is_found() -> None:
    a, b, c = ("x", "a"), ("x", "b"), ("x", "c")
    assert circle_in({a: {b}, b: {c}, c: {b}}) == [b, c]
    assert circle_in({a: {b, c}, b: {c}, c: set()}) == []


def test_top_level_of_transforms_has_only_beam_transforms_and_their_elements() -> None:
    for path in (ROOT / "transforms").glob("*.py"):
        if path.name not in {"__init__.py", "elements.py", "catalog_elements.py", "chat_elements.py"}:
            tree = ast.parse(path.read_text("utf-8"))
            bases = [ast.unparse(base) for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases]
            assert "beam.PTransform" in bases, path


def test_files_named_in_docs_exist() -> None:
    name = re.compile(r"`((?:configs|index|transforms|pipelines|tests|benchmarks)/[\w/.-]+\.\w+)")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {(page.name, found) for page in pages for found in name.findall(page.read_text("utf-8"))}
    assert {(page, found) for page, found in named if not (ROOT / found).is_file()} == set()

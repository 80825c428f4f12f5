"""Only `epithre_beam` is importable, all files are packaged, and type checkers see the same folders."""

import doctest
import importlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "index", "transforms", "pipelines")
FOR_READERS = ("configs/*.schema.json", "configs/jobs/*.yaml", "configs/searches/*.yaml")
"""Files next to the code that only people and editors use."""
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


def sources() -> list[Path]:
    """Return every Python file of the four folders, relative to the repository."""
    return sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(["epithre_beam", *(parts[:-1] if parts[-1] == "__init__" else parts)])


MODULES = [module_name(path) for path in sources() if path.name != "__main__.py"]


def test_package_of_checkout_links_to_the_folders() -> None:
    links = ROOT / "epithre_beam"
    assert sorted(link.name for link in links.iterdir() if link.is_symlink()) == sorted(FOLDERS)
    for folder in FOLDERS:
        assert (links / folder).is_symlink()
        assert (links / folder).is_dir()
        assert (links / folder).resolve() == ROOT / folder


def test_every_folder_with_a_module_is_a_listed_package() -> None:
    """An unlisted package is missing only from the wheel, which no other test notices."""
    folders = {".".join(["epithre_beam", *path.parent.parts]) for path in sources()}
    assert folders | {"epithre_beam"} == set(SETUPTOOLS["packages"])
    assert all((ROOT / Path(*name.split(".")[1:]) / "__init__.py").is_file() for name in folders)


def test_only_epithre_beam_is_importable() -> None:
    assert all(name.split(".")[0] == "epithre_beam" for name in SETUPTOOLS["packages"])
    folders = {f"epithre_beam.{folder}": folder for folder in FOLDERS}
    assert SETUPTOOLS["package-dir"] == {"epithre_beam": "epithre_beam", **folders}


def test_every_folder_has_py_typed() -> None:
    assert all((ROOT / folder / "py.typed").is_file() for folder in FOLDERS)


def test_data_files_are_packaged() -> None:
    """Patterns match the files of a package, but not those of a plain folder within it."""
    packaged = {
        path
        for name in SETUPTOOLS["packages"]
        for pattern in SETUPTOOLS["package-data"]["*"]
        for path in ROOT.joinpath(*name.split(".")[1:]).glob(pattern)
    }
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in {".py", ".pyc"} and path not in packaged:
                name = path.relative_to(ROOT)
                assert any(name.match(pattern) for pattern in FOR_READERS), name


@pytest.mark.parametrize("name", MODULES)
def test_module_is_imported_from_its_folder_and_passes_doctests(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve().is_relative_to(ROOT)
    assert doctest.testmod(module).failed == 0
    assert [public for public in getattr(module, "__all__", ()) if not hasattr(module, public)] == []


def test_names_of_test_files_are_unique() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))

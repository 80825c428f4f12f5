"""The library can be imported from a checkout, and modules of two installs are never mixed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "index", "transforms", "pipelines")
WITHOUT_FINDERS = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
"""Removes the finder of an editable install, as if nothing was installed."""


def install(folder: Path, *, without: str | None = None) -> Path:
    """Copy the library as a wheel installs it, without the module `without`."""
    target = folder / "epithre_beam"
    target.mkdir(parents=True)
    for path in (ROOT / "epithre_beam").glob("*.py"):
        shutil.copy(path, target)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    if without is not None:
        (target / without).unlink()
    return folder


def run(program: str, folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-c", WITHOUT_FINDERS + program]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_checkout_is_importable_as_working_folder() -> None:
    done = run("import epithre_beam.index as i, epithre_beam as e; print(i.__file__, e.__version__)", ROOT)
    assert done.stdout.split()[0] == str(ROOT / "epithre_beam" / "index" / "__init__.py"), done.stderr
    assert done.stdout.split()[1] == "0.1.0"


def test_unpacked_source_distribution_is_importable_without_links(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "epithre_beam", tmp_path / "epithre_beam", ignore=shutil.ignore_patterns(*FOLDERS))
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = run("import epithre_beam.index as i; print(i.__file__)", tmp_path)
    assert done.stdout.strip() == str(tmp_path / "index" / "__init__.py"), done.stderr


def test_importing_the_version_loads_no_dependency(tmp_path: Path) -> None:
    done = run("import epithre_beam; print(*{n.split('.')[0] for n in sys.modules})", tmp_path, ROOT)
    assert not {"numpy", "pydantic", "pyarrow", "apache_beam", "importlib_metadata"} & set(done.stdout.split())


def test_only_first_of_two_installs_is_used(tmp_path: Path) -> None:
    older = install(tmp_path / "older", without="index/search/where.py")
    newer = install(tmp_path / "newer")
    program = "import epithre_beam.configs as c; print(c.__file__)\nimport epithre_beam.index.search.where"
    done = run(program, tmp_path, older, newer)
    assert done.stdout.strip() == str(older / "epithre_beam" / "configs" / "__init__.py")
    assert "ModuleNotFoundError: No module named 'epithre_beam.index.search.where'" in done.stderr
    assert run(program, tmp_path, newer, older).returncode == 0


@pytest.mark.parametrize("missing", ["configs/errors.py", "index/versions/lease.py", "pipelines/commands/cli.py"])
def test_error_names_both_installs_if_an_older_one_is_first(tmp_path: Path, missing: str) -> None:
    older, newer = install(tmp_path / "older", without=missing), install(tmp_path / "newer")
    program = "from epithre_beam.pipelines.commands.entry import console; sys.argv = ['x', '--version']; console()"
    done = run(program, tmp_path, older, newer)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    module = missing.removesuffix(".py").replace("/", ".")
    assert line.startswith(f"epithre-beam: epithre_beam: No module named 'epithre_beam.{module}'")
    assert f"{older / 'epithre_beam'}, {newer / 'epithre_beam'}" in line


def test_second_install_found_by_a_finder_is_refused(tmp_path: Path) -> None:
    """As with an editable install of another checkout."""
    ours, other = install(tmp_path / "ours"), install(tmp_path / "other")
    finder = (
        "import importlib.util\n"
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name == 'epithre_beam': return importlib.util.spec_from_file_location(name, {str(other)!r}"
        " + '/epithre_beam/__init__.py')\n"
        "sys.meta_path.append(Finder)\n"
    )
    done = run(finder + "import epithre_beam", tmp_path, ours)
    places = f"in {ours / 'epithre_beam'} and in {other / 'epithre_beam'}"
    assert f"ImportError: epithre_beam is installed twice, {places}. Uninstall one" in done.stderr
    script = run(finder + "sys.argv = ['/bin/epithre-beam', 'run']\nimport epithre_beam", tmp_path, ours)
    assert script.returncode == 2
    (line,) = script.stderr.splitlines()
    assert line.startswith(f"epithre-beam: epithre_beam is installed twice, {places}")
    assert run(finder + "import json", tmp_path, ours).returncode == 0
    assert run("import epithre_beam", tmp_path, ours).returncode == 0

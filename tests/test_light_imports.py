"""Opening a catalog imports only the modules it needs."""

import json
import subprocess
import sys

import pytest

IMPORT_LIMIT = 2.2
"""The CPU time of the import, as a multiple of that of the libraries that it needs."""
LIBRARIES = (
    "numpy, pyarrow.compute, faiss, fsspec.implementations.local, pydantic, yaml, orjson, filelock, platformdirs"
)


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules loaded by a new process that runs `statement`."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return set(json.loads(found))


@pytest.mark.parametrize(
    "module",
    ["epithre_beam.index", "epithre_beam.configs", "epithre_beam.transforms", "epithre_beam.transforms.epithre"],
)
def test_module_does_not_load_beam(module: str) -> None:
    assert "apache_beam" not in modules_after(f"import {module}")


def test_modules_of_configs_index_and_api_do_not_load_beam() -> None:
    statement = (
        "import importlib, pkgutil\n"
        "for name in ('epithre_beam.configs', 'epithre_beam.index', 'epithre_beam.transforms.epithre'):\n"
        "    package = importlib.import_module(name)\n"
        "    for module in pkgutil.walk_packages(package.__path__, name + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)"
    )
    assert "apache_beam" not in modules_after(statement)


def test_opening_a_catalog_loads_no_http_client_and_no_pillow() -> None:
    assert not {"httpx", "PIL", "jinja2", "rich", "typer"} & modules_after("import epithre_beam.index")


@pytest.mark.alone
def test_index_is_imported_quickly() -> None:
    """Compared with its libraries, since a second of one machine is half a second of another."""

    def took(modules: str) -> float:
        program = f"import time; started = time.process_time(); import {modules}; print(time.process_time() - started)"
        return float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)

    # The best of five attempts, because a busy machine may delay one.
    own, libraries = (min(took(modules) for _ in range(5)) for modules in ("epithre_beam.index", LIBRARIES))
    assert own < IMPORT_LIMIT * libraries

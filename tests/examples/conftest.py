"""The job of the pipelines' tests, and the program on the PATH as for a scheduler."""

import os
import sys
from pathlib import Path

import pytest

from ..pipelines.conftest import KEY, place  # noqa: F401 - a fixture

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAM = Path(sys.executable).with_name("epithre-beam")


@pytest.fixture
def environment():
    """Return the environment of a scheduler's process."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("EPITHRE_")}
    return {**variables, "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "EPITHRE_KEY": KEY}

"""The benchmark of the transforms runs, and what it counts is as promised also at a small size."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "beam_plugin.py"


@pytest.mark.slow
def test_small_sizes_run_and_are_not_stored(tmp_path: Path) -> None:
    command = [sys.executable, _PROGRAM, "--quick", "--folder", tmp_path, "--results", tmp_path / "results"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^requests sent / needed: 1\.00 times", done.stdout, re.MULTILINE)
    assert re.search(r"^longest time from an item's arrival .*: [0-5]\.\d s", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^\| the transforms.*\|", done.stdout, re.MULTILINE)) == 2
    assert not (tmp_path / "results").exists()

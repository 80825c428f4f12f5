"""Closed, full or broken standard streams do not change how a command ends."""

import os
import subprocess
import sys

import pytest

from .test_entry import SCRIPT


def shell(folder, line):
    """Runs a shell command line, in which "$EB" is the script."""
    environment = {**os.environ, "EB": str(SCRIPT)}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('"$EB" --version >&-', 0),
        ('"$EB" --version <&- >&- 2>&-', 0),
        ('"$EB" versions list nothing.here >&-', 2),
        ('"$EB" plan nothing.yaml 2>&-', 2),
        ('set -o pipefail; "$EB" schema | head -c 1', 0),
    ],
)
def test_closed_streams_change_no_exit_code_and_cause_no_traceback(tmp_path, line, code):
    done = shell(tmp_path, line)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_a_full_standard_output_is_reported(tmp_path):
    done = shell(tmp_path, '"$EB" schema > /dev/full')
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_file_gets_the_descriptor_of_a_closed_stream(tmp_path):
    """Otherwise output would be written into the file."""
    program = (
        "import sys; from epithre_beam.pipelines.commands.streams import open_closed_streams as mend; mend();"
        "file = open('kept', 'w'); print('printed'); print('told', file=sys.stderr); sys.stdout.flush();"
        "file.write(str(file.fileno()))"
    )
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, program], cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 0
    assert int((tmp_path / "kept").read_text()) > 2

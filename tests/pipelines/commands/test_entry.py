"""The installed console script: an early signal gives a short message, an exit code, and no traceback."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).with_name("epithre-beam")
WORDS = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}


@contextlib.contextmanager
def started(folder, config):
    """`epithre-beam plan` on a pipe without a writer, so that it never ends."""
    os.mkfifo(folder / config)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([SCRIPT, "plan", config], cwd=folder, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_minding(process):
    """Whether it has set its own handler of SIGTERM, which Python does not by default."""
    (line,) = (x for x in Path(f"/proc/{process.pid}/status").read_text().splitlines() if x.startswith("SigCgt"))
    return int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1


def assert_quiet(process, number, words):
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (128 + number, "")
    (line,) = errors.splitlines()
    assert line.startswith(f"epithre-beam: {words}")


@pytest.mark.parametrize("pause_s", [0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_during_imports_ends_with_a_short_message(tmp_path, pause_s):
    with started(tmp_path, "job.yaml") as process:
        wait_for(lambda: is_minding(process), process)
        time.sleep(pause_s)
        process.send_signal(signal.SIGINT)
        assert_quiet(process, signal.SIGINT, "Interrupted")


def test_sigterm_during_imports_ends_with_a_short_message(tmp_path):
    with started(tmp_path, "job.yaml") as process:
        wait_for(lambda: is_minding(process), process)
        process.send_signal(signal.SIGTERM)
        assert_quiet(process, signal.SIGTERM, "Terminated before the command started.")


@pytest.mark.parametrize("number", WORDS)
def test_a_signal_after_imports_ends_with_a_short_message(tmp_path, number):
    """The command opens the pipe after all imports."""
    writers = []

    def is_read():
        with contextlib.suppress(OSError):  # not opened for reading yet
            writers.append(os.open(tmp_path / "job.yaml", os.O_WRONLY | os.O_NONBLOCK))
        return writers

    with started(tmp_path, "job.yaml") as process:
        wait_for(is_read, process)
        process.send_signal(number)
        assert_quiet(process, number, WORDS[number])
    os.close(*writers)


def test_the_script_returns_the_exit_code_of_the_command(tmp_path):
    done = subprocess.run([SCRIPT, "plan", "none.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "none.yaml" in done.stderr

"""The console script, as it is installed: whoever stops it early gets a word and an exit code, and no traceback."""

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
    """`epithre-beam plan` on a pipe that nobody writes into, so that it never comes to its end."""
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
    """Whether it has its own answer to SIGTERM, which Python by itself has not."""
    (line,) = (x for x in Path(f"/proc/{process.pid}/status").read_text().splitlines() if x.startswith("SigCgt"))
    return int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1


def assert_quiet(process, number, words):
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (128 + number, "")
    (line,) = errors.splitlines()
    assert line.startswith(f"epithre-beam: {words}")


@pytest.mark.parametrize("pause_s", [0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_while_it_imports_ends_it_in_a_word(tmp_path, pause_s):
    with started(tmp_path, "job.yaml") as process:
        wait_for(lambda: is_minding(process), process)
        time.sleep(pause_s)
        process.send_signal(signal.SIGINT)
        assert_quiet(process, signal.SIGINT, "Interrupted")


def test_sigterm_while_it_imports_ends_it_in_a_word(tmp_path):
    with started(tmp_path, "job.yaml") as process:
        wait_for(lambda: is_minding(process), process)
        process.send_signal(signal.SIGTERM)
        assert_quiet(process, signal.SIGTERM, "Terminated before the command started.")


@pytest.mark.parametrize("number", WORDS)
def test_a_signal_once_everything_is_imported_ends_it_in_a_word_too(tmp_path, number):
    """Whoever opens the pipe has imported all that comes before."""
    writers = []

    def is_read():
        with contextlib.suppress(OSError):  # nobody has opened it for reading
            writers.append(os.open(tmp_path / "job.yaml", os.O_WRONLY | os.O_NONBLOCK))
        return writers

    with started(tmp_path, "job.yaml") as process:
        wait_for(is_read, process)
        process.send_signal(number)
        assert_quiet(process, number, WORDS[number])
    os.close(*writers)


def test_it_runs_the_command_and_gives_its_exit_code(tmp_path):
    done = subprocess.run([SCRIPT, "plan", "none.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "none.yaml" in done.stderr

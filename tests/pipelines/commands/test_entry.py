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
        assert_quiet(process, signal.SIGTERM, "Terminated before anything was begun.")


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


def shell(folder, line):
    """Runs a line of the shell, in which "$EB" is the script."""
    environment = {**os.environ, "EB": str(SCRIPT)}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('"$EB" --version >&-', 0),
        ('"$EB" --version <&- >&- 2>&-', 0),
        ('"$EB" versions list nothing.here >&-', 1),
        ('"$EB" plan nothing.yaml 2>&-', 2),
        ('set -o pipefail; "$EB" schema | head -c 1', 0),
    ],
)
def test_a_stream_that_is_closed_or_wants_no_more_changes_no_exit_code_and_makes_no_traceback(tmp_path, line, code):
    done = shell(tmp_path, line)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_what_cannot_be_written_is_told(tmp_path):
    done = shell(tmp_path, '"$EB" schema > /dev/full')
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_file_gets_the_number_of_a_stream_that_was_closed(tmp_path):
    """Or what is printed would be written into it."""
    program = (
        "import os, sys; from epithre_beam.pipelines.commands.entry import open_closed_streams; open_closed_streams();"
        "file = open('kept', 'w'); print('printed'); print('told', file=sys.stderr); sys.stdout.flush();"
        "file.write(str(file.fileno()))"
    )
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, program], cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 0
    assert int((tmp_path / "kept").read_text()) > 2

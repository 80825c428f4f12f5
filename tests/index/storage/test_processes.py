"""The state of processes matches the operating system."""

import os
import subprocess
import sys

from epithre_beam.index.storage.processes import is_running, machine, started


def test_this_process_runs_and_has_a_fixed_start_time() -> None:
    assert is_running(os.getpid())
    assert started(os.getpid()) == started(os.getpid())


def test_zombie_process_is_not_running() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        assert is_running(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(process.pid)
        process.wait()
        assert not is_running(process.pid)
        assert started(process.pid) is None


def test_machine_is_the_same_in_every_process() -> None:
    program = "from epithre_beam.index.storage.processes import machine; print(machine())"
    reported = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    assert reported.stdout.strip() == machine()

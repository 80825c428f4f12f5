"""What is said of processes is what the system says of them."""

import os
import subprocess
import sys

from epithre_beam.index.storage.processes import is_running, machine, started


def test_this_process_runs_and_has_started_once() -> None:
    assert is_running(os.getpid())
    assert started(os.getpid()) == started(os.getpid())


def test_a_process_that_was_killed_does_not_run_though_nobody_waited_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        assert is_running(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(process.pid)
        process.wait()
        assert not is_running(process.pid)
        assert started(process.pid) is None


def test_every_process_of_a_machine_says_the_same_of_it() -> None:
    program = "from epithre_beam.index.storage.processes import machine; print(machine())"
    reported = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    assert reported.stdout.strip() == machine()

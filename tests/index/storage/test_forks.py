"""A forked lock excludes other threads, and is always free in a forked process."""

import subprocess
import sys
import threading

from epithre_beam.index.storage.forks import ForkedLock

HELD_AT_THE_FORK = """
import os, signal, threading
from epithre_beam.index.storage.forks import ForkedLock

lock, is_held, is_over = ForkedLock(), threading.Event(), threading.Event()

def hold():
    with lock:
        is_held.set()
        is_over.wait()

thread = threading.Thread(target=hold)
thread.start()
is_held.wait()
child = os.fork()
if not child:
    signal.alarm(20)
    for _ in range(2):
        with lock:
            pass
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert not lock._lock.acquire(blocking=False)  # still held in the parent
is_over.set()
thread.join()
with lock:
    pass
"""


def test_lock_held_at_a_fork_is_free_in_the_child() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELD_AT_THE_FORK], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_one_thread_holds_the_lock_at_a_time() -> None:
    lock, inside, most = ForkedLock(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with lock:
                inside += 1
                most = max(most, inside)
                threading.Event().wait(0)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1

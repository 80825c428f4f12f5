"""The command line in forks of a process that has imported everything: importing takes longer than most runs.

`python preloaded.py SOCKET` forks a process for each order that comes through the socket with that number. An order is
a message of JSON, {arguments, folder, environment}, and the ends of three pipes: for what the program says on standard
output and standard error, and for its process id and the code that it ends with. What runs is the program as it is
installed, in a process of its own that can be stopped and killed; only the imports are not its own, nor is the seed of
Python's hashes, which those that are forked here share.
"""

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

IMPORTED = (
    "anyio._backends._asyncio",
    "apache_beam.runners.portability.fn_api_runner.fn_runner",
    "httpcore",
    "matplotlib.backends.backend_svg",
    "matplotlib.pyplot",
    "numpy.random",
    "epithre_beam.index.publish.prune",
    "epithre_beam.index.publish.verify",
    "epithre_beam.pipelines.commands.cli",
    "epithre_beam.pipelines.console.progress",
    "epithre_beam.pipelines.jobs.run",
    "epithre_beam.transforms.write_version",
)
"""Import everything before the first fork; it takes seconds."""
_LARGEST_ORDER = 1 << 20


def import_all():
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # otherwise the first collection in every fork copies all memory


class Program:
    """A forked process with the interface of `subprocess.Popen` with pipes and text."""

    def __init__(self, arguments, stdout, stderr, reported):
        self.args = arguments
        self.stdout, self.stderr = (os.fdopen(end, encoding="utf-8") for end in (stdout, stderr))
        self.returncode: int | None = None
        self._reported = os.fdopen(reported, "rb", buffering=0)
        self.pid = int(self._line())
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _line(self):
        line = b""
        while not line.endswith(b"\n"):
            found = self._reported.read(1)
            assert found, "the process that forks is gone"
            line += found
        return line

    def _keep(self):
        self.returncode = int(self._line())
        self._reported.close()

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._keeper.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        """Return its output; unlike Popen, kill a process that takes longer."""
        with ThreadPoolExecutor(2) as pool, self.stdout, self.stderr:
            said = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except BaseException:
                self.kill()  # otherwise reading its output blocks
                raise
            return tuple(text.result() for text in said)


class Preloaded:
    """The client side of the process that forks."""

    def __init__(self):
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST_ORDER)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def start(self, arguments, *, folder, environment):
        pipes = [os.pipe() for _ in range(3)]
        order = {"arguments": list(map(str, arguments)), "folder": str(folder), "environment": environment}
        self.pass_on(order, *(end for _, end in pipes))
        for _, end in pipes:
            os.close(end)
        return Program(order["arguments"], *(end for end, _ in pipes))

    def pass_on(self, order, stdout, stderr, reported):
        socket.send_fds(self._socket, [json.dumps(order).encode()], [stdout, stderr, reported])

    def close(self):
        self._socket.close()
        self._process.wait()


def fork_on_order(orders: socket.socket) -> NoReturn:
    import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the waiting processes are not reaped
    while True:
        data, ends, _, _ = socket.recv_fds(orders, _LARGEST_ORDER, 3)
        if not data:
            os._exit(0)  # the parent has ended
        if not os.fork():
            orders.close()
            run_and_wait(json.loads(data), *ends)
        for end in ends:
            os.close(end)


def run_and_wait(order, stdout, stderr, reported) -> NoReturn:
    """Fork the program, report its process id, and at its end its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if not process:
        os.close(reported)
        run_in_this_process(order, stdout, stderr)
    os.write(reported, b"%d\n" % process)
    for end in (stdout, stderr):
        os.close(end)
    _, status = os.waitpid(process, 0)
    os.write(reported, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def run_in_this_process(order, stdout, stderr) -> NoReturn:
    try:
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environment"])
        for number, end in ((1, stdout), (2, stderr)):
            os.dup2(end, number)
            os.close(end)
        sys.argv = ["epithre-beam", *order["arguments"]]
        from epithre_beam.pipelines.commands.entry import console

        console()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


if __name__ == "__main__":
    fork_on_order(socket.socket(fileno=int(sys.argv[1])))

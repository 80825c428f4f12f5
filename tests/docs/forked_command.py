"""`epithre-beam` for a shell, in processes forked from one that has imported everything.

Each command of a page would import for a second or more. The program sends its arguments, folder, environment and
standard streams to that process, waits for the forked one, and ends as it ended.
"""

import json
import os
import socket
import sys
import threading
from pathlib import Path

from ..pipelines.preloaded import Preloaded

_LARGEST_ORDER = 1 << 20
_PROGRAM = """\
#!{python} -ISE
import json, os, signal, socket, sys

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as orders:
    orders.connect({socket!r})
    order = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
    signals = {{signal.SIGTERM, signal.SIGINT}}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    socket.send_fds(orders, [json.dumps(order).encode()], [1, 2])
    said = orders.makefile("r")
    process = int(said.readline())
    for number in signals:
        signal.signal(number, lambda number, _: os.kill(process, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    code = int(said.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


class ForkedCommand:
    """Makes the program in `folder`, which goes first into PATH."""

    def __init__(self, folder: Path) -> None:
        self._preloaded = Preloaded()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        place = str(folder / "orders")
        self._listener.bind(place)
        self._listener.listen()
        program = folder / "epithre-beam"
        program.write_text(_PROGRAM.format(python=sys.executable, socket=place), "utf-8")
        program.chmod(0o755)
        threading.Thread(target=self._pass_on, daemon=True).start()

    def _pass_on(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with connection:
                data, streams, _, _ = socket.recv_fds(connection, _LARGEST_ORDER, 2)
                # The forked process says its number and its end on the connection itself.
                self._preloaded.pass_on(json.loads(data), *streams, connection.fileno())
            for stream in streams:
                os.close(stream)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._preloaded.close()

"""Ports for servers that have to be told one."""

import os
import random
import socket

_BELOW_EPHEMERAL = range(12_000, 32_000)
_chosen = random.Random(os.getpid())  # two processes of one test run look in different places


def free_port() -> int:
    """A port of 127.0.0.1 that nothing has, and that no outgoing connection is given before the server takes it."""
    while True:
        port = _chosen.choice(_BELOW_EPHEMERAL)
        with socket.socket() as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

"""Free ports for servers that need a port number."""

import os
import random
import socket

_BELOW_EPHEMERAL = range(12_000, 32_000)
_chosen = random.Random(os.getpid())  # processes of one test run try different ports


def free_port() -> int:
    """Return a free port of 127.0.0.1 below the ephemeral range, so that no outgoing connection can take it first."""
    while True:
        port = _chosen.choice(_BELOW_EPHEMERAL)
        with socket.socket() as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

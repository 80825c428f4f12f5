"""Limits on connections, per client and in total: idle connections are dropped to make room for new ones."""

import asyncio
import contextlib
import ipaddress
import logging
import resource
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from .rates import network_of

_PAUSE_S = 0.2
_OTHER_FILES = 128
"""Open files besides connections: those of the next version, connections to the API, images."""
_FILES_EACH = 2
"""The connection, and the temporary file of a large upload."""

_log = logging.getLogger(__name__)


class Connection(Protocol):
    """A connection that is counted."""

    peer: str
    """The client's address."""

    def drop(self) -> None:
        """Close it at once, without sending buffered data."""


class Connections:
    """Counts connections. Use one instance per event loop.

    A connection is *waited for* while the server waits for a complete request on it. At the limit of a client, or of
    all clients, a new connection replaces the one that has been waited for longest. Idle connections therefore only
    displace other idle ones, and a connection with a request in progress is never dropped.
    """

    def __init__(self, most: int, most_of_client: int, proxies: Sequence[str] = ()) -> None:
        """Set the limits.

        Args:
            most: Connections of all clients.
            most_of_client: Connections of one client: an IPv4 address or an IPv6 /64.
            proxies: Addresses or networks of trusted proxies; only the limit for all clients applies to them.
        """
        self._most = most
        self._most_of_client = most_of_client
        self._proxies = [ipaddress.ip_network(proxy) for proxy in proxies]
        self._waited_for: OrderedDict[Connection, None] = OrderedDict()
        self._of_client: dict[str, OrderedDict[Connection, bool]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def is_proxy(self, peer: str) -> bool:
        """Return whether an address belongs to a trusted proxy."""
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._proxies)

    def make_room(self, peer: str) -> bool:
        """Return whether a client may open one more connection; drops an idle one if necessary."""
        own = self._of_client.get(network_of(peer), OrderedDict())
        if len(own) >= self._most_of_client and not self.is_proxy(peer):
            return self._drop(next((one for one, is_waited_for in own.items() if is_waited_for), None))
        if self._count >= self._most:
            return self._drop(next(iter(self._waited_for), None))
        return True

    def add(self, one: Connection) -> None:
        self._of_client.setdefault(network_of(one.peer), OrderedDict())[one] = True
        self._waited_for[one] = None
        self._count += 1

    def wait_for(self, one: Connection, *, is_waited_for: bool) -> None:
        """Record whether the server waits for a request on a connection."""
        own = self._of_client.get(network_of(one.peer))
        if own is None or one not in own:
            return
        own[one] = is_waited_for
        if is_waited_for:
            own.move_to_end(one)
            self._waited_for[one] = None
            self._waited_for.move_to_end(one)
        else:
            self._waited_for.pop(one, None)

    def remove(self, one: Connection) -> None:
        client = network_of(one.peer)
        own = self._of_client.get(client)
        if own is None or own.pop(one, None) is None:
            return
        self._waited_for.pop(one, None)
        self._count -= 1
        if not own:
            del self._of_client[client]

    def _drop(self, one: Connection | None) -> bool:
        if one is None:
            return False
        self.remove(one)
        one.drop()
        return True


class Door:
    """Accepts connections at a listening socket, one at a time.

    asyncio's own server logs a traceback for each of thousands of attempts per second when no file can be opened.
    """

    def __init__(
        self, listening: socket.socket, protocol: Callable[[], asyncio.Protocol], connections: Connections
    ) -> None:
        self._listening = listening
        self._protocol = protocol
        self._connections = connections
        self._is_open = False
        self._coming: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        self._listening.setblocking(False)
        self._is_open = True
        self._listen()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            asyncio.get_running_loop().remove_reader(self._listening)

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._coming, return_exceptions=True)

    def _listen(self) -> None:
        if self._is_open:
            asyncio.get_running_loop().add_reader(self._listening, self._take)

    def _take(self) -> None:
        """Accept one connection; data of existing connections is read before the next accept."""
        loop = asyncio.get_running_loop()
        try:
            accepted, address = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            _log.error("cannot accept connections: %s", error.strerror or error)
            loop.remove_reader(self._listening)
            loop.call_later(_PAUSE_S, self._listen)
            return
        if not self._connections.make_room(address[0]):
            accepted.close()
            return
        accepted.setblocking(False)
        task = loop.create_task(self._let_in(accepted))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def _let_in(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has disconnected
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, accepted)


def connections_for(wanted: int) -> int:
    """Return how many of the wanted connections this process can have, after raising its limit of open files.

    Each connection may need two files. Some files are reserved, so that a full server can still open a new version.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = Path("/proc/self/fd")
    used = len(list(opened.iterdir())) if opened.is_dir() else _OTHER_FILES
    needed = used + _OTHER_FILES + _FILES_EACH * wanted
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    found = max(1, (soft - used - _OTHER_FILES) // _FILES_EACH)
    _log.warning(
        "max_connections: %d instead of %d, because this process may open only %d files. Raise `ulimit -n`.",
        found, wanted, soft,
    )  # fmt: skip
    return found

"""Rate limit of searches per client: a token bucket."""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

_CLIENTS_KEPT = 10_000
_BURST_S = 10.0
"""Burst of an idle client: the searches that the limit allows in this time."""


class Rates:
    """Counts searches per client. Use one instance per event loop.

    Args:
        per_minute: Searches of one client per minute; 0: no limit.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_minute / 60
        self._most = max(1.0, self._per_s * _BURST_S)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> int:
        """Count one search. Return 0 if it is allowed, else the whole seconds until the next one is."""
        if not self._per_s:
            return 0
        now, name = self._clock(), network_of(client)
        level, since = self._buckets.pop(name, (self._most, now))
        level = min(self._most, level + (now - since) * self._per_s)
        wait_s = 0 if level >= 1 else math.ceil((1 - level) / self._per_s)
        self._buckets[name] = (level if wait_s else level - 1, now)
        while len(self._buckets) > _CLIENTS_KEPT:
            self._buckets.popitem(last=False)
        return wait_s


@lru_cache(maxsize=4096)
def network_of(client: str) -> str:
    """Return the client of an address: the /64 for IPv6, because every customer has at least a /64."""
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return client

"""The rate limiters of this process: one for a key, an address and its limits, whoever sends: steps or lanes.

Beam's pickler copies objects and replaces their locks, so a rate limiter in an element or a DoFn would silently become
one for each. This registry belongs to the module, and all its rate limiters run on the event loop of the process.
"""

import asyncio
import os
import threading
from typing import NamedTuple

from ...configs.schema import ApiConfig
from ..epithre.rate_limit.memory_backend import WINDOW_S, MemoryBackend, RateLimiterBackend
from ..epithre.rate_limit.rate_limiter import RateLimiter
from .shared_limit import backend_name, make_backend


class _Place(NamedTuple):
    """Where requests are counted, and against which limits."""

    backend: str
    redis_url: str | None
    name: str
    window_s: float
    limits: tuple[tuple[str, float | None], ...]


class _Process:
    """What this process has."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew, also in a forked process: the loop's thread is not in it, and neither are the connections."""
        self.lock = threading.Lock()
        self.limiters: dict[_Place, tuple[RateLimiter, RateLimiterBackend]] = {}
        self.loop: asyncio.AbstractEventLoop | None = None


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.reset)


def process_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process, which runs in a thread of its own."""
    with _process.lock:
        if _process.loop is None:
            _process.loop = asyncio.new_event_loop()
            threading.Thread(target=_process.loop.run_forever, name="embed-assets", daemon=True).start()
        return _process.loop


def limiter_of(
    embed: ApiConfig, api_key: str, *, run: str | None = None, spent: int = 0, window_s: float = WINDOW_S
) -> RateLimiter:
    """Return the rate limiter of this key, address and limits, for use on the process's loop.

    Args:
        embed: The settings; `rate_limiter` says who shares the counts: this process, the host, or all that use a Redis.
        api_key: The key.
        run: The name of a job's run, for its lanes: they share what the launcher has set up, and the launcher has
            shown that the API accepts the key.
        spent: Requests of that run that were sent before, without a lease, and that the server may still count.
        window_s: Length of the server's window in seconds; tests shorten it.

    Raises:
        RateLimiterLostError: When Redis does not answer.
    """
    name = backend_name(embed, api_key, run=run, window_s=window_s)
    limits = embed.limits
    place = _Place(embed.rate_limiter, embed.redis_url, name, window_s, tuple(sorted(limits.items())))
    with _process.lock:
        found = _process.limiters.get(place)
        if found is None:
            backend = make_backend(embed, api_key, run=run, spent=spent, window_s=window_s)
            if embed.rate_limiter == "redis" and run is None:
                backend.create()  # type: ignore[attr-defined]  # of a run, the launcher creates it
            limiter = RateLimiter(limits, window_s=window_s, backend=backend, is_key_accepted=False)
            found = _process.limiters[place] = (limiter, backend)
        elif isinstance(backend := found[1], MemoryBackend):
            backend.count(spent)
        return found[0]


def remove_host_limiter(embed: ApiConfig, run: str) -> None:
    """Remove what the lanes of a run shared on this host, in this process and as files, after a successful run."""
    if embed.rate_limiter != "host":
        return
    name = backend_name(embed, "", run=run)
    with _process.lock:
        places = [place for place in _process.limiters if place.name == name]
        ended = [_process.limiters.pop(place) for place in places]
    for limiter, _ in ended:
        limiter.close()
    make_backend(embed, "", run=run).remove_files()  # type: ignore[attr-defined]

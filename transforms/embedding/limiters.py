"""The rate limiters of this process: one for a key, an address and its limits, whoever sends.

Beam's pickler copies objects and replaces their locks, so a rate limiter in an element or a DoFn would silently become
one for each. This registry belongs to the module, and all its rate limiters run on the event loop of the process.
"""

import asyncio
import hashlib
import os
import threading

import orjson

from ...configs import EmbedConfig
from ..epithre.client import limits_of
from ..epithre.rate_limit.memory_backend import WINDOW_S, RateLimiterBackend, RateLimiterSettings
from ..epithre.rate_limit.rate_limiter import RateLimiter


class _Process:
    """What this process has."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew, also in a forked process: the loop's thread is not in it, and neither are the connections."""
        self.lock = threading.Lock()
        self.limiters: dict[str, RateLimiter] = {}
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


def limiter_name(embed: EmbedConfig, api_key: str) -> str:
    """Return a name that all processes derive from the same key, address and limits. It does not reveal the key."""
    counted = [embed.base_url, embed.rate_limiter_name, sorted(limits_of(embed).items())]
    digest = hashlib.sha256(orjson.dumps(counted) + hashlib.sha256(api_key.encode()).digest())
    return digest.hexdigest()[:24]


def limiter_of(embed: EmbedConfig, api_key: str, *, window_s: float = WINDOW_S) -> RateLimiter:
    """Return the rate limiter of this key, address and limits, for use on the process's loop.

    Args:
        embed: The settings; `rate_limiter` says who shares the counts: this process, the host, or all that use a Redis.
        api_key: The key.
        window_s: Length of the server's window in seconds; tests shorten it.
    """
    name = limiter_name(embed, api_key)
    backend_name = f"{embed.rate_limiter}:{embed.redis_url or ''}:{name}:{window_s}"
    with _process.lock:
        if backend_name not in _process.limiters:
            _process.limiters[backend_name] = RateLimiter(
                limits_of(embed),
                max_concurrency=embed.max_concurrency,
                window_s=window_s,
                max_pause_s=embed.max_retry_after_s,
                backend=_backend(embed, name, window_s),
            )
        return _process.limiters[backend_name]


def _backend(embed: EmbedConfig, name: str, window_s: float) -> RateLimiterBackend | None:
    if embed.rate_limiter == "memory":
        return None  # the rate limiter's own: there is one in this process
    settings = RateLimiterSettings(
        limits={name: limit for name, limit in limits_of(embed).items() if limit is not None},
        window_s=window_s,
        hold_s=embed.timeout_s,
        max_pause_s=embed.max_retry_after_s,
    )
    if embed.rate_limiter == "host":
        from .host_backend import HostBackend

        return HostBackend(name, settings)
    from ..epithre.rate_limit.redis_backend import RedisBackend

    password = os.environ.get(embed.redis_password_env or "")
    backend = RedisBackend(embed.redis_url or "", embed.rate_limiter_name, settings, password=password)
    backend.create()
    return backend

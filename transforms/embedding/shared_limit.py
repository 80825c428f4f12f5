"""Where the requests are counted: a rate limiter's backend in this process, on this host or in Redis."""

import functools
import hashlib
import os

import orjson

from ...configs.schema import ApiConfig
from ..epithre.rate_limit.memory_backend import WINDOW_S, MemoryBackend, RateLimiterBackend, RateLimiterSettings

_ROUNDS = 100_000
"""About 30 ms for a guess: whoever reads the names in a shared Redis cannot test weak keys quickly."""


_OWN_HOLD_S = 86_400.0
"""In memory every lease ends with its request: those who share it may have different timeouts, and die together."""


def limiter_name(embed: ApiConfig, api_key: str) -> str:
    """Return the name of all that count together: `rate_limiter_name`, or one that a key and an address share.

    All processes derive the same name, which does not reveal the key.
    """
    return embed.rate_limiter_name or _digest(api_key, embed.base_url)


@functools.lru_cache(maxsize=256)
def _digest(api_key: str, base_url: str) -> str:
    salt = b"epithre-beam rate limiter\n" + base_url.encode()
    return hashlib.pbkdf2_hmac("sha256", api_key.encode(), salt, _ROUNDS).hex()[:24]


def backend_name(embed: ApiConfig, api_key: str, *, run: str | None = None, window_s: float = WINDOW_S) -> str:
    """Return the name of a backend in memory, on the host or in Redis.

    In memory and on the host a backend has one set of limits, so other limits are counted apart. In Redis each user
    brings its own. The lanes of a run share a backend of the host that nobody else uses, because the process that holds
    it may end with the run.
    """
    if embed.rate_limiter == "redis":
        return limiter_name(embed, api_key)
    if embed.rate_limiter == "host" and run is not None:
        return f"{embed.rate_limiter_name or 'epithre'}-{run}"
    limits = orjson.dumps([sorted(embed.limits.items()), window_s])
    return f"{limiter_name(embed, api_key)}-{hashlib.sha256(limits).hexdigest()[:8]}"


def make_backend(
    embed: ApiConfig, api_key: str, *, run: str | None = None, spent: int = 0, window_s: float = WINDOW_S
) -> RateLimiterBackend:
    """Return the backend of this key, address and limits: a new one in memory, or access to a shared one.

    Args:
        embed: The settings.
        api_key: The key.
        run: The name of the run, for its lanes.
        spent: Requests that were sent before, without a lease, and that the server may still count.
        window_s: Length of the server's window in seconds; tests shorten it.
    """
    settings = RateLimiterSettings(
        limits={name: limit for name, limit in embed.limits.items() if limit is not None},
        window_s=window_s,
        hold_s=_OWN_HOLD_S if embed.rate_limiter == "memory" else embed.timeout_s,
        max_pause_s=embed.max_retry_after_s,
        spent=spent,
    )
    if embed.rate_limiter == "memory":
        return MemoryBackend(settings)
    name = backend_name(embed, api_key, run=run, window_s=window_s)
    if embed.rate_limiter == "host":
        from .host_backend import HostBackend

        return HostBackend(name, settings)
    from ..epithre.rate_limit.redis_backend import RedisBackend

    password = os.environ.get(embed.redis_password_env or "")
    return RedisBackend(embed.redis_url or "", name, settings, password=password)


def set_up_shared_backend(embed: ApiConfig, api_key: str, run: str, requests_spent: int) -> None:
    """Prepare the backend before the lanes start: check that Redis answers, and store the requests spent so far.

    Raises:
        RateLimiterLostError: When Redis does not answer.
    """
    if embed.rate_limiter == "redis":
        from ..epithre.rate_limit.redis_backend import RedisBackend

        backend = make_backend(embed, api_key, run=run)
        assert isinstance(backend, RedisBackend)
        backend.create(spent=requests_spent)

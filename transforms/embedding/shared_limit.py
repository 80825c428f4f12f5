"""The rate limiter backend that several lanes share: select it, and set it up before the lanes start."""

import os

from ...configs import EmbedConfig
from ..epithre.client import limits_of
from ..epithre.rate_limit.memory_backend import RateLimiterBackend, RateLimiterSettings


def shared_backend(embed: EmbedConfig, run: str, requests_spent: int) -> RateLimiterBackend | None:
    """Return the rate limiter backend shared by the lanes; None for `memory`, where a lane has its own.

    Args:
        embed: The settings with the backend.
        run: The name of the run.
        requests_spent: Requests that the launcher sent and the server may still count.
    """
    if embed.rate_limiter == "memory":
        return None
    settings = RateLimiterSettings(
        limits={name: limit for name, limit in limits_of(embed).items() if limit is not None},
        hold_s=embed.timeout_s,
        max_pause_s=embed.max_retry_after_s,
        spent=requests_spent,
    )
    if embed.rate_limiter == "host":
        from .host_backend import HostBackend

        # One rate limiter per run: the process that holds it may end with the run.
        return HostBackend(f"{embed.rate_limiter_name}-{run}", settings)
    from ..epithre.rate_limit.redis_backend import RedisBackend

    password = os.environ.get(embed.redis_password_env or "")
    return RedisBackend(embed.redis_url or "", embed.rate_limiter_name, settings, password=password)


def set_up_shared_backend(embed: EmbedConfig, run: str, requests_spent: int) -> None:
    """Prepare the backend before the lanes start: check that Redis answers, and store the requests spent so far.

    Raises:
        RateLimiterLostError: When Redis does not answer.
    """
    if embed.rate_limiter == "redis":
        from ..epithre.rate_limit.redis_backend import RedisBackend

        backend = shared_backend(embed, run, requests_spent)
        assert isinstance(backend, RedisBackend)
        backend.create(spent=requests_spent)


def remove_shared_backend(embed: EmbedConfig, run: str) -> None:
    """Remove the files of a shared rate limiter on this host, after a successful run."""
    if embed.rate_limiter == "host":
        from .host_backend import HostBackend

        backend = shared_backend(embed, run, 0)
        assert isinstance(backend, HostBackend)
        backend.remove_files()

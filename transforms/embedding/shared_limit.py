"""The ledger that several lanes share: which keeper a job names, and how it is set up before any lane begins."""

import os

from ...configs import EmbedConfig
from ..epithre.client import limits_of
from ..epithre.rate_limit.memory_backend import RateLimiterBackend, RateLimiterSettings


def shared_backend(embed: EmbedConfig, run: str, requests_spent: int) -> RateLimiterBackend | None:
    """The ledger that a lane shares with others; None when it is alone and keeps its own.

    Args:
        embed: Names the keeper.
        run: The name of the run.
        requests_spent: Requests that the launcher made and the server may still count.
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

        # A run has a ledger of its own: the process that keeps it may live no longer than the run.
        return HostBackend(f"{embed.rate_limiter_name}-{run}", settings)
    from ..epithre.rate_limit.redis_backend import RedisBackend

    password = os.environ.get(embed.redis_password_env or "")
    return RedisBackend(embed.redis_url or "", embed.rate_limiter_name, settings, password=password)


def set_up_shared_backend(embed: EmbedConfig, run: str, requests_spent: int) -> None:
    """What a launcher does before its lanes begin: Redis is asked whether it is there, and told what was spent.

    Raises:
        RateLimiterLostError: When Redis is not there.
    """
    if embed.rate_limiter == "redis":
        from ..epithre.rate_limit.redis_backend import RedisBackend

        backend = shared_backend(embed, run, requests_spent)
        assert isinstance(backend, RedisBackend)
        backend.create(spent=requests_spent)


def remove_shared_backend(embed: EmbedConfig, run: str) -> None:
    """Removes what a shared ledger left on this host, after a run that succeeded: its lanes ask no more."""
    if embed.rate_limiter == "host":
        from .host_backend import HostBackend

        backend = shared_backend(embed, run, 0)
        assert isinstance(backend, HostBackend)
        backend.remove_files()

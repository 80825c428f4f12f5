"""The ledger that several lanes share: which keeper a job names, and how it is set up before any lane begins."""

import os

from ...configs import EmbedConfig
from ..epithre.client import limits_of
from ..epithre.rate_limit.ledger import LedgerSettings, SharedLedger


def shared_ledger(embed: EmbedConfig, run: str, requests_spent: int) -> SharedLedger | None:
    """The ledger that a lane shares with others; None when it is alone and keeps its own.

    Args:
        embed: Names the keeper.
        run: The name of the run.
        requests_spent: Requests that the launcher made and the server may still count.
    """
    if embed.budget == "lane":
        return None
    settings = LedgerSettings(
        limits={name: limit for name, limit in limits_of(embed).items() if limit is not None},
        hold_s=embed.timeout_s,
        max_pause_s=embed.max_retry_after_s,
        spent=requests_spent,
    )
    if embed.budget == "host":
        from .host_ledger import HostLedger

        # A run has a ledger of its own: the process that keeps it may live no longer than the run.
        return HostLedger(f"{embed.budget_name}-{run}", settings)
    from ..epithre.rate_limit.redis_ledger import RedisLedger

    password = os.environ.get(embed.redis_password_env or "")
    return RedisLedger(embed.redis_url or "", embed.budget_name, settings, password=password)


def set_up_shared_ledger(embed: EmbedConfig, run: str, requests_spent: int) -> None:
    """What a launcher does before its lanes begin: Redis is asked whether it is there, and told what was spent.

    Raises:
        RateLimiterLostError: When Redis is not there.
    """
    if embed.budget == "redis":
        from ..epithre.rate_limit.redis_ledger import RedisLedger

        ledger = shared_ledger(embed, run, requests_spent)
        assert isinstance(ledger, RedisLedger)
        ledger.create(spent=requests_spent)


def remove_shared_ledger(embed: EmbedConfig, run: str) -> None:
    """Removes what a shared ledger left on this host, after a run that succeeded: its lanes ask no more."""
    if embed.budget == "host":
        from .host_ledger import HostLedger

        ledger = shared_ledger(embed, run, 0)
        assert isinstance(ledger, HostLedger)
        ledger.remove_files()

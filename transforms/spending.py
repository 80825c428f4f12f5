"""The end of a run that has spent what it may: nothing is published, what was paid for is kept."""

from collections.abc import Sequence
from typing import Any

from ..configs import CatalogConfig, EmbedConfig
from ..index.store import Store
from ..index.units import UnitRecord
from .epithre.client import SpendingLimitReached
from .epithre.meter import Meter
from .lane import read_progress
from .words import of_count


def check_all_sent(records: Sequence[UnitRecord], config: CatalogConfig, version: str, requests_spent: int) -> None:
    """Ends a run of which not everything could be sent. Called when all lanes are done, so that none is cut short.

    Args:
        records: Of all units.
        config: Of the run.
        version: Whose run folder has the lanes' figures.
        requests_spent: By the launcher itself.

    Raises:
        SpendingLimitReached: With what was spent and what is kept.
    """
    left = sum(record.not_sent for record in records)
    if not left:
        return
    lanes = read_progress(Store(config.catalog), version)
    raise SpendingLimitReached(*_sentence(config.embed, requests_spent, records, left, lanes))


def _sentence(
    embed: EmbedConfig, greetings: int, records: Sequence[UnitRecord], left: int, lanes: Sequence[dict[str, Any]]
) -> tuple[str, dict[str, Any]]:
    meter = Meter()
    for lane in lanes:
        meter.add(lane["meter"])
    requests = meter.requests + greetings
    cost = embed.cost(requests=requests, items=meter.items_sent, tokens=meter.tokens_spent)
    kept = sum(record.rows for record in records)
    assets = sum(record.rows + record.dead + record.not_sent for record in records)
    limits = [f"embed.max_requests {embed.max_requests:,}"] if embed.max_requests is not None else []
    limits += [f"embed.max_cost {embed.max_cost:g}"] if embed.max_cost is not None else []
    spent = f"{of_count(requests, 'request')} with {of_count(meter.items_sent, 'item')}"
    spent += "" if cost is None else f" for {cost:,.4g}"
    go_on = "run again to go on"
    if not meter.requests and (embed.max_requests or embed.max_cost):
        go_on = "not one request is within the limit, so raise it or lower embed.batch_items"
    sentence = (
        f"The run stopped before it would pass {' and '.join(limits)}: it sent {spent}; {kept:,} of "
        f"{of_count(assets, 'asset is', 'assets are')} embedded and kept, {of_count(left, 'is', 'are')} left, nothing "
        f"was published: {go_on}."
    )
    facts = {
        "spent": {"requests": requests, "items": meter.items_sent, "cost": cost},
        "assets": {"all": assets, "embedded": kept, "left": left},
    }
    return sentence, facts

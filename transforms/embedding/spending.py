"""The end of a run that has spent what it may: what was paid for is kept, and the next run goes on."""

from collections.abc import Sequence

from ...configs import EmbedConfig
from ...configs.errors import SpendingLimitError
from ...configs.words import of_count
from ...index.vectors.units import UnitRecord
from ..epithre.meter import Meter
from ..workers.progress import LaneProgress, read_progress
from ..workers.run_folder import RunFolder


def check_all_sent(
    records: Sequence[UnitRecord],
    embed: EmbedConfig,
    run: RunFolder,
    requests_spent: int,
    *,
    consequence: str = "nothing was published",
) -> None:
    """Ends a run of which not everything could be sent. Called when all lanes are done, so that none is cut short.

    Args:
        records: Of all units.
        embed: With the limits and the prices.
        run: Whose folder has the lanes' figures.
        requests_spent: By the launcher itself.
        consequence: What that means, for the error.

    Raises:
        SpendingLimitError: With what was spent and what is kept.
    """
    if any(record.not_sent for record in records):
        raise _limit_reached(embed, requests_spent, records, read_progress(run), consequence)


def _limit_reached(
    embed: EmbedConfig, probe_requests: int, records: Sequence[UnitRecord], lanes: Sequence[LaneProgress], consequence: str
) -> SpendingLimitError:
    meter = Meter()
    for lane in lanes:
        meter.add(lane["meter"])
    requests = meter.requests + probe_requests
    cost = embed.cost(requests=requests, items=meter.items_sent, tokens=meter.tokens_spent)
    left = sum(record.not_sent for record in records)
    kept = sum(record.rows for record in records)
    assets = sum(record.rows + record.dead + record.not_sent for record in records)
    limits = [f"embed.max_requests {embed.max_requests:,}"] if embed.max_requests is not None else []
    limits += [f"embed.max_cost {embed.max_cost:g}"] if embed.max_cost is not None else []
    spent = f"{of_count(requests, 'request')} with {of_count(meter.items_sent, 'item')}"
    spent += "" if cost is None else f" for {cost:,.4g}"
    go_on = "run again to go on"
    if not meter.requests and (embed.max_requests or embed.max_cost):
        go_on = "not one request is within the limit, so raise it or lower embed.batch_items"
    return SpendingLimitError(
        f"The run stopped before it would pass {' and '.join(limits)}: it sent {spent}; {kept:,} of "
        f"{of_count(assets, 'asset is', 'assets are')} embedded and kept, {of_count(left, 'is', 'are')} left, "
        f"{consequence}: {go_on}.",
        spent={"requests": requests, "items": meter.items_sent, "cost": cost},
        assets={"all": assets, "embedded": kept, "left": left},
    )

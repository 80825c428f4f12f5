"""Stop a run at its spending limit. Its vectors are kept, and the next run continues."""

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
    """Raise an error if some assets were not sent. Called after all lanes are done, so that no lane is interrupted.

    Args:
        records: The records of all units.
        embed: The settings with limits and prices.
        run: The run folder with the progress of the lanes.
        requests_spent: Requests that the launcher sent.
        consequence: The consequence, for the error message.

    Raises:
        SpendingLimitError: With the amount spent and the number of embedded assets.
    """
    if any(record.not_sent for record in records):
        raise _limit_reached(embed, requests_spent, records, read_progress(run), consequence)


def _limit_reached(
    embed: EmbedConfig,
    probe_requests: int,
    records: Sequence[UnitRecord],
    lanes: Sequence[LaneProgress],
    consequence: str,
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
    before = ""  # the progress lines count only the requests of the lanes
    if probe_requests:
        before = f", {'1 of them a probe' if probe_requests == 1 else f'{probe_requests:,} of them probes or retried'},"
    spent = f"{of_count(requests, 'request')}{before} with {of_count(meter.items_sent, 'item')}"
    spent += "" if cost is None else f" (cost {cost:,.4g})"
    advice = "Run again to continue"
    if not meter.requests and (embed.max_requests or embed.max_cost):
        advice = "The limit is too low for a single request: raise it or lower embed.batch_items"
    return SpendingLimitError(
        f"{' and '.join(limits)}: the run stopped at its limit. It sent {spent}; {kept:,} of "
        f"{of_count(assets, 'asset is', 'assets are')} embedded and kept, {of_count(left, 'is', 'are')} left, and "
        f"{consequence}. {advice}.",
        spent={"requests": requests, "items": meter.items_sent, **({} if cost is None else {"cost": cost})},
        assets={"all": assets, "embedded": kept, "left": left},
    )

"""What a person sees of a run: one progress line while it lasts, a summary at its end."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

log = logging.getLogger("epithre_beam.run")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


@contextlib.contextmanager
def shown(console: Console, *, quiet: bool) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Shows progress on a terminal; elsewhere as a log line now and then; not at all when `quiet`."""
    if quiet:
        yield lambda _: None
        return
    if not console.is_terminal:
        yield _LogLines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[notes]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("embedding", total=None, notes="")

        def watch(lanes: list[dict[str, Any]]) -> None:
            if not lanes:
                return
            total, done = sum(lane["assets"] for lane in lanes), sum(lane["done"] for lane in lanes)
            word = "building" if all(lane["is_done"] for lane in lanes) else "embedding"
            progress.update(task, total=total, completed=done, notes=_notes(lanes), description=word)

        yield watch


class _LogLines:
    """A line whenever a tenth of the assets more is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0

    def __call__(self, lanes: list[dict[str, Any]]) -> None:
        total, done = sum(lane["assets"] for lane in lanes), sum(lane["done"] for lane in lanes)
        if not total or done < self._next * total:
            return
        self._next = done / total + 0.1
        elapsed = max(lane["elapsed_s"] for lane in lanes)
        rate = done / elapsed if elapsed else 0.0
        left = f"{(total - done) / rate:.0f} s left" if rate else "starting"
        self._console.print(
            f"embedded {done}/{total} assets, {rate:,.0f}/s, {left} {_notes(lanes)}".rstrip(),
            highlight=False,
            soft_wrap=True,
        )


def _notes(lanes: list[dict[str, Any]]) -> str:
    dead = sum(lane["dead"] for lane in lanes)
    retries = sum(sum(lane["meter"]["retries"].values()) for lane in lanes)
    notes = [f"{dead} dead letters"] if dead else []
    return ", ".join([*notes, *([f"{retries} retries"] if retries else [])])


def print_summary(console: Console, report: dict[str, Any], catalog: str) -> None:
    """The end of a run for a person."""
    counts, api, timings = report["counts"], report["api"], report["timings_s"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts["per_kind"].items())
    table.add_row("catalog", Text(catalog))
    table.add_row("version", report["version"])
    table.add_row("vectors", f"{kinds} ({counts['embedded']} new, {counts['reused']} paid for before)")
    if counts["deduplicated"]:
        table.add_row("deduplicated", f"{counts['deduplicated']} with the same content as another, not sent")
    retries = sum(api["retries"].values())
    table.add_row(
        "requests",
        f"{api['requests']}, {retries} of them retries, {_size(api['bytes_up'])} up, {_size(api['bytes_down'])} down",
    )
    if api["cost"] is not None:
        table.add_row("cost", f"{api['cost']:,.2f}")
    recall = ", ".join(f"{direction} {value:.3f}" for direction, value in report["recall"].items())
    table.add_row("recall", recall or "not measured")
    table.add_row("time", f"{timings['total']:.1f} s, of which embedding {timings['embed']:.1f} s")
    console.print(table)
    reasons = report["dead_letters"]["by_reason"]
    if reasons:
        console.print(f"[bold]{counts['dead']} of {counts['assets']} assets got no vector[/bold] (dead letters):")
        for reason, count in reasons.items():
            for sample in report["dead_letters"]["samples"][reason][:3]:
                text = f"  {reason}: {sample['kind']} {sample['asset_id']}: {sample['detail']}"
                console.print(text, highlight=False, markup=False)
            if count > 3:
                console.print(f"  {reason}: and {count - 3} more", highlight=False)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"

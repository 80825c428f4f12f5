"""The progress of a run as a bar or log lines, and its summary for people."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

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

from ...configs.words import of_change, of_count, of_pause, of_size
from ...index.versions.stored_names import GATE_FAILURES
from .logs import escaped, log_event
from .outcomes import page_of_report

if TYPE_CHECKING:
    from ...transforms.batch_search.last_step import SearchReport
    from ...transforms.reports.report import Report
    from ...transforms.workers.progress import LaneProgress, PauseFigures

_SAMPLES = 3
_SAME_PAUSE_S = 5.0
"""Pauses whose ends are closer than this are one pause, requested in parallel responses."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


class Watch:
    """Receives the lanes' progress every half second, and the report at the end. This base class shows nothing."""

    planned = 0
    """Assets to embed, as planned by the launcher before the lanes report theirs."""

    def expect(self, assets: int) -> None:
        """Sets the number of assets to embed, once the run is planned."""
        self.planned = assets

    def total(self, lanes: "list[LaneProgress]") -> int:
        """All assets to embed. Lanes start one by one, on a cluster after a minute, so their sum may be too low."""
        return max(self.planned, sum(lane["assets"] for lane in lanes))

    def __call__(self, lanes: "list[LaneProgress]") -> None:
        pass

    def report_end(self, report: "Report") -> None:
        pass

    def report_searched(self, report: "SearchReport") -> None:
        pass


@contextlib.contextmanager
def shown(
    console: Console, *, quiet: bool, as_lines: bool | None = None, lanes: int = 1, every_s: float = 30.0
) -> Iterator[Watch]:
    """Shows progress while the block runs.

    Args:
        console: Standard error.
        quiet: Whether to show no bar.
        as_lines: Whether to write log lines instead of a bar. None: if `console` is no terminal.
        lanes: The number of lanes of the run. 0: nothing is embedded.
        every_s: Seconds between two progress log lines.
    """
    if console.is_terminal if as_lines is None else not as_lines:
        with _bar(console) if not quiet else contextlib.nullcontext(Watch()) as watch:
            yield watch
        return
    events = Events(lanes, every_s)
    try:
        yield events
    finally:
        events.close()


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[Watch]:
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
        yield _Bar(progress)


class _Pauses:
    """Finds new pauses of the lanes. A pause that several lanes share is reported once."""

    def __init__(self) -> None:
        self._last_reported_until_s = 0.0

    def new(self, lanes: "list[LaneProgress]") -> "PauseFigures | None":
        kept = [lane["pause"] for lane in lanes if "pause" in lane]
        longest = max(kept, key=lambda pause: pause["until_s"], default=None)
        if longest is None or longest["until_s"] < self._last_reported_until_s + _SAME_PAUSE_S:
            return None
        self._last_reported_until_s = longest["until_s"]
        return longest


class _Bar(Watch):
    def __init__(self, progress: Progress) -> None:
        self._pauses = _Pauses()
        self._progress = progress
        self._task = progress.add_task("embedding", total=None, notes="")

    def __call__(self, lanes: "list[LaneProgress]") -> None:
        if not lanes:
            if self.planned:
                self._progress.update(self._task, total=self.planned, description="starting")
            return
        total, done = self.total(lanes), sum(lane["done"] for lane in lanes)
        if pause := self._pauses.new(lanes):
            sentence = of_pause(pause["until_s"], pause["asked_s"], pause["why"])
            self._progress.console.print(escaped(sentence), highlight=False, markup=False, soft_wrap=True)
        word = "building" if all(lane["is_done"] for lane in lanes) else "embedding"
        self._progress.update(self._task, total=total, completed=done, notes=_notes(lanes), description=word)


class Events(Watch):
    """Logs a run's progress at intervals, and each of its events."""

    def __init__(self, lanes: int, every_s: float) -> None:
        self._expected = lanes
        self._every_s = every_s
        self._last_reported_at = time.monotonic()
        self._lanes: list[LaneProgress] = []
        self._is_over = False
        self._is_embedded = not lanes
        self._pauses = _Pauses()

    def __call__(self, lanes: "list[LaneProgress]") -> None:
        self._lanes = lanes or self._lanes
        if pause := self._pauses.new(lanes):
            sentence = of_pause(pause["until_s"], pause["asked_s"], pause["why"])
            log_event("paused", logging.WARNING, until_s=pause["until_s"], asked_s=pause["asked_s"], message=sentence)
        # Lanes without work never report. `report_end` then logs this event.
        if not self._is_embedded and len(lanes) >= self._expected and all(lane["is_done"] for lane in lanes):
            self._is_embedded = True
            log_event("embedded", **self._figures())
        if time.monotonic() - self._last_reported_at >= self._every_s:
            self._last_reported_at = time.monotonic()
            log_event("progress", stage=self._stage(), **self._figures())

    def report_end(self, report: "Report") -> None:
        """Logs the result of a run that wrote a version. The `Reporter` reports one that is held back by a gate."""
        self._is_over = True
        counts, timings, api = report["counts"], report["timings_s"], report["api"]
        if imported := report.get("imported"):
            log_event("imported", rows=imported["rows"], normalised=imported["normalised"], dead=counts["dead"])
        elif not self._is_embedded and not report.get("unchanged"):
            done, retries = counts["assets"], sum(api["retries"].values())
            figures = {"done": done, "total": done, "dead": counts["dead"], "requests": api["requests"]}
            log_event("embedded", **figures, retries=retries, seconds=timings["embed"])
        for kind, rows in counts["per_kind"].items():
            if f"index_{kind}" not in timings:
                continue  # nothing was built
            recall = {d: value for d, value in report["recall"].items() if d.endswith(f">{kind}")}
            log_event("indexed", kind=kind, rows=rows, seconds=timings[f"index_{kind}"], recall=recall)
        _log_retries(api["retries"], api["answers_429"])
        for reason, count in report["dead_letters"]["by_reason"].items():
            samples = report["dead_letters"]["samples"][reason][:_SAMPLES]
            log_event(
                "dead_letters",
                logging.WARNING,
                reason=reason,
                count=count,
                assets=[f"{sample['kind']} {sample['asset_id']}" for sample in samples],
                detail=samples[0]["detail"] if samples else None,
            )
        if not report[GATE_FAILURES]:
            whole = {name: value for name, value in counts.items() if isinstance(value, int)}
            word = "unchanged" if report.get("unchanged") else "published"
            log_event(word, version=report["version"], **whole, seconds=timings["total"], cost=api["cost"])

    def report_searched(self, report: "SearchReport") -> None:
        """Logs the result of a bulk search."""
        self._is_over = True
        names = ("searched", "hits", "dead", "requests", "seconds", "result")
        figures = cast("dict[str, Any]", report)
        log_event("searched", version=report["version"], **{name: figures[name] for name in names})

    def close(self) -> None:
        """Logs the last known progress of a failed run."""
        if not self._is_over and self._lanes:
            log_event("progress", stage="ended", **self._figures())
            retries: Counter[str] = Counter()
            for lane in self._lanes:
                retries.update(lane["meter"]["retries"])
            _log_retries(retries, sum(lane["meter"]["answers_429"] for lane in self._lanes))

    def _stage(self) -> str:
        if self._is_embedded:
            return "building"
        return "embedding" if self._lanes else "starting"

    def _figures(self) -> dict[str, Any]:
        lanes = self._lanes
        total, done = self.total(lanes), sum(lane["done"] for lane in lanes)
        elapsed = max((lane["elapsed_s"] for lane in lanes), default=0.0)
        per_s = round(done / elapsed, 1) if elapsed and done else None
        return {
            "done": done,
            "total": total,
            "dead": sum(lane["dead"] for lane in lanes),
            "requests": sum(lane["meter"]["requests"] for lane in lanes),
            "retries": sum(sum(lane["meter"]["retries"].values()) for lane in lanes),
            "seconds": elapsed,
            "per_s": per_s,
            "left_s": round((total - done) / per_s) if per_s and done < total else None,
        }


def _log_retries(by_reason: Mapping[str, int], answers_429: int) -> None:
    if by_reason:
        log_event("retries", count=sum(by_reason.values()), by_reason=by_reason, answers_429=answers_429)


def _notes(lanes: "list[LaneProgress]") -> str:
    dead = sum(lane["dead"] for lane in lanes)
    retries = sum(sum(lane["meter"]["retries"].values()) for lane in lanes)
    notes = [of_count(dead, "dead letter")] if dead else []
    return ", ".join([*notes, *([of_count(retries, "retry", "retries")] if retries else [])])


def print_summary(console: Console, report: "Report", catalog: str) -> None:
    """Prints the summary of a run."""
    counts, api, timings = report["counts"], report["api"], report["timings_s"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts["per_kind"].items())
    table.add_row("catalog", Text(catalog))
    table.add_row("version", report["version"])
    imported = report.get("imported")
    if imported:
        table.add_row("vectors", Text(f"{kinds}, from {imported['from']}"))
        table.add_row("normalised", f"{of_count(imported['normalised'], 'vector')} whose norm was not 1")
    else:
        table.add_row("vectors", f"{kinds} ({counts['embedded']} new, {counts['reused']} reused)")
    if report.get("unchanged"):
        done = "nothing was written" if api["requests"] or counts["dead"] else "nothing was read, sent or written"
        table.add_row("changes", f"none: this is still the current version; {done}")
    elif report["previous"] is not None:
        names = ("unchanged", "new", "changed", "touched", "prepared_anew", "moved", "copied", "deleted")
        of_name = cast("dict[str, int]", counts)
        words = [f"{of_name[name]:,} {of_change(name)}" for name in names if of_name[name]]
        words += [f"{counts['other_metadata']:,} with changed metadata"] if counts["other_metadata"] else []
        table.add_row("changes", ", ".join(words))
    if counts["deduplicated"]:
        table.add_row("deduplicated", f"{counts['deduplicated']} not sent, because another asset has the same content")
    retries = sum(api["retries"].values())
    up, down = of_size(api["bytes_up"]), of_size(api["bytes_down"])
    if not imported:
        table.add_row(
            "requests",
            f"{api['requests']}, {retries} of them {'a retry' if retries == 1 else 'retries'}, {up} up, {down} down",
        )
    if api["cost"] is not None:
        table.add_row("cost", f"{api['cost']:,.2f}")
    recall = ", ".join(_of_recall(report, direction) for direction in report["recall"])
    table.add_row("recall", recall or "not measured")
    table.add_row("time", f"{timings['total']:.1f} s, including {timings['embed']:.1f} s of embedding")
    table.add_row("report", Text(page_of_report(report, catalog)))
    console.print(table)
    reasons = report["dead_letters"]["by_reason"]
    if reasons:
        console.print(
            f"[bold]{counts['dead']} of {of_count(counts['assets'], 'asset')} have no vector[/bold] (dead letters):"
        )
        for reason, count in reasons.items():
            for sample in report["dead_letters"]["samples"][reason][:_SAMPLES]:
                text = f"  {reason}: {sample['kind']} {sample['asset_id']}: {sample['detail']}"
                console.print(escaped(text), highlight=False, markup=False)
            if count > _SAMPLES:
                console.print(f"  {reason}: and {count - _SAMPLES} more", highlight=False)


def _of_recall(report: "Report", direction: str) -> str:
    recall, ties = report["recall"][direction], report["ties"].get(direction, 0.0)
    return f"{direction} {recall:.3f}" + (f" ({ties:.1%} near ties)" if ties else "")

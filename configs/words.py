"""Counts, sizes and times in the words of a report."""

import time

_ASSETS = {
    "assets": "assets listed",
    "embedded": "embedded in this run",
    "reused": "vectors taken over",
    "deduplicated": "share a vector sent once",
    "dead": "without a vector",
    "touched": "touched, not changed",
    "prepared_anew": "prepared anew, not changed",
    "moved": "moved or renamed",
    "copied": "copies of old content",
    "deleted": "gone since the last version",
}
_API = {
    "items_sent": "items sent",
    "items_embedded": "vectors received",
    "tokens_estimated": "tokens, estimated",
    "tokens_billed": "tokens, as billed",
    "bytes_up": "sent",
    "bytes_down": "received",
    "retries": "sent again, by reason",
    "answers_429": "answered 429",
    "renormalised": "vectors brought to norm 1",
    "throttled_s": "waited for the limit",
    "latency_s": "latency",
    "limits": "limits a minute",
    "utilisation": "share of the limit used",
}
_BYTES = ("B", "kB", "MB", "GB", "TB")


def of_asset_count(name: str) -> str:
    """What a count of the manifest counts; a name that is not known is its own words."""
    return _ASSETS.get(name, name.replace("_", " "))


def of_api_figure(name: str) -> str:
    """What a figure under `api` says; a name that is not known is its own words."""
    return _API.get(name, name.replace("_", " "))


def of_count(count: int, one: str, many: str | None = None) -> str:
    """`1 asset`, `1,200 assets`; `many` where that is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def unwritable(label: str, place: str, error: OSError, remedy: str) -> str:
    """That a folder or file cannot be written, in the one wording that there is for it.

    Args:
        label: What the user calls it: `catalog`, `--html`.
        place: Its path or URL.
        error: Why.
        remedy: What to do, a sentence.
    """
    reason = error.strerror or str(error)
    file = f": {error.filename}" if error.strerror and error.filename and str(error.filename) != place else ""
    return f"{label} {place!r} cannot be written ({reason}{file}). {remedy}"


def of_name(name: str) -> str:
    """`index_image` as a person would write it."""
    return name.replace("_", " ")


def of_size(size_bytes: float) -> str:
    power = 0
    while size_bytes >= 999.5 and power < len(_BYTES) - 1:
        size_bytes /= 1000
        power += 1
    return f"{size_bytes:.0f} B" if power == 0 else f"{size_bytes:.3g} {_BYTES[power]}"


def of_duration(seconds: float) -> str:
    """In the unit that keeps the number small, to three digits."""
    for most, one, unit in ((1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min")):
        if seconds < most:
            return f"{seconds / one:.3g} {unit}"
    return f"{seconds / 3600:,.1f} h"


def of_moment(moment_s: float) -> str:
    """A time of day of this machine with its zone, `12:17 CET`; with the date unless it is today.

    Args:
        moment_s: Seconds since the epoch, below the year 9999.
    """
    then = time.localtime(moment_s)
    is_today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M %Z" if is_today else "%Y-%m-%d %H:%M %Z", then)


def of_pause(until_s: float, asked_s: float, why: str) -> str:
    """That a server asked for a pause, which is kept, and until when.

    Args:
        until_s: Seconds since the epoch.
        asked_s: As the server said.
        why: Its answer, in a few words.
    """
    return f"paused until {of_moment(until_s)}: the server asked for {asked_s:.0f} s ({why})"

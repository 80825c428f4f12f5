"""Formats counts, sizes and times for people."""

import time

_ASSETS = {
    "assets": "assets listed",
    "embedded": "embedded in this run",
    "reused": "vectors reused",
    "deduplicated": "reuse the vector of equal content",
    "dead": "without a vector",
    "new": "added",
    "touched": "written again, unchanged",
    "prepared_anew": "prepared again, unchanged",
    "moved": "moved or renamed",
    "copied": "copies of known content",
    "deleted": "removed",
}
_CHANGES = {
    "new": "added",
    "touched": "written again but unchanged",
    "prepared_anew": "prepared again but unchanged",
    "deleted": "removed",
}
_API = {
    "items_sent": "items sent",
    "items_embedded": "vectors received",
    "tokens_estimated": "tokens, estimated",
    "tokens_billed": "tokens, as billed",
    "bytes_up": "sent",
    "bytes_down": "received",
    "retries": "retries, by reason",
    "answers_429": "answered 429",
    "renormalised": "vectors normalised to norm 1",
    "throttled_s": "time waited for the rate limit",
    "latency_s": "latency",
    "limits": "limits per minute",
    "utilisation": "share of the limit used",
}
_BYTES = ("B", "kB", "MB", "GB", "TB")


def of_asset_count(name: str) -> str:
    """The label of a count in the manifest; an unknown name is its own label."""
    return _ASSETS.get(name, name.replace("_", " "))


def of_change(name: str) -> str:
    """The word for a count of changes in the manifest, after its number: `new` is `added`."""
    return _CHANGES.get(name, name)


def of_api_figure(name: str) -> str:
    """The label of a figure under `api`; an unknown name is its own label."""
    return _API.get(name, name.replace("_", " "))


def of_count(count: int, one: str, many: str | None = None) -> str:
    """`1 asset`, `1,200 assets`. Give `many` for an irregular plural."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def unwritable(label: str, place: str, error: OSError, remedy: str) -> str:
    """The message for a folder or file that cannot be written.

    Args:
        label: The user's name for it: `catalog`, `--html`.
        place: Its path or URL.
        error: The cause.
        remedy: What to do, as a sentence.
    """
    reason = error.strerror or str(error)
    file = f": {error.filename}" if error.strerror and error.filename and str(error.filename) != place else ""
    return f"{label} {place!r} cannot be written ({reason}{file}). {remedy}"


def of_name(name: str) -> str:
    """A name such as `index_image` with spaces."""
    return name.replace("_", " ")


def of_size(size_bytes: float) -> str:
    power = 0
    while size_bytes >= 999.5 and power < len(_BYTES) - 1:
        size_bytes /= 1000
        power += 1
    return f"{size_bytes:.0f} B" if power == 0 else f"{size_bytes:.3g} {_BYTES[power]}"


def of_duration(seconds: float) -> str:
    """A duration in ms, s, min or h, with three digits."""
    for most, one, unit in ((1.0, 1e-3, "ms"), (120.0, 1.0, "s"), (7200.0, 60.0, "min")):
        if seconds < most:
            return f"{seconds / one:.3g} {unit}"
    return f"{seconds / 3600:,.1f} h"


def of_moment(moment_s: float) -> str:
    """A local time with its zone, `12:17 CET`; with the date unless it is today.

    Args:
        moment_s: Seconds since the epoch, below the year 9999.
    """
    then = time.localtime(moment_s)
    is_today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M %Z" if is_today else "%Y-%m-%d %H:%M %Z", then)


def of_pause(until_s: float, asked_s: float, why: str) -> str:
    """The message for a pause that the server requested.

    Args:
        until_s: The end of the pause, in seconds since the epoch.
        asked_s: The requested pause, in seconds.
        why: The server's response, in a few words.
    """
    return f"paused until {of_moment(until_s)}: the server asked for {asked_s:.0f} s ({why})"

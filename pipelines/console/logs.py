"""Log lines, one per event: logfmt for people, JSON for programs.

```
2026-11-22T10:00:00.123Z INFO published version=000007-… embedded=120 seconds=41.2
{"time": "2026-11-22T10:00:00.123Z", "level": "INFO", "event": "published", "version": "000007-…", …}
```
A record of a library has a sentence for people, and may have an `event` and `fields` for programs; the sentence is then
its `message`, and only JSON has the fields. Other records, such as Beam's, become the event `log` with `logger` and
`message`.
"""

import datetime
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import Any

from ...configs.scrubbing import Scrubber, without_credentials
from .documents import json_text

EVENTS = "epithre_beam.run"
"""The logger of a run's events."""

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"  # breaks, controls, bidi
)
_PLAIN = re.compile(r'[^\s"=\\,\x00-\x1f]+')


class LogFormat(StrEnum):
    """The format of log lines."""

    TEXT = "text"
    JSON = "json"


def line_of(event: str, level: int, fields: Mapping[str, Any]) -> str:
    """The line that `log_event` would log, for callers that must not wait for a lock."""
    handlers = logging.getLogger().handlers
    formatter = handlers[0].formatter if handlers else None
    record = logging.LogRecord(EVENTS, level, "", 0, event, None, None)
    record.fields = fields
    return (formatter or LineFormatter(LogFormat.TEXT)).format(record)


def log_event(event: str, level: int = logging.INFO, /, **fields: Any) -> None:
    """Logs an event of a run, without fields that are None."""
    logging.getLogger(EVENTS).log(level, event, extra={"fields": fields})


def escaped(text: str) -> str:
    r"""The text on one line; line breaks and characters that control a terminal become `\uXXXX`."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def hidden(text: str, secrets: Collection[str]) -> str:
    """The text without the secrets in any encoding, and without credentials in URLs."""
    return without_credentials(Scrubber(*secrets).text(text))


class LineFormatter(logging.Formatter):
    """Writes a record as one line.

    Args:
        form: The format.
        secrets: Strings to hide in every line, such as the API key.
    """

    def __init__(self, form: LogFormat, secrets: Collection[str] = ()) -> None:
        super().__init__()
        self.form = form
        self._scrubber = Scrubber(*secrets)

    def format(self, record: logging.LogRecord) -> str:
        reported = getattr(record, "fields", None)
        if (named := getattr(record, "event", None)) is not None:
            # In a line of text, the sentence says what the fields say.
            given = (reported or {}) if self.form is LogFormat.JSON else {}
            event, fields = named, {**given, **self._foreign(record)}
        else:
            event, fields = (record.getMessage(), reported) if reported is not None else ("log", self._foreign(record))
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        time = time.replace("+00:00", "Z")
        fields = {name: self._hidden(value) for name, value in fields.items() if value is not None}
        if self.form is LogFormat.JSON:
            line = {"time": time, "level": record.levelname, "event": event, **fields}
            return escaped(json_text(line))
        words = [f"{name}={_word(value)}" for name, value in _flat(fields)]
        return " ".join([time, record.levelname, event, *words])

    def _foreign(self, record: logging.LogRecord) -> dict[str, Any]:
        fields = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return fields

    def _hidden(self, value: Any) -> Any:
        if isinstance(value, str):
            return without_credentials(self._scrubber.text(value))
        if isinstance(value, Mapping):
            return {self._hidden(name): self._hidden(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._hidden(item) for item in value]
        return round(value, 3) if isinstance(value, float) else value


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flattens nested fields for logfmt: `{"assets": {"image": 3}}` becomes `assets.image=3`."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if _PLAIN.fullmatch(text) and not _UNSAFE.search(text) else escaped(json_text(text))


def format_in_use() -> LogFormat:
    """The format of this process's log lines."""
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    return next((f.form for f in formatters if isinstance(f, LineFormatter)), LogFormat.TEXT)


def set_format(form: LogFormat, secrets: Collection[str] = ()) -> None:
    """Sets the format of all log lines, and the secrets to hide in them."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(LineFormatter(form, secrets))

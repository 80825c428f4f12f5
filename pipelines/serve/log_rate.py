"""Rate limit of log lines, so that a client that causes many failures cannot fill the disk."""

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

_BURST = 5
_EVERY_S = 10.0
_KINDS_KEPT = 256
_MOST_OF_ALL = 50


class LogRate(logging.Filter):
    """Passes a few lines of each kind, then one every ten seconds with the number of lines left out.

    A kind is a logger, a level and a message template. All kinds together have their own limit.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[object, _Bucket] = OrderedDict()
        self._all = _Bucket(_MOST_OF_ALL, clock())
        self._last: tuple[logging.LogRecord, bool] | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        with self._lock:
            if self._last is None or self._last[0] is not record:  # each handler calls the filter
                self._last = record, self._may_pass(record)
            return self._last[1]

    def _may_pass(self, record: logging.LogRecord) -> bool:
        now, kind = self._clock(), (record.name, record.levelno, str(record.msg))
        bucket = self._buckets.pop(kind, None) or _Bucket(_BURST, now)
        self._buckets[kind] = bucket
        if len(self._buckets) > _KINDS_KEPT:
            self._buckets.popitem(last=False)
        if not bucket.take(now) or not self._all.take(now):
            bucket.left_out += 1
            return False
        if bucket.left_out:
            record.msg, record.args = f"{record.getMessage()} (and {bucket.left_out:,} more like it)", None
            bucket.left_out = 0
        return True


class _Bucket:
    """A token bucket of log lines."""

    def __init__(self, most: int, now: float) -> None:
        self._most = self._level = float(most)
        self._since = now
        self._per_s = max(1.0, most / _BURST) / _EVERY_S
        self.left_out = 0

    def take(self, now: float) -> bool:
        self._level = min(self._most, self._level + (now - self._since) * self._per_s)
        self._since = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


@contextlib.contextmanager
def bounded_logs() -> Iterator[None]:
    """Limit the rate of log lines of this process while the block runs."""
    rate, handlers = LogRate(), list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(rate)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(rate)

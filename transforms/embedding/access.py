"""What a process needs to send requests with one set of settings: the key, the limits, the counts, an event loop."""

import asyncio
import contextlib
import datetime
import secrets
import threading
from typing import Generic, TypeVar

from ...configs.caller import JOB, Caller
from ...configs.errors import ApiError
from ...configs.schema import EMULATOR, ApiConfig
from ..epithre.emulator import EmulatorSettings, start_emulator_process
from ..epithre.meter import Meter
from ..epithre.rate_limit.account import Account
from ..epithre.rate_limit.memory_backend import WINDOW_S
from ..epithre.rate_limit.spending import SpendingLimit
from .lane import api_key
from .limiters import limiter_of, process_loop

_Config = TypeVar("_Config", bound=ApiConfig)
_CLOSE_WITHIN_S = 5.0


class ApiAccess(Generic[_Config]):
    """Access to an API for all requests of a process with the same settings. It ends with `stack`.

    Args:
        settings: The settings; `base_url: emulator` starts an emulator for this process.
        emulator: The settings of that emulator.
        spending: What may be spent.
        scope: The pipeline, whose steps share what may be spent.
        stack: Closes it.
        window_s: Length of the server's window; tests shorten it.
        caller: Who sends; for messages.

    Raises:
        RefusedKeyError: When the variable of the key is not set in this process.
    """

    def __init__(
        self,
        settings: _Config,
        *,
        emulator: EmulatorSettings,
        spending: SpendingLimit,
        scope: str,
        stack: contextlib.ExitStack,
        window_s: float = WINDOW_S,
        caller: Caller = JOB,
    ) -> None:
        if settings.base_url == EMULATOR:
            started = stack.enter_context(start_emulator_process(emulator))
            self.key = started.api_key
            settings = settings.model_copy(update={"base_url": started.base_url})
        else:
            self.key = api_key(settings.api_key_env, caller)
        self.settings = settings
        """With the address that requests are sent to."""
        self.memory = settings.memory_mb * 1_000_000
        self.loop = process_loop()
        self.limiter = limiter_of(settings, self.key, window_s=window_s)
        stack.enter_context(self.limiter.in_use(settings.max_concurrency))
        self.account = Account(self.limiter, spending, scope=scope, user=secrets.token_hex(8))
        self.meter = Meter()
        self._lock = threading.Lock()
        self._reported: dict[str, int] = {}
        self._throttled_before_s = self.limiter.throttled_s

    def counts(self) -> dict[str, int]:
        """Return the growth of the counts since the last call, by the names of Beam's metrics. Thread-safe."""
        meter = self.meter
        with self._lock:
            totals = {
                "cumulativeThrottlingSeconds": int(self.limiter.throttled_s - self._throttled_before_s),
                "RatelimitRequestsTotal": meter.requests,
                "RatelimitRequestsThrottled": meter.answers_429,
                "items_sent": meter.items_sent,
                "bytes_up": meter.bytes_up,
                "bytes_down": meter.bytes_down,
                "retries": meter.retries.total(),
            }
            growth = {name: total - self._reported.get(name, 0) for name, total in totals.items()}
            self._reported = totals
        return growth

    def check_pause(self) -> None:
        """Raise the error of a client of this process while the pause lasts that the API asked for."""
        error = self.limiter.refusal
        if error is not None and _is_paused(error):
            raise error.with_traceback(None)

    def close_client(self, client: contextlib.AbstractAsyncContextManager[object]) -> None:
        """Close a client's connections; those that do not close in time end with the process."""
        closing = asyncio.run_coroutine_threadsafe(client.__aexit__(None, None, None), self.loop)
        with contextlib.suppress(Exception):
            closing.result(timeout=_CLOSE_WITHIN_S)


def _is_paused(error: ApiError) -> bool:
    until = error.facts.get("retry_at")
    return until is not None and datetime.datetime.now(datetime.UTC) < datetime.datetime.fromisoformat(str(until))

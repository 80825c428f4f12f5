"""A circuit breaker: after consecutive failures or a final refusal, no further request is sent."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from ...configs import EmbedConfig
from ...configs.caller import JOB, Caller
from ...configs.errors import ApiError, ApiPausedError, UnusableVectorsError, WrongDimensionError
from ...configs.schema import ApiConfig
from ...configs.words import of_moment
from .answers import ErrorAnswer, pause_facts, refusal_of
from .vectors import BrokenAnswerError

_FAILURES_IN_A_ROW = 10
_OUTAGE_S = 15.0
_QUIET_S = 2.0
_BROKEN_ANSWERS = 3
_T = TypeVar("_T")


class CircuitBreaker:
    """Decides from the outcomes of requests whether to send further ones. Once open, it stays open.

    Args:
        settings: The section of a config, for messages.
        caller: Who embeds; for messages.
        on_open: Called with the error whenever an answer opens the breaker.
    """

    def __init__(
        self,
        settings: ApiConfig,
        *,
        caller: Caller = JOB,
        on_open: Callable[[ApiError], None] | None = None,
    ) -> None:
        self._settings = settings
        self._caller = caller
        self._on_open = on_open
        self._waiting: set[asyncio.Future[Any]] = set()
        self._good_answers = 0
        self._failures = 0
        self._failed_at = -1.0
        self._succeeded_at = time.monotonic()
        self._error: ApiError | None = None
        self._unreachable: ApiError | None = None

    @property
    def is_open(self) -> bool:
        return self._error is not None

    @property
    def error(self) -> ApiError | None:
        """The error that opened the breaker; None while it is closed."""
        return self._error

    @property
    def is_outage(self) -> bool:
        """Whether no request has succeeded for 15 s, so that waiting for a success is pointless."""
        return time.monotonic() - self._succeeded_at > _OUTAGE_S

    @property
    def is_quiet(self) -> bool:
        """Whether no request has succeeded for 2 s."""
        return time.monotonic() - self._succeeded_at > _QUIET_S

    def check(self) -> None:
        """Raise ApiError if the breaker is open."""
        if self._error is not None:
            raise self._error.with_traceback(None)

    async def unless_open(self, awaitable: Awaitable[_T], undo: Callable[[_T], None] | None = None) -> _T:
        """Wait for something that precedes a request, but only while the breaker is closed.

        Args:
            awaitable: What to wait for.
            undo: Called with its result if the caller is cancelled before it receives the result.

        Raises:
            ApiError: As soon as the breaker opens: the pause that opened it may take longer than anybody waits.
        """
        waiting = asyncio.ensure_future(awaitable)
        self._waiting.add(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if undo is not None and waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                undo(waiting.result())
            if self._error is not None and not (task and task.cancelling()):
                raise self._error.with_traceback(None) from None  # it is raised often
            raise
        finally:
            self._waiting.discard(waiting)

    def succeeded(self) -> None:
        self._good_answers += 1
        self._unreachable = None
        self._failures = 0
        self._succeeded_at = time.monotonic()

    def refused(self, answer: ErrorAnswer) -> NoReturn:
        """Open after an answer that no request can succeed. Raises ApiRefusedError."""
        self._open(refusal_of(answer, self._settings, self._caller))

    def stop(self, error: ApiError) -> NoReturn:
        """Open because another client with the same key was refused. Raises the error."""
        self._open(error)

    def asked_to_pause(self, answer: ErrorAnswer, pause_s: float) -> NoReturn:
        """Open after an answer that asks for a longer pause than the settings allow. Raises ApiPausedError."""
        self._open(paused_error(answer, pause_s, self._settings, self._caller))

    def answered_badly(self, error: BrokenAnswerError, started: float) -> None:
        """Count a 200 without one valid vector per item. Raises ApiError when the breaker opens."""
        self.failed(str(error), started, is_patient=True)
        if self._good_answers or self._failures < _BROKEN_ANSWERS:
            return
        if error.remedy is not None:
            where = f"{self._settings.base_url}, model {self._settings.model!r}"
            self._open(UnusableVectorsError(f"{where}: the API returns no usable vectors ({error}). {error.remedy}."))
        if error.dimension is not None and isinstance(self._settings, EmbedConfig):
            setting = self._caller.name("dimension")
            self._open(
                WrongDimensionError(
                    f"{setting}: {self._settings.base_url} returns vectors of dimension {error.dimension}, not "
                    f"{self._settings.dimension}. Set {setting}={error.dimension} or choose another model."
                )
            )

    def failed(self, what: str, started: float, *, is_patient: bool) -> None:
        """Count consecutive failures. Requests that overlapped in time count as one failure.

        Args:
            what: A short description of the failure.
            started: time.monotonic() when the request was sent.
            is_patient: Whether the breaker opens only if the failures last 15 s, because the server may recover.

        Raises:
            ApiError: When the breaker opens.
        """
        now = time.monotonic()
        if started >= self._failed_at:
            self._failures += 1
            self._failed_at = now
        # After some good answers, a run of bad assets is more likely than a server that refuses everything.
        most = _FAILURES_IN_A_ROW if is_patient or not self._good_answers else 3 * _FAILURES_IN_A_ROW
        if self._failures >= most and (not is_patient or now - self._succeeded_at >= _OUTAGE_S):
            self._open(
                ApiError(
                    f"{self._settings.base_url}: {self._failures} requests in a row failed (last: {what}). "
                    f"{self._caller.again} when the server works."
                )
            )

    def gave_up(self, what: str) -> None:
        """Note that a request failed for good without an answer.

        Args:
            what: A short description of the last failure.
        """
        if not self._good_answers:
            self._unreachable = ApiError(
                f"{self._settings.base_url}: the server does not answer ({what}), and no request has succeeded. "
                "Check the address and the network, and run again."
            )

    @property
    def unreachable(self) -> ApiError | None:
        """The error if a request failed for good and none has succeeded: the server is the cause, not what was sent."""
        return self._unreachable

    def _open(self, error: ApiError) -> NoReturn:
        self._error = self._error or error
        if self._on_open is not None:
            self._on_open(self._error)
        for waiting in self._waiting:
            waiting.cancel()
        raise self._error.with_traceback(None)


def paused_error(answer: ErrorAnswer, pause_s: float, settings: ApiConfig, caller: Caller = JOB) -> ApiPausedError:
    """Return the exception for an answer that asks for a longer pause than the settings allow."""
    retry_at = time.time() + pause_s
    limit = f"the {settings.max_retry_after_s:g} s that a query waits"
    if not caller.sends_queries:
        limit = f"the limit of {settings.max_retry_after_s:g} s ({caller.name('max_retry_after_s')})"
    return ApiPausedError(
        f"{settings.base_url}: the server asked for a pause of {pause_s:.0f} s ({answer}), longer than {limit}. "
        f"{caller.again} after {of_moment(retry_at)}.",
        retry_after_s=pause_s,
        **pause_facts(retry_at),
    )

"""Jobs that run elsewhere: whoever stops the launcher stops them too, or is told where they run on."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .runner_errors import message_of

_SUBMIT_S = 10.0
_CANCEL_S = 15.0
"""Both together are less than what Kubernetes waits before it kills."""
_LOOK_EVERY_S = 0.1
_OVER = frozenset({"DONE", "STOPPED", "FAILED", "CANCELLED", "UPDATED", "DRAINED"})
"""Beam's words for a job that has ended."""

_under_way: "list[RemoteJob]" = []


@dataclass(eq=False, kw_only=True)
class RemoteJob:
    """A job that an engine runs in processes which outlive the launcher."""

    place: str
    """Where it runs: the engine's address, or what it is called."""
    stop: Callable[[], None] = lambda: None
    """Tells its workers to stop: some engines call a job cancelled and let its workers end what they have, in hours."""
    cancel_s: float = _CANCEL_S
    """So long its end is waited for."""
    _result: Any = field(default=None, init=False, repr=False)
    _is_submitted: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    def submit(self, run: Callable[[], Any]) -> Any:
        """Calls `run`, which sends the job to the engine, and returns its result, Beam's."""
        try:
            self._result = run()
        finally:
            self._is_submitted.set()
        return self._result

    @property
    def name(self) -> str:
        """What the engine calls it."""
        result = self._result
        found = getattr(result, "_job_id", None)
        found = found or (result.job_id() if callable(getattr(result, "job_id", None)) else None)
        return str(found or "the job")

    def cancel(self) -> str:
        """Cancels it and waits for its end. Returns a sentence that says how that went; never raises."""
        with contextlib.suppress(Exception):  # the storage may be what fails
            self.stop()
        if not self._is_submitted.wait(_SUBMIT_S):
            return f"A job was being sent to {self.place} and may run there: look there, and cancel it."
        if self._result is None:
            return ""
        deadline = time.monotonic() + self.cancel_s
        why = "it did not end in time"
        ends = threading.Event()

        def work() -> None:
            nonlocal why
            try:
                self._result.cancel()
                while (state := str(self._result.state)) not in _OVER:
                    why = f"it is still {state}"
                    time.sleep(_LOOK_EVERY_S)
                ends.set()
            except Exception as error:
                why = message_of(error)

        worker = threading.Thread(target=work, name="cancel-job", daemon=True)
        worker.start()
        worker.join(max(0.0, deadline - time.monotonic()))
        if ends.is_set():
            return f"The job {self.name} at {self.place} was cancelled."
        return (
            f"The job {self.name} could not be cancelled at {self.place} ({why.rstrip('.')}) and may run on there: "
            "cancel it there."
        )


@contextlib.contextmanager
def under_way(job: RemoteJob) -> Iterator[RemoteJob]:
    """The job is one to cancel when this process is stopped, for as long as the block runs."""
    _under_way.append(job)
    try:
        yield job
    finally:
        _under_way.remove(job)


def any_under_way() -> bool:
    return bool(_under_way)


def places() -> list[str]:
    """Where jobs run at the moment."""
    return [f"{job.name} at {job.place}" for job in list(_under_way)]


def cancel_all() -> list[str]:
    """Cancels what is under way, and waits for its end. Returns a sentence for each job."""
    return [sentence for job in list(_under_way) if (sentence := job.cancel())]

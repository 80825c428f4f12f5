"""Jobs on remote runners: stopping the launcher cancels them, or reports where they still run."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .runner_errors import message_of

_SUBMIT_S = 10.0
_CANCEL_S = 15.0
"""Both together are shorter than the grace period of Kubernetes ."""
_LOOK_EVERY_S = 0.1
_OVER = frozenset({"DONE", "STOPPED", "FAILED", "CANCELLED", "UPDATED", "DRAINED"})
"""Beam's states of a job that has ended."""

_under_way: "list[RemoteJob]" = []


@dataclass(eq=False, kw_only=True)
class RemoteJob:
    """A job whose processes can outlive the launcher."""

    place: str
    """The engine's address, or its name."""
    stop: Callable[[], None] = lambda: None
    """Makes the workers stop: some engines report a job as cancelled while its workers continue for hours."""
    cancel_s: float = _CANCEL_S
    """Seconds to wait for the job to end."""
    _result: Any = field(default=None, init=False, repr=False)
    _is_submitted: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    def submit(self, run: Callable[[], Any]) -> Any:
        """Call `run`, which sends the job to the engine, and return Beam's pipeline result."""
        try:
            self._result = run()
        finally:
            self._is_submitted.set()
        return self._result

    @property
    def name(self) -> str:
        """The job's id at the engine."""
        result = self._result
        found = getattr(result, "_job_id", None)
        found = found or (result.job_id() if callable(getattr(result, "job_id", None)) else None)
        return str(found or "the job")

    def cancel(self) -> str:
        """Cancel the job and wait for its end. Return a sentence with the outcome; never raise."""
        with contextlib.suppress(Exception):  # the storage may be failing
            self.stop()
        if not self._is_submitted.wait(_SUBMIT_S):
            return f"A job was being submitted to {self.place} and may run there. Check there, and cancel it."
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
            f"The job {self.name} could not be cancelled at {self.place} ({why.rstrip('.')}) and may still run. "
            "Cancel it there."
        )


@contextlib.contextmanager
def under_way(job: RemoteJob) -> Iterator[RemoteJob]:
    """Register a job for cancellation while the block runs, in case this process is stopped."""
    _under_way.append(job)
    try:
        yield job
    finally:
        _under_way.remove(job)


def any_under_way() -> bool:
    return bool(_under_way)


def places() -> list[str]:
    """Return the running jobs and where they run."""
    return [f"{job.name} at {job.place}" for job in list(_under_way)]


def cancel_all() -> list[str]:
    """Cancel the running jobs and wait for their end. Return a sentence for each job."""
    return [sentence for job in list(_under_way) if (sentence := job.cancel())]

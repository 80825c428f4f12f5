"""What Beam's FnApiRunner does not notice: that one of its worker processes died."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

_BEAMS_THREAD = "run_worker"
"""Beam's thread that waits for a worker process; it raises when that ended badly, and nobody hears it."""

_SENTENCE = "A worker process died ({}): what was finished is kept; run again, with fewer workers if memory was short."


class WorkerDied(Exception):  # noqa: N818 - what happened
    """A worker process of the run ended before its work did."""


def run_to_its_end(run: Callable[[], Any]) -> None:
    """Calls `run`, which runs a pipeline in worker processes of FnApiRunner, and waits until it is over.

    FnApiRunner would wait for ever for a process that was killed, by the kernel for its memory for instance. So the
    pipeline runs in a thread of its own, which is left behind then.

    Raises:
        WorkerDied: When a worker process died.
    """
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            run()
        except BaseException as error:  # raised again where it was asked for
            ends.put(error)
        else:
            ends.put(None)

    with _told_of_deaths(ends.put):
        threading.Thread(target=work, name="run-pipeline", daemon=True).start()
        error = ends.get()
    if error is not None:
        raise error


@contextlib.contextmanager
def _told_of_deaths(tell: Callable[[BaseException], None]) -> Iterator[None]:
    before = threading.excepthook

    def hook(what: Any) -> None:
        if what.thread is not None and what.thread.name == _BEAMS_THREAD:
            tell(WorkerDied(_SENTENCE.format(what.exc_value)))
        else:
            before(what)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before

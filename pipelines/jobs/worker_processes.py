"""Worker processes of Beam's FnApiRunner: what they say, and that one of them died, which Beam does not notice."""

import contextlib
import os
import queue
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ...configs.errors import RunnerError
from ..console.logs import format_in_use

_BEAMS_THREAD = "run_worker"
"""Beam's thread that waits for a worker process; it raises when that ended badly, and nobody hears it."""

_NO_GRPC_PROXY = "no_grpc_proxy"
"""In lower case, as gRPC reads it; where it is set, `no_proxy` is not looked at."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SENTENCE = "A worker process died ({}): what was finished is kept; run again, with fewer workers if memory was short."


def uses_processes(options: Any) -> bool:
    """Whether Beam's options ask for worker processes. If so they do not any more: `process_runner` makes them."""
    from apache_beam.options.pipeline_options import DirectOptions

    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "multi_processing":
        return False
    direct.direct_running_mode = "in_memory"  # or the runner would start Beam's own workers instead
    return True


def ask_loopback_directly() -> None:
    """Tells gRPC, here and in processes that are started from now on, that no proxy leads to this machine.

    Runners and their workers talk over it on loopback, and it takes `http_proxy` for every address.
    """
    names = (os.environ.get(_NO_GRPC_PROXY) or os.environ.get("no_proxy") or "").split(",")
    os.environ[_NO_GRPC_PROXY] = ",".join(dict.fromkeys([*filter(None, map(str.strip, names)), *_LOOPBACK]))


def process_runner() -> Any:
    """FnApiRunner with worker processes that are ours: Beam's own write pages of log lines to standard error."""
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    program = [sys.executable, "-m", "epithre_beam.pipelines.console.worker_process", format_in_use().value]
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(shlex.join(program)))


def run_to_its_end(run: Callable[[], Any]) -> None:
    """Calls `run`, which runs a pipeline in worker processes of FnApiRunner, and waits until it is over.

    FnApiRunner would wait for ever for a process that was killed, by the kernel for its memory for instance. So the
    pipeline runs in a thread of its own, which is left behind then.

    Raises:
        RunnerError: When a worker process died.
    """
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            run()
        except BaseException as error:  # raised again where it was asked for
            ends.put(error)
        else:
            ends.put(None)

    with _reporting_deaths(ends.put):
        threading.Thread(target=work, name="run-pipeline", daemon=True).start()
        error = ends.get()
    if error is not None:
        raise error


@contextlib.contextmanager
def _reporting_deaths(report: Callable[[BaseException], None]) -> Iterator[None]:
    before = threading.excepthook

    def hook(what: Any) -> None:
        if what.thread is not None and what.thread.name == _BEAMS_THREAD:
            report(RunnerError(_SENTENCE.format(what.exc_value)))
        else:
            before(what)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before

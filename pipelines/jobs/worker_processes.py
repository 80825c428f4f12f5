"""Worker processes of Beam's FnApiRunner: their log format, and detection of their death, which Beam misses."""

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
"""Beam's thread that waits for a worker process; it raises when the process fails, and Beam ignores the error."""

_NO_GRPC_PROXY = "no_grpc_proxy"
"""In lower case, as gRPC reads it; when it is set, gRPC ignores `no_proxy`."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SENTENCE = "A worker process died ({}). Finished work is kept; run again, with fewer workers if memory was short."


def uses_processes(options: Any) -> bool:
    """Return whether Beam's options ask for worker processes, and clear that option: use `process_runner` instead."""
    from apache_beam.options.pipeline_options import DirectOptions

    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "multi_processing":
        return False
    direct.direct_running_mode = "in_memory"  # otherwise the runner starts Beam's own workers
    return True


def ask_loopback_directly() -> None:
    """Exclude loopback from gRPC's proxy, in this process and in the processes it starts.

    Runners and their workers use gRPC on loopback, and gRPC applies `http_proxy` to every address.
    """
    names = (os.environ.get(_NO_GRPC_PROXY) or os.environ.get("no_proxy") or "").split(",")
    os.environ[_NO_GRPC_PROXY] = ",".join(dict.fromkeys([*filter(None, map(str.strip, names)), *_LOOPBACK]))


def process_runner() -> Any:
    """Return an FnApiRunner with our worker program: Beam's own writes pages of log lines to standard error."""
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    program = [sys.executable, "-m", "epithre_beam.pipelines.console.worker_process", format_in_use().value]
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(shlex.join(program)))


def run_to_its_end(run: Callable[[], Any]) -> None:
    """Call `run`, which runs a pipeline in worker processes of FnApiRunner, and wait for its end.

    FnApiRunner waits forever for a process that was killed, for example by the kernel when memory is short. The
    pipeline therefore runs in its own thread, which is abandoned in that case.

    Raises:
        RunnerError: When a worker process died.
    """
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            run()
        except BaseException as error:  # raised again in the calling thread
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

"""An emulator in a separate process, so that serving does not take the caller's interpreter lock."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

import orjson

from .settings import EmulatorSettings

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0


class EmulatorProcess:
    """A running emulator in another process; it stops on `close`, or when the process that started it ends."""

    def __init__(self, process: subprocess.Popen[bytes], base_url: str, api_key: str) -> None:
        self._process = process
        self.base_url = base_url
        self.api_key = api_key

    @property
    def url(self) -> str:
        """Scheme, host and port, without a path; /emulator/log, /emulator/stats and /emulator/reset are below it."""
        return self.base_url.removesuffix("/v1")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Stop the process and wait for it. A second call does nothing."""
        if self.is_running:
            self._process.terminate()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_emulator_process(settings: EmulatorSettings | None = None) -> EmulatorProcess:
    """Start an emulator in a new process and wait until it serves.

    Its standard input is a pipe from this process: when this process ends for any reason, the pipe closes and the
    emulator stops.

    Raises:
        RuntimeError: If the process ended, or did not serve within a minute; its standard error shows the reason.
    """
    settings = settings or EmulatorSettings()
    command = [sys.executable, "-m", __package__, "--settings", "-", "--exit-with-parent"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - no shell
    assert process.stdin is not None
    assert process.stdout is not None
    watchdog = threading.Timer(_START_TIMEOUT_S, process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        # Send the settings as the first line of stdin, so that keys are neither on disk nor in a process list.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(settings.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        line = process.stdout.readline()
    finally:
        watchdog.cancel()
    if not line:
        raise RuntimeError(f"the emulator's process ended with status {process.wait()} before it was ready")
    ready = orjson.loads(line)
    return EmulatorProcess(process, ready["base_url"], ready["api_key"])

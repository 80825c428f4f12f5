"""A rate limiter backend shared by all processes of one host, held by Beam's `MultiProcessShared`."""

import contextlib
import logging
import os
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fasteners  # type: ignore[import-untyped]  # a part of Beam
from apache_beam.utils.multi_process_shared import MultiProcessShared

from ...configs.errors import RateLimiterLostError
from ..epithre.rate_limit.memory_backend import Answer, MemoryBackend, RateLimiterSettings
from ..epithre.rate_limit.spending import SpendingLimit, Totals, Verdict

_CONNECT_S = 2.0
_log = logging.getLogger("epithre_beam.rate_limiter")


def private_folder() -> Path:
    """Return the private folder for the files by which processes of this host find each other.

    In the shared temporary folder itself, another user could place the address of another program.

    Raises:
        OSError: When the folder cannot be created.
        RateLimiterLostError: When it belongs to another user, or other users may write to it.
    """
    shared = Path(tempfile.gettempdir())
    if os.name != "posix":
        return shared  # on Windows, each user has a separate temporary folder
    folder = shared / f"epithre-beam-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise RateLimiterLostError(
            f"{folder}: the folder must be writable only by user {os.geteuid()}. Remove it, or set TMPDIR to a private "
            "folder."
        )
    return folder


@dataclass
class HostBackend:
    """Client of the host's rate limiter with this name. Each process makes its own connection.

    The first process that connects holds the rate limiter. If this process dies, its counts are lost. A client that
    used the old rate limiter then passes the limits stated by the server to the new one, and pauses it until no request
    counted by the old one can still count on the server. If no limit is known, there is no pause.
    """

    name: str
    settings: RateLimiterSettings
    is_remote: bool = True

    def __post_init__(self) -> None:
        self._proxy: Any = None
        self._pid = 0
        self._asked: str | None = None
        """Name of the rate limiter that was used last."""
        self._learned: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A connection is valid only in the process that made it, and so is the state that belongs to it.
        return {**self.__dict__, "_proxy": None, "_asked": None, "_learned": {}}

    def try_acquire(self, weights: Mapping[str, float]) -> Answer:
        lease, wait_s = self._call("ask", dict(weights))
        return Answer(lease, wait_s)

    def answered(self, lease: str, tokens: float | None = None) -> None:
        self._call("answered", lease, tokens)

    def slow_down(self, retry_after_s: float | None) -> None:
        self._call("slow_down", retry_after_s)

    def learn(self, limits: Mapping[str, float]) -> None:
        self._learned.update(limits)
        self._call("learn", dict(limits))

    def reserve(self, scope: str, limit: SpendingLimit, user: str, after: Totals, request: Totals) -> Verdict:
        return Verdict(self._call("reserve_plainly", scope, limit, user, tuple(after), tuple(request)))

    def report(self, scope: str, user: str, totals: Totals) -> None:
        self._call("report_plainly", scope, user, tuple(totals))

    def remove_files(self) -> None:
        """Remove the files by which processes of this host find each other.

        Call this only after a successful run: a later process would start another rate limiter.
        """
        for suffix in (".address", ".lock"):
            with contextlib.suppress(OSError):
                (private_folder() / f"{self._tag}{suffix}").unlink()

    @property
    def _tag(self) -> str:
        return f"epithre-beam-{self.name}"

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            if self._proxy is None or self._pid != os.getpid():
                _forget_dead(private_folder() / self._tag)
                made = MultiProcessShared(
                    _Made(self.settings), tag=self._tag, path=str(private_folder()), always_proxy=True
                )
                proxy = made.acquire()
                if self._asked is not None:
                    self._inform_successor(proxy)
                self._proxy, self._pid, self._asked = proxy, os.getpid(), proxy.name()
            return getattr(self._proxy, method)(*arguments)
        except (OSError, EOFError) as error:
            self._proxy = None
            raise RateLimiterLostError(
                f"The process that holds the host's rate limiter {self.name} has ended "
                f"({type(error).__name__}). Run again."
            ) from None

    def _inform_successor(self, backend: Any) -> None:
        pause_s = backend.take_over(self._asked, self._learned, self.settings.hold_s + self.settings.window_s)
        if pause_s > 0:
            until = time.strftime("%H:%M:%S", time.localtime(time.time() + pause_s))
            _log.warning(
                "The process that counted the requests of this host has ended. Nothing is sent until %s, so that the "
                "requests it had counted no longer count on the server.",
                until,
            )


def _forget_dead(place: Path) -> None:
    """Delete the address of a process that has ended. Beam would try it five times, and log each with a traceback.

    Args:
        place: The path of its files, without their suffixes.
    """
    address = Path(f"{place}.address")
    if not address.exists():
        return
    with fasteners.InterProcessLock(f"{place}.lock"):  # Beam's own, under which it writes the file
        try:
            host, _, port = address.read_text().partition(":")
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except ConnectionRefusedError:
            address.unlink(missing_ok=True)
        except (OSError, ValueError):
            return  # Beam decides


@dataclass
class _Made:
    """Creates the rate limiter in the process that holds it."""

    settings: RateLimiterSettings

    def __call__(self) -> "_PlainBackend":
        return _PlainBackend(self.settings)


class _PlainBackend(MemoryBackend):
    """A rate limiter whose methods take and return plain values, which can be sent to other processes."""

    def __post_init__(self) -> None:
        self._made_at = self.clock()
        self._name = secrets.token_hex(8)
        super().__post_init__()

    def ask(self, weights: dict[str, float]) -> tuple[str | None, float]:
        answer = self.try_acquire(weights)
        return answer.lease, answer.wait_s

    def reserve_plainly(
        self, scope: str, limit: SpendingLimit, user: str, after: tuple[int, ...], request: tuple[int, ...]
    ) -> str:
        return self.reserve(scope, limit, user, Totals(*after), Totals(*request)).value

    def report_plainly(self, scope: str, user: str, totals: tuple[int, ...]) -> None:
        self.report(scope, user, Totals(*totals))

    def name(self) -> str:
        """Return the unique name of this rate limiter."""
        return self._name

    def take_over(self, before: str, learned: dict[str, float], pause_s: float) -> float:
        """Replace a rate limiter whose process has ended, and return the seconds to wait.

        Args:
            before: The name of the rate limiter that was used before. If it is this one, nothing is done.
            learned: Limits that the server has stated.
            pause_s: Seconds until no request counted by the previous rate limiter can still count.
        """
        if before == self._name:
            return 0.0
        self.learn(learned)
        with self._lock:
            if self._limits:
                self._pause_until = max(self._pause_until, self._made_at + pause_s)
            return max(0.0, self._pause_until - self.clock())

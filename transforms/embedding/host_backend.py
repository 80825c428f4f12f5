"""A ledger for all processes of one host, kept by Beam's `MultiProcessShared` in whichever process asks first."""

import contextlib
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apache_beam.utils.multi_process_shared import MultiProcessShared

from ...configs.errors import RateLimiterLostError
from ..epithre.rate_limit.memory_backend import Answer, MemoryBackend, RateLimiterSettings

_log = logging.getLogger("epithre_beam.rate_limiter")


def private_folder() -> Path:
    """The user's own folder for the files by which processes of this host find each other.

    It lies in the temporary folder, where another user could otherwise put the address of a program of theirs.

    Raises:
        OSError: When it cannot be made.
        RateLimiterLostError: When it belongs to another user, or others may write to it.
    """
    shared = Path(tempfile.gettempdir())
    if os.name != "posix":
        return shared  # each user has a temporary folder there
    folder = shared / f"epithre-beam-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise RateLimiterLostError(
            f"{folder}: not a folder that only user {os.geteuid()} can write to. Remove it, or set TMPDIR to a folder "
            "of your own."
        )
    return folder


@dataclass
class HostBackend:
    """Asks the host's ledger of this name; made anew in each process.

    The process that keeps the ledger may die, and the count with it. Whoever asked that ledger before tells its
    successor: the limits that the server has stated, and to let nothing through until no request of the old one counts
    any more. Where no limit is known there is nothing to wait for.
    """

    name: str
    settings: RateLimiterSettings
    is_remote: bool = True

    def __post_init__(self) -> None:
        self._proxy: Any = None
        self._pid = 0
        self._asked: str | None = None
        """Which ledger was asked last."""
        self._learned: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A connection stays where it was made, and so does what came of it.
        return {**self.__dict__, "_proxy": None, "_asked": None, "_learned": {}}

    def try_acquire(self, weights: Mapping[str, float]) -> Answer:
        lease, wait_s = self._call("ask", dict(weights))
        return Answer(lease, wait_s)

    def answered(self, lease: str) -> None:
        self._call("answered", lease)

    def slow_down(self, retry_after_s: float | None) -> None:
        self._call("slow_down", retry_after_s)

    def learn(self, limits: Mapping[str, float]) -> None:
        self._learned.update(limits)
        self._call("learn", dict(limits))

    def remove_files(self) -> None:
        """Removes the files by which processes of this host find each other, once none of them asks any more.

        A process that came later would start a ledger of its own, so this is for the end of a run that succeeded.
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
            raise RateLimiterLostError(f"The host's ledger {self.name} is gone ({type(error).__name__}).") from None

    def _inform_successor(self, backend: Any) -> None:
        pause_s = backend.take_over(self._asked, self._learned, self.settings.hold_s + self.settings.window_s)
        if pause_s > 0:
            until = time.strftime("%H:%M:%S", time.localtime(time.time() + pause_s))
            _log.warning(
                "The process that counted the requests of this host died: nothing is sent until %s, when none of those "
                "that it had counted can still count on the server.",
                until,
            )


@dataclass
class _Made:
    """Makes the ledger in the process that keeps it."""

    settings: RateLimiterSettings

    def __call__(self) -> "_PlainBackend":
        return _PlainBackend(self.settings)


class _PlainBackend(MemoryBackend):
    """A ledger whose methods take and give plain values, which cross to other processes."""

    def __post_init__(self) -> None:
        self._made_at = self.clock()
        self._name = secrets.token_hex(8)
        super().__post_init__()

    def ask(self, weights: dict[str, float]) -> tuple[str | None, float]:
        answer = self.try_acquire(weights)
        return answer.lease, answer.wait_s

    def name(self) -> str:
        """Of this ledger, unlike any other's."""
        return self._name

    def take_over(self, before: str, learned: dict[str, float], pause_s: float) -> float:
        """Takes the place of one that died before this one was made; returns the seconds to wait.

        Args:
            before: The name of the ledger that was asked before. When it is this one, nothing has died.
            learned: Limits that the server has stated.
            pause_s: Until no request that the other one counted can still count.
        """
        if before == self._name:
            return 0.0
        self.learn(learned)
        with self._lock:
            if self._limits:
                self._pause_until = max(self._pause_until, self._made_at + pause_s)
            return max(0.0, self._pause_until - self.clock())

"""A ledger for all processes of one host, kept by Beam's `MultiProcessShared` in whichever process asks first."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apache_beam.utils.multi_process_shared import MultiProcessShared

from ...configs.errors import RateLimiterLostError
from ..epithre.rate_limit.ledger import Answer, Ledger, LedgerSettings


@dataclass
class HostLedger:
    """Asks the host's ledger of this name; made anew in each process."""

    name: str
    settings: LedgerSettings
    is_remote: bool = True

    def __post_init__(self) -> None:
        self._proxy: Any = None
        self._pid = 0
        self._was_served = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_proxy": None, "_was_served": False}  # a connection stays where it was made

    def try_acquire(self, weights: Mapping[str, float]) -> Answer:
        lease, wait_s = self._call("ask", dict(weights))
        return Answer(lease, wait_s)

    def answered(self, lease: str) -> None:
        self._call("answered", lease)

    def slow_down(self, retry_after_s: float | None) -> None:
        self._call("slow_down", retry_after_s)

    def learn(self, limits: Mapping[str, float]) -> None:
        self._call("learn", dict(limits))

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            if self._proxy is None or self._pid != os.getpid():
                # A ledger that died took its count with it: the next one waits until nothing of it counts any more.
                cold = self.settings.hold_s + self.settings.window_s if self._was_served else 0.0
                make = _Served(self.settings, cold)
                self._proxy = MultiProcessShared(make, tag=f"epithre-beam-{self.name}", always_proxy=True).acquire()
                self._pid = os.getpid()
                self._was_served = True
            return getattr(self._proxy, method)(*arguments)
        except (OSError, EOFError) as error:
            self._proxy = None
            raise RateLimiterLostError(f"The host's ledger {self.name} is gone ({type(error).__name__}).") from None


@dataclass
class _Served:
    """Makes the ledger in the process that keeps it; plain values cross to the others."""

    settings: LedgerSettings
    pause_s: float

    def __call__(self) -> "_PlainLedger":
        ledger = _PlainLedger(self.settings)
        if self.pause_s:
            ledger.slow_down(self.pause_s)
        return ledger


class _PlainLedger(Ledger):
    def ask(self, weights: dict[str, float]) -> tuple[str | None, float]:
        answer = self.try_acquire(weights)
        return answer.lease, answer.wait_s

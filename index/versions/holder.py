"""The holder recorded in a lease, and whether its process is still running."""

import datetime
import os
import socket
from collections.abc import Container
from typing import Annotated, Literal, Self

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ..storage.processes import is_running, machine, started
from .values import Count, Text

_LONGEST_TTL_S = 3600.0

State = Literal["alive", "dead", "unknown"]
Verdict = Literal["busy", "free", "watch"]


class Holder(BaseModel):
    """The content of the lease file. Times are from the holder's wall clock."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nonce: Text
    renewals: Count
    purpose: Text
    process: Annotated[int, Field(strict=True, gt=0, lt=2**31)]
    host: Text
    machine: Text
    """Boot id of the machine and namespace of process ids. `process` is only meaningful where both are the same."""
    started: Text | None
    """Start time of the process in the system's units, since ids are reused. None if the system does not report it."""
    acquired_at: AwareDatetime
    renewed_at: AwareDatetime
    ttl_s: Annotated[float, Field(ge=0, le=_LONGEST_TTL_S)]

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.acquired_at:%Y-%m-%d %H:%M:%S} UTC"

    def to_bytes(self) -> bytes:
        return orjson.dumps(self.model_dump(), option=orjson.OPT_INDENT_2) + b"\n"

    def renewed(self) -> Self:
        return self.model_copy(update={"renewals": self.renewals + 1, "renewed_at": utc_now()})

    def state(self, held: Container[str]) -> State:
        """Return whether the holder's process is running, as far as this machine can tell.

        Args:
            held: Nonces of the leases that this process holds. A lease of this process that is not among them could
                not be released earlier and counts as dead.
        """
        if (self.host, self.machine) != (socket.gethostname(), machine()) or os.name != "posix":
            return "unknown"
        if not is_running(self.process):
            return "dead"
        if self.started is None:
            return "unknown"
        if self.started != started(self.process):
            return "dead"  # another process has the id now
        return "dead" if self.process == os.getpid() and self.nonce not in held else "alive"


def make_holder(purpose: str, nonce: str, ttl_s: float) -> Holder:
    """Return a holder for this process, acquired now."""
    now = utc_now()
    return Holder(
        nonce=nonce,
        renewals=0,
        purpose=purpose,
        process=os.getpid(),
        host=socket.gethostname(),
        machine=machine(),
        started=started(os.getpid()),
        acquired_at=now,
        renewed_at=now,
        ttl_s=ttl_s,
    )


def read_holder(data: bytes | None) -> Holder | None:
    """Parse a lease file. Return None if the content is not a valid lease."""
    try:
        return None if data is None else Holder.model_validate_json(data)
    except ValidationError:
        return None


def check_holder(state: State, renewed_at: datetime.datetime, ttl_s: float, now: datetime.datetime) -> Verdict:
    """Decide what to do about an existing lease: give up, take it over, or watch it for a full ttl first."""
    if state != "unknown":
        return "busy" if state == "alive" else "free"
    # A renewal in the future means a wrong clock. It must not block the catalog until that time.
    return "busy" if 0 <= (now - renewed_at).total_seconds() <= ttl_s else "watch"


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)

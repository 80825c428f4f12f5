"""What a catalog's lease says of its holder, and whether that process still lives."""

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
    """The content of the lease's file. Times are of the holder's wall clock."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nonce: Text
    renewals: Count
    purpose: Text
    process: Annotated[int, Field(strict=True, gt=0, lt=2**31)]
    host: Text
    machine: Text
    """The boot of a machine and the space of process ids: only where both are the same does `process` mean anything."""
    started: Text | None
    """When the process started, as the system counts: ids are used again. None where the system does not say."""
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
        """Whether the holder's process lives, as far as this machine can prove it.

        Args:
            held: The nonces of what this very process holds: what it could not give back must not shut it out.
        """
        if (self.host, self.machine) != (socket.gethostname(), machine()) or os.name != "posix":
            return "unknown"
        if not is_running(self.process):
            return "dead"
        if self.started is None:
            return "unknown"
        if self.started != started(self.process):
            return "dead"  # the id is another process's now
        return "dead" if self.process == os.getpid() and self.nonce not in held else "alive"


def make_holder(purpose: str, nonce: str, ttl_s: float) -> Holder:
    """This process, now."""
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
    """None when the content is no lease that this release wrote."""
    try:
        return None if data is None else Holder.model_validate_json(data)
    except ValidationError:
        return None


def check_holder(state: State, renewed_at: datetime.datetime, ttl_s: float, now: datetime.datetime) -> Verdict:
    """What somebody who finds a lease may do: go away, take it over, or watch it for a full ttl first."""
    if state != "unknown":
        return "busy" if state == "alive" else "free"
    # A time in the future is a clock that is wrong: it proves nothing, and would do so for as long as it is.
    return "busy" if 0 <= (now - renewed_at).total_seconds() <= ttl_s else "watch"


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)

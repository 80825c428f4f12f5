"""A request in progress, and what all requests to a model pass: the faults before the gate, and the gate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .admission import Admission, Gate, Weights
from .faults import Stroke
from .hash_model import EmbeddingModel
from .settings import EmulatorSettings, Faults, Limits
from .wire import Answer, RefusedError, RequestRules, html_answer, retry_after_headers


class Host(Protocol):
    """The part of the emulator that the endpoints use."""

    settings: EmulatorSettings
    model: EmbeddingModel
    stopping: threading.Event

    @property
    def log(self) -> Sequence[Admission]: ...
    def stats(self) -> dict[str, Any]: ...
    def reset(self, *, limits: Limits | None = None, faults: Faults | None = None) -> None: ...


@dataclass(slots=True, kw_only=True)
class Call:
    """One request in progress: its record, and the settings when it arrived."""

    emulator: Host
    record: Admission
    limits: Limits
    faults: Faults
    rules: RequestRules
    gate: Gate
    body: bytes = b""
    query: Mapping[str, str] = field(default_factory=dict)
    parameter: str = ""
    """The last segment of a path such as /v1/models/{id}."""


Handler = Callable[[Call], Answer]


def refuse_before_the_gate(call: Call, stroke: Stroke) -> None:
    if stroke.replacing not in ("rate_429", "quota_429"):
        return
    call.record.faults = (stroke.replacing,)
    call.record.decision = "refused"
    if stroke.replacing == "quota_429":
        message = "You exceeded your current quota, please check your plan and billing details."
        raise RefusedError(429, message, code="insufficient_quota")
    wait_s = call.faults.rate_429_retry_after_s
    raise _too_many(call, call.faults.rate_429_kind, "Rate limit reached for requests.", wait_s)


def pass_the_gate(call: Call, weight: Weights) -> None:
    record = call.record
    oversized = call.gate.oversized(weight)
    if oversized is not None:
        record.decision, record.reason = "refused", oversized
        message = f"Request too large: {getattr(weight, oversized)} {oversized} exceed the limit per minute."
        raise RefusedError(413, message, code="request_too_large")
    verdict = call.gate.admit(weight)
    record.decided_ns, record.reason = verdict.decided_ns, verdict.reason
    if verdict.reason is None:
        record.decision = "admitted"
        return
    record.decision = "refused"
    if verdict.reason == "concurrency":
        raise _too_many(call, "slow_down", "Too many requests at once, slow down.", verdict.wait_ns / 1e9)
    message = f"Rate limit reached for {verdict.reason} per minute."
    raise _too_many(call, "rate_limit_exceeded", message, verdict.wait_ns / 1e9)


def _too_many(call: Call, code: str, message: str, wait_s: float) -> RefusedError:
    headers = call.gate.headers()
    headers.update(retry_after_headers(call.limits.retry_after, wait_s, time.time()))
    return RefusedError(429, message, code=code, headers=headers)


def replaced_answer(call: Call, stroke: Stroke) -> Answer | None:
    """Return the answer that a fault sends instead; None if there is no such fault or it truncates the answer."""
    fault = stroke.replacing
    if fault is None or fault == "truncate_body":
        return None
    call.record.faults = (fault,)
    call.record.reason = fault
    match fault:
        case "error_500":
            raise RefusedError(500, "The server had an error processing your request.", code="server_error")
        case "error_503":
            raise RefusedError(503, "The server is overloaded.", code="server_is_overloaded")
        case "html_error":
            return html_answer(502)
        case "hang":
            call.emulator.stopping.wait(call.faults.hang_s)
    return Answer(status=0, body=b"", delivery="none")  # a hang also ends with a dropped connection

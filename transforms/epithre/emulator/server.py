"""The emulator: the embedding API on loopback, with its limits, its faults, and a log of both.

A real HTTP server, because the faults need the socket and because clients must be tried unchanged. A
request passes: its key, its body, its parsing, its strokes of fate, the gate, the model. No lock is held
while vectors are made or while latency is slept.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

import orjson
from pydantic import ValidationError

from .admission import Admission, Gate, Weights, payments, worst_window
from .connection import OWNER, HttpServer, ReadBody
from .faults import Stroke, alter, draw
from .hash_model import EmbeddingModel, HashModel, Vector
from .settings import EmulatorSettings, Faults, Limits
from .wire import (
    Answer,
    EmbeddingsRequest,
    Item,
    RefusedError,
    RequestRules,
    embeddings_body,
    html_answer,
    parse_embeddings,
    poison_answer,
    require_model,
    retry_after_headers,
)

_logger = logging.getLogger(__name__)


class Emulator:
    """A server on a thread of its own, from `start` to `close`; also a context manager.

    The object is shared by all connections: what changes is behind the gate's lock or this one's.
    """

    def __init__(self, settings: EmulatorSettings | None = None) -> None:
        self.settings = settings or EmulatorSettings()
        self.model: EmbeddingModel = _load_model(self.settings)
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._server: HttpServer | None = None
        self._thread: threading.Thread | None = None
        self._begin(self.settings.limits, self.settings.faults)

    def _begin(self, limits: Limits, faults: Faults) -> None:
        self._limits = limits
        self._faults = faults
        self._rules = _request_rules(self.settings, limits)
        self._gate = Gate(limits, concurrency_wait_s=max(0.1, faults.latency_s))
        self._log: list[Admission] = []
        self._serials = itertools.count()
        self._numbers = itertools.count()

    # Life

    def start(self) -> Self:
        if self._server is None:
            self._server = HttpServer((self.settings.host, self.settings.port), self.serve)
            self._thread = threading.Thread(
                target=self._server.serve_forever, args=(0.05,), name="epithre-emulator", daemon=True
            )
            self._thread.start()
        return self

    def close(self) -> None:
        """Stop listening, end every sleep, close every connection. Calling it again does nothing."""
        self.stopping.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server.close_connections()
            self._server = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Where it is

    @property
    def url(self) -> str:
        """Scheme, host and port, without a path."""
        if self._server is None:
            raise RuntimeError("the emulator is not running: call start() or use it in a with statement")
        return f"http://{self.settings.host}:{self._server.server_port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI-shaped client takes as its base URL."""
        return f"{self.url}/v1"

    @property
    def api_key(self) -> str:
        return self.settings.api_keys[0]

    # What it saw

    @property
    def log(self) -> list[Admission]:
        """Every request but those to /emulator, in the order of arrival, as of now."""
        with self._lock:
            return list(self._log)

    def worst_window(self, window_s: float | None = None) -> Weights:
        """The most requests, items and tokens admitted during any `window_s` (by default the limits')."""
        return worst_window(self.log, window_s or self._limits.window_s)

    def payments(self) -> Counter[str]:
        """How often each item was billed, by the hex SHA-256 that `content_digest` gives."""
        return payments(self.log)

    def stats(self) -> dict[str, Any]:
        """Totals over the log, ready for JSON."""
        log = self.log
        paid = [record for record in log if record.paid]
        return {
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "requests": len(log),
            "decisions": Counter(record.decision for record in log),
            "statuses": Counter(str(record.status) for record in log),
            "reasons": Counter(record.reason for record in log if record.reason),
            "faults": Counter(fault for record in log for fault in record.faults),
            "paid_requests": len(paid),
            "paid_items": sum(record.items for record in paid),
            "paid_tokens": sum(record.tokens for record in paid),
            "paid_distinct_items": len({digest for record in paid for digest in record.digests}),
            "body_bytes": sum(record.body_bytes for record in log),
            "answer_bytes": sum(record.answer_bytes for record in log),
            "in_service": self._gate.in_service,
            "peak_in_service": self._gate.peak_in_service,
            "window_s": self._limits.window_s,
            "worst_window": self.worst_window()._asdict(),
        }

    def reset(self, *, limits: Limits | None = None, faults: Faults | None = None) -> None:
        """Begin anew: empty log and windows, request numbers from 0, other limits or faults if given.

        Requests still in service finish under the old ones and appear in no log.
        """
        with self._lock:
            self._begin(limits or self._limits, faults or self._faults)

    # Requests

    def _open(self, method: str, path: str, *, metered: bool) -> _Call:
        with self._lock:
            serial = next(self._serials)
            number = next(self._numbers) if metered else None
            record = Admission(
                serial=serial,
                number=number,
                request_id=f"req_emulator_{serial:08d}",
                method=method,
                path=path,
                arrived_ns=time.monotonic_ns(),
            )
            if not path.startswith("/emulator/"):
                self._log.append(record)
            return _Call(self, record, self._limits, self._faults, self._rules, self._gate)

    def serve(
        self, method: str, target: str, authorization: str | None, read_body: ReadBody
    ) -> tuple[Answer, Admission]:
        """Answer one request; it raises for nothing that a client can do."""
        path = urlsplit(target).path
        handler, allowed, parameter = _route(method, path)
        call = self._open(method, path, metered=handler is _embeddings)
        record = call.record
        try:
            if path.startswith("/v1/"):
                self._authorize(authorization, read_body, call)
            call.body = read_body(call.limits.max_body_bytes, path.startswith("/v1/"))
            record.body_bytes = len(call.body)
            if handler is None:
                raise _unroutable(method, path, allowed)
            call.query = {key: values[-1] for key, values in parse_qs(urlsplit(target).query).items()}
            call.parameter = parameter
            answer = handler(call)
        except RefusedError as refusal:
            record.reason = record.reason or refusal.code
            answer = refusal.answer()
        except Exception:
            _logger.exception("the emulator failed at %s %s", method, path)
            record.reason = "emulator_defect"
            answer = RefusedError(500, "The emulator itself failed.", code="emulator_defect").answer()
        if answer.status == 413 and call.faults.html_413:
            answer = html_answer(413)
        self._settle(call, answer)
        named = {"x-request-id": record.request_id, "x-emulator-fingerprint": self.model.fingerprint}
        return replace(answer, headers={**named, **answer.headers}), record

    def _authorize(self, authorization: str | None, read_body: ReadBody, call: _Call) -> None:
        scheme, _, key = (authorization or "").partition(" ")
        if call.faults.refuse_all is not None:
            refusal = _refused_by_order(call.faults.refuse_all)
        elif scheme.lower() == "bearer" and key.strip() in self.settings.api_keys:
            return
        else:
            refusal = RefusedError(401, "Incorrect API key provided.", code="invalid_api_key")
        with contextlib.suppress(RefusedError):  # the body's own faults matter no more
            call.record.body_bytes = len(read_body(call.limits.max_body_bytes, False))
        raise refusal

    def _settle(self, call: _Call, answer: Answer) -> None:
        """Give the place in service back and complete the record, before the first byte leaves.

        A client that has its answer may at once send the next request, or read the log.
        """
        record = call.record
        if record.decision == "admitted":
            call.gate.release()
        sent = {"whole": len(answer.body), "half": len(answer.body) // 2, "none": 0}
        record.status = None if answer.delivery == "none" else answer.status
        record.delivered = answer.delivery == "whole"
        record.answer_bytes = sent[answer.delivery]
        record.answered_ns = time.monotonic_ns()


class _Call:
    """One request on its way through: what was in force when it arrived, and what became of it."""

    def __init__(
        self,
        emulator: Emulator,
        record: Admission,
        limits: Limits,
        faults: Faults,
        rules: RequestRules,
        gate: Gate,
    ) -> None:
        self.emulator = emulator
        self.record = record
        self.limits = limits
        self.faults = faults
        self.rules = rules
        self.gate = gate
        self.body = b""
        self.query: dict[str, str] = {}
        self.parameter = ""


_Handler = Callable[[_Call], Answer]


def _embeddings(call: _Call) -> Answer:
    settings, record = call.emulator.settings, call.record
    request = parse_embeddings(call.body, call.rules)
    record.items, record.tokens = len(request.items), request.tokens
    record.digests = tuple(item.digest for item in request.items)
    stroke = draw(call.faults, settings.seed, record.number or 0)
    _refuse_before_the_gate(call, stroke)
    _pass_the_gate(call, Weights(1, record.items, record.tokens))
    due_ns = (record.decided_ns or 0) + round(stroke.latency_s * 1e9)
    try:
        answer = _replaced_answer(call, stroke) or _good_answer(call, request, stroke)
    finally:
        # A refusal takes as long as an answer: the service has looked at the items for both.
        call.emulator.stopping.wait(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
    return answer


def _refuse_before_the_gate(call: _Call, stroke: Stroke) -> None:
    if stroke.replacing not in ("rate_429", "quota_429"):
        return
    call.record.faults = (stroke.replacing,)
    call.record.decision = "refused"
    if stroke.replacing == "quota_429":
        message = "You exceeded your current quota, please check your plan and billing details."
        raise RefusedError(429, message, code="insufficient_quota")
    wait_s = call.faults.rate_429_retry_after_s
    raise _too_many(call, call.faults.rate_429_kind, "Rate limit reached for requests.", wait_s)


def _pass_the_gate(call: _Call, weight: Weights) -> None:
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


def _too_many(call: _Call, code: str, message: str, wait_s: float) -> RefusedError:
    headers = call.gate.headers()
    headers.update(retry_after_headers(call.limits.retry_after, wait_s, time.time()))
    return RefusedError(429, message, code=code, headers=headers)


def _replaced_answer(call: _Call, stroke: Stroke) -> Answer | None:
    """What the stroke puts in place of the answer; a truncated answer is still made first."""
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
    return Answer(status=0, body=b"", delivery="none")  # a hang ends as a dropped connection does


def _good_answer(call: _Call, request: EmbeddingsRequest, stroke: Stroke) -> Answer:
    entries = alter(list(enumerate(_embed(call, request.items))), stroke)
    truncated = stroke.replacing == "truncate_body"
    call.record.faults = ("truncate_body",) if truncated else stroke.altering
    body = embeddings_body(
        entries,
        model=request.model,
        fingerprint=call.emulator.model.fingerprint,
        tokens=call.record.tokens,
        as_base64=request.as_base64 and "ignore_base64" not in stroke.altering,
    )
    delivery: Literal["whole", "half"] = "half" if truncated else "whole"
    return Answer(status=200, body=body, headers=call.gate.headers(), delivery=delivery)


def _embed(call: _Call, items: Sequence[Item]) -> list[Vector]:
    model, marker = call.emulator.model, call.faults.poison_marker
    vectors = []
    for position, item in enumerate(items):
        if marker is not None and marker.encode() in item.content:
            raise poison_answer(position, status=call.faults.poison_status, names=call.faults.poison_names)
        try:
            vectors.append(
                model.embed_text(item.text) if item.kind == "text" else model.embed_image(item.content)
            )
        except ValueError as error:
            param = f"input[{position}]"
            raise RefusedError(400, f"'{param}' {error}", param=param, code="invalid_image") from None
    return vectors


def _models(call: _Call) -> Answer:
    models = [_model_card(name) for name in call.emulator.settings.served_models]
    return _json({"object": "list", "data": models})


def _model(call: _Call) -> Answer:
    require_model(call.parameter, call.emulator.settings.served_models)
    return _json(_model_card(call.parameter))


def _model_card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER}


def _not_emulated(call: _Call) -> Answer:
    raise RefusedError(501, f"{call.record.path} is not emulated yet.", code="not_implemented")


def _show_log(call: _Call) -> Answer:
    since = call.query.get("since", "0")
    start = int(since) if since.isdecimal() else 0
    return _json([record for record in call.emulator.log if record.serial >= start])


def _show_stats(call: _Call) -> Answer:
    return _json(call.emulator.stats())


def _reset(call: _Call) -> Answer:
    try:
        wanted = orjson.loads(call.body or b"{}")
        unknown = set(wanted) - {"limits", "faults"}
        if unknown:
            raise RefusedError(400, f"Only 'limits' and 'faults' can be set, not {sorted(unknown)}.")
        limits = Limits.model_validate(wanted["limits"]) if "limits" in wanted else None
        faults = Faults.model_validate(wanted["faults"]) if "faults" in wanted else None
    except (ValidationError, TypeError, orjson.JSONDecodeError) as error:
        raise RefusedError(400, str(error), code="invalid_value") from None
    call.emulator.reset(limits=limits, faults=faults)
    return _json({"reset": True})


# Path → method → handler. A path that ends in "/" takes one more segment as its parameter.
_ROUTES: Mapping[str, Mapping[str, _Handler]] = {
    "/v1/embeddings": {"POST": _embeddings},
    "/v1/models": {"GET": _models},
    "/v1/models/": {"GET": _model},
    "/v1/chat/completions": {"POST": _not_emulated},
    "/v1/images/generations": {"POST": _not_emulated},
    "/v1/images/edits": {"POST": _not_emulated},
    "/emulator/log": {"GET": _show_log},
    "/emulator/stats": {"GET": _show_stats},
    "/emulator/reset": {"POST": _reset},
}


def _route(method: str, path: str) -> tuple[_Handler | None, tuple[str, ...], str]:
    """The handler, the methods that the path does have, and the path's parameter."""
    methods, parameter = _ROUTES.get(path), ""
    if methods is None or path.endswith("/"):
        stem, _, parameter = path.rpartition("/")
        methods = _ROUTES.get(f"{stem}/") if parameter else None
    if methods is None:
        return None, (), ""
    return methods.get(method), tuple(methods), unquote(parameter)


def _unroutable(method: str, path: str, allowed: tuple[str, ...]) -> RefusedError:
    if not allowed:
        return RefusedError(404, f"Unknown path: {path}.", code="unknown_url")
    message = f"{method} is not allowed on {path}."
    return RefusedError(405, message, code="method_not_allowed", headers={"allow": ", ".join(allowed)})


def _refused_by_order(status: int) -> RefusedError:
    message, code = {
        401: ("Incorrect API key provided.", "invalid_api_key"),
        402: ("Payment is required.", "billing_hard_limit_reached"),
        403: ("You are not allowed to do this.", "permission_denied"),
        404: ("The model does not exist or you do not have access to it.", "model_not_found"),
        429: ("You exceeded your current quota.", "insufficient_quota"),
        503: ("The server is overloaded.", "server_is_overloaded"),
    }.get(status, ("Every request is refused.", "server_error" if status >= 500 else "refused"))
    return RefusedError(status, message, code=code)


def _json(value: Any) -> Answer:
    return Answer(status=200, body=orjson.dumps(value))


def _load_model(settings: EmulatorSettings) -> EmbeddingModel:
    if settings.model == "attributes":
        from .attributes import AttributesModel

        return AttributesModel(settings.dimension)
    return HashModel(settings.dimension)


def _request_rules(settings: EmulatorSettings, limits: Limits) -> RequestRules:
    images: Literal["trusted", "measured", "decoded"] = "trusted"
    if settings.model == "attributes" and settings.validate_images is None:
        images = "measured"  # this model decodes every picture itself and says so when it cannot
    elif settings.validate_images:
        images = "decoded"
    elif limits.max_pixels is not None:
        images = "measured"
    return RequestRules(
        served_models=settings.served_models,
        dimension=settings.dimension,
        max_inputs=limits.max_inputs,
        max_pixels=limits.max_pixels,
        max_tokens_per_input=limits.max_tokens_per_input,
        images=images,
    )

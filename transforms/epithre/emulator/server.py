"""The emulator: the API on loopback, with limits, faults, and a log of all requests.

It is a real HTTP server, because the faults need the socket and clients must be tested unchanged. No lock is held while
vectors are computed or while a latency is waited for.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import Counter
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from ....configs.scrubbing import Scrubber
from .admission import Admission, Gate, Weights, payments, worst_window
from .calls import Call
from .connection import HttpServer, ReadBody
from .endpoints import METERED, find_route, refused_by_order, unroutable
from .hash_model import EmbeddingModel, HashModel
from .settings import EmulatorSettings, Faults, Limits
from .wire import Answer, RefusedError, RequestRules, html_answer

_logger = logging.getLogger(__name__)


class Emulator:
    """A server on its own thread, from `start` to `close`; also a context manager.

    All connections share this object; its mutable state is protected by its lock or the gate's.
    """

    def __init__(self, settings: EmulatorSettings | None = None) -> None:
        self.settings = settings or EmulatorSettings()
        self.model: EmbeddingModel = _load_model(self.settings)
        self.stopping = threading.Event()
        self._scrubber = Scrubber(*self.settings.api_keys)
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

    def start(self) -> Self:
        if self._server is None:
            self.stopping.clear()
            self._server = HttpServer((self.settings.host, self.settings.port), self.serve)
            self._thread = threading.Thread(
                target=self._server.serve_forever, args=(0.05,), name="epithre-emulator", daemon=True
            )
            self._thread.start()
        return self

    def close(self) -> None:
        """Stop listening, end every wait and close every connection. A second call does nothing."""
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

    @property
    def url(self) -> str:
        """Scheme, host and port, without a path."""
        if self._server is None:
            raise RuntimeError("the emulator is not running. Call start() or use it in a with statement.")
        return f"http://{self.settings.host}:{self._server.server_port}"

    @property
    def base_url(self) -> str:
        """The base URL for a client of OpenAI's API."""
        return f"{self.url}/v1"

    @property
    def api_key(self) -> str:
        return self.settings.api_keys[0]

    @property
    def log(self) -> list[Admission]:
        """A copy of the records of all requests except those to /emulator, in the order of arrival."""
        with self._lock:
            return list(self._log)

    def worst_window(self, window_s: float | None = None) -> Weights:
        """Return the maximum of requests, items and tokens admitted in any `window_s` (default: as in the limits)."""
        return worst_window(self.log, window_s or self._limits.window_s)

    def payments(self) -> Counter[str]:
        """Return how often each item was billed, by the hex SHA-256 of `content_digest`."""
        return payments(self.log)

    def stats(self) -> dict[str, Any]:
        """Return totals over the log, ready for JSON."""
        log = self.log
        billed = [record for record in log if record.billed]
        return {
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "requests": len(log),
            "decisions": Counter(record.decision for record in log),
            "statuses": Counter(str(record.status) for record in log),
            "reasons": Counter(record.reason for record in log if record.reason),
            "faults": Counter(fault for record in log for fault in record.faults),
            "billed_requests": len(billed),
            "billed_items": sum(record.items for record in billed),
            "billed_tokens": sum(record.tokens for record in billed),
            "billed_distinct_items": len({digest for record in billed for digest in record.digests}),
            "body_bytes": sum(record.body_bytes for record in log),
            "answer_bytes": sum(record.answer_bytes for record in log),
            "in_service": self._gate.in_service,
            "peak_in_service": self._gate.peak_in_service,
            "window_s": self._limits.window_s,
            "worst_window": self.worst_window()._asdict(),
        }

    def reset(self, *, limits: Limits | None = None, faults: Faults | None = None) -> None:
        """Clear the log and the windows, restart request numbers from 0, and set the given limits or faults.

        Requests still in service finish with the old settings and appear in no log.
        """
        with self._lock:
            self._begin(limits or self._limits, faults or self._faults)

    def _open(self, method: str, path: str, *, metered: bool) -> Call:
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
            return Call(
                emulator=self,
                record=record,
                limits=self._limits,
                faults=self._faults,
                rules=self._rules,
                gate=self._gate,
            )

    def serve(
        self, method: str, target: str, authorization: str | None, read_body: ReadBody
    ) -> tuple[Answer, Admission]:
        """Answer one request. Never raises because of a client's input.

        A key that a client sends anywhere in its request appears in no record and no error.
        """
        path = urlsplit(target).path
        handler, allowed, parameter = find_route(method, path)
        scrubber = self._scrubber_for(authorization)
        call = self._open(method, scrubber.text(path), metered=handler in METERED)
        record = call.record
        try:
            if path.startswith("/v1/"):
                self._authorize(authorization, read_body, call)
            call.body = read_body(call.limits.max_body_bytes, path.startswith("/v1/"))
            record.body_bytes = len(call.body)
            if handler is None:
                raise unroutable(method, record.path, allowed)
            call.query = {key: values[-1] for key, values in parse_qs(urlsplit(target).query).items()}
            call.parameter = parameter
            answer = handler(call)
        except RefusedError as refusal:
            record.reason = record.reason or refusal.code
            answer = refusal.answer()
        except Exception:
            _logger.exception("the emulator failed on %s %s", method, record.path)
            record.reason = "emulator_defect"
            answer = RefusedError(500, "The emulator itself failed.", code="emulator_defect").answer()
        if answer.status >= 400:
            answer = replace(answer, body=scrubber.body(answer.body))
        if answer.status == 413 and call.faults.html_413:
            answer = html_answer(413)
        self._resolve(call, answer)
        named = {"x-request-id": record.request_id, "x-emulator-fingerprint": self.model.fingerprint}
        return replace(answer, headers={**named, **answer.headers}), record

    def _scrubber_for(self, authorization: str | None) -> Scrubber:
        """Return a scrubber for the emulator's keys and the key of this request."""
        key = _key_in(authorization)
        if not key or key in self.settings.api_keys:
            return self._scrubber
        return Scrubber(*self.settings.api_keys, key)

    def _authorize(self, authorization: str | None, read_body: ReadBody, call: Call) -> None:
        scheme = (authorization or "").partition(" ")[0]
        if call.faults.refuse_all is not None:
            refusal = refused_by_order(call.faults.refuse_all)
        elif scheme.lower() == "bearer" and _key_in(authorization) in self.settings.api_keys:
            return
        else:
            refusal = RefusedError(401, "Incorrect API key provided.", code="invalid_api_key")
        with contextlib.suppress(RefusedError):  # errors of the body no longer matter
            call.record.body_bytes = len(read_body(call.limits.max_body_bytes, False))
        raise refusal

    def _resolve(self, call: Call, answer: Answer) -> None:
        """Release the gate and complete the record before the first byte of the answer is sent.

        A client that receives the answer may immediately send the next request or read the log.
        """
        record = call.record
        if record.decision == "admitted":
            call.gate.release()
        sent = {"whole": len(answer.body), "half": len(answer.body) // 2, "none": 0}
        record.status = None if answer.delivery == "none" else answer.status
        record.delivered = answer.delivery == "whole"
        record.answer_bytes = sent[answer.delivery]
        record.answered_ns = time.monotonic_ns()


def _key_in(authorization: str | None) -> str:
    return (authorization or "").partition(" ")[2].strip()


def emulator_fingerprint(settings: EmulatorSettings) -> str:
    """Return the model fingerprint of an emulator with these settings, without starting it."""
    return _load_model(settings).fingerprint


def _load_model(settings: EmulatorSettings) -> EmbeddingModel:
    if settings.model == "attributes":
        from .attributes import AttributesModel

        return AttributesModel(settings.dimension)
    return HashModel(settings.dimension)


def _request_rules(settings: EmulatorSettings, limits: Limits) -> RequestRules:
    images: Literal["trusted", "measured", "decoded"] = "trusted"
    if settings.model == "attributes" and settings.validate_images is None:
        images = "measured"  # this model decodes every image itself and refuses invalid ones
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

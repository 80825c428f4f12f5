"""The endpoints of the emulator. An embeddings request passes the parser, the faults, the gate and the model.

A new endpoint is a function from `Call` to `Answer` and a line in the route table below.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote

import orjson
from pydantic import ValidationError

from .admission import Weights
from .calls import Call, Handler, pass_the_gate, refuse_before_the_gate, replaced_answer
from .chat import chat_completions
from .connection import OWNER
from .faults import Stroke, alter, draw
from .hash_model import Vector
from .settings import Faults, Limits
from .wire import (
    Answer,
    EmbeddingsRequest,
    Item,
    RefusedError,
    embeddings_body,
    parse_embeddings,
    poison_answer,
    require_model,
)


def embeddings(call: Call) -> Answer:
    settings, record = call.emulator.settings, call.record
    request = parse_embeddings(call.body, call.rules)
    record.items, record.tokens = len(request.items), request.tokens
    record.digests = tuple(item.digest for item in request.items)
    stroke = draw(call.faults, settings.seed, record.number or 0)
    refuse_before_the_gate(call, stroke)
    pass_the_gate(call, Weights(1, record.items, record.tokens))
    due_ns = (record.decided_ns or 0) + round(stroke.latency_s * 1e9)
    try:
        answer = replaced_answer(call, stroke) or _good_answer(call, request, stroke)
    finally:
        # A refusal takes as long as an answer, because the service processes the items for both.
        call.emulator.stopping.wait(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
    return answer


def _good_answer(call: Call, request: EmbeddingsRequest, stroke: Stroke) -> Answer:
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


def _embed(call: Call, items: Sequence[Item]) -> list[Vector]:
    model, marker = call.emulator.model, call.faults.poison_marker
    for position, item in enumerate(items):
        if marker is not None and marker.encode() in item.content:
            raise poison_answer(position, status=call.faults.poison_status, names=call.faults.poison_names)
    vectors = []
    for position, item in enumerate(items):
        try:
            vectors.append(model.embed_text(item.text) if item.kind == "text" else model.embed_image(item.content))
        except ValueError as error:
            param = f"input[{position}]"
            raise RefusedError(400, f"'{param}' {error}", param=param, code="invalid_image") from None
    return vectors


def _models(call: Call) -> Answer:
    models = [_model_card(name) for name in call.emulator.settings.served_models]
    return _json({"object": "list", "data": models})


def _model(call: Call) -> Answer:
    require_model(call.parameter, call.emulator.settings.served_models)
    return _json(_model_card(call.parameter))


def _model_card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER}


def _not_emulated(call: Call) -> Answer:
    raise RefusedError(501, f"{call.record.path} is not emulated yet.", code="not_implemented")


def _show_log(call: Call) -> Answer:
    since = call.query.get("since", "0")
    start = int(since) if since.isdecimal() else 0
    return _json([record for record in call.emulator.log if record.serial >= start])


def _show_stats(call: Call) -> Answer:
    return _json(call.emulator.stats())


def _reset(call: Call) -> Answer:
    try:
        wanted = orjson.loads(call.body or b"{}")
        if not isinstance(wanted, dict) or not set(wanted) <= {"limits", "faults"}:
            raise RefusedError(400, "Only 'limits' and 'faults' can be set.", code="invalid_value")
        limits = Limits.model_validate(wanted["limits"]) if "limits" in wanted else None
        faults = Faults.model_validate(wanted["faults"]) if "faults" in wanted else None
    except (ValidationError, orjson.JSONDecodeError) as error:
        raise RefusedError(400, str(error), code="invalid_value") from None
    call.emulator.reset(limits=limits, faults=faults)
    return _json({"reset": True})


METERED: tuple[Handler, ...] = (embeddings, chat_completions)
"""The handlers whose requests have numbers, by which faults are drawn."""

# Path → method → handler. A path that ends in "/" takes one more segment as its parameter.
_ROUTES: Mapping[str, Mapping[str, Handler]] = {
    "/v1/embeddings": {"POST": embeddings},
    "/v1/models": {"GET": _models},
    "/v1/models/": {"GET": _model},
    "/v1/chat/completions": {"POST": chat_completions},
    "/v1/images/generations": {"POST": _not_emulated},
    "/v1/images/edits": {"POST": _not_emulated},
    "/emulator/log": {"GET": _show_log},
    "/emulator/stats": {"GET": _show_stats},
    "/emulator/reset": {"POST": _reset},
}


def find_route(method: str, path: str) -> tuple[Handler | None, tuple[str, ...], str]:
    """Return the handler, the methods that the path allows, and the path's parameter."""
    methods, parameter = _ROUTES.get(path), ""
    if methods is None or path.endswith("/"):
        stem, _, parameter = path.rpartition("/")
        methods = _ROUTES.get(f"{stem}/") if parameter else None
    if methods is None:
        return None, (), ""
    return methods.get(method), tuple(methods), unquote(parameter)


def unroutable(method: str, path: str, allowed: tuple[str, ...]) -> RefusedError:
    if not allowed:
        return RefusedError(404, f"Unknown path: {path}.", code="unknown_url")
    message = f"{method} is not allowed on {path}."
    return RefusedError(405, message, code="method_not_allowed", headers={"allow": ", ".join(allowed)})


def refused_by_order(status: int) -> RefusedError:
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

"""Chats of the emulator: what it answers about the images that it is sent."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, Literal

import orjson

from .admission import Weights
from .calls import Call, pass_the_gate, refuse_before_the_gate, replaced_answer
from .captions import Attributes
from .chat_wire import ChatRequest, chat_body, parse_chat, text_tokens
from .faults import Stroke, draw
from .fill_schema import SchemaError, fill, schema_in
from .replies import language_of, reply_to
from .wire import Answer, RefusedError

if TYPE_CHECKING:
    from .attributes import AttributesModel

_BYTES_A_TOKEN = 4
_REFUSAL = "I cannot help with this image."


def chat_completions(call: Call) -> Answer:
    settings, record = call.emulator.settings, call.record
    request = parse_chat(call.body, call.rules, settings.image_tokens)
    _check_format(request, call.faults.response_format)
    record.items, record.digests = 1, (request.digest,)
    stroke = draw(call.faults, settings.seed, record.number or 0)
    refuse_before_the_gate(call, stroke)
    text, refusal, finish_reason = _answer(call, request, stroke)
    tokens = text_tokens(text if refusal is None else refusal)
    record.tokens = request.tokens + tokens
    pass_the_gate(call, Weights(1, 1, record.tokens))
    due_ns = (record.decided_ns or 0) + round(stroke.latency_s * 1e9)
    try:
        answer = replaced_answer(call, stroke)
        if answer is None:
            truncated = stroke.replacing == "truncate_body"
            record.faults = ("truncate_body",) if truncated else (stroke.of_chat,) if stroke.of_chat else ()
            body = chat_body(
                request,
                request_id=record.request_id,
                fingerprint=call.emulator.model.fingerprint,
                text=None if refusal is not None else text,
                refusal=refusal,
                finish_reason=finish_reason,
                tokens=tokens,
            )
            delivery: Literal["whole", "half"] = "half" if truncated else "whole"
            kind = "text/event-stream" if request.stream else "application/json"
            answer = Answer(status=200, body=body, content_type=kind, headers=call.gate.headers(), delivery=delivery)
    finally:
        call.emulator.stopping.wait(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
    return answer


def _check_format(request: ChatRequest, support: str) -> None:
    kind = request.response_format["type"]
    if kind == "text" or support in {"full", "ignored"} or (support == "object" and kind == "json_object"):
        return
    message = f"'response_format' of type {kind} is not supported by this model."
    raise RefusedError(400, message, param="response_format", code="unsupported_parameter")


def _answer(call: Call, request: ChatRequest, stroke: Stroke) -> tuple[str, str | None, str]:
    """Return the text, what is said instead of it, and why it ended."""
    seen = [_look(content, place) for place, content in enumerate(request.images)]
    language = language_of(request.question)
    if stroke.of_chat == "chat_refusal":
        return "", _REFUSAL, "stop"
    if stroke.of_chat == "chat_filter":
        return "", None, "content_filter"
    if stroke.of_chat == "chat_empty":
        return "", None, "stop"
    text = reply_to(request.question, seen, language)
    if (schema := _schema_of(request, call.faults.response_format)) is not None:
        try:
            filled: Any = fill(schema, seen, text, language)
        except SchemaError as error:
            raise RefusedError(
                400, f"'response_format' has an invalid schema: {error}.", param="response_format", code="invalid_value"
            ) from None
        if stroke.of_chat == "chat_wrong_schema" and isinstance(filled, dict):
            filled = {"wrong": True}
        text = orjson.dumps(filled).decode()
        if stroke.of_chat == "chat_prose":
            text = f"Here is the answer:\n```json\n{text}\n```\nTell me if you need more."
        elif stroke.of_chat == "chat_not_json":
            text = text[: len(text) // 2]
    most = request.max_tokens * _BYTES_A_TOKEN
    content = text.encode()
    if stroke.of_chat == "chat_cut":
        most = min(most, max(len(content) // 2, 1))
    if len(content) > most:
        return content[:most].decode("utf-8", "ignore"), None, "length"
    return text, None, "stop"


def _schema_of(request: ChatRequest, support: str) -> dict[str, Any] | None:
    """Return the schema that the answer must have: the request's, or one in its text; None: a text."""
    form = request.response_format
    if support != "ignored":
        if form["type"] == "json_schema":
            schema: dict[str, Any] = form["json_schema"]["schema"]
            return schema
        if form["type"] == "json_object":
            return schema_in(request.instructions) or {"type": "object", "properties": {"answer": {"type": "string"}}}
    return schema_in(request.instructions)


@functools.lru_cache(maxsize=1)
def _model() -> AttributesModel:
    from .attributes import AttributesModel  # only needed by chats with images

    return AttributesModel(8)


@functools.lru_cache(maxsize=256)
def _look(content: bytes, place: int) -> Attributes:
    try:
        return Attributes(**_model().describe_image(content))
    except ValueError as error:
        param = f"images[{place}]"
        raise RefusedError(400, f"'{param}' {error}", param="messages", code="invalid_image") from None

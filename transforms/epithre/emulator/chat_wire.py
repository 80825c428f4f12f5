"""The wire format of chats: parse a request's body, and build the bodies of answers, whole or streamed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from .wire import BadItemError, RefusedError, RequestRules, image_bytes, image_tokens, require_model

_ROLES = ("system", "developer", "user", "assistant")
_NUMBERS: Mapping[str, tuple[float, float]] = {"temperature": (0, 2), "top_p": (0, 1)}
_BYTES_A_TOKEN = 4
_MOST_TOKENS = 4096
"""Of an answer, if the request states no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat to answer."""

    model: str
    question: str
    """The texts of the last message of the user."""
    instructions: str
    """The texts of all messages, in their order."""
    images: Sequence[bytes]
    """Of all messages, in their order."""
    tokens: int
    """Of the messages."""
    max_tokens: int
    seed: int
    response_format: Mapping[str, Any]
    stream: bool
    include_usage: bool
    digest: str
    """Hash of the messages, hexadecimal."""


def text_tokens(text: str) -> int:
    """Return the tokens of a text: one for four bytes."""
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_A_TOKEN)


def parse_chat(body: bytes, rules: RequestRules, tokens_of_image: int) -> ChatRequest:
    """Parse the body of `POST /v1/chat/completions`.

    Raises:
        RefusedError: 400 for a malformed request, with its `param`; 404 for a model that is not served.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(request, dict):
        raise RefusedError(400, "The body must be a JSON object.", code="invalid_json")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise RefusedError(400, "'model' must be a string.", param="model", code="missing_parameter")
    require_model(model, rules.served_models)
    for name, (least, most) in _NUMBERS.items():
        value = request.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most
        ):
            raise _wrong(name, f"must be a number from {least} to {most}, got {value!r}")
    if request.get("n") not in (None, 1):
        raise _wrong("n", f"must be 1, got {request['n']!r}")
    limits = [request.get(name) for name in ("max_completion_tokens", "max_tokens")]
    for name, limit in zip(("max_completion_tokens", "max_tokens"), limits, strict=True):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise _wrong(name, f"must be a positive integer, got {limit!r}")
    seed = request.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise _wrong("seed", f"must be an integer, got {seed!r}")
    form = request.get("response_format") or {"type": "text"}
    if not isinstance(form, dict) or form.get("type") not in ("text", "json_object", "json_schema"):
        raise _wrong("response_format", "must be an object whose type is text, json_object or json_schema")
    if form["type"] == "json_schema":
        schema = form.get("json_schema")
        if (
            not isinstance(schema, dict)
            or not isinstance(schema.get("name"), str)
            or not isinstance(schema.get("schema"), dict)
        ):
            raise _wrong("response_format.json_schema", "must have a name and a schema")
    options = request.get("stream_options") or {}
    texts, images, last, tokens = _messages(request.get("messages"), rules, tokens_of_image)
    return ChatRequest(
        model=model,
        question=last,
        instructions="\n".join(texts),
        images=images,
        tokens=tokens,
        max_tokens=next((limit for limit in limits if limit is not None), _MOST_TOKENS),
        seed=seed or 0,
        response_format=form,
        stream=request.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        digest=hashlib.sha256(orjson.dumps(request["messages"], option=orjson.OPT_SORT_KEYS)).hexdigest(),
    )


def _messages(raw: Any, rules: RequestRules, tokens_of_image: int) -> tuple[list[str], list[bytes], str, int]:
    """Return the texts, the images, the last texts of the user, and the tokens of a request's messages."""
    if not isinstance(raw, list) or not raw:
        raise _wrong("messages", "must be a list of messages that is not empty")
    texts: list[str] = []
    images: list[bytes] = []
    last, tokens = "", 0
    for i, message in enumerate(raw):
        place = f"messages[{i}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise _wrong(f"{place}.role", f"must be one of {', '.join(_ROLES)}")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise _wrong(f"{place}.content", "must be a string or a list of parts that is not empty")
        said = []
        for j, part in enumerate(parts):
            where = f"{place}.content[{j}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                said.append(part["text"])
                tokens += text_tokens(part["text"])
            elif kind == "image_url" and isinstance(part.get("image_url"), dict):
                images.append(_image(part["image_url"].get("url"), f"{where}.image_url", rules))
                tokens += tokens_of_image
            else:
                raise _wrong(where, "must be a part of type text or image_url")
        texts += said
        if message["role"] == "user":
            last = "\n".join(said)
    return texts, images, last, tokens


def _image(url: Any, place: str, rules: RequestRules) -> bytes:
    if not isinstance(url, str) or not url.startswith("data:image/"):
        raise _wrong(place, "must have a url that is a data URI of an image; this server fetches nothing")
    try:
        content = image_bytes(url)
        image_tokens(content, rules)  # checks the image
    except BadItemError as error:
        raise RefusedError(400, f"'{place}' {error.rule}.", param=place, code=error.code) from None
    return content


def _wrong(param: str, rule: str) -> RefusedError:
    return RefusedError(400, f"'{param}' {rule}.", param=param, code="invalid_value")


def chat_body(
    request: ChatRequest,
    *,
    request_id: str,
    fingerprint: str,
    text: str | None,
    refusal: str | None,
    finish_reason: str,
    tokens: int,
) -> bytes:
    """Build the body of an answer: one object, or server-sent events.

    Args:
        request: The request.
        request_id: The name of the request.
        fingerprint: The fingerprint of the emulator.
        text: The answer; None: the model refused.
        refusal: What it said instead.
        finish_reason: Why the answer ended.
        tokens: Tokens of the answer.
    """
    usage = {
        "prompt_tokens": request.tokens,
        "completion_tokens": tokens,
        "total_tokens": request.tokens + tokens,
    }
    head: dict[str, Any] = {
        "id": f"chatcmpl-{request_id}",
        "created": 0,
        "model": request.model,
        "system_fingerprint": fingerprint,
    }
    if not request.stream:
        message = {"role": "assistant", "content": text, "refusal": refusal}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
        return orjson.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    head["object"] = "chat.completion.chunk"
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"refusal": refusal}] if refusal is not None else [{"content": piece} for piece in _pieces(text or "")]
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
    if request.include_usage:
        chunks.append({**head, "choices": [], "usage": usage})
    return b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def _pieces(text: str) -> list[str]:
    """Return a text word by word, with the space before each."""
    pieces = text.split(" ")
    return [piece if not place else f" {piece}" for place, piece in enumerate(pieces)]

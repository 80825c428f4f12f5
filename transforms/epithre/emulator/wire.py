"""The wire formats: parse a request's body, and build the bodies of answers and errors."""

from __future__ import annotations

import binascii
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Literal

import orjson

from .hash_model import Kind, Vector, content_digest
from .settings import RetryAfterForm

try:  # about eight times faster, if the `fast` extra is installed
    import pybase64

    def decode_base64(text: str) -> bytes:
        decoded: bytes = pybase64.b64decode(text, validate=True)
        return decoded

    def encode_base64(data: bytes) -> bytes:
        encoded: bytes = pybase64.b64encode(data)
        return encoded

except ImportError:

    def decode_base64(text: str) -> bytes:
        return binascii.a2b_base64(text, strict_mode=True)

    def encode_base64(data: bytes) -> bytes:
        return binascii.b2a_base64(data, newline=False)


# An image costs a base and a constant per tile of 512 x 512; an unparsed image counts as four tiles.
_IMAGE_TOKENS, _TILE_TOKENS, _TILE = 85, 170, 512
UNPARSED_IMAGE_TOKENS = _IMAGE_TOKENS + 4 * _TILE_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer. `delivery` is the part of it that is sent."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    delivery: Literal["whole", "half", "none"] = "whole"


class RefusedError(Exception):
    """A request is answered with an error in OpenAI's format."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def answer(self) -> Answer:
        error = {
            "message": self.message,
            "type": _error_type(self.status, self.code),
            "param": self.param,
            "code": self.code,
        }
        return Answer(status=self.status, body=orjson.dumps({"error": error}), headers=self.headers)


def _error_type(status: int, code: str | None) -> str:
    if code == "insufficient_quota":
        return "insufficient_quota"
    return {
        401: "authentication_error",
        403: "permission_error",
        429: "rate_limit_error",
    }.get(status, "invalid_request_error" if status < 500 else "server_error")


def html_answer(status: int) -> Answer:
    """Return the HTML error page of a proxy in front of an API."""
    title = html.escape(f"{status} {HTTPStatus(status).phrase}")
    page = f"<html>\r\n<head><title>{title}</title></head>\r\n<body><center><h1>{title}</h1></center></body>\r\n"
    return Answer(status=status, body=f"{page}</html>\r\n".encode(), content_type="text/html")


def retry_after_headers(form: RetryAfterForm, wait_s: float, now_s: float) -> dict[str, str]:
    """Return the headers for a wait, rounded up to the precision of the form so that the retry is not too early.

    Args:
        form: Form of the header.
        wait_s: The wait in seconds.
        now_s: The wall clock in seconds since the epoch, for the date form.
    """
    wait_s = max(0.0, wait_s)
    match form:
        case "seconds":
            return {"retry-after": str(math.ceil(wait_s))}
        case "float":
            return {"retry-after": f"{math.ceil(wait_s * 1000) / 1000:.3f}"}
        case "milliseconds":
            return {"retry-after-ms": str(math.ceil(wait_s * 1000))}
        case "date":
            return {"retry-after": formatdate(math.ceil(now_s + wait_s), usegmt=True)}
        case "absent":
            return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item to embed. `content` is the UTF-8 of a text or the encoded bytes of an image."""

    kind: Kind
    content: bytes
    text: str
    tokens: int

    @property
    def digest(self) -> str:
        return content_digest(self.kind, self.content).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsRequest:
    model: str
    items: Sequence[Item]
    as_base64: bool

    @property
    def tokens(self) -> int:
        return sum(item.tokens for item in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRules:
    """The rules for a request, apart from the rates."""

    served_models: Sequence[str]
    dimension: int
    max_inputs: int | None
    max_pixels: int | None
    max_tokens_per_input: int | None
    images: Literal["trusted", "measured", "decoded"]
    """How images are checked: not at all, by their header, or by decoding every pixel."""


def parse_embeddings(body: bytes, rules: RequestRules) -> EmbeddingsRequest:
    """Parse the body of `POST /v1/embeddings`.

    Raises:
        RefusedError: 400 for a malformed request, with `param` "input[i]" if one item is invalid; 404 for a model that
            is not served.
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
    encoding = request.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        message = f"'encoding_format' must be 'float' or 'base64', got {encoding!r}."
        raise RefusedError(400, message, param="encoding_format", code="invalid_value")
    dimensions = request.get("dimensions")
    if dimensions is not None and dimensions != rules.dimension:
        message = f"'dimensions' must be {rules.dimension} for this model, got {dimensions!r}."
        raise RefusedError(400, message, param="dimensions", code="invalid_value")
    return EmbeddingsRequest(model=model, items=_items(request.get("input"), rules), as_base64=encoding == "base64")


def require_model(model: str, served: Sequence[str]) -> None:
    if model not in served:
        message = f"The model '{model}' does not exist or you do not have access to it."
        raise RefusedError(404, message, param="model", code="model_not_found")


def _items(raw: Any, rules: RequestRules) -> list[Item]:
    if isinstance(raw, str):
        raw = [raw]
    if not isinstance(raw, list):
        message = "'input' must be a string or a list of strings and images."
        raise RefusedError(400, message, param="input", code="missing_parameter" if raw is None else None)
    if not raw:
        raise RefusedError(400, "'input' must not be empty.", param="input", code="empty_input")
    if rules.max_inputs is not None and len(raw) > rules.max_inputs:
        message = f"Too many inputs: {len(raw)} in one request, at most {rules.max_inputs} are allowed."
        raise RefusedError(400, message, param="input", code="too_many_inputs")
    items = []
    for position, value in enumerate(raw):
        try:
            item = _item(value, rules)
            most = rules.max_tokens_per_input
            if most is not None and item.tokens > most:
                raise BadItemError(f"has {item.tokens} tokens, at most {most} fit", "context_length_exceeded")
        except BadItemError as error:
            param = f"input[{position}]"
            raise RefusedError(400, f"'{param}' {error.rule}.", param=param, code=error.code) from None
        items.append(item)
    return items


class BadItemError(Exception):
    """An item is invalid. `rule` completes a sentence that begins with the item's name."""

    def __init__(self, rule: str, code: str) -> None:
        super().__init__(rule)
        self.rule = rule
        self.code = code


def _item(value: Any, rules: RequestRules) -> Item:
    if isinstance(value, str):
        if not value:
            raise BadItemError("must not be an empty string", "empty_input")
        content = value.encode()
        return Item(kind="text", content=content, text=value, tokens=-(-len(content) // 4))
    if isinstance(value, dict) and value.get("type") == "image" and isinstance(value.get("image"), str):
        content = image_bytes(value["image"])
        return Item(kind="image", content=content, text="", tokens=image_tokens(content, rules))
    raise BadItemError('must be a string or {"type": "image", "image": "<base64>"}', "invalid_type")


def image_bytes(encoded: str) -> bytes:
    if encoded.startswith("data:"):
        head, comma, encoded = encoded.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BadItemError("is a data URI without base64", "invalid_base64")
    try:
        content = decode_base64(encoded)
    except ValueError:  # includes binascii.Error and the error for non-ASCII text
        raise BadItemError("is not valid base64", "invalid_base64") from None
    if not content:
        raise BadItemError("is an empty image", "empty_input")
    return content


def image_tokens(content: bytes, rules: RequestRules) -> int:
    if rules.images == "trusted":
        return UNPARSED_IMAGE_TOKENS
    try:
        width, height = _measure(content, decode=rules.images == "decoded", max_pixels=rules.max_pixels)
    except ValueError as error:
        raise BadItemError(str(error), "invalid_image") from None
    if rules.max_pixels is not None and width * height > rules.max_pixels:
        message = f"has {width}x{height} pixels, at most {rules.max_pixels} are allowed"
        raise BadItemError(message, "image_too_large")
    return _IMAGE_TOKENS + _TILE_TOKENS * -(-width // _TILE) * -(-height // _TILE)


def _measure(content: bytes, *, decode: bool, max_pixels: int | None) -> tuple[int, int]:
    from PIL import Image  # only needed by servers that check images

    try:
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
            if decode and (max_pixels is None or size[0] * size[1] <= max_pixels):
                image.load()
            return size
    except Exception as error:  # a hostile file can make a decoder raise any exception
        raise ValueError("is not an image that can be decoded") from error


def poison_answer(position: int, *, status: int, names: str) -> RefusedError:
    """Return the refusal of a request because of one item; `names` selects where the item is named."""
    match names:
        case "param":
            return RefusedError(
                status,
                "The content of this input was refused.",
                param=f"input[{position}]",
                code="invalid_input",
            )
        case "prose":
            message = f"The content of the input at index {position} was refused."
            return RefusedError(status, message, code="invalid_input")
        case _:
            return RefusedError(status, "The content of an input was refused.", code="invalid_input")


def embeddings_body(
    entries: Sequence[tuple[int, Vector]],
    *,
    model: str,
    fingerprint: str,
    tokens: int,
    as_base64: bool,
) -> bytes:
    """Build the body of a successful answer from pieces; neither base64 nor digits need escaping.

    Args:
        entries: Pairs of index and float32 vector, in the order in which to send them.
        model: The model id that the request named.
        fingerprint: The fingerprint of the emulator's model.
        tokens: Billed tokens, for `usage`.
        as_base64: Whether vectors are little-endian float32 in base64, or lists of numbers (where NaN becomes null).
    """
    pieces = [b'{"object":"list","data":[']
    for place, (index, vector) in enumerate(entries):
        pieces.append(b',{"object":"embedding","index":' if place else b'{"object":"embedding","index":')
        pieces.append(b"%d" % index)
        pieces.append(b',"embedding":')
        if as_base64:
            pieces += (b'"', encode_base64(vector.astype("<f4", copy=False).tobytes()), b'"}')
        else:
            pieces += (orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY), b"}")
    tail = {
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "system_fingerprint": fingerprint,
    }
    pieces += (b"],", orjson.dumps(tail)[1:])
    return b"".join(pieces)

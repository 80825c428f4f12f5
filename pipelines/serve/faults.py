"""Errors of requests: a status, a code for programs and a sentence for people, always in the same shape."""

import re
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from .models import AssetName, ErrorAnswer, SearchRequest

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}


class Fault(HTTPException):
    """An error response. The message quotes as little of the request as possible."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.code = code

    def response(self) -> Response:
        error = {"error": {"code": self.code, "message": self.detail}}
        # Quoted input may contain a lone surrogate.
        content = orjson.dumps(_printable(error))
        return Response(content, self.status_code, self.headers, media_type="application/json")


def answer_fault(request: Request, error: Exception) -> Response:
    """Convert an HTTPException to an error response."""
    assert isinstance(error, HTTPException)
    if isinstance(error, Fault):
        return error.response()
    status = error.status_code
    if status == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers=error.headers)
    sentence = str(error.detail).rstrip(".") + "."
    if status == 404:
        sentence = f"This path does not exist. See {request.scope.get('root_path', '')}/openapi.json."
    if status == 405:
        sentence = f"Use {(error.headers or {})['Allow']} for {request.url.path}, got {request.method}."
    return Fault(status, _CODES.get(status, "bad_request"), sentence, error.headers).response()


def answer_invalid(_: Request, error: Exception) -> Response:
    """Convert a validation error of FastAPI to an error response."""
    assert isinstance(error, RequestValidationError)
    return invalid(error.errors()).response()


def defect() -> Fault:
    """Return the error for an unexpected failure; the log has the traceback."""
    return Fault(500, "defect", "The server failed unexpectedly. Its log has the details.")


def checked(error: ValidationError, asked: type[BaseModel], place: str = "") -> Fault:
    """Convert a validation error of `asked`, which is at `place`, to a fault."""
    return invalid(error.errors(include_url=False), asked, place)


def invalid(errors: Any, asked: type[BaseModel] = SearchRequest, place: str = "") -> Fault:
    """Convert the first of pydantic's errors to a fault."""
    first = errors[0]
    for part in first["loc"]:
        if part not in {"body", "query", "path", "header"} or place:
            place += f"[{part}]" if isinstance(part, int) else f".{part}"
    place = place.lstrip(".") or "The request"
    kind, message = first["type"], str(first["msg"])
    if kind == "json_invalid":
        found = re.search(r"(?P<why>[^:]+) at line (?P<line>\d+) column (?P<column>\d+)$", message)
        where = f", line {found['line']}, column {found['column']}: {found['why'].strip()}" if found else ""
        return Fault(400, "bad_json", f"{place} must be valid JSON{where}.")
    if kind == "missing":
        remedy = " Send multipart/form-data with a field `image`." if place == "image" else ""
        return Fault(422, "invalid", f"{place} is missing.{remedy}")
    if kind == "extra_forbidden":
        is_inner = first["loc"][0] == "asset" and len(first["loc"]) > 1
        owner, schema = ("an asset", AssetName) if is_inner else ("a search", asked)
        return Fault(422, "invalid", f"{place} is not a field of {owner}. Fields: {', '.join(schema.model_fields)}.")
    if "UploadFile" in message:
        return Fault(422, "invalid", f"{place} must be a file, not text such as its path or address.")
    if kind == "value_error":
        return Fault(422, "invalid", re.sub(r"^Value error, ", "", message))
    rule = re.sub(r"^Input should (be )?", r"must \1", message)
    rule = rule.replace("a valid array", "a list").replace("a valid list", "a list")
    if kind == "too_short":
        rule = f"must have at least one {place.rpartition('.')[2].removesuffix('s')}"
    rule = re.sub(r"^(String|List) should have", "must have", rule)
    rule = rule if rule.startswith("must") else f"is invalid: {rule[:1].lower()}{rule[1:]}"
    return Fault(422, "invalid", f"{place} {rule}, got {_shown(first['input'])}.")


def faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route, for the OpenAPI description."""
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in statuses}


_MEANINGS = {
    400: "The request cannot be parsed, or its Host is not allowed.",
    401: "The token is missing or wrong.",
    403: "The request comes from a page of another site.",
    404: "The catalog has no such asset or thumbnail.",
    408: "The request arrived too slowly.",
    413: "The request is larger than the limit.",
    415: "The content type is not supported, or the body has a Content-Encoding.",
    422: "The request is invalid; the message says where and why.",
    429: "The client sent too many requests; Retry-After says when to try again.",
    503: "The server or its embedding API is temporarily unavailable.",
}


def _printable(error: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    return {"error": {name: text.encode("utf-8", "replace").decode() for name, text in error["error"].items()}}


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)) and value:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"

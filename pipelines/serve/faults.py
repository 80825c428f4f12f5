"""What is wrong with a request: a status, a code for programs, a sentence for people; always in the same shape."""

import re
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from .models import ErrorAnswer

_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
_NOTHING_HERE = "There is nothing at this path."


class Fault(HTTPException):
    """A request that is not answered as asked. The message is one sentence and quotes no more than it must."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.code = code

    def response(self) -> Response:
        error = {"error": {"code": self.code, "message": self.detail}}
        # What a client sent may be quoted, half a surrogate pair as well.
        content = orjson.dumps(_printable(error))
        return Response(content, self.status_code, self.headers, media_type="application/json")


def answer_fault(request: Request, error: Exception) -> Response:
    """Any HTTPException as our error."""
    assert isinstance(error, HTTPException)
    if isinstance(error, Fault):
        return error.response()
    status = error.status_code
    if status == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers=error.headers)
    sentence = _NOTHING_HERE if status == 404 else str(error.detail).rstrip(".") + "."
    if status == 405:
        sentence = f"{request.url.path} is not asked with {request.method}, but with {(error.headers or {})['Allow']}."
    return Fault(status, _CODES.get(status, "bad_request"), sentence, error.headers).response()


def answer_invalid(_: Request, error: Exception) -> Response:
    """What FastAPI found wrong with a request, in a sentence."""
    assert isinstance(error, RequestValidationError)
    return invalid(error.errors()).response()


def defect() -> Fault:
    """What a client is told of a failure that nobody foresaw; the log has the traceback."""
    return Fault(500, "defect", "The server failed as nobody foresaw; its log says more.")


def checked(error: ValidationError, place: str = "") -> Fault:
    """What pydantic found wrong at `place`, as a fault."""
    return invalid(error.errors(include_url=False), place)


def invalid(errors: Any, place: str = "") -> Fault:
    """The first of pydantic's errors, as a fault."""
    first = errors[0]
    for part in first["loc"]:
        if part not in {"body", "query", "path", "header"} or place:
            place += f"[{part}]" if isinstance(part, int) else f".{part}"
    place = place.lstrip(".") or "The request"
    kind, message = first["type"], str(first["msg"])
    if kind == "json_invalid":
        return Fault(400, "bad_json", f"{place} must be JSON.")
    if kind == "missing":
        return Fault(422, "invalid", f"{place} is missing and must be given.")
    if kind == "extra_forbidden":
        return Fault(422, "invalid", f"{place} is not known here: see /openapi.json.")
    if "UploadFile" in message:
        return Fault(422, "invalid", f"{place} must be the file itself, not a text such as its path or address.")
    if kind == "value_error":
        return Fault(422, "invalid", re.sub(r"^Value error, ", "", message))
    rule = re.sub(r"^Input should (be )?", r"must \1", message)
    rule = re.sub(r"^(String|List) should have", "must have", rule)
    rule = rule if rule.startswith("must") else f"is wrong: {rule[:1].lower()}{rule[1:]}"
    return Fault(422, "invalid", f"{place} {rule}, got {_shown(first['input'])}.")


def faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI description: the errors that a route may answer with."""
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in statuses}


_MEANINGS = {
    400: "The request cannot be read, or names a host that this server is not.",
    401: "The token is missing or wrong.",
    403: "The request comes from a page of another site.",
    404: "There is no such thing in the catalog.",
    408: "The request came too slowly.",
    413: "The request is larger than the server takes.",
    415: "The request's content type is not the one that is asked for, or its body is encoded.",
    422: "The request breaks a rule; the message says which, and where.",
    429: "The client has asked too often; Retry-After says when to come back.",
    503: "The server, or the embedding API behind it, cannot answer at the moment.",
}


def _printable(error: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    return {"error": {name: text.encode("utf-8", "replace").decode() for name, text in error["error"].items()}}


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"

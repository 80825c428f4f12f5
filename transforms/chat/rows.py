"""A row that is asked about, and what comes of it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from ...configs.chat_schema import ChatConfig
from ..sources.references import Reference

_DETERMINED_BY = (
    "model",
    "system",
    "temperature",
    "seed",
    "max_tokens",
    "image_detail",
    "extra_body",
    "max_repairs",
)
"""The settings that decide about an answer, besides the prompt, the images and the schema."""


class ChatReason(StrEnum):
    """Why a row has no answer. For an image that cannot be sent, the reason is a `Reason` of an asset."""

    BAD_PROMPT = "bad_prompt"
    """The template fails for this row."""
    NO_IMAGE = "no_image"
    """The row has no image, and the prompt needs one."""
    TOO_LARGE = "too_large"
    """The request would have more than `max_request_bytes`."""
    TOO_EXPENSIVE = "too_expensive"
    """The row may cost more than `max_row_cost`."""
    REFUSED_BY_MODEL = "refused_by_model"
    CONTENT_FILTER = "content_filter"
    CUT = "cut"
    """The answer needs more than `max_tokens`."""
    EMPTY_ANSWER = "empty_answer"
    NOT_OF_THE_SCHEMA = "not_of_the_schema"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row that is asked about."""

    row_id: str
    fields: Mapping[str, Any]
    """What the template may use."""
    images: tuple[Reference, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer of the model."""

    text: str
    parsed: Mapping[str, Any] | None
    """By the schema; None without one."""
    finish_reason: str
    model: str
    """As the server names it."""
    emulator: str | None
    """The fingerprint of the emulator that answered; None for any other server."""
    input_tokens: int
    """Of all requests for this row, as billed."""
    output_tokens: int
    cost: float | None
    """At the configured prices; None without prices."""
    requests: int
    """With an answer; more than 1: the answer was repaired, 0: it is from the cache."""
    request_sha256: str
    """Of all that decides about the answer: equal requests have equal hashes."""


@dataclass(frozen=True, kw_only=True)
class DeadRow:
    """A row without an answer."""

    stage: str
    """Where it failed: `read`, `prepare`, `prompt`, `send` or `answer`."""
    reason: str
    """A `ChatReason`, or a `Reason` of an asset."""
    detail: str
    """One short sentence."""
    attempts: int
    """How often the last request was sent; 0: it was never sent."""
    answer: str | None = None
    """What the model answered, if it did."""


def request_sha256(chat: ChatConfig, prompt: str, images: Sequence[str], schema: str | None) -> str:
    """Return the hash of all that decides about the answer to a row.

    Args:
        chat: The settings.
        prompt: The rendered prompt.
        images: SHA-256 of each image's original bytes, and how it was prepared.
        schema: The hash of the schema.
    """
    parts = {name: getattr(chat, name) for name in _DETERMINED_BY}
    parts |= {"prompt": prompt, "images": list(images), "schema": schema}
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()

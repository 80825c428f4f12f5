"""Select the faults of a request and apply them to its answer.

The faults are reproducible: everything is drawn from `default_rng([seed, number of the request])`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .hash_model import Vector
from .settings import Faults

# Positions in the draw. Append only: inserting one would change the faults of every seed.
_REPLACING = (
    "rate_429",
    "quota_429",
    "drop_connection",
    "hang",
    "html_error",
    "error_500",
    "error_503",
    "truncate_body",
)
_ALTERING = (
    "out_of_order",
    "missing_item",
    "duplicate_index",
    "nan",
    "wrong_dimension",
    "unnormalised",
    "ignore_base64",
)
_OF_CHATS = (
    "chat_refusal",
    "chat_filter",
    "chat_cut",
    "chat_empty",
    "chat_prose",
    "chat_not_json",
    "chat_wrong_schema",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stroke:
    """The faults of one request. `generator` drew them and then chooses the affected items."""

    latency_s: float
    replacing: str | None
    altering: tuple[str, ...]
    of_chat: str | None = None
    """The fault of a chat's answer: the first of those that were drawn."""
    generator: np.random.Generator


def draw(faults: Faults, seed: int, number: int) -> Stroke:
    """Draw the faults of the `number`-th request to a model, which depend on the arguments alone."""
    generator = np.random.default_rng([seed, number])
    jitter, *chances = generator.random(1 + len(_REPLACING) + len(_ALTERING)).tolist()
    of_chats = np.random.default_rng([seed, number, 1]).random(len(_OF_CHATS)).tolist()
    latency_s = max(0.0, faults.latency_s + (2.0 * jitter - 1.0) * faults.latency_jitter_s)
    stop = faults.stop_at_request
    if number < faults.start_at_request or (stop is not None and number >= stop):
        return Stroke(latency_s=latency_s, replacing=None, altering=(), generator=generator)
    names = (*_REPLACING, *_ALTERING)
    struck = [name for name, chance in zip(names, chances, strict=True) if chance < getattr(faults, name)]
    replacing = next((name for name in struck if name in _REPLACING), None)
    altering = () if replacing else tuple(name for name in struck if name in _ALTERING)
    drawn = (name for name, chance in zip(_OF_CHATS, of_chats, strict=True) if chance < getattr(faults, name))
    of_chat = None if replacing else next(drawn, None)
    return Stroke(latency_s=latency_s, replacing=replacing, altering=altering, of_chat=of_chat, generator=generator)


def alter(entries: list[tuple[int, Vector]], stroke: Stroke) -> list[tuple[int, Vector]]:
    """Apply the altering faults to the (index, vector) pairs of a valid answer; each fault affects one item."""
    entries = list(entries)
    for fault in stroke.altering:
        if entries and fault in _ALTERATIONS:
            _ALTERATIONS[fault](entries, stroke.generator)
    return entries


def _shuffle(entries: list[tuple[int, Vector]], generator: np.random.Generator) -> None:
    # Rotate by at least one place, because a random permutation could be the identity.
    if len(entries) > 1:
        by = int(generator.integers(1, len(entries)))
        entries[:] = entries[by:] + entries[:by]


def _lose_one(entries: list[tuple[int, Vector]], generator: np.random.Generator) -> None:
    del entries[int(generator.integers(len(entries)))]


def _repeat_an_index(entries: list[tuple[int, Vector]], generator: np.random.Generator) -> None:
    if len(entries) == 1:
        entries.append(entries[0])
        return
    victim, source = generator.choice(len(entries), size=2, replace=False).tolist()
    entries[victim] = (entries[source][0], entries[victim][1])


def _put_nan(entries: list[tuple[int, Vector]], generator: np.random.Generator) -> None:
    victim = int(generator.integers(len(entries)))
    index, vector = entries[victim]
    broken = vector.copy()
    broken[int(generator.integers(len(broken)))] = np.nan
    entries[victim] = (index, broken)


def _lengthen(entries: list[tuple[int, Vector]], generator: np.random.Generator) -> None:
    victim = int(generator.integers(len(entries)))
    index, vector = entries[victim]
    entries[victim] = (index, np.append(vector, np.float32(0.0)))


def _scale(entries: list[tuple[int, Vector]], generator: np.random.Generator) -> None:
    victim = int(generator.integers(len(entries)))
    index, vector = entries[victim]
    entries[victim] = (index, vector * np.float32(3.0))


_ALTERATIONS = {
    "out_of_order": _shuffle,
    "missing_item": _lose_one,
    "duplicate_index": _repeat_an_index,
    "nan": _put_nan,
    "wrong_dimension": _lengthen,
    "unnormalised": _scale,
}

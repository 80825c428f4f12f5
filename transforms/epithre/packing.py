"""Pack items into requests. Size limits start at the configured values and are lowered when the server refuses."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...configs import EmbedConfig

_CAP_RECOVERY_SUCCESSES = 50
_LARGE_BODY_BYTES = 100_000


@dataclass(frozen=True, kw_only=True)
class Item:
    """An encoded item: its JSON, its estimated tokens, and whether it is a search query."""

    piece: bytes
    tokens: int
    is_query: bool = False


@dataclass
class Cap:
    """A learned limit of the server: halved when the server refuses, then raised slowly up to the setting."""

    most: int
    now: int = 0
    refused: int | None = None
    successes: int = 0

    def __post_init__(self) -> None:
        self.now = self.most

    def shrink(self, refused: int) -> None:
        self.refused = min(refused, self.refused or refused)
        self.now = max(1, min(self.now, refused // 2))
        self.successes = 0

    def grow(self) -> None:
        self.successes += 1
        if self.successes >= _CAP_RECOVERY_SUCCESSES and self.now < self.most:
            self.successes = 0
            # Stay below the size that the server refused.
            highest = self.most if self.refused is None else min(self.most, self.refused - 1)
            self.now = max(self.now, min(highest, self.now + max(1, self.now // 10)))


class Packer:
    """Splits items into requests, by items, bytes and tokens.

    Args:
        settings: The `embed` section of a config.
        overhead_bytes: Length of a request's body without its items.
    """

    def __init__(self, settings: EmbedConfig, overhead_bytes: int) -> None:
        most = settings.items_per_request
        self.items = Cap(min(most, settings.items_per_minute or most))
        self.bytes = Cap(settings.batch_bytes)
        self._overhead_bytes = overhead_bytes
        self._max_tokens = min(
            (t for t in (settings.batch_tokens, settings.tokens_per_minute) if t is not None), default=None
        )

    def pack(self, items: Sequence[Item]) -> list[list[int]]:
        """Split items, in order, into requests that fit: one list of positions in `items` per request.

        No request contains both queries and documents.
        """
        packs: list[list[int]] = []
        size = tokens = 0
        for i, item in enumerate(items):
            length = len(item.piece) + 1
            if (
                not packs
                or len(packs[-1]) >= self.items.now
                or size + length > self.bytes.now
                or (self._max_tokens is not None and tokens + item.tokens > self._max_tokens)
                or item.is_query != items[i - 1].is_query
            ):
                packs.append([])
                size, tokens = self._overhead_bytes, 0
            packs[-1].append(i)
            size += length
            tokens += item.tokens
        return packs

    def grow(self) -> None:
        """Record a successful request."""
        self.items.grow()
        self.bytes.grow()

    def shrink(self, items: int, size_bytes: int, status: int) -> None:
        """Record a request that was too large. For a 413 on a large body, bytes are the more likely limit."""
        if status == 413 and size_bytes > _LARGE_BODY_BYTES:
            self.bytes.shrink(size_bytes)
        else:
            self.items.shrink(items)

"""Packs items into requests that the server takes: caps that are configured, and lowered when it refuses."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...configs import EmbedConfig

_CAP_RECOVERY_SUCCESSES = 50
_LARGE_BODY_BYTES = 100_000


@dataclass(frozen=True, kw_only=True)
class Item:
    """An item ready to be sent: its JSON, how many tokens it is thought to be, and whether it asks or is asked for."""

    piece: bytes
    tokens: int
    is_query: bool = False


@dataclass
class Cap:
    """A limit of the server that is learned: halved when it refuses, raised again slowly, up to the setting."""

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
            # Never again quite as large as what was refused.
            highest = self.most if self.refused is None else min(self.most, self.refused - 1)
            self.now = max(self.now, min(highest, self.now + max(1, self.now // 10)))


class Packer:
    """Cuts items into requests, by items, bytes and tokens.

    Args:
        settings: The `embed` section of a config.
        overhead_bytes: Of a request's body, whatever items it has.
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
        """Cuts items, in their order, into requests that fit: positions in `items`, a list a request.

        No request has both queries and documents.
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
        """A request succeeded."""
        self.items.grow()
        self.bytes.grow()

    def shrink(self, items: int, size_bytes: int, status: int) -> None:
        """A request was too large. The server does not say in what; bytes are the likelier limit of a large body."""
        if status == 413 and size_bytes > _LARGE_BODY_BYTES:
            self.bytes.shrink(size_bytes)
        else:
            self.items.shrink(items)

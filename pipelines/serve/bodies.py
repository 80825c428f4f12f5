"""Limits on request bodies while they are read: time for each, bytes for all together."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .faults import Fault

Message = MutableMapping[str, Any]


class Bodies:
    """The bodies that are being read, with a limit on their total size. Use one instance per event loop.

    Above the limit, the oldest incomplete bodies are dropped, so that slow clients make room for fast ones.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._read: dict[Body, None] = {}

    def begin(self, timeout_s: float, pause_s: float) -> "Body":
        """Start to count a new body.

        Args:
            timeout_s: Longest time from now to its last byte.
            pause_s: Longest time between two chunks.
        """
        body = Body(self, timeout_s, pause_s)
        self._read[body] = None
        return body

    def note(self, body: "Body", size_bytes: int) -> None:
        """Count a chunk of a body. Raises Fault when this body itself is dropped."""
        if body not in self._read:
            return
        body.size_bytes += size_bytes
        self._bytes += size_bytes
        while self._bytes > self._most_bytes:
            first = next(iter(self._read))
            first.give_up()
            if first is body:
                raise given_up()

    def remove(self, body: "Body") -> None:
        if body in self._read:
            del self._read[body]
            self._bytes -= body.size_bytes


class Body:
    """One body that is being read."""

    def __init__(self, bodies: Bodies, timeout_s: float, pause_s: float) -> None:
        self.size_bytes = 0
        """Bytes received so far."""
        self._bodies = bodies
        self._pause_s = pause_s
        self._deadline = asyncio.get_running_loop().time() + timeout_s
        self._timeout: asyncio.Timeout | None = None
        self._is_given_up = False

    async def next(self, receive: Callable[[], Awaitable[Message]]) -> Message:
        """Receive the next message. Raises Fault when it is too slow, or when the body was dropped."""
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(self._deadline, now + self._pause_s)) as self._timeout:
                if self._is_given_up:
                    raise given_up()
                message = await receive()
        except TimeoutError:
            if self._is_given_up:
                raise given_up() from None
            raise Fault(
                408,
                "too_slow",
                "The request body arrived too slowly. Send it faster, or send less.",
                {"Connection": "close"},
            ) from None
        finally:
            self._timeout = None
        if message["type"] == "http.request":
            self._bodies.note(self, len(message.get("body", b"")))
        return message

    def give_up(self) -> None:
        """Drop the body and interrupt its reader."""
        self.end()
        self._is_given_up = True
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def end(self) -> None:
        """Stop counting: the body is complete or dropped."""
        self._bodies.remove(self)


def given_up() -> Fault:
    message = "The server has no memory left for this slow request body. Try again in a second."
    return Fault(503, "busy", message, {"Retry-After": "1", "Connection": "close"})

"""Connections to the API, kept open and reused."""

from collections.abc import Callable

import httpx

from .bodies import Reply, read_reply


class Connections:
    """A pool with one HTTP client per connection; the most recently used client is taken first.

    One client with a pool would be shorter, but httpcore's pool (1.0.9) compares every idle connection with every
    other one twice per request, and polls each socket. At 6,000 requests per minute, a short stall leaves so many idle
    connections that the pool uses a whole core; throughput fell to a fifth of the limit and did not recover. Here the
    cost of a request does not depend on the number of connections.

    Args:
        make: Creates a client. Its own pool holds one connection, or briefly two while a broken one is replaced.
    """

    def __init__(self, make: Callable[[], httpx.AsyncClient]) -> None:
        self._make = make
        self._idle: list[httpx.AsyncClient] = []
        self._all: list[httpx.AsyncClient] = []

    async def post(self, path: str, content: bytes, *, most_bytes: int) -> Reply:
        """Send a request and read the answer.

        Args:
            path: Path relative to the client's base URL.
            content: Body of the request.
            most_bytes: Maximum size of the answer's body. Reading stops there and the connection is closed.
        """
        if self._idle:
            client = self._idle.pop()
        else:
            client = self._make()
            self._all.append(client)
        try:
            async with client.stream("POST", path, content=content) as response:
                return await read_reply(response, most_bytes)
        finally:
            self._idle.append(client)

    async def close(self) -> None:
        for client in self._all:
            await client.aclose()

"""Connections to the API, kept and used again."""

from collections.abc import Callable

import httpx

from .bodies import Reply, read_reply


class Connections:
    """One HTTP client for each connection, the last used first.

    One client with a pool would be shorter, but httpcore's pool (1.0.9) compares every idle connection with every
    other, twice a request, and asks each socket for its state. At 6,000 requests a minute a short stall leaves enough
    idle ones that the pool then takes a whole core, which is itself a stall: throughput fell to a fifth of the limit
    and stayed there. Here a request costs the same however many connections there are.

    Args:
        make: A client. Its own pool will hold one connection, or two for the moment in which a broken one is replaced.
    """

    def __init__(self, make: Callable[[], httpx.AsyncClient]) -> None:
        self._make = make
        self._idle: list[httpx.AsyncClient] = []
        self._all: list[httpx.AsyncClient] = []

    async def post(self, path: str, content: bytes, *, most_bytes: int) -> Reply:
        """Sends, and reads the answer.

        Args:
            path: Below the client's base URL.
            content: Of the request.
            most_bytes: Of a good answer's body; of a longer one no more is read, and its connection is closed.
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

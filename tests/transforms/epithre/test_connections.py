"""Connections are reused, the most recent one first, and none is lost."""

import asyncio

import httpx
import pytest

from epithre_beam.transforms.epithre.connections import Connections


async def body(content):
    yield content


def of(serve):
    made = []

    def make():
        made.append(httpx.AsyncClient(base_url="http://api.test/v1", transport=httpx.MockTransport(serve)))
        return made[-1]

    return Connections(make), made


def test_connections_are_created_on_demand_and_reused():
    async def serve(request):
        await asyncio.sleep(0.01)
        return httpx.Response(200, content=body(request.url.path.encode()))

    async def go():
        connections, made = of(serve)
        answers = await asyncio.gather(*(connections.post("/embeddings", b"x", most_bytes=1000) for _ in range(5)))
        for _ in range(3):
            await connections.post("/embeddings", b"x", most_bytes=1000)
        await connections.close()
        return answers, made

    answers, made = asyncio.run(go())
    assert [answer.content for answer in answers] == [b"/v1/embeddings"] * 5
    assert len(made) == 5
    assert all(client.is_closed for client in made)


def test_a_failed_or_cancelled_request_returns_its_connection():
    async def serve(request):
        if request.content == b"fail":
            raise httpx.ConnectError("refused")
        if request.content == b"hang":
            await asyncio.sleep(60)
        return httpx.Response(200, content=body(b""))

    async def go():
        connections, made = of(serve)
        with pytest.raises(httpx.ConnectError):
            await connections.post("/embeddings", b"fail", most_bytes=1000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connections.post("/embeddings", b"hang", most_bytes=1000)
        answer = await connections.post("/embeddings", b"good", most_bytes=1000)
        await connections.close()
        return answer.status_code, len(made)

    assert asyncio.run(go()) == (200, 1)

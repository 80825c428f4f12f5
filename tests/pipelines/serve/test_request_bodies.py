"""Request bodies are limited in time each, and in bytes together."""

import asyncio

import pytest

from epithre_beam.pipelines.serve.bodies import Bodies
from epithre_beam.pipelines.serve.faults import Fault


def piece(size, *, more=True):
    async def receive():
        return {"type": "http.request", "body": bytes(size), "more_body": more}

    return receive


async def never():
    await asyncio.Event().wait()


def test_the_oldest_body_is_dropped_while_it_waits():
    async def scene():
        bodies = Bodies(100)
        slow, fast = bodies.begin(60, 60), bodies.begin(60, 60)
        await slow.next(piece(60))
        waiting = asyncio.ensure_future(slow.next(never))
        await asyncio.sleep(0)
        await fast.next(piece(60))
        with pytest.raises(Fault) as caught:
            await waiting
        assert (caught.value.status_code, caught.value.code) == (503, "busy")
        await fast.next(piece(40))  # all memory is free again
        with pytest.raises(Fault):
            await slow.next(piece(1))

    asyncio.run(scene())


def test_the_oldest_body_raises_and_finished_ones_do_not_count():
    async def scene():
        bodies = Bodies(100)
        whole = bodies.begin(60, 60)
        await whole.next(piece(90, more=False))
        whole.end()
        other = bodies.begin(60, 60)
        await other.next(piece(90))
        with pytest.raises(Fault) as caught:
            await other.next(piece(20))
        assert caught.value.status_code == 503

    asyncio.run(scene())


@pytest.mark.parametrize(("timeout_s", "pause_s"), [(0.01, 60), (60, 0.01)])
def test_a_slow_body_raises(timeout_s, pause_s):
    async def scene():
        body = Bodies(100).begin(timeout_s, pause_s)
        with pytest.raises(Fault) as caught:
            await body.next(never)
        assert caught.value.status_code == 408

    asyncio.run(scene())


def test_cancellation_is_not_reported_as_slowness():
    async def scene():
        body = Bodies(100).begin(60, 60)
        waiting = asyncio.ensure_future(body.next(never))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(scene())

"""An emulator, and a client that embeds texts with it."""

import asyncio

import numpy as np

from epithre_beam.configs import EmbedConfig
from epithre_beam.transforms.epithre.client import Client, Refusal
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings
from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector

DIMENSION = 64


def texts(count, start=0):
    return [f"text {i}".encode() for i in range(start, start + count)]


async def quick(seconds):
    await asyncio.sleep(min(seconds, 0.02))


def settings_for(emulator, **changes):
    return EmbedConfig(base_url=emulator.base_url, dimension=DIMENSION, **changes)


def embed(emulator, contents, *, rate_limiter=None, key=None, sleep=quick, **changes):
    """The results, and the closed client for its counts."""

    async def go():
        async with Client(
            settings_for(emulator, **changes),
            key or emulator.api_key,
            seed=1,
            sleep=sleep,
            rate_limiter=rate_limiter and rate_limiter(),
        ) as client:
            return await client.embed([client.encode("text", content) for content in contents]), client

    return asyncio.run(go())


def serve(**settings):
    return Emulator(EmulatorSettings(dimension=DIMENSION, **settings))


def assert_right(contents, results):
    """Check that every item has a result and every vector belongs to its content."""
    assert len(results) == len(contents)
    for content, result in zip(contents, results, strict=True):
        if not isinstance(result, Refusal):
            np.testing.assert_allclose(result, hash_vector("text", content, DIMENSION), atol=1e-5)

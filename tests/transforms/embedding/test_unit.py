"""A unit's work runs concurrently, within its memory limit, and sends each content once."""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from epithre_beam.configs import EmbedConfig, PrepareConfig, SourceConfig
from epithre_beam.index import Store
from epithre_beam.index.vectors.reusable import ReusableVectors
from epithre_beam.index.vectors.units import read_unit
from epithre_beam.transforms.embedding.assets import AssetEmbedder
from epithre_beam.transforms.embedding.in_flight import ByteLimit, SentContents
from epithre_beam.transforms.embedding.unit import UnitContext, embed_unit
from epithre_beam.transforms.epithre.client import Client
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults
from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector
from epithre_beam.transforms.planning.plan import Unit
from epithre_beam.transforms.sources.reading import Reader
from epithre_beam.transforms.sources.references import Reference


class SlowReader(Reader):
    """A reader with slow storage."""

    def read(self, reference):
        time.sleep(0.05)
        return super().read(reference)


def images(folder, count):
    rng = np.random.default_rng(3)
    folder.mkdir()
    found = []
    for i in range(count):
        path = folder / f"{i:03d}.jpg"
        Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)
        size = path.stat().st_size
        found.append(
            Reference(
                asset_id=path.name, kind="image", uri=str(path), text=None, fingerprint="x", size_bytes=size, source=0
            )
        )
    return found


async def embed_all(units, embed, key, store, reader_class=Reader, memory=50_000_000):
    """Embed units as a lane does, and return their records."""
    prepare = PrepareConfig()
    sources = (SourceConfig(kind="image", files="x"),)
    with ThreadPoolExecutor(16) as threads, ThreadPoolExecutor(2) as local_threads:
        async with Client(embed, key) as client:
            embedder = AssetEmbedder(
                embed=embed,
                prepare=prepare,
                reader=reader_class(sources, prepare),
                client=client,
                threads=threads,
                local_threads=local_threads,
                bytes_in_flight=ByteLimit(memory),
                sent=SentContents(1024),
                reusable=ReusableVectors(store, [], ""),
            )
            context = UnitContext(
                store=store,
                embedder=embedder,
                embedding_config_hash="",
                note_progress=lambda done, dead: None,
            )
            return await asyncio.gather(
                *(
                    embed_unit(Unit(name=name, kind="image", row_group=0, references=len(part)), part, context)
                    for name, part in units.items()
                )
            )


@pytest.mark.alone
def test_slow_reads_and_slow_requests_overlap(tmp_path):
    """128 reads of 50 ms in two threads are 3.2 s, and 16 requests of 300 ms one after the other 4.8 s more."""
    references = images(tmp_path / "pictures", 128)
    settings_ = EmulatorSettings(dimension=32, faults=Faults(latency_s=0.3))
    with Emulator(settings_) as emulator:
        embed = EmbedConfig(base_url=emulator.base_url, dimension=32, batch_items=8, max_concurrency=16)
        units = {f"u{i}": references[i * 32 : (i + 1) * 32] for i in range(4)}
        started = time.monotonic()
        asyncio.run(embed_all(units, embed, emulator.api_key, Store(str(tmp_path / "c")), SlowReader))
        took = time.monotonic() - started
    assert took < 4.8


def test_rows_are_in_the_order_of_the_references_with_their_own_vectors(tmp_path):
    references = images(tmp_path / "pictures", 50)
    with Emulator(EmulatorSettings(dimension=32, faults=Faults(latency_s=0.02, latency_jitter_s=0.02))) as emulator:
        embed = EmbedConfig(base_url=emulator.base_url, dimension=32, batch_items=3)
        store = Store(str(tmp_path / "c"))
        asyncio.run(embed_all({"u": references}, embed, emulator.api_key, store, memory=5000))
    table = read_unit(store, "u")
    assert table.column("asset_id").to_pylist() == [r.asset_id for r in references]
    for reference, vector in zip(references, table.column("embedding").to_pylist(), strict=True):
        with open(reference.uri, "rb") as file:  # noqa: PTH123
            np.testing.assert_allclose(vector, hash_vector("image", file.read(), 32), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.integers(1, 100))
def test_bytes_in_flight_stay_below_limit_without_starvation(sizes, capacity):
    held = most = 0

    async def go():
        limit = ByteLimit(capacity)

        async def work(size):
            nonlocal held, most
            got = await limit.acquire(size)
            held += got
            most = max(most, held)
            await asyncio.sleep(0)
            held -= got
            limit.release(got)

        await asyncio.wait_for(asyncio.gather(*(work(size) for size in sizes)), 10)

    asyncio.run(go())
    assert most <= capacity
    assert held == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="peak memory of a child is read with wait4")
def test_a_slow_api_does_not_fill_memory(tmp_path):
    """90 MB of images wait for a slow server; 20 MB may be in flight."""
    import subprocess
    import sys

    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    noise = rng.integers(0, 256, (700, 700, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "base.jpg", quality=95)
    base = (tmp_path / "base.jpg").read_bytes()
    count = 90_000_000 // len(base)
    for i in range(count):
        segment = b"\xff\xfe" + (10).to_bytes(2, "big") + f"{i:08d}".encode()
        (tmp_path / "pictures" / f"{i}.jpg").write_bytes(base[:2] + segment + base[2:])

    def peak_mb(files, latency_s):
        with Emulator(EmulatorSettings(dimension=32, faults=Faults(latency_s=latency_s))) as emulator:
            job = tmp_path / "job.yaml"
            job.write_text(
                f"catalog: c{latency_s}\nsources: [{{kind: image, files: '{files}'}}]\n"
                f"embed: {{base_url: {emulator.base_url}, api_key_env: KEY, dimension: 32, memory_mb: 50}}\n"
            )
            command = [sys.executable, "-m", "epithre_beam.pipelines.commands.cli", "run", str(job), "--quiet"]
            process = subprocess.Popen(command, env={**os.environ, "KEY": emulator.api_key})
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0
            return usage.ru_maxrss // 1024

    small = peak_mb("pictures/0.jpg", 0.0)
    assert peak_mb("pictures/*.jpg", 0.4) < small + 90

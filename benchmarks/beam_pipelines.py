"""The pipelines that `beam_plugin.py` measures. A module of its own, which the workers of a runner can import."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import RemoteModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct import direct_runner
from apache_beam.runners.direct.clock import TestClock
from apache_beam.testing.test_stream import TestStream
from subjects import KEY_ENV

from epithre_beam import transforms as epithre
from epithre_beam.configs import EmbedConfig
from epithre_beam.transforms.epithre.client import Client

_REQUEST_ITEMS = 64
_ONE_PROCESS = ("--runner=FnApiRunner",)


def _pipeline(*options: str) -> beam.Pipeline:
    return beam.Pipeline(options=PipelineOptions([*options]))


def texts(count: int, words: str = "text") -> list[epithre.Asset]:
    return [epithre.Asset.of_text(f"{words}-{i}", f"{words} number {i}") for i in range(count)]


def _count(elements: beam.PCollection, what: str) -> None:
    """Count elements. `counted` reads the counts, wherever the workers are."""
    _ = elements | f"Count {what}" >> beam.Map(_note, what)


def _note(_element: Any, what: str) -> None:
    beam.metrics.Metrics.counter("bench", what).inc()


def counted(pipeline: beam.Pipeline) -> dict[str, int]:
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("bench"))
    return {counter.key.metric.name: counter.committed for counter in found["counters"]}


# Requests of a known duration


def embed_texts(url: str, count: int) -> dict[str, float]:
    p = _pipeline(*_ONE_PROCESS)
    result = p | beam.Create(texts(count)) | epithre.EmbedAssets(base_url=url, api_key_env=KEY_ENV)
    _count(result.embedded, "assets")
    return counted(p)


class _Handler(RemoteModelHandler[str, Any, "Client"]):  # type: ignore[misc]
    """Embeds texts through the same client; requests of at most 64 items, or whatever Beam batches."""

    def __init__(self, url: str, max_batch_size: int | None) -> None:
        super().__init__(namespace="bench")
        self._url = url
        self._max_batch_size = max_batch_size

    def batch_elements_kwargs(self) -> dict[str, int]:
        return {} if self._max_batch_size is None else {"max_batch_size": self._max_batch_size}

    def create_client(self) -> "_Blocking":
        return _Blocking(EmbedConfig(base_url=self._url))

    def request(self, batch: Sequence[str], model: "_Blocking", inference_args: Any = None) -> list[list[float]]:
        return [vector.tolist() for vector in model.embed(batch)]


class _Blocking:
    """The client, with a loop that runs while it is called."""

    def __init__(self, embed: EmbedConfig) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = Client(embed, os.environ[KEY_ENV])

    def embed(self, batch: Sequence[str]) -> list[Any]:
        items = [self._client.encode("text", text.encode()) for text in batch]
        return self._loop.run_until_complete(self._client.embed(items))


def run_inference(url: str, count: int, max_batch_size: int | None = _REQUEST_ITEMS) -> dict[str, float]:
    p = _pipeline(*_ONE_PROCESS)
    words = [asset.text for asset in texts(count)]
    _count(p | beam.Create(words) | RunInference(_Handler(url, max_batch_size)), "assets")
    return counted(p)


def run_inference_unbounded(url: str, count: int) -> dict[str, float]:
    """Let Beam choose the batches, of up to 10,000 items, which the client sends as several requests at once."""
    return run_inference(url, count, None)


# Images and texts without latency


def embed_and_write(folder: Path, images: Path, table: Path, url: str, concurrency: int) -> dict[str, float]:
    sources = [
        {"kind": "image", "files": f"{images}/**/*.jpg"},
        {"kind": "text", "table": str(table), "id": "id", "text": "text"},
    ]
    p = _pipeline(*_ONE_PROCESS)
    assets = (p | epithre.ReadAssets(sources)).assets
    result = assets | epithre.EmbedAssets(base_url=url, api_key_env=KEY_ENV, max_concurrency=concurrency)
    _count(result.dead, "dead")
    _ = result.embedded | epithre.WriteVectors(folder / "vectors") | beam.Map(_note_rows)
    figures = counted(p)
    assert not figures.get("dead"), figures
    return figures


def _note_rows(file: epithre.VectorFile) -> None:
    beam.metrics.Metrics.counter("bench", "assets").inc(file.rows)


# A limit that two steps and two processes share


def two_steps(url: str, items: int, limit: int, window_s: float) -> dict[str, float]:
    p = _pipeline(*_ONE_PROCESS, "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    for step in ("one", "two"):
        transform = epithre.EmbedAssets(base_url=url, api_key_env=KEY_ENV, requests_per_minute=limit, batch_items=1)
        transform._window_s = window_s
        result = p | f"Create {step}" >> beam.Create(texts(items // 2, step)) | step >> transform
        _count(result.embedded, step)
        _ = result.embedded | f"Process {step}" >> beam.Map(_note_process)
    found = counted(p)
    processes = [name for name in found if name.startswith("process-")]
    return {"assets": found["one"] + found["two"], "processes": len(processes)}


def _note_process(_asset: epithre.EmbeddedAsset) -> None:
    beam.metrics.Metrics.counter("bench", f"process-{os.getpid()}").inc()


# A stream


class _StreamClock(TestClock):  # type: ignore[misc]
    """The clock of the running TestStream."""

    current: "_StreamClock"

    def __init__(self, current_time: Any = None) -> None:
        super().__init__(current_time)
        _StreamClock.current = self


def stream_s() -> float:
    return _StreamClock.current.time()


_arrived: dict[str, float] = {}
_waited: list[float] = []


def _arrive(asset: epithre.Asset) -> epithre.Asset:
    _arrived[asset.id] = stream_s()
    return asset


def _leave(asset: epithre.EmbeddedAsset) -> None:
    _waited.append(stream_s() - _arrived[asset.id])


def stream(url: str, items: int, bundles: int, max_buffering_s: float) -> dict[str, float]:
    """Embed a stream whose bundles come a second apart. Its clock stands still during requests."""
    direct_runner.TestClock = _StreamClock
    size = -(-items // bundles)
    assets = texts(items)
    events = TestStream(coder=beam.coders.FastPrimitivesCoder())
    for number in range(bundles):
        events = events.add_elements(assets[number * size : (number + 1) * size]).advance_processing_time(1)
    for _ in range(int(max_buffering_s) + 2):  # the end of a stream would send what is buffered
        events = events.advance_processing_time(1)
    transform = epithre.EmbedAssets(base_url=url, api_key_env=KEY_ENV, max_buffering_s=max_buffering_s)
    transform._clock = stream_s
    with _pipeline("--runner=BundleBasedDirectRunner", "--streaming") as p:
        arrived = p | events.advance_watermark_to_infinity() | beam.Map(_arrive).with_output_types(epithre.Asset)
        _ = (arrived | transform).embedded | beam.Map(_leave)
    return {"assets": len(_waited), "waited_s": float(np.max(_waited))}

"""A pipeline with a cache that is killed sends nothing again that was stored: at most two batches for each request.

A process has at most twice `max_concurrency` batches that were sent and are not stored.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.index import Store
from epithre_beam.index.versions.complete import existing_versions
from epithre_beam.pipelines.jobs.build_index import import_vectors
from epithre_beam.transforms.epithre.emulator import Faults

from ...s3_server import BUCKET, s3_store
from .. import test_embed_assets as steps

serve = steps.serve
pytestmark = pytest.mark.slow

ITEMS, BATCH, CONCURRENCY = 160, 4, 2
PROCESSES = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
IN_MEMORY = ("--runner=FnApiRunner",)
SCRIPT = f"""
import sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from epithre_beam import transforms as epithre

def to_asset(number):
    return epithre.Asset.of_text(str(number), f"text {{number}}")

if __name__ == "__main__":
    with beam.Pipeline(options=PipelineOptions(sys.argv[3:])) as p:
        assets = p | beam.Create(range({ITEMS})) | beam.Map(to_asset).with_output_types(epithre.Asset)
        result = assets | epithre.EmbedAssets(
            base_url=sys.argv[1], dimension=16, batch_items={BATCH}, max_concurrency={CONCURRENCY}, cache=sys.argv[2]
        )
        _ = result.embedded | beam.combiners.Count.Globally() | beam.Map(print)
"""


def start(tmp_path, emulator, cache, options, environment=None):
    (tmp_path / "embed.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "embed.py"), emulator.base_url, cache, *options],
        env={**os.environ, "EPITHRE_KEY": emulator.api_key, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers_of(process):
    """The processes that send: the program itself, or its worker processes."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [each for each in below if "sdk_worker" in " ".join(each.cmdline())] or [psutil.Process(process.pid)]


def wait_until(condition, process):
    until = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def kill(process):
    """Kill the program and its worker processes at once; a limiter of the host may be used by others."""
    for each in {psutil.Process(process.pid), *workers_of(process)}:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)
    process.communicate()


def finish(process):
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]
    assert out.split() == [str(ITEMS)]


def assert_little_is_sent_again(emulator, processes):
    billed = emulator.payments()
    assert len(billed) == ITEMS
    assert sum(count - 1 for count in billed.values()) <= processes * 2 * CONCURRENCY * BATCH


def is_busy(emulator):
    return lambda: emulator.stats()["billed_items"] >= ITEMS // 3


@contextlib.contextmanager
def publishing(catalog, folder):
    """Publish versions to a catalog for as long as the block runs."""
    (folder / "own").mkdir()
    rows = np.eye(16, dtype=np.float32)[:4]
    table = {"id": list("abcd"), "kind": ["text"] * 4, "embedding": list(rows)}
    pq.write_table(pa.table(table), folder / "own" / "0.parquet")
    import_vectors(catalog, str(folder / "own"))
    stop, errors = threading.Event(), []

    def publish():
        while not stop.is_set():
            try:
                import_vectors(catalog, str(folder / "own"))
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert errors == []


@pytest.mark.parametrize(("place", "options"), [("folder", PROCESSES), ("catalog", PROCESSES), ("s3", IN_MEMORY)])
def test_killed_pipeline_sends_only_what_was_not_stored_again(serve, tmp_path, request, place, options):
    emulator = serve(Faults(latency_s=0.15))
    cache, environment = str(tmp_path / "cache"), {}
    processes = 2 if options == PROCESSES else 1
    with contextlib.ExitStack() as stack:
        if place == "catalog":
            stack.enter_context(publishing(cache, tmp_path))
        if place == "s3":
            port = request.getfixturevalue("s3_server").port
            name = tmp_path.name
            cache = f"s3://{BUCKET}/{name}"
            environment = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            assert s3_store(port, name).names("") == []
        process = start(tmp_path, emulator, cache, options, environment)
        wait_until(is_busy(emulator), process)
        kill(process)
        before = emulator.stats()["billed_items"]
        assert before < ITEMS
        finish(start(tmp_path, emulator, cache, options, environment))
    assert_little_is_sent_again(emulator, processes)
    if place == "catalog":
        assert len(existing_versions(Store(cache))) > 2


def test_second_run_completes_after_one_worker_was_killed(serve, tmp_path):
    """Beam's FnApiRunner reports that a worker process died, and waits for it forever: the program must be stopped."""
    emulator = serve(Faults(latency_s=0.15))
    cache = str(tmp_path / "cache")
    process = start(tmp_path, emulator, cache, PROCESSES)
    wait_until(is_busy(emulator), process)
    victim = workers_of(process)[0]
    assert victim.pid != process.pid
    victim.kill()
    lines = iter(process.stderr.readline, "")
    assert any("Worker subprocess exited with return code -9" in line or "returncode=-9" in line for line in lines)
    kill(process)
    finish(start(tmp_path, emulator, cache, IN_MEMORY))
    assert_little_is_sent_again(emulator, 2)

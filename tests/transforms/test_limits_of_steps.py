"""Steps, bundles, threads and processes of pipelines keep one limit, and stop together when the API refuses them."""

import contextlib
import os
import pickle
import subprocess
import sys
import time

import apache_beam as beam
import pytest

from epithre_beam import transforms as epithre
from epithre_beam.configs.errors import ConfigError
from epithre_beam.transforms.epithre.emulator import Faults, Limits
from epithre_beam.transforms.epithre.emulator.hash_model import content_digest

from .epithre.answering import answering, error, good
from .test_embed_assets import (  # `serve` is a fixture
    BUNDLES,
    DIMENSION,
    FN_API,
    KEY_ENV,
    THREADS,
    Collected,
    embed_assets,
    pipeline,
    requests_of,
    run,
    serve,  # noqa: F401
    texts,
)

PROCESSES = (FN_API, "--direct_running_mode=multi_processing", "--direct_num_workers=2")


def run_steps(transforms, assets, runner=FN_API, *options):
    """Run steps on the same assets, which Beam fuses: each bundle is in all steps at the same time."""
    embedded, dead = Collected(), Collected()
    with pipeline(runner, *options) as p:
        source = p | beam.Create(assets, reshuffle=False)
        for number, transform in enumerate(transforms):
            result = source | f"step {number}" >> transform
            _ = result.embedded | f"embedded {number}" >> beam.Map(embedded)
            _ = result.dead | f"dead {number}" >> beam.Map(dead)
    return embedded.elements, dead.elements


@pytest.mark.parametrize(("runner", "each"), [(FN_API, (6, 3)), (FN_API, (3, 6)), (THREADS, (3, 6))])
def test_the_smallest_number_in_flight_holds_for_all_steps_of_a_process(serve, runner, each):  # noqa: F811
    emulator = serve(Faults(latency_s=0.02))
    steps = [embed_assets(emulator, batch_items=2, max_concurrency=most) for most in each]
    embedded, _ = run_steps(steps, texts(60), runner)
    assert len(embedded) == 120
    assert emulator.stats()["peak_in_service"] == 3


def test_copies_of_steps_in_threads_share_one_limit(serve):  # noqa: F811
    """Beam unpickles each step once a thread."""
    emulator = serve(limits=Limits(requests_per_minute=20, window_s=0.5))
    steps = [pickle.loads(pickle.dumps(embed_assets(emulator, requests_per_minute=20, batch_items=1))) for _ in "ab"]
    for step in steps:
        step._window_s = 0.5
    embedded, _ = run_steps(steps, texts(30), THREADS)
    assert len(embedded) == 60
    assert set(emulator.stats()["statuses"]) == {"200"}


def test_a_later_pipeline_of_the_process_may_have_more_in_flight(serve):  # noqa: F811
    emulator = serve(Faults(latency_s=0.1))
    peaks = []
    for most in (1, 8, 2):
        emulator.reset()
        run(
            texts(40, f"{most}"),
            embed_assets(emulator, batch_items=2, max_concurrency=most, requests_per_minute=10_000),
        )
        peaks.append(emulator.stats()["peak_in_service"])
    assert peaks[0] == 1
    assert peaks[1] > 2
    assert peaks[2] <= 2


def test_one_request_may_be_all_that_a_pipeline_sends(serve):  # noqa: F811
    emulator = serve()
    embedded, dead = run(texts(10), embed_assets(emulator, max_requests=1, batch_items=4))
    assert requests_of(emulator) == 1
    assert (len(embedded), len(dead)) == (4, 6)


def test_a_cache_needs_more_than_one_request_because_it_probes():
    with pytest.raises(ConfigError, match="EmbedAssets: with `cache`, max_requests is 1, which the probe needs"):
        epithre.EmbedAssets(cache="folder", max_requests=1)


@pytest.mark.parametrize(("runner", "tries"), [(FN_API, 1), (THREADS, 2), (BUNDLES, 8)])
def test_a_refused_key_costs_one_request_a_try_of_a_bundle(serve, monkeypatch, runner, tries):  # noqa: F811
    """The last runner tries the bundle of each step four times."""
    emulator = serve(Faults(latency_s=0.02))
    monkeypatch.setenv(KEY_ENV, f"sk-wrong-{time.monotonic_ns()}")
    with pytest.raises(Exception, match="refused the API key"):
        run_steps([embed_assets(emulator, batch_items=1) for _ in range(2)], texts(30), runner)
    assert 1 <= requests_of(emulator) <= tries
    assert set(emulator.stats()["statuses"]) == {"401"}


@pytest.mark.slow
def test_a_refused_key_costs_one_request_in_each_process(serve, monkeypatch):  # noqa: F811
    emulator = serve()
    monkeypatch.setenv(KEY_ENV, f"sk-wrong-{time.monotonic_ns()}")
    with pytest.raises(Exception, match="refused the API key") as caught:
        run_steps([embed_assets(emulator, batch_items=1, rate_limiter="host")] * 2, texts(30), *PROCESSES)
    assert "sk-wrong" not in str(caught.value)
    assert 1 <= requests_of(emulator) <= 2


def test_a_key_that_is_accepted_again_embeds_everything(monkeypatch):
    """The key is refused once: the second try of the bundle sends all its requests."""
    monkeypatch.setenv(KEY_ENV, "sk-refused-once")

    def answer(asked):
        return error(401, "unknown key") if asked.number == 0 else good(asked, DIMENSION)

    with answering(answer) as server:
        embedded, dead = run(texts(12), embed_assets(server, batch_items=2), BUNDLES)
        assert (len(embedded), dead) == (12, [])
        assert server.count() == 7


def test_nothing_is_sent_before_the_pause_of_a_spent_quota_ends(monkeypatch):
    monkeypatch.setenv(KEY_ENV, "sk-spent")
    times = []

    def answer(asked):
        times.append(time.time())
        if asked.number > 0:
            return good(asked, DIMENSION)
        body = error(429, "The quota of today is used up.", retry_after="2")
        body.body["error"]["code"] = "insufficient_quota"
        return body

    with answering(answer) as server:
        steps = [embed_assets(server, batch_items=2) for _ in range(2)]
        for runner in (BUNDLES, FN_API):
            with pytest.raises(Exception, match=r"quota is used up .* Raise the quota, or run again after") as caught:
                run_steps(steps, texts(12), runner)
            assert "sk-spent" not in str(caught.value)
        assert server.count() == 1
        while len(times) < 2:  # a pipeline that starts during the pause fails, and a later one sends
            with contextlib.suppress(Exception):
                embedded, _ = run_steps(steps, texts(12))
        assert len(embedded) == 24
    assert times[1] >= times[0] + 2


def test_a_long_pause_ends_the_bundles_of_all_threads_at_once(serve):  # noqa: F811
    """Requests that wait for the same pause do not outlast it."""
    emulator = serve(Faults(rate_429=1.0, rate_429_retry_after_s=5000, start_at_request=3, latency_s=0.05))
    started = time.monotonic()
    with pytest.raises(Exception, match="asked for a pause of 5000 s"):
        run_steps([embed_assets(emulator, batch_items=1, max_concurrency=1)] * 2, texts(30), THREADS)
    assert time.monotonic() - started < 60
    assert requests_of(emulator) == 4


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["host", "redis"])
def test_two_processes_and_steps_never_send_more_than_they_may_retries_included(serve, redis_server, backend):  # noqa: F811
    faults = Faults(rate_429=0.05, rate_429_retry_after_s=1, error_500=0.03, drop_connection=0.02)
    emulator = serve(faults)
    settings = {"redis_url": redis_server.url} if backend == "redis" else {}
    steps = [embed_assets(emulator, batch_items=1, max_requests=40, rate_limiter=backend, **settings)] * 2
    ids = []
    with pipeline(*PROCESSES) as p:
        for number, transform in enumerate(steps):
            result = p | f"create {number}" >> beam.Create(texts(40, f"{number}")) | f"{number}" >> transform
            ids += [
                result.embedded | f"embedded {number}" >> beam.Map(lambda asset: (asset.id, "embedded")),
                result.dead | f"dead {number}" >> beam.Map(lambda asset: (asset.id, asset.reason)),
            ]
        counts = ids | beam.Flatten() | beam.Map(lambda pair: pair[1]) | beam.combiners.Count.PerElement()
        _ = counts | beam.combiners.ToDict() | beam.Map(_check_counts)
    stats = emulator.stats()
    assert stats["requests"] == 40
    assert stats["faults"]


def _check_counts(counts):
    assert set(counts) == {"embedded", "not_sent"}
    assert sum(counts.values()) == 80
    assert 0 < counts["embedded"] < 40


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["host", "redis"])
def test_no_window_of_two_processes_and_steps_is_over_and_nothing_is_refused(serve, redis_server, backend):  # noqa: F811
    emulator = serve(limits=Limits(requests_per_minute=60, window_s=3.0))
    settings = {"redis_url": redis_server.url} if backend == "redis" else {}
    with pipeline(*PROCESSES) as p:
        for number in range(2):
            transform = embed_assets(emulator, batch_items=2, requests_per_minute=60, rate_limiter=backend, **settings)
            transform._window_s = 3.0
            _ = p | f"create {number}" >> beam.Create(texts(240, f"{number}")) | f"{number}" >> transform
    stats = emulator.stats()
    assert set(stats["statuses"]) == {"200"}
    assert stats["billed_items"] == 480
    assert stats["worst_window"]["requests"] <= 60


WORKER = """
import sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from epithre_beam import transforms as epithre

address, limit, window_s, timeout_s, backend, redis_url, name, count = sys.argv[1:]
transform = epithre.EmbedAssets(
    base_url=address, dimension=16, batch_items=1, requests_per_minute=int(limit), rate_limiter=backend,
    redis_url=redis_url or None, embed={"timeout_s": float(timeout_s)},
)
transform._window_s = float(window_s)
with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as p:
    assets = p | beam.Create([epithre.Asset.of_text(str(i), f"{name} {i}") for i in range(int(count))])
    result = assets | transform
    _ = result.embedded | beam.combiners.Count.Globally() | beam.Map(print)
"""


@pytest.fixture
def start(tmp_path):
    """Start processes with a pipeline each; those that are left at the end of the test are killed."""
    (tmp_path / "worker.py").write_text(WORKER)
    started = []

    def begin(emulator, name, count, backend="host", redis_url="", limit=10, window_s=1.0, timeout_s=1.0):
        words = [emulator.base_url, limit, window_s, timeout_s, backend, redis_url, name, count]
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "worker.py"), *map(str, words)],
            env={**os.environ, "EPITHRE_KEY": emulator.api_key},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def sent(emulator, at_least):
    return lambda: requests_of(emulator) >= at_least


@pytest.mark.slow
def test_leases_of_a_killed_process_expire_and_others_go_on(serve, start):  # noqa: F811
    """The holder of the host's limiter lives on; the other process is killed with requests in flight."""
    emulator = serve(Faults(latency_s=0.3), Limits(requests_per_minute=10, window_s=1.0))
    holder = start(emulator, "holder", 60)
    wait_for(sent(emulator, 3))
    killed = start(emulator, "killed", 500)
    wait_for(lambda: _sends_of(emulator, "killed 0"))
    killed.kill()
    out, errors = holder.communicate(timeout=90)
    assert out.split() == ["60"], errors[-2000:]
    assert set(emulator.stats()["statuses"]) == {"200"}
    assert emulator.stats()["worst_window"]["requests"] <= 10


def _sends_of(emulator, text):
    return emulator.payments().get(content_digest("text", text.encode()).hex(), 0)


@pytest.mark.slow
def test_another_process_counts_after_the_host_limiter_was_killed(serve, start):  # noqa: F811
    emulator = serve(Faults(latency_s=0.1), Limits(requests_per_minute=10, window_s=1.0))
    holder = start(emulator, "holder", 500)
    wait_for(sent(emulator, 3))
    survivor = start(emulator, "survivor", 30)
    wait_for(lambda: _sends_of(emulator, "survivor 0"))
    holder.kill()
    out, errors = survivor.communicate(timeout=90)
    assert out.split() == ["30"], errors[-2000:]
    assert "The process that counted the requests of this host has ended. Nothing is sent until" in errors
    assert set(emulator.stats()["statuses"]) == {"200"}
    assert emulator.stats()["worst_window"]["requests"] <= 10


@pytest.mark.slow
def test_the_limit_holds_when_redis_starts_anew_without_its_data(serve, start, redis_server):  # noqa: F811
    emulator = serve(Faults(latency_s=0.1), Limits(requests_per_minute=10, window_s=1.0))
    workers = [start(emulator, name, 20, "redis", redis_server.url) for name in ("one", "two")]
    wait_for(lambda: _sends_of(emulator, "one 0") and _sends_of(emulator, "two 0"))
    redis_server.kill()
    redis_server.start()
    for worker in workers:
        out, errors = worker.communicate(timeout=90)
        assert out.split() == ["20"], errors[-2000:]
    assert set(emulator.stats()["statuses"]) == {"200"}
    assert emulator.stats()["worst_window"]["requests"] <= 10

"""A run stops before it exceeds its spending limit, keeps finished vectors, and the next run continues."""

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from epithre_beam.index import open_catalog
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults
from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector

from ..conftest import KEY, write_images, write_texts

pytestmark = pytest.mark.slow  # several runs a test


def serve(**settings):
    return Emulator(EmulatorSettings(dimension=64, api_keys=(KEY,), **settings))


def asked(emulator):
    """Every request that the server received, including the probe and refused ones."""
    return len(emulator.log)


def run_until_published(place, emulator, *options, most=60, limit=None):
    """Run until all is embedded; each run must stay within `limit` requests and send something new."""
    runs = 0
    while runs < most:
        runs += 1
        before, billed = asked(emulator), len(emulator.payments())
        done = place.cli("run", "job.yaml", "--quiet", *options)
        if limit is not None:
            assert asked(emulator) - before <= limit
        if done.returncode == 0:
            return runs
        assert done.returncode == 1, done.stderr
        assert "are embedded and kept" in done.stderr
        assert "Run again to continue" in done.stderr
        assert not (place.catalog / "LATEST.json").exists()
        assert len(emulator.payments()) > billed
    raise AssertionError(f"not published after {most} runs")


def assert_all_right(place):
    for kind, count in (("image", 40), ("text", 50)):
        (path,) = place.catalog.glob(f"versions/*/vectors/{kind}-*.parquet")
        rows = pq.read_table(path).to_pylist()
        assert len(rows) == count
        for row in rows:
            if kind == "text":
                np.testing.assert_allclose(row["embedding"], hash_vector("text", row["text"].encode(), 64), atol=1e-5)


def test_runs_stay_within_max_requests_and_send_each_content_once(place):
    with serve(faults=Faults(latency_s=0.02)) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=5)
        runs = run_until_published(place, emulator, "--max-requests", "9", limit=9)
        billed = emulator.payments()
    assert runs == 3  # about 22 requests of at most 5 inputs in units of 16; 8 per run besides the probe
    assert len(billed) == 90
    assert set(billed.values()) == {1}
    assert_all_right(place)


def test_a_plan_after_a_spending_stop_counts_what_remains(place):
    """The unit in progress at the limit is stored with what it has; the rest of it is still to be sent."""
    place.write_job(embed__base_url="emulator", embed__batch_items=5)
    assert place.cli("run", "job.yaml", "--quiet", "--max-requests", "5").returncode == 1
    plan = json.loads(place.cli("plan", "job.yaml", "--json").stdout)
    report = json.loads(place.cli("run", "job.yaml", "--quiet", "--json").stdout)
    assert 0 < plan["assets_to_send"] == report["api"]["items_embedded"] < 90
    assert plan["requests"] + 2 >= report["api"]["requests"] >= plan["requests"]  # two test the API


def test_changing_sources_are_not_sent_twice(place):
    """A new image changes all units; vectors of the old units are reused by content."""
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=9)
        for night in range(20):
            if place.cli("run", "job.yaml", "--quiet", "--max-requests", "5").returncode == 0:
                break
            write_images(place.folder / "pictures", 1, seed=100 + night, start=200 + night)
        assert 1 < night < 19
        assert len(emulator.payments()) == 90 + night
        assert set(emulator.payments().values()) == {1}


@pytest.mark.parametrize("seed", range(2))
def test_retries_count_and_only_broken_responses_are_billed_twice(place, seed):
    faults = Faults(error_500=0.2, drop_connection=0.1)  # neither is admitted, so neither is billed
    with serve(faults=faults, seed=seed) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=5)
        run_until_published_with_faults(place, emulator)
        billed = emulator.payments()
    assert len(billed) == 90
    assert set(billed.values()) == {1}
    assert_all_right(place)


def run_until_published_with_faults(place, emulator):
    for _ in range(40):
        before = asked(emulator)
        done = place.cli("run", "job.yaml", "--quiet", "--max-requests", "12")
        assert asked(emulator) - before <= 12
        if done.returncode == 0:
            return
        assert "embed.max_requests 12" in done.stderr
    raise AssertionError("not published after 40 runs")


def test_the_spending_limit_is_shared_by_all_lanes(place):
    with serve(faults=Faults(latency_s=0.05)) as emulator:
        place.write_job(
            embed__base_url=emulator.base_url, embed__batch_items=8, embed__lanes=3, embed__rate_limiter="host",
            embed__max_requests=10,
        )  # fmt: skip
        options = ("--", "--direct_running_mode=multi_processing", "--direct_num_workers=3")
        run_until_published(place, emulator, *options, limit=10)
        billed = emulator.payments()
    assert len(billed) == 90
    assert set(billed.values()) == {1}
    assert_all_right(place)


def test_a_repeated_step_does_not_spend_twice(place):
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=5)
        run_until_published(
            place, emulator, "--max-requests", "9", "--", "--direct_runner_bundle_repeat=2", limit=9
        )  # fmt: skip
        assert set(emulator.payments().values()) == {1}


def test_no_run_costs_more_than_its_limit_by_the_servers_bill(place):
    """The server bills tokens by words and image sizes, which differ from the estimate."""
    with serve() as emulator:
        place.write_job(
            embed__base_url=emulator.base_url, embed__batch_items=4, embed__max_cost=0.5,
            embed__price_per_1000_items=20.0, embed__price_per_1000_requests=10.0,
        )  # fmt: skip
        for _ in range(20):
            before = list(emulator.log)
            done = place.cli("run", "job.yaml", "--quiet")
            new = emulator.log[len(before) :]
            assert len(new) * 0.01 + sum(a.items for a in new) * 0.02 <= 0.5
            if done.returncode == 0:
                break
            assert "embed.max_cost 0.5" in done.stderr
            spent = r"It sent [0-9]+ requests?, 1 of them a probe, with [0-9]+ items? \(cost 0\.[0-9]+\);"
            assert re.search(spent, done.stderr)
        assert done.returncode == 0, done.stderr
        assert set(emulator.payments().values()) == {1}
    assert_all_right(place)


def test_tokens_are_counted_as_billed(place):
    """The billed tokens of each run stay within the limit although the estimate differs."""
    price = 1000.0
    with serve() as emulator:
        place.write_job(
            embed__base_url=emulator.base_url, embed__batch_items=4, embed__max_concurrency=1,
            embed__price_per_million_tokens=price, embed__max_cost=20.0,
        )  # fmt: skip
        for _ in range(30):
            before = len(emulator.log)
            done = place.cli("run", "job.yaml", "--quiet")
            billed = sum(a.tokens for a in emulator.log[before:])
            assert billed * price / 1e6 <= 20.0
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stderr
        assert set(emulator.payments().values()) == {1}


def test_a_limit_of_zero_publishes_only_reused_vectors(place):
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = place.cli("run", "job.yaml", "--max-requests", "0")
        assert done.returncode == 1
        assert "0 requests" in done.stderr
        assert "spent.requests=0" in done.stderr
        assert "spent.cost" not in done.stderr  # there is no price
        assert not emulator.log
        assert place.cli("run", "job.yaml").returncode == 0
        first = open_catalog(place.catalog).version
        emulator.reset()
        text = (place.folder / "texts.csv").read_text().replace(".5", ".75")
        (place.folder / "texts.csv").write_text(text)  # metadata only
        (place.folder / "pictures" / "p000.jpg").rename(place.folder / "pictures" / "renamed.jpg")
        done = place.cli("run", "job.yaml", "--max-requests", "0")
        assert done.returncode == 0, done.stderr
        assert open_catalog(place.catalog).version > first
        write_texts(place.folder / "texts.csv", 51)
        assert place.cli("run", "job.yaml", "--max-requests", "0").returncode == 1
        assert place.cli("run", "job.yaml", "--set", "embed.max_cost=0", "--set", "embed.price_per_1000_items=1",
                         "--max-requests", "0").returncode == 1  # fmt: skip
        assert not emulator.log


def test_retry_failed_stays_within_the_limit(place):
    with serve(faults=Faults(poison_marker="number 1", poison_names="param")) as emulator:
        place.write_job(embed__base_url=emulator.base_url, gates__max_dead_share=0.5, embed__unit_references=64)
        assert place.cli("run", "job.yaml", "--quiet").returncode == 0
        emulator.reset(faults=Faults())
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=3, embed__unit_references=64)
        runs = 0
        while True:
            runs += 1
            before = asked(emulator)
            done = place.cli("retry-failed", "job.yaml", "--quiet", "--max-requests", "3")
            assert asked(emulator) - before <= 3
            if done.returncode == 0:
                break
            assert runs < 10, done.stderr
        assert len(emulator.payments()) == 11
        assert set(emulator.payments().values()) == {1}
    assert runs == 2


def test_invalid_cost_limits_are_refused(place):
    done = place.cli("run", "job.yaml", "--max-cost", "3")
    assert done.returncode == 2
    assert "--max-cost: embed: max_cost is 3, but no price is configured" in done.stderr
    assert "price_per_1000_requests" in done.stderr
    done = place.cli("run", "job.yaml", "--max-requests", "1")
    assert done.returncode == 2
    assert "--max-requests: embed: max_requests is 1" in done.stderr
    assert "at least 2" in done.stderr
    assert place.cli("run", "job.yaml", "--max-requests", "-1").returncode == 2


def test_a_limit_below_one_request_is_reported(place):
    place.write_job(embed__price_per_1000_items=1000.0, embed__max_cost=0.5)
    done = place.cli("run", "job.yaml", "--quiet")
    assert done.returncode == 1
    assert "The limit is too low for a single request" in done.stderr


def test_a_search_ignores_the_spending_limit_of_the_run(place):
    assert place.cli("run", "job.yaml", "--max-requests", "30").returncode == 0
    assert place.cli("run", "job.yaml", "--max-requests", "0").returncode == 0
    done = place.cli("search", "catalog", "--text", "text number 3", "-k", "1", "--json")
    assert json.loads(done.stdout)["results"][0]["hits"][0]["asset_id"] == "t003"
    shutil.rmtree(place.catalog)

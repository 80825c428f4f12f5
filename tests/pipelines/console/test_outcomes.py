"""Every outcome of a run gives one JSON document, log lines and a message."""

import json
import re
import signal
import time
from pathlib import Path

import pytest

from epithre_beam.pipelines.console.logs import EVENTS
from epithre_beam.pipelines.console.progress import Events
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from ..conftest import KEY, sentences
from .test_logs import read_logfmt


def serve(**settings):
    return Emulator(EmulatorSettings(dimension=64, api_keys=(KEY,), **settings))


def document(done):
    """The one JSON document on standard output."""
    assert len(done.stdout.splitlines()) == 1, done.stdout
    found = json.loads(done.stdout)
    assert found["exit_code"] == done.returncode
    assert found["message"]
    return found


def events(done):
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_success_prints_the_report(place):
    found = document(place.cli("run", "job.yaml", "--json"))
    assert (found["exit_code"], found["status"], found["counts"]["embedded"]) == (0, "published", 90)
    assert found["version"] in found["message"]
    assert found["held_back"] == []
    page = f"{place.catalog}/versions/{found['version']}/report.html"
    assert found["report"] == page
    assert Path(page).is_file()
    done = place.cli("run", "job.yaml", "--json")
    assert (document(done)["status"], document(done)["report"]) == ("unchanged", page)
    printed = place.cli("run", "job.yaml").stdout
    assert page in "".join(line.strip() for line in printed.splitlines())  # a long path is folded
    assert place.cli("run", "job.yaml", "--quiet").stdout == ""


def test_a_held_version_prints_the_report_and_how_to_publish_it(place):
    for path in sorted((place.folder / "pictures").iterdir())[:8]:
        path.write_bytes(b"no picture")
    done = place.cli("run", "job.yaml", "--json")
    found = document(done)
    assert (found["exit_code"], found["status"], found["counts"]["dead"]) == (3, "held_by_gate", 8)
    assert f"versions publish {place.catalog} {found['version']}" in found["message"]
    assert f"Check {found['report']}, then publish it" in found["message"]
    letters = found["dead_letters"]["samples"]
    (reason,) = letters
    assert [line for line in found["message"].splitlines() if "dead letter" in line] == [
        *(f"dead letter: image {one['asset_id']}: {reason}: {one['detail']}" for one in letters[reason][:3]),
        "5 more dead letters: see report.html.",
    ]
    assert found["message"].splitlines() == [line.removeprefix("epithre-beam: ") for line in sentences(done.stderr)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "job.yaml", "--json", "--no-such-option"), "--no-such-option"),
        (("run", "--json"), "CONFIG"),
        (("retry-failed", "--json", "none.yaml"), "none.yaml"),
        (("run", "job.yaml", "--json", "--set", "embed.batch_items=0"), "embed.batch_items"),
        (("run", "job.yaml", "--json", "--max-cost", "1"), "price"),
        (("run", "job.yaml", "--json", "--progress-every", "x"), "progress-every"),
        (("run", "job.yaml", "--json", "--", "nodashes"), "nodashes"),
    ],
)
def test_wrong_usage_prints_a_document(place, arguments, words):
    found = document(place.cli(*arguments))
    assert (found["exit_code"], found["status"]) == (2, "usage")
    assert words in found["message"]


def test_a_failure_and_a_spending_limit_print_a_document(place):
    with serve(faults=Faults(refuse_all=403)) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        found = document(place.cli("run", "job.yaml", "--json"))
        assert (found["exit_code"], found["status"], found["code"]) == (2, "refused", "key_refused")
        assert "refused the API key" in found["message"]
        emulator.reset(faults=Faults())
        found = document(place.cli("run", "job.yaml", "--json", "--max-requests", "3"))
    assert (found["exit_code"], found["status"], found["code"]) == (1, "stopped", "spending_limit")
    items = found["spent"]["items"]
    assert found["spent"] == {"requests": 3, "items": items}  # no price is configured
    assert found["assets"] == {"all": 90, "embedded": items, "left": 90 - items}
    assert 0 < items < 90


def test_a_busy_catalog_and_a_signal_print_a_document(place):
    with serve(faults=Faults(latency_s=120)) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        first = place.start("run", "job.yaml", "--json", "--log-format", "json")
        wait_for(lambda: emulator.log)
        found = document(place.cli("run", "job.yaml", "--json"))
        assert (found["exit_code"], found["status"]) == (4, "busy")
        assert str(first.pid) in found["message"]
        wait_for(lambda: any(a.path.endswith("embeddings") for a in emulator.log))
        started = time.monotonic()
        first.send_signal(signal.SIGTERM)
        output, errors = first.communicate(timeout=60)
        assert time.monotonic() - started < 30
    assert first.returncode == 143
    found = json.loads(output)
    assert (found["exit_code"], found["status"]) == (143, "terminated")
    reported = [json.loads(line) for line in errors.splitlines()]
    assert reported[-1]["event"] == "terminated"
    assert "kept" in reported[-1]["message"]


def wait_for(condition, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_at_any_time_leaves_one_document_with_its_exit_code(place, number, code):
    for pause_s in (0.0, 0.4, 0.8, 1.2):
        process = place.start("run", "job.yaml", "--json")
        assert "started" in process.stderr.readline()
        time.sleep(pause_s)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode in {code, 0}
        found = json.loads(output)
        assert found["exit_code"] == process.returncode
        assert found["status"] == ("terminated" if process.returncode else "published")


def test_events_are_logged_in_order(place):
    (place.folder / "pictures" / "new\nline \u202e.jpg").write_text("no picture")
    faults = Faults(error_500=0.3)
    with serve(faults=faults) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=4)
        done = place.cli("run", "job.yaml", "--log-format", "json")
    assert done.returncode == 0, done.stderr
    reported = events(done)
    names = [event["event"] for event in reported if event["event"] != "progress"]
    assert names == [
        "started", "planned", "embedded", "indexed", "indexed", "retries", "dead_letters", "published",
    ]  # fmt: skip
    by_name = {event["event"]: event for event in reported}
    assert by_name["planned"]["assets"] == {"image": 41, "text": 50}
    assert by_name["embedded"]["done"] == 91
    assert by_name["retries"]["count"] == sum(by_name["retries"]["by_reason"].values()) > 0
    assert by_name["dead_letters"]["assets"] == ["image new\nline \u202e.jpg"]
    assert by_name["published"]["embedded"] == 90
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z", event["time"]) for event in reported)
    assert KEY not in done.stderr


def test_text_lines_are_logfmt_and_a_failure_has_one_message(place):
    with serve(faults=Faults(quota_429=1.0, start_at_request=4)) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__max_concurrency=1)
        done = place.cli("run", "job.yaml", EPITHRE_LOG_FORMAT="text")
    assert done.returncode == 2
    *lines, last = done.stderr.splitlines()
    found = [read_logfmt(line) for line in lines]
    assert [event for _, event, _ in found][:2] == ["started", "planned"]
    assert found[-1][:2] == ("ERROR", "refused")
    assert found[-1][2] == {"exit_code": "2", "code": "quota_spent"}
    assert last.startswith("epithre-beam: ")
    sentence = last.removeprefix("epithre-beam: ")
    assert "quota" in sentence
    assert done.stderr.count(sentence) == 1


def test_progress_is_logged_at_the_given_interval(place):
    with serve(faults=Faults(latency_s=0.5)) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=4, embed__max_concurrency=2)
        done = place.cli("run", "job.yaml", "--log-format", "json", "--progress-every", "1")
    reported = [event for event in events(done) if event["event"] == "progress"]
    assert 3 <= len(reported) <= 12
    assert [event["done"] for event in reported] == sorted(event["done"] for event in reported)
    assert any(event.get("left_s") for event in reported)


def test_quiet_prints_only_failures(place):
    done = place.cli("run", "job.yaml", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (place.folder / "texts.csv").unlink()
    done = place.cli("run", "job.yaml", "--quiet")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_no_line_shows_a_key_that_the_server_repeats(place):
    """For example, every error about an address that contains the key would show it."""
    place.write_job(embed__base_url=f"http://127.0.0.1:9/{KEY}")
    done = place.cli("run", "job.yaml", "--json", "--log-format", "json")
    assert done.returncode == 1
    assert KEY not in done.stderr + done.stdout
    assert "***" in done.stdout


def test_an_unknown_line_format_is_refused(place):
    done = place.cli("run", "job.yaml", "--log-format", "xml")
    assert done.returncode == 2
    assert "xml" in done.stderr


def test_progress_has_the_planned_total_before_lanes_report(caplog):
    """On a cluster the first lane starts after a minute, and others later."""
    lane = {"assets": 40, "done": 4, "dead": 0, "elapsed_s": 2.0, "is_done": False}
    lane["meter"] = {"requests": 1, "retries": {}, "answers_429": 0}
    with caplog.at_level("INFO", EVENTS):
        events = Events(lanes=2, every_s=0)
        events.expect(100)
        for lanes in ([], [lane], [lane, {**lane, "assets": 60}]):
            events(lanes)
    reported = [(record.fields["stage"], record.fields["done"], record.fields["total"]) for record in caplog.records]
    assert reported == [("starting", 0, 100), ("embedding", 4, 100), ("embedding", 8, 100)]

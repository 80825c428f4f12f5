"""No file of a catalog and no output contains the key, even if the API's errors repeat it."""

import base64
import json
import urllib.parse

import numpy as np
import pyarrow.parquet as pq
import pytest

from ...transforms.epithre.answering import CannedReply, answering, error, good
from ..conftest import Place, write_texts

KEY = "sk-ECHO/0123456789+abcdef"
SAID = (
    f"Bearer {KEY}; {urllib.parse.quote(KEY, safe='')}; {urllib.parse.quote(KEY, safe='').lower()}; "
    f"Basic {base64.b64encode(f'u:{KEY}'.encode()).decode()}; {KEY.encode().hex()}"
)
TRACES = [KEY[:12], KEY[8:20], urllib.parse.quote(KEY, safe="")[:12], KEY.encode().hex()[:12]]
TRACES += [base64.b64encode(b"\0" * shift + KEY.encode()).decode()[4:16] for shift in range(3)]


def assert_no_trace(data: bytes, place: object) -> None:
    low = data.lower()
    assert [trace for trace in TRACES if trace.lower().encode() in low] == [], place


@pytest.fixture
def texts(tmp_path) -> Place:
    place = Place(tmp_path)
    write_texts(tmp_path / "texts.csv", 40)
    return place


def write_job(place, server, **changes):
    table = {"kind": "text", "table": "texts.csv", "id": "id", "text": "text"}
    options = {"embed__dimension": 64, "embed__max_sends": 2, "gates__max_dead_share": 1.0, **changes}
    place.write_job(sources=[table], embed__base_url=server.base_url, **options)


def echo(asked):
    if asked.method == "GET":
        return CannedReply(status=404, body=SAID.encode())
    poisoned = [i for i, text in enumerate(asked.items) if text.endswith("7")]
    if poisoned:
        body = {"error": {"message": SAID, "code": KEY, "param": f"input[{poisoned[0]}]"}}
        return CannedReply(status=400, body=body)
    return good(asked)


def test_files_and_logs_never_contain_a_key_that_an_error_repeats(texts):
    with answering(echo) as server:
        write_job(texts, server)
        done = texts.cli("run", "job.yaml", "--json", key=KEY)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["counts"]["dead"] == 4
    assert_no_trace(done.stdout.encode(), "standard output")
    assert_no_trace(done.stderr.encode(), "standard error")
    files = [path for path in texts.folder.rglob("*") if path.is_file()]
    assert any(path.name == "report.html" for path in files)
    letters = 0
    for path in files:
        assert_no_trace(path.read_bytes(), path)
        if path.suffix == ".parquet":  # compressed
            rows = pq.read_table(path)
            assert_no_trace(json.dumps(rows.to_pylist(), default=str).encode(), path)
            letters += "dead_letters" in path.parts and rows.num_rows
    assert letters == 4


@pytest.mark.parametrize("status", [401, 402, 404, 429, 503])
def test_errors_that_end_a_run_do_not_contain_the_key(texts, status):
    reported = error(status, SAID, retry_after="9999")
    with answering(lambda asked: reported if asked.method == "POST" else CannedReply(status=404)) as server:
        write_job(texts, server)
        done = texts.cli("run", "job.yaml", "--json", "--log-format", "json", key=KEY)
    assert done.returncode in {1, 2}
    assert "***" in done.stdout
    assert_no_trace(done.stdout.encode() + done.stderr.encode(), "what was said")
    for path in filter(lambda path: path.is_file(), texts.folder.rglob("*")):
        assert_no_trace(path.read_bytes(), path)


def test_a_long_pause_ends_the_run_and_keeps_finished_vectors(texts):
    def tired(asked):
        return error(429, "daily quota, try tomorrow", retry_after="3600") if asked.number >= 2 else good(asked)

    with answering(lambda asked: tired(asked) if asked.method == "POST" else CannedReply(status=404)) as server:
        write_job(texts, server, embed__unit_references=4, embed__max_concurrency=1, embed__batch_items=4)
        done = texts.cli("run", "job.yaml", "--json", key=KEY)
        assert done.returncode == 1
        outcome = json.loads(done.stdout)
        assert (outcome["status"], outcome["code"], outcome["retry_after_s"]) == ("stopped", "api_paused", 3600)
        assert outcome["retry_at"].endswith("+00:00")
        assert "the server asked for a pause of 3600 s (429: daily quota, try tomorrow)" in done.stderr
        assert "Run again after" in done.stderr
        assert server.count() == 3
    kept = len(list(texts.catalog.glob("units/*.parquet")))
    assert kept >= 1
    with answering(lambda asked: good(asked) if asked.method == "POST" else CannedReply(status=404)) as server:
        write_job(texts, server, embed__unit_references=4)
        done = texts.cli("run", "job.yaml", "--json", key=KEY)
        assert done.returncode == 0, done.stderr
        assert sum(len(asked.items) for asked in server.asked if asked.method == "POST") == 40 - 4 * kept
    assert np.isfinite(json.loads(done.stdout)["timings_s"]["total"])

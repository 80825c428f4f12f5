"""cron mails the output: nothing after success, one line if an operator must act or assets have no vector."""

import json
import re
import shutil
import subprocess

import pytest

from epithre_beam.index.storage.store import Store
from epithre_beam.index.versions.lease import hold
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from ..pipelines.conftest import KEY, sentences
from .conftest import EXAMPLES

pytestmark = pytest.mark.slow  # each run starts the program

SCRIPT = EXAMPLES / "cron" / "epithre-nightly"
CRONTAB = EXAMPLES / "cron" / "epithre-beam.crontab"


@pytest.fixture
def nightly(place, environment):
    def run(*options, job="job.yaml", catalog=place.catalog, **more):
        command = [SCRIPT, place.folder / job, catalog, *options]
        kept = {"EPITHRE_RUNS": str(place.folder / "nights")}
        settings = {**environment, **kept, "EPITHRE_PAUSE_S": "0.1", "EPITHRE_TRIES": "2", "EPITHRE_KEEP": "1", **more}
        return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120, check=False)

    return run


def serve(**settings):
    return Emulator(EmulatorSettings(dimension=64, api_keys=(KEY,), **settings))


def kept(place):
    """The documents that the script kept, the oldest first."""
    return [json.loads(line) for line in (place.folder / "nights" / "runs.jsonl").read_text().splitlines()]


def versions(place):
    return [path for path in place.catalog.glob("versions/*") if path.is_dir()]


def test_successful_run_prints_nothing_and_prunes(place, nightly):
    for price in range(3):
        (place.folder / "texts.csv").write_text(f"id,text,price\na,one,{price}\nb,two,{price}\n")
        done = nightly()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(versions(place)) <= 2
    documents = kept(place)
    assert [(one["command"], one["exit_code"]) for one in documents] == [("run", 0), ("prune", 0)] * 3
    assert [one["counts"]["embedded"] for one in documents[::2]] == [42, 0, 0]
    assert documents[-1]["freed_bytes"] > 0
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one["at"]) for one in documents)


def test_dead_letters_within_the_gate_are_reported_once_in_one_line(place, nightly):
    min((place.folder / "pictures").iterdir()).write_bytes(b"no picture")
    done = nightly("--set", "gates.max_dead_share=0.5")
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    assert re.match(
        rf"{place.catalog}: 000001-\S+ is published: .*, 1 dead letter\. \S+/report\.html has samples\.", line
    )
    done = nightly("--set", "gates.max_dead_share=0.5")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failed_prune_is_reported_as_the_prune_and_fails(place, nightly):
    done = nightly(catalog=place.folder / "catalogx")
    assert done.returncode == 2
    said, why = done.stderr.splitlines()
    assert "catalogx: there is no catalog here" in said
    assert why.startswith(f"The run succeeded, but the prune of {place.folder / 'catalogx'} failed (exit code 2)")
    run, prune = kept(place)
    assert (run["status"], prune["command"], prune["exit_code"]) == ("published", "prune", 2)


def test_a_program_that_cannot_be_started_is_reported_as_such(place, nightly):
    done = nightly(PATH="/usr/bin:/bin")
    assert done.returncode == 127
    assert done.stderr.splitlines()[-1].startswith("epithre-beam cannot be started (exit code 127): check PATH")


def test_the_night_goes_on_if_its_documents_cannot_be_kept(place, nightly):
    done = nightly(EPITHRE_RUNS=str(place.folder / "texts.csv"))
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "texts.csv/runs.jsonl cannot be written" in line
    done = nightly(EPITHRE_RUNS="")
    assert (done.returncode, done.stderr) == (0, "")


def test_transient_failure_is_retried_and_then_reported(place, nightly):
    with serve(faults=Faults(refuse_all=503)) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = nightly()
        assert done.returncode == 1
        assert len(sentences(done.stderr)) == 2
        assert "Nothing was published" in done.stderr
        assert len(emulator.log) == 6  # each attempt probes three times
        assert [(one["command"], one["exit_code"]) for one in kept(place)] == [("run", 1), ("run", 1)]
        emulator.reset(faults=Faults())
        assert nightly().returncode == 0


def test_run_at_spending_limit_is_not_retried(place, nightly):
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = nightly("--max-requests", "3")
        assert done.returncode == 1
        assert "embed.max_requests 3" in done.stderr
        assert len(emulator.log) == 3


def test_wrong_data_is_not_retried(place, nightly):
    (place.folder / "texts.csv").write_text("id,text,price\na,one,12\nb,two,twelve\n")
    done = nightly()
    assert done.returncode == 1
    (said,) = sentences(done.stderr)
    assert "line 3: 'twelve' is not valid as" in said
    assert "If the message names a file or a column, fix it" in done.stderr


def test_invalid_job_is_reported_once(place, nightly):
    (place.folder / "bad.yaml").write_text("catalog: c\n")
    done = nightly(job="bad.yaml")
    assert done.returncode == 2
    assert len(sentences(done.stderr)) == 1
    assert subprocess.run([SCRIPT], capture_output=True, check=False).returncode == 2


def test_version_held_by_gate_is_reported_and_nothing_is_pruned(place, nightly):
    assert nightly().returncode == 0
    for path in sorted((place.folder / "pictures").iterdir())[:8]:
        path.write_bytes(b"no picture")
    done = nightly()
    assert done.returncode == 3
    assert "versions publish" in done.stderr
    assert len(versions(place)) == 2


def test_run_on_busy_catalog_prints_nothing(place, nightly):
    with hold(Store(str(place.catalog)), "run"):
        done = nightly()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not versions(place)


def test_crontab_line_is_valid_for_cron_and_bash():
    lines = [line for line in CRONTAB.read_text().splitlines() if line and not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    assert {"SHELL", "PATH", "MAILTO"} <= set(settings)
    (job,) = [line for line in lines if not re.match(r"\w+=", line)]
    *times, user, command = job.split(None, 6)
    assert all(re.fullmatch(r"[\d*/,-]+", field) for field in times)
    assert user == "epithre"
    assert "%" not in command  # cron treats it as the end of the line
    assert SCRIPT.name in command
    subprocess.run(["bash", "-n", "-c", command], check=True)


def test_script_passes_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    subprocess.run(["shellcheck", SCRIPT], check=True)

"""cron mails the output: nothing after success, one line if an operator must act."""

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
    def run(*options, job="job.yaml", **more):
        command = [SCRIPT, place.folder / job, place.catalog, *options]
        settings = {**environment, "EPITHRE_PAUSE_S": "0.1", "EPITHRE_TRIES": "2", "EPITHRE_KEEP": "1", **more}
        return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120, check=False)

    return run


def serve(**settings):
    return Emulator(EmulatorSettings(dimension=64, api_keys=(KEY,), **settings))


def versions(place):
    return [path for path in place.catalog.glob("versions/*") if path.is_dir()]


def test_successful_run_prints_nothing_and_prunes(place, nightly):
    for price in range(3):
        (place.folder / "texts.csv").write_text(f"id,text,price\na,one,{price}\nb,two,{price}\n")
        done = nightly()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(versions(place)) <= 2


def test_transient_failure_is_retried_and_then_reported(place, nightly):
    with serve(faults=Faults(refuse_all=503)) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = nightly()
        assert done.returncode == 1
        assert len(sentences(done.stderr)) == 2
        assert "Nothing was published" in done.stderr
        assert len(emulator.log) == 6  # each attempt probes three times
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

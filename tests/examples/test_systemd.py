"""systemd reads the units without a warning, and their commands do what the comments say."""

import shlex
import shutil
import subprocess

import pytest

from .conftest import EXAMPLES, PROGRAM

FOLDER = EXAMPLES / "systemd"
INSTALLED = "/opt/epithre/bin/epithre-beam"


def settings_of(name):
    """Parse a unit as (section, key) → values in order, because a unit may repeat a key."""
    found, section = {}, ""
    for line in (FOLDER / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault((section, key), []).append(value)
    return found


@pytest.fixture
def units(tmp_path):
    """Copy the units with the program's path on this machine, because systemd checks that it exists."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    for path in FOLDER.glob("epithre-beam.*"):
        (tmp_path / path.name).write_text(path.read_text().replace(INSTALLED, str(PROGRAM)))
    return tmp_path


def test_systemd_reads_units_without_warning(units):
    paths = sorted(units.iterdir())
    assert [path.suffix for path in paths] == [".service", ".timer"]
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    calendar = settings_of("epithre-beam.timer")["Timer", "OnCalendar"]
    subprocess.run(["systemd-analyze", "calendar", *calendar], check=True, capture_output=True)


def test_service_has_low_systemd_exposure(units):
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", units / "epithre-beam.service"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_permanent_failures_are_not_retried():
    service = settings_of("epithre-beam.service")
    assert service["Service", "Restart"] == ["on-failure"]
    assert service["Service", "RestartPreventExitStatus"] == ["2 3"]
    assert service["Service", "SuccessExitStatus"] == ["4 143"]


def test_service_may_take_as_long_to_stop_as_the_docs_say():
    assert settings_of("epithre-beam.service")["Service", "TimeoutStopSec"] == ["40"]
    assert "Allow 40 s" in (EXAMPLES.parent / "docs" / "nightly.md").read_text()


@pytest.mark.slow
def test_commands_of_units_run_and_prune(place, environment):
    service = settings_of("epithre-beam.service")
    variables = dict(value.split("=", 1) for value in service["Service", "Environment"])
    for key in ("ExecStart", "ExecStartPost"):
        (line,) = service["Service", key]
        assert line.lstrip("-").startswith(INSTALLED)
        line = line.lstrip("-").replace(INSTALLED, str(PROGRAM))
        line = line.replace("/srv/epithre/job.yaml", str(place.folder / "job.yaml"))
        line = line.replace("/srv/epithre/catalog", str(place.catalog))
        done = subprocess.run(
            shlex.split(line), env={**environment, **variables}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (place.catalog / "LATEST.json").exists()

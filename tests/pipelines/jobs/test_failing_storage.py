"""Killed processes and failing storage: the published version stays complete, and the next run finishes."""

import datetime
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index import open_catalog

from ..conftest import sentences
from ..scene import Worker, current_rows, found_in, open_scene

pytestmark = pytest.mark.slow  # kills, full disks and damage, each with whole runs

PLACES = {
    "the plan": r"(?!\S* delete).* runs/<version>/(?!progress).*",
    "a unit's dead letters": r"(?!\S* delete).* units/\w+\.dead\.parquet",
    "a unit": r"(?!\S* delete).* units/\w+\.parquet",
    "vectors": r".* versions/<version>/vectors/.*",
    "an index": r".* versions/<version>/index/.*\.faiss",
    "the assets of an index": r".* versions/<version>/index/.*\.arrow",
    "dead letters": r".* versions/<version>/dead_letters/.*",
    "the manifest": r".* versions/<version>/manifest.json",
    "the report": r".* versions/<version>/report.*",
    "LATEST.json, before": r"(?!after (?:rename|swap)).* LATEST\.json",
    "LATEST.json, after": r"after (?:rename|swap) LATEST\.json",
    "what is deleted at the end": r".* delete (?:units/|runs/<version>|\.lease).*",
}
"""The folders where a run writes, in order."""

INSTANTS = 24


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    with open_scene(tmp_path_factory.mktemp("scene")) as found:
        yield found


def steps_at(steps, place):
    return [step for step in steps if re.fullmatch(PLACES[place], step[0])]


def draw_instants(steps, count, seed=12):
    """Steps spread over a run: two in each folder, the others anywhere."""
    rng = random.Random(seed)
    turns = [place for place in PLACES for _ in range(2)]
    turns += rng.choices(list(PLACES), k=count - len(turns))
    instants = []
    for place in turns:
        left = [step for step in steps_at(steps, place) if step not in instants]
        name = rng.choice(sorted({step[0] for step in left}))
        instants.append(rng.choice([step for step in left if step[0] == name]))
    return instants


def finished_contents(catalog):
    units = [path for path in catalog.glob("units/*.parquet") if not path.name.endswith(".dead.parquet")]
    rows = [row for path in units for row in pq.read_table(path, columns=["kind", "content_sha256"]).to_pylist()]
    return {(row["kind"], row["content_sha256"]) for row in rows}


def files_of(catalog):
    names = {str(path.relative_to(catalog)) for path in catalog.rglob("*") if path.is_file()}
    return names - {".lease.json.lock", ".LATEST.json.lock"}  # an atomic replace leaves an empty lock file


def let_a_week_go_by(catalog):
    for path in catalog.rglob("*"):
        old_ns = path.stat().st_mtime_ns - 8 * 86_400 * 10**9
        os.utime(path, ns=(old_ns, old_ns))


@pytest.mark.parametrize("number", range(INSTANTS))
def test_a_run_killed_at_any_write_keeps_the_version_and_the_next_finishes(scene, number):
    at = draw_instants(scene.steps, INSTANTS)[number]
    catalog = scene.copy()
    scene.emulator.reset()
    scene.watch(catalog)
    died = scene.run(catalog, at=at)
    assert died.returncode == -signal.SIGKILL, (at, died)
    is_published = at[0] in {"after rename LATEST.json", "after swap LATEST.json"} or " delete " in at[0]
    assert current_rows(catalog) == scene.rows[is_published]
    finished = {scene.digests[content]: 1 for content in finished_contents(catalog) if content in scene.digests}
    assert finished.items() <= scene.emulator.payments().items()
    is_held = (catalog / ".lease.json").exists()
    assert is_held != (at[0] == "after delete .lease.json")

    began_s = time.monotonic()
    done = scene.run(catalog)
    assert done.returncode == 0, (at, done.stderr)
    assert time.monotonic() - began_s < 60  # the lease of a living holder would last 300 s
    assert current_rows(catalog) == scene.rows[1]
    billed = scene.emulator.payments()
    assert finished.items() <= billed.items()
    assert set(billed) == set(scene.digests.values())
    assert not {name for name in files_of(catalog) if name.startswith((".lease.json", "runs/"))}

    assert (
        scene.command(catalog, "versions", "prune", catalog, "--older-than=0", "--units-older-than=0").returncode == 0
    )
    assert current_rows(catalog) == scene.rows[1]
    scene.stop_watching("01", "1")
    let_a_week_go_by(catalog)
    options = ("--keep=1", "--older-than=0", "--units-older-than=0")
    assert scene.command(catalog, "versions", "prune", catalog, *options).returncode == 0
    assert scene.command(catalog, "versions", "verify", catalog).returncode == 0
    (new,) = (scene.new / "versions").iterdir()
    (version,) = (catalog / "versions").iterdir()
    assert {name.replace(version.name, new.name) for name in files_of(catalog)} == files_of(scene.new)
    shutil.rmtree(catalog)


def test_a_new_catalog_has_no_version_until_a_run_completes(scene):
    catalog = scene.folder / "dying"
    unit = steps_at(scene.first_steps, "a unit")[-1][0].split()[-1]
    instants = [(step, 0) for step in (f"half of write {unit}", f"before rename {unit}", f"after rename {unit}")]
    rng = random.Random(3)
    instants += [rng.choice(steps_at(scene.first_steps, place)) for place in list(PLACES)[3:11]]
    scene.emulator.reset()
    scene.watch(catalog)
    finished = {}
    for at in instants:
        assert scene.run(catalog, at=at).returncode == -signal.SIGKILL, at
        billed = scene.emulator.payments()
        for content in finished_contents(catalog):
            finished.setdefault(content, billed[scene.all_digests[content]])
    assert current_rows(catalog) == scene.rows[1]
    done = scene.run(catalog)
    assert done.returncode == 0, done.stderr
    assert done.report["status"] == "unchanged"
    billed = scene.emulator.payments()
    assert finished.keys() == scene.all_digests.keys()
    assert {scene.all_digests[content]: times for content, times in finished.items()} == billed
    scene.stop_watching(["nothing", "1"])


@pytest.fixture
def disk(tmp_path):
    """A small separate file system."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"only root may mount a file system: run it as root ({mount.stderr.strip()})")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def assert_ends_with_a_sentence(done, catalog, reason):
    """The message says where, why and what to do."""
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    (sentence,) = sentences(done.stderr)
    assert str(catalog) in sentence
    assert reason in sentence
    assert re.search("(?i)run (the command )?again", sentence)
    assert done.report["message"] == sentence.removeprefix("epithre-beam: ")


def assert_goes_on(scene, catalog):
    """The same command succeeds when the storage works again."""
    done = scene.run(catalog)
    assert done.returncode == 0, done.stderr
    assert current_rows(catalog) == scene.rows[1]
    assert not {name for name in files_of(catalog) if name.startswith((".lease.json", "runs/"))}


def test_a_full_disk_is_reported_and_the_next_run_finishes(scene, disk):
    """With less space, other writes fail."""
    catalog = scene.copy(disk)
    before = os.statvfs(disk).f_bavail
    assert scene.run(catalog).returncode == 0
    pages = before - os.statvfs(disk).f_bavail
    shutil.rmtree(catalog)
    rng = random.Random(8)
    places = set()
    for fifth in range(5):
        catalog = scene.copy(disk)
        scene.watch(catalog)
        facts = os.statvfs(disk)
        left = rng.randrange(pages * fifth // 5, pages * (fifth + 1) // 5)
        (disk / "ballast").write_bytes(bytes(facts.f_frsize * (facts.f_bavail - left)))
        done = scene.run(catalog)
        assert_ends_with_a_sentence(done, catalog, "No space left on device")
        assert current_rows(catalog) == scene.rows[0]
        written = [place for place in list(PLACES)[:-1] if steps_at(done.steps, place)]
        places.add(written[-1] if written else "the lease")
        (disk / "ballast").unlink()
        assert_goes_on(scene, catalog)
        scene.stop_watching("01")
        shutil.rmtree(catalog)
    assert len(places) >= 4


WRITES = [
    "before swap .lease.json",
    "before open runs/<version>/plan.parquet",
    "a unit",
    "before open versions/<version>/vectors/image-00000-of-00002.parquet",
    "before open versions/<version>/index/text-00000-of-00001.faiss",
    "before open versions/<version>/dead_letters/dead-00000-of-00001.parquet",
    "before open versions/<version>/manifest.json",
    "before open versions/<version>/report.json",
    "before swap LATEST.json",
]
SAMPLE = "before open runs/<version>/sample/image-00000.parquet"
LARGE_WRITES = [write for write in WRITES if "vectors" in write or "report" in write]


def assert_no_failure_hurts(scene, catalog, *, deed, fix, reason, writes=WRITES, is_ordinary_user=False):
    """A run fails at each of these writes in turn, and the next run finishes."""
    scene.watch(catalog)
    for write in writes:
        step = (steps_at(scene.steps, write)[0][0] if write in PLACES else write, 0)
        done = scene.run(catalog, at=step, deed=deed, is_ordinary_user=is_ordinary_user)
        fix()
        assert_ends_with_a_sentence(done, catalog, reason)
        assert current_rows(catalog) == scene.rows[0]
    assert_goes_on(scene, catalog)
    scene.stop_watching("01")


def test_a_disk_that_fills_up_before_any_write_is_reported(scene, disk):
    assert_no_failure_hurts(
        scene,
        scene.copy(disk),
        deed=["sh", "-c", f"cat /dev/zero > '{disk}/ballast' 2> /dev/null; true"],
        fix=(disk / "ballast").unlink,
        reason="No space left on device",
    )


def test_a_disk_that_becomes_read_only_before_any_write_is_reported(scene, disk):
    assert_no_failure_hurts(
        scene,
        scene.copy(disk),
        deed=["mount", "-o", "remount,ro", str(disk)],
        fix=lambda: subprocess.run(["mount", "-o", "remount,rw", disk], check=True),
        reason="Read-only file system",
        # A disk cannot become read-only while a file is open for writing: the sample is opened before the vectors.
        writes=[SAMPLE if "vectors" in write else write for write in WRITES],
    )


def test_a_catalog_that_loses_write_permission_before_any_write_is_reported(scene):
    catalog = scene.copy()

    def fix():
        for folder in [catalog, *(path for path in catalog.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)

    assert_no_failure_hurts(scene, catalog, deed="chmod", fix=fix, reason="Permission denied", is_ordinary_user=True)


def test_a_file_size_limit_reached_by_a_write_is_reported(scene):
    catalog = scene.copy()
    assert_no_failure_hurts(
        scene, catalog, deed="limit", fix=lambda: None, reason="File too large", writes=LARGE_WRITES
    )


def verified_files(catalog):
    """The files of a version, except the report, which is not verified."""
    return sorted(name for name in files_of(catalog) if "/report." not in name)


def damage(path, rng, place):
    """Change one byte."""
    data = bytearray(path.read_bytes())
    size = len(data)
    footer = int.from_bytes(data[-8:-4], "little") if path.suffix == ".parquet" else size // 4
    first, end = {
        "start": (0, 1),
        "middle": (size // 2, size // 2 + 1),
        "end": (size - 1, size),
        "footer": (max(0, size - 8 - footer), size),
        "anywhere": (0, size),
    }[place]
    data[rng.randrange(first, end)] ^= rng.randrange(1, 256)
    path.write_bytes(data)


DAMAGED_PLACES = ("start", "middle", "end", "footer", "anywhere", "anywhere")


def test_verify_and_readers_report_any_damaged_byte(scene):
    catalog = scene.copy()
    rng = random.Random(21)
    files = verified_files(catalog)
    assert len(files) == 11
    for name in files:
        path = catalog / name
        whole = path.read_bytes()
        for place in DAMAGED_PLACES:
            damage(path, rng, place)
            done = scene.command(catalog, "versions", "verify", catalog)
            assert done.returncode == 1, (name, place)
            assert f"{catalog}/{name}" in done.stderr
            assert "Traceback" not in done.stderr
            if "/vectors/" in name or "/dead_letters/" in name:
                with open_catalog(catalog) as opened:  # the damaged file is not opened
                    assert len(opened) == len(scene.rows[0][0])
            elif name == "LATEST.json" and say_the_same(path.read_bytes(), whole):
                assert found_in(catalog) == scene.expected[0]  # only whitespace changed
            else:
                with pytest.raises(CatalogError, match=re.escape(f"{catalog}/{name}")):
                    open_catalog(catalog)
            path.write_bytes(whole)
    assert scene.command(catalog, "versions", "verify", catalog).returncode == 0


def say_the_same(one, other):
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("vectors/image", ("footer", "anywhere")),
        ("vectors/text", ("footer", "anywhere")),
        ("assets.arrow", ("middle", "anywhere")),
        (".faiss", ("middle",)),
        ("dead_letters/", ("middle", "footer")),
        ("manifest.json", ("start", "middle")),
    ],
)
def test_a_run_after_damage_writes_a_complete_version(scene, kind, places):
    rng = random.Random(22)
    names = [name for name in verified_files(scene.base) if kind in name]
    assert names
    for name in names:
        for place in places:
            catalog = scene.copy()
            damage(catalog / name, rng, place)
            scene.emulator.reset()
            done = scene.run(catalog)
            assert done.returncode == 0, (name, place, done.stderr)
            assert current_rows(catalog) == scene.rows[1]
            if kind in {"dead_letters/", ".faiss"}:
                assert set(scene.emulator.payments()) == set(scene.digests.values())
            if kind == "manifest.json":
                assert f"{catalog}/{name}" in done.stderr
            shutil.rmtree(catalog)


def test_a_run_with_a_damaged_latest_json_fails_and_changes_nothing(scene):
    catalog = scene.copy()
    (version,) = (catalog / "versions").iterdir()
    damage(catalog / "LATEST.json", random.Random(23), "middle")
    before = files_of(catalog)
    scene.emulator.reset()
    done = scene.run(catalog)
    assert done.returncode == 1
    (sentence,) = sentences(done.stderr)
    assert f"{catalog}/LATEST.json" in sentence
    assert "epithre-beam versions publish" in sentence
    assert not scene.emulator.payments()
    assert files_of(catalog) == before
    assert scene.command(catalog, "versions", "publish", catalog, version.name).returncode == 0
    assert current_rows(catalog) == scene.rows[0]
    assert_goes_on(scene, catalog)


def test_damaged_units_of_a_killed_run_are_embedded_again(scene):
    rng = random.Random(24)
    died = scene.copy()
    assert scene.run(died, at=steps_at(scene.steps, "vectors")[0]).returncode == -signal.SIGKILL
    units = sorted(name for name in files_of(died) if name.startswith("units/"))
    for names in (units[::2], units[1::2]):
        catalog = Path(shutil.copytree(died, scene.folder / "damaged"))
        for name in names:
            damage(catalog / name, rng, "anywhere")
        done = scene.run(catalog)
        assert done.returncode == 0, done.stderr
        assert current_rows(catalog) == scene.rows[1]
        shutil.rmtree(catalog)


class Clock:
    """A clock that can be moved, and a writer that uses it. Time passes at normal speed; files keep real times."""

    def __init__(self, file):
        show = ["faketime", "-f", "+0", "printenv", "LD_PRELOAD"]
        library = subprocess.run(show, capture_output=True, check=True, text=True).stdout.strip()
        self.file = file
        self.move(0)
        self.writer = Worker(
            "writer",
            LD_PRELOAD=library,
            FAKETIME_TIMESTAMP_FILE=str(file),
            FAKETIME_NO_CACHE="1",
            FAKETIME_DONT_FAKE_MONOTONIC="1",
            NO_FAKE_STAT="1",
        )

    def move(self, days):
        """Move the clock by this number of days from now."""
        self.file.write_text(f"{days:+}d\n")


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not installed: apt-get install faketime")
    found = Clock(tmp_path_factory.mktemp("clock") / "offset")
    yield found
    found.writer.close()


def listed(scene, catalog):
    done = scene.command(catalog, "versions", "list", catalog, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_clock_that_jumps_back_between_runs_does_not_reorder_versions(scene, clock):
    catalog = scene.copy()
    versions = [row["version"] for row in listed(scene, catalog)]
    for days, seed in ((-2, 0), (0, 1), (-30, 2)):
        clock.move(days)
        done = scene.run(catalog, f"--set=index.seed={seed}", writer=clock.writer)
        assert done.returncode == 0, done.stderr
        assert done.report["previous"] == versions[-1]
        versions.append(done.report["version"])
    rows = listed(scene, catalog)
    assert [row["version"] for row in rows] == versions
    assert [row["version"] for row in rows if row["is_published"]] == versions[-1:]
    times = [row["created_at"] for row in rows]
    assert sorted(times) == [times[3], times[1], times[0], times[2]]
    assert current_rows(catalog) == scene.rows[1]

    assert scene.command(catalog, "versions", "rollback", catalog).returncode == 0
    assert [row["version"] for row in listed(scene, catalog) if row["is_published"]] == [versions[2]]
    done = scene.run(catalog, "--set=index.seed=3", writer=clock.writer)
    assert done.report["previous"] == versions[2]
    newest = done.report["version"]
    assert newest > versions[3]
    assert scene.command(catalog, "versions", "prune", catalog, "--keep=2").returncode == 0
    assert [row["version"] for row in listed(scene, catalog)] == [versions[2], newest]
    assert scene.command(catalog, "versions", "verify", catalog, "--all").returncode == 0


@pytest.mark.parametrize("days", [-2, 2])
def test_a_clock_jump_during_a_run_changes_only_times(scene, clock, days):
    catalog = scene.copy()
    clock.move(0)
    deed = ["sh", "-c", f"echo {days:+}d > '{clock.file}'"]
    done = scene.run(catalog, writer=clock.writer, at=steps_at(scene.steps, "a unit")[0], deed=deed)
    assert done.returncode == 0, done.stderr
    assert current_rows(catalog) == scene.rows[1]
    assert done.seconds < 60
    assert all(seconds >= 0 for seconds in done.report["timings_s"].values())
    report = next(iter((catalog / "versions" / done.report["version"]).glob("report.html"))).read_text()
    assert "plots are missing" not in report


@pytest.mark.parametrize("is_of_this_machine", [True, False])
def test_a_lease_from_the_future_does_not_block_a_catalog(scene, clock, is_of_this_machine):
    catalog = scene.copy()
    clock.move(2)
    died = scene.run(catalog, writer=clock.writer, at=steps_at(scene.steps, "vectors")[0])
    assert died.returncode == -signal.SIGKILL
    lease = catalog / ".lease.json"
    holder = json.loads(lease.read_text())
    assert datetime.datetime.fromisoformat(holder["renewed_at"]) > datetime.datetime.now(datetime.UTC)
    if not is_of_this_machine:
        lease.write_text(json.dumps({**holder, "host": "elsewhere", "ttl_s": 2.0}))
    done = scene.run(catalog)
    assert done.returncode == 0, done.stderr
    assert is_of_this_machine or done.seconds > 2  # on another machine the lease is watched instead of the process
    assert done.seconds < 60
    assert current_rows(catalog) == scene.rows[1]

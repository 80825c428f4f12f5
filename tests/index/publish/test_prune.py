"""Prune deletes unneeded files, keeps the others, and leaves a valid catalog wherever it is killed."""

import contextlib
import datetime
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from epithre_beam.configs.errors import ArgumentError, CatalogBusyError, CatalogError, SwapConflictError
from epithre_beam.index import Manifest, Store, read_latest, read_manifest
from epithre_beam.index.publish.prune import PruneRules, Pruning, prune
from epithre_beam.index.publish.publish import fence, publish
from epithre_beam.index.publish.verify import find_damage
from epithre_beam.index.versions.latest import condemned_in
from epithre_beam.index.versions.layout import READERS, manifest_name
from epithre_beam.index.versions.lease import hold
from epithre_beam.index.versions.manifest import Counts, FileEntry
from epithre_beam.index.versions.readers import VersionHold

from ...s3_server import s3_store

DAY_S = 86_400


@dataclass
class Shelf:
    """A catalog whose versions have only a manifest and a few small files."""

    store: Store

    @property
    def folder(self) -> Path:
        return Path(self.store.url)

    def name(self, number: int) -> str:
        return f"{number:06d}-20250102T030405Z-abcdef"

    def add(
        self,
        number: int,
        *,
        previous: int | None = None,
        days: float = 100,
        gate_failures: Sequence[str] = (),
        files: int = 1,
    ) -> str:
        version = self.name(number)
        entries = []
        for i in range(files):
            with self.store.open_write(f"versions/{version}/vectors/x-{i}.bin") as file:
                file.write(version.encode() * 10)
            entries.append(FileEntry(name=f"vectors/x-{i}.bin", size_bytes=file.size_bytes, sha256=file.sha256))
        made = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
        manifest = Manifest(
            version=version,
            previous=None if previous is None else self.name(previous),
            created_at=made.isoformat(timespec="seconds"),
            software="test",
            nonce=version,
            model="m",
            model_fingerprint=None,
            dimension=4,
            faiss_version="1",
            metadata_types={},
            counts=Counts(assets=0, per_kind={}, embedded=0, reused=0, deduplicated=0, dead=0),
            files=tuple(entries),
            indexes=(),
            gate_failures=tuple(gate_failures),
            config={},
            timings_s={},
        )
        self.store.write(manifest_name(version), manifest.to_bytes())
        self.age(f"versions/{version}", days)
        return version

    def publish(self, number: int) -> None:
        latest = read_latest(self.store)
        publish(self.store, read_manifest(self.store, self.name(number)), latest.data if latest else None)

    def file(self, name: str, days: float, data: bytes = b"some bytes") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.age(name, days)
        return path

    def age(self, name: str, days: float) -> None:
        path = self.folder / name
        for found in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
            os.utime(found, (time.time() - days * DAY_S,) * 2)

    def numbers(self) -> list[int]:
        """Return the versions that have a manifest, after verifying each."""
        found = sorted(path.parent.name for path in self.folder.glob("versions/*/manifest.json"))
        for version in found:
            assert list(find_damage(self.store, read_manifest(self.store, version))) == []
        return [int(version.split("-")[0]) for version in found]

    def prune(self, keep: int = 3, *, dry_run: bool = False, **rules: object) -> Pruning:
        return prune(self.store, PruneRules(keep=keep, **rules), dry_run=dry_run)  # type: ignore[arg-type]

    def size_bytes(self) -> int:
        """Return the size of all files except those that prune itself writes."""
        return sum(f.size_bytes for f in self.store.listing() if f.name != "LATEST.json" and ".lock" not in f.name)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(Store(str(tmp_path / "c")))


@pytest.fixture
def six(shelf: Shelf) -> Shelf:
    """Versions 1 to 6. Version 6 is current, its previous version is 3."""
    for number in range(1, 7):
        shelf.add(number, previous={6: 3}.get(number, number - 1 or None), days=100 - 10 * number)
    shelf.publish(6)
    return shelf


@pytest.fixture
def eight(shelf: Shelf) -> Shelf:
    """Versions 1 to 8. Version 6 is current, its previous version is 3."""
    for number in range(1, 9):
        shelf.add(number, previous={6: 3}.get(number, number - 1 or None), days=100 - 10 * number)
    shelf.publish(6)
    return shelf


def whys(pieces: Sequence[object]) -> dict[str, str]:
    return {piece.name: piece.why for piece in pieces}  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------- versions


@pytest.mark.parametrize(
    ("keep", "left"),
    [(1, [6]), (2, [3, 6]), (3, [3, 5, 6]), (4, [3, 4, 5, 6]), (5, [2, 3, 4, 5, 6]), (9, [1, 2, 3, 4, 5, 6])],
)
def test_prune_keeps_the_published_then_the_previous_then_the_newest(six: Shelf, keep: int, left: list[int]) -> None:
    six.prune(keep)
    assert six.numbers() == left
    latest = read_latest(six.store)
    assert latest is not None
    assert latest.version == six.name(6)


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_newer_versions_stay_until_named_by_drop(eight: Shelf, keep: int) -> None:
    done = eight.prune(keep)
    assert {7, 8} <= set(eight.numbers())
    assert {eight.name(7), eight.name(8)} <= set(whys(done.kept))
    assert all(f"--drop {name}" in whys(eight.prune(1).kept)[name] for name in (eight.name(7), eight.name(8)))
    assert eight.numbers() == [6, 7, 8]
    dropped = eight.prune(1, drop=(eight.name(8),))
    assert whys(dropped.deleted) == {eight.name(8): "is named by --drop"}
    assert eight.numbers() == [6, 7]


def test_prune_keeps_versions_left_by_a_rollback(shelf: Shelf) -> None:
    """This includes a version that was held by a gate and published by hand, when a later one is held again."""
    shelf.add(1)
    shelf.add(2, previous=1)
    shelf.add(3, previous=2, gate_failures=["too many."])
    for number in (1, 2, 3):
        shelf.publish(number)
    shelf.publish(2)
    shelf.publish(1)
    shelf.add(4, previous=1, gate_failures=["too many."])
    shelf.add(5, previous=1, gate_failures=["too many."])
    done = shelf.prune(1)
    assert shelf.numbers() == [1, 2, 3, 5]
    assert whys(done.deleted) == {shelf.name(4): "was held back by a gate and is replaced by a newer version"}
    fence(shelf.store)
    shelf.prune(1)
    assert shelf.numbers() == [1, 2, 3, 5]
    shelf.publish(5)
    shelf.prune(1)
    assert shelf.numbers() == [5]


def test_dropped_version_stays_while_published_or_read(eight: Shelf) -> None:
    for name, why in ((eight.name(6), "this is the current version"), (eight.name(9), "has no such version")):
        with pytest.raises(ArgumentError, match=f"--drop {name}: .*{why}"):
            eight.prune(1, drop=(name,))
    holder = VersionHold(eight.store, eight.name(7), 60)
    done = eight.prune(9, drop=(eight.name(7), eight.name(3)))
    assert eight.numbers() == [1, 2, 4, 5, 6, 7, 8]
    assert f"process {os.getpid()}" in whys(done.kept)[eight.name(7)]
    holder.release()
    eight.prune(9, drop=(eight.name(7),))
    assert eight.numbers() == [1, 2, 4, 5, 6, 8]


def test_empty_folders_of_deleted_versions_are_removed(eight: Shelf) -> None:
    """A killed prune may leave them, and no listing of files shows them."""
    left = eight.folder / "versions" / f"000000-{eight.name(1).partition('-')[2]}"
    (left / "index").mkdir(parents=True)
    (eight.folder / "versions" / "mine").mkdir()
    eight.prune(9, dry_run=True)
    assert left.exists()
    eight.prune(9)
    assert not left.exists()
    assert (eight.folder / "versions" / "mine").exists()


def test_condemned_newer_version_is_deleted(eight: Shelf) -> None:
    """It may be partly deleted already, and can never be published."""
    fence(eight.store, [eight.name(8)])
    eight.prune(9)
    assert eight.numbers() == [1, 2, 3, 4, 5, 6, 7]


def test_versions_younger_than_older_than_days_stay(eight: Shelf) -> None:
    done = eight.prune(1, older_than_days=55)
    assert eight.numbers() == [5, 6, 7, 8]
    assert whys(done.kept)[eight.name(5)] == "is younger than 55 days"


def test_version_held_by_a_gate_stays_while_newer_than_the_published(eight: Shelf) -> None:
    eight.add(9, previous=6, gate_failures=["too many."])
    eight.add(10, previous=6)
    done = eight.prune(1)
    assert eight.numbers() == [6, 7, 8, 9, 10]
    assert whys(done.kept)[eight.name(9)] == "is held back by a gate and newer than the current version: too many."
    eight.publish(9)
    eight.prune(1)
    assert eight.numbers() == [9, 10]


def test_only_the_newest_version_held_by_a_gate_stays(eight: Shelf) -> None:
    """Each attempt writes a draft. Drafts do not count among the versions to keep."""
    for number in (9, 10, 11):
        eight.add(number, previous=6, gate_failures=["too many."])
    done = eight.prune(4)
    assert eight.numbers() == [3, 6, 7, 8, 11]
    assert whys(done.deleted)[eight.name(9)] == "was held back by a gate and is replaced by a newer version"


def test_version_held_by_a_reader_stays_until_released(eight: Shelf) -> None:
    holder = VersionHold(eight.store, eight.name(2), 60)
    done = eight.prune(1)
    assert eight.numbers() == [2, 6, 7, 8]
    assert re.match(rf"is in use by a reader \(process {os.getpid()} .*\)$", whys(done.kept)[eight.name(2)])
    assert whys(done.kept)[eight.name(6)] == "is the current version"
    holder.release()
    eight.prune(1)
    assert eight.numbers() == [6, 7, 8]
    assert not list((eight.folder / READERS).iterdir())


def test_expired_hold_is_deleted_and_protects_nothing(eight: Shelf) -> None:
    eight.file(f"{READERS}/{eight.name(1)}.x.json", 1, b'{"expires_at": "2020-01-01T00:00:00+00:00"}')
    done = eight.prune(1)
    assert eight.numbers() == [6, 7, 8]
    assert [piece.name for piece in done.deleted if piece.sort == "reader's hold"] == [
        f"readers/{eight.name(1)}.x.json"
    ]
    assert not list((eight.folder / READERS).iterdir())


def test_no_version_is_deleted_if_nothing_is_published(shelf: Shelf) -> None:
    for number in range(1, 6):
        shelf.add(number)
    shelf.file(f"versions/{shelf.name(7)}/vectors/x.bin", 50)
    unit = shelf.file("units/aa.parquet", 50)
    shelf.prune(1)
    assert shelf.numbers() == [1, 2, 3, 4, 5]
    assert (shelf.folder / "versions" / shelf.name(7)).exists()
    assert not unit.exists()


def test_nothing_is_deleted_if_the_published_version_is_damaged(eight: Shelf) -> None:
    before = eight.store.names("")
    manifest = eight.folder / manifest_name(eight.name(6))
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b"test", b"tess"))
    with pytest.raises(CatalogError, match=r"sha256 .* Nothing is pruned while the current version is damaged"):
        eight.prune(1)
    manifest.write_bytes(whole)
    (eight.folder / "LATEST.json").write_bytes(b"{")
    with pytest.raises(CatalogError, match=r"LATEST\.json"):
        eight.prune(1)
    assert eight.store.names("") == before


def test_unreadable_versions_do_not_stop_prune(eight: Shelf) -> None:
    """An older one is deleted, a newer one stays. Neither counts among the versions to keep."""
    for number in (7, 5):
        (eight.folder / manifest_name(eight.name(number))).write_bytes(b"{")
    done = eight.prune(3)
    assert {path.name for path in (eight.folder / "versions").iterdir()} == {eight.name(n) for n in (3, 6, 7, 8)}
    assert "cannot be read" in whys(done.kept)[eight.name(7)]


def test_prune_raises_and_writes_nothing_outside_a_catalog(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CatalogError, match="there is no catalog here"):
            prune(Store(str(folder)), PruneRules())
    assert [path.name for path in tmp_path.rglob("*")] == ["photo.jpg"]


# ---------------------------------------------------------------------------------------------------- leftovers


def test_units_are_deleted_by_age_with_their_dead_letters(eight: Shelf) -> None:
    for i, days in enumerate((0, 3, 6.9, 7.1, 30)):
        eight.file(f"units/{i}.parquet", days)
        eight.file(f"units/{i}.dead.parquet", days)
    eight.file("units/5.dead.parquet", 30)
    eight.file("units/6.parquet", 30)
    eight.file("units/6.dead.parquet", 1)
    eight.file("units/notes.txt", 30)
    eight.prune(9)
    left = sorted(path.name for path in (eight.folder / "units").iterdir())
    assert left == [
        *(f"{i}{end}.parquet" for i in range(3) for end in (".dead", "")),
        "6.dead.parquet",
        "6.parquet",
        "notes.txt",
    ]
    eight.prune(9, units_older_than_days=0)
    assert sorted(path.name for path in (eight.folder / "units").iterdir()) == ["notes.txt"]


def test_old_leftovers_of_killed_runs_are_deleted(eight: Shelf) -> None:
    partial = ".x.parquet.0123456789ab.partial"
    gone = [
        eight.file(f"versions/{eight.name(4)[:-1]}0/vectors/image.parquet", 2),
        eight.file(f"versions/{eight.name(9)}/vectors/image.parquet", 2),
        eight.file(f"versions/{eight.name(9)}/vectors/{partial}", 2),
        eight.file(f"versions/{eight.name(6)}/vectors/{partial}", 2),
        eight.file(f"units/{partial}", 2),
        eight.file(".LATEST.json.0123456789ab.partial", 2),
        eight.file(f"runs/{eight.name(9)}/plan.parquet", 0),
    ]
    kept = [
        eight.file(f"versions/{eight.name(10)}/vectors/image.parquet", 0.5),
        eight.file(f"versions/{eight.name(11)}/vectors/image.parquet", 2),
        eight.file(f"versions/{eight.name(11)}/vectors/text.parquet", 0.5),
        eight.file("versions/notes/readme.md", 50),
        eight.file(f"units/{partial.replace('0', '1')}", 0.5),
        eight.file("mine/.x.0123456789ab.partial", 50),
        eight.file("mine.parquet", 50),
    ]
    eight.prune(9)
    assert [path.name for path in gone if path.exists()] == []
    assert list((eight.folder / "runs").iterdir()) == []
    assert [path.name for path in kept if not path.exists()] == []
    assert eight.numbers() == [1, 2, 3, 4, 5, 6, 7, 8]


WRITE = """
import sys
from epithre_beam.index import Store

with Store(sys.argv[1]).open_write(sys.argv[2]) as file:
    file.write(b"x" * 100_000)
    file.flush()
    print("written", flush=True)
    sys.stdin.read()
"""
WRITTEN = ["LATEST.json", ".lease.json", "versions/{6}/vectors/x.parquet", "units/x.parquet", "readers/{6}.x.json"]


@contextlib.contextmanager
def writers(shelf: Shelf, names: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start processes that have written a file and are about to rename it."""
    with contextlib.ExitStack() as stack:
        found = []
        for name in names:
            command = [sys.executable, "-c", WRITE, shelf.store.url, name.replace("{6}", shelf.name(6))]
            found.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.enter_context(found[-1])
            stack.callback(found[-1].kill)
        for process in found:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
        yield found


def partials(shelf: Shelf) -> list[Path]:
    return sorted(shelf.folder.rglob(".*.partial"))


def test_partial_files_are_deleted_only_if_their_writer_is_dead(eight: Shelf) -> None:
    """SIGKILL comes between write and rename. Files of living writers are kept, even if they are old."""
    before = sorted(eight.store.listing(), key=lambda file: file.name)
    with writers(eight, WRITTEN) as processes:
        for path in partials(eight):
            os.utime(path, (time.time() - 50 * DAY_S,) * 2)
        assert len(partials(eight)) == len(WRITTEN)
        done = eight.prune(9)
        assert len(partials(eight)) == len(WRITTEN)
        assert [piece.why for piece in done.kept if piece.sort == "partial file"] == ["is being written"] * len(WRITTEN)
        for number, process in enumerate(processes[:-1]):
            process.kill()
            process.wait()
            done = eight.prune(9)
            assert [piece.why for piece in done.deleted] == ["is not finished and its process is dead"]
            assert len(partials(eight)) == len(WRITTEN) - number - 1
        processes[-1].communicate(b"", timeout=60)
    assert partials(eight) == []
    added = f"readers/{eight.name(6)}.x.json"
    assert {file.name for file in eight.store.listing() if not file.name.endswith(".lock")} == {
        *(file.name for file in before if not file.name.endswith(".lock")),
        added,
    }


def test_partial_files_of_other_machines_are_deleted_by_age(eight: Shelf) -> None:
    """Their process ids are meaningless here. The lease that prune has just written gives the time of the store."""
    young = eight.file(".LATEST.json.0123456789ab.partial", 0.9)
    old = eight.file("units/.x.parquet.0123456789ab.partial", 1.1)
    done = eight.prune(9)
    assert [piece.name for piece in done.deleted] == ["units/.x.parquet.0123456789ab.partial"]
    assert young.exists()
    assert not old.exists()


def test_wrong_local_clock_deletes_nothing(eight: Shelf, tmp_path: Path) -> None:
    """The local clock is three days ahead of the store's clock, which sets the times of files."""
    eight.file(".LATEST.json.0123456789ab.partial", 0.5)
    eight.file("units/a.parquet", 5)
    program = (
        "import sys, time\n"
        "now = time.time\n"
        "time.time = lambda: now() + 3 * 86400\n"
        "from epithre_beam.index import Store\n"
        "from epithre_beam.index.publish.prune import PruneRules, prune\n"
        "print(len(prune(Store(sys.argv[1]), PruneRules(keep=9)).deleted))\n"
    )
    reported = subprocess.run([sys.executable, "-c", program, eight.store.url], check=True, stdout=subprocess.PIPE)
    assert reported.stdout == b"0\n"
    assert (eight.folder / "units/a.parquet").exists()


# ---------------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("seed", range(12))
def test_dry_run_predicts_prune_and_second_prune_does_nothing(shelf: Shelf, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 12))
    current_version = int(rng.integers(1, count + 1))
    for number in range(1, count + 1):
        previous = int(rng.integers(1, number)) if number > 1 else None
        gate_failures = ["no."] if rng.random() < 0.3 else []
        shelf.add(number, previous=previous, days=float(rng.uniform(0, 40)), gate_failures=gate_failures)
    for i in range(20):
        shelf.file(f"units/{i}.parquet", float(rng.uniform(0, 20)))
    shelf.file(f"versions/{shelf.name(count + 1)}/index/a.faiss", float(rng.uniform(0, 2)))
    shelf.publish(current_version)
    published = read_manifest(shelf.store, shelf.name(current_version))
    keep = int(rng.integers(1, 5))
    rules = {"older_than_days": float(rng.uniform(0, 40))} if rng.random() < 0.5 else {}

    before, size = shelf.store.names(""), shelf.size_bytes()
    planned = shelf.prune(keep, dry_run=True, **rules)
    assert shelf.store.names("") == before
    done = shelf.prune(keep, **rules)
    assert (done.deleted, done.kept) == (planned.deleted, planned.kept)
    assert shelf.size_bytes() == size - done.freed_bytes
    left = shelf.numbers()
    assert current_version in left
    assert keep < 2 or published.previous is None or int(published.previous.split("-")[0]) in left
    assert len(left) >= min(keep, count)
    assert shelf.prune(keep, **rules).deleted == ()
    assert sorted(before) == sorted([*shelf.store.names(""), *(name for piece in done.deleted for name in piece.files)])


def test_prune_during_a_run_raises_and_changes_nothing(eight: Shelf) -> None:
    before = eight.store.names("")
    with hold(eight.store, "run"):
        for dry_run in (True, False):
            with pytest.raises(CatalogBusyError, match="is under way"):
                eight.prune(1, dry_run=dry_run)
    assert eight.store.names("") == before
    eight.prune(1)
    with hold(eight.store, "run"):
        pass  # the lease is released


def test_run_that_read_latest_before_a_prune_cannot_publish(
    eight: Shelf,
) -> None:
    latest = read_latest(eight.store)
    assert latest is not None
    old, new = (read_manifest(eight.store, eight.name(number)) for number in (2, 8))
    eight.prune(3)
    for manifest in (old, new):
        with pytest.raises((SwapConflictError, CatalogError)):
            publish(eight.store, manifest, latest.data)
    assert eight.numbers() == [3, 6, 7, 8]


def test_condemned_version_is_deleted_by_the_next_prune(eight: Shelf) -> None:
    """This is the state after a prune that was killed after its fence."""
    fence(eight.store, [eight.name(1), eight.name(8)])
    with pytest.raises(SwapConflictError, match="prune is deleting version"):
        eight.publish(8)
    done = eight.prune(9)
    assert eight.numbers() == [2, 3, 4, 5, 6, 7]
    assert whys(done.deleted)[eight.name(8)] == "was left half deleted by a prune that did not finish"
    eight.file("units/a.parquet", 30)
    eight.prune(9)
    latest = read_latest(eight.store)
    assert latest is not None
    assert condemned_in(latest.data) == ()


PRUNE = """
import sys
from epithre_beam.index.publish.prune import PruneRules, prune
from epithre_beam.index.storage.store import Store
print("ready", flush=True)
sys.stdin.readline()
prune(Store(sys.argv[1]), PruneRules(keep=2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_killed_prune_leaves_complete_versions_and_the_next_finishes(shelf: Shelf, share: float) -> None:
    count = 40
    for number in range(1, count + 1):
        shelf.add(number, previous=number - 1 or None, files=20)
    shelf.publish(count)
    process = subprocess.Popen(
        [sys.executable, "-c", PRUNE, shelf.store.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    # Versions are deleted from the oldest on, so one missing file shows the progress. The check takes microseconds.
    sign = shelf.folder / manifest_name(shelf.name(1 + int(share * (count - 2))))
    while sign.exists() and process.poll() is None:
        pass
    process.kill()
    process.communicate()
    left = shelf.numbers()  # every version with a manifest is complete
    assert {count - 1, count} <= set(left)
    assert share == 0.8 or len(left) > 2  # killed in the middle
    shelf.prune(2)
    assert shelf.numbers() == [count - 1, count]
    assert len(list((shelf.folder / "versions").iterdir())) == 2


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "s3":
        yield s3_store(request.getfixturevalue("s3_server").port, secrets.token_hex(8))
        return
    store = Store(f"memory://{secrets.token_hex(8)}")
    yield store
    store.delete("")


@contextlib.contextmanager
def held(store: Store, version: str) -> Iterator[None]:
    hold = VersionHold(store, version, 60)
    yield
    hold.release()


def test_remote_catalog_is_pruned(eight: Shelf, remote: Store) -> None:
    for name in eight.store.names(""):
        remote.write(name, eight.store.read(name))
    remote.write("units/a.parquet", b"young")
    with held(remote, eight.name(2)):
        done = prune(remote, PruneRules(keep=1))
    assert {piece.name for piece in done.kept} == {"a", *map(eight.name, (2, 6, 7, 8))}
    assert done.freed_bytes == sum(piece.size_bytes for piece in done.deleted) > 0
    left = [f"versions/{eight.name(n)}/{name}" for n in (2, 6, 7, 8) for name in ("manifest.json", "vectors/x-0.bin")]
    assert remote.names("versions") == left
    assert all(0 <= time.time() - (file.modified_s or 0) < 600 for file in remote.listing())
    assert remote.names("readers") == []


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"keep": 0}, "--keep must be at least 1, got 0"),
        ({"older_than_days": -1.0}, "--older-than must be a number of days from 0 to 100000, got -1"),
        ({"units_older_than_days": float("nan")}, "--units-older-than must be a number of days"),
    ],
)
def test_invalid_rule_raises_with_its_value(rules: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PruneRules(**rules)  # type: ignore[arg-type]


def test_pruning_is_json_serialisable(eight: Shelf) -> None:
    from dataclasses import asdict

    document = json.loads(json.dumps(asdict(eight.prune(1))))
    assert {piece["name"] for piece in document["deleted"]} == {eight.name(n) for n in (1, 2, 3, 4, 5)}

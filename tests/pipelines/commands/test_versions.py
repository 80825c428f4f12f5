"""`epithre-beam versions` on a catalog of three real runs: its output is correct, and each refusal is one message."""

import json
import os
import re
import shutil
import time

import pytest

from epithre_beam.index import Store, open_catalog, read_latest, read_manifest
from epithre_beam.index.versions.layout import manifest_name
from epithre_beam.index.versions.lease import hold

from ..conftest import Place, write_images, write_texts


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """A catalog of three nightly runs with changed sources."""
    place = Place(tmp_path_factory.mktemp("nights"))
    images = write_images(place.folder / "pictures", 20)
    write_texts(place.folder / "texts.csv", 30)
    place.write_job()
    runs = [place.cli("run", "job.yaml", "--quiet")]
    texts = (place.folder / "texts.csv").read_text().replace("text number 3,", "another text,").splitlines()
    (place.folder / "texts.csv").write_text("\n".join([*texts[:-1], "t900,new,1", "t901,newer,1"]) + "\n")
    images[0].rename(place.folder / "pictures" / "renamed.jpg")
    runs.append(place.cli("run", "job.yaml", "--quiet"))
    texts = (place.folder / "texts.csv").read_text().replace("text number 5,5.5", "text number 5,99")
    (place.folder / "texts.csv").write_text(texts)
    place.write_job(prepare__jpeg_quality=80)
    runs.append(place.cli("run", "job.yaml", "--quiet"))
    assert [run.returncode for run in runs] == [0, 0, 0], [run.stderr for run in runs]
    return place


@pytest.fixture
def place(nights, tmp_path):
    """A copy of the catalog that a test may change."""
    shutil.copytree(nights.catalog, tmp_path / "catalog")
    return Place(tmp_path)


def names(place):
    return sorted(path.name for path in (place.catalog / "versions").iterdir())


def said(done):
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def reported(done):
    return json.loads(said(done))


def refused(done, code, *words):
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    for word in words:
        assert word in line, (word, line)


def current_version(place):
    latest = read_latest(Store(str(place.catalog)))
    assert latest is not None
    with open_catalog(place.catalog) as catalog:
        assert catalog.version == latest.version
    return latest.version


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


# ---------------------------------------------------------------------------------------------------- list


def test_list_shows_every_version(place):
    first, second, third = names(place)
    rows = reported(place.cli("versions", "list", "catalog", "--json"))
    assert [(row["version"], row["is_published"], row["previous"]) for row in rows] == [
        (first, False, None),
        (second, False, first),
        (third, True, second),
    ]
    assert [row["per_kind"] for row in rows] == [{"image": 20, "text": 30}, *[{"image": 20, "text": 31}] * 2]
    for row in rows:
        assert (row["dead"], row["held_back"], row["damage"]) == (0, [], None)
        assert row["created_at"].startswith("20")
        assert "hash" in row["model"]
        folder = place.catalog / "versions" / row["version"]
        assert row["size_bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    text = said(place.cli("versions", "list", "catalog"))
    assert f"→ {third}  20 image, 31 text, 0 dead letters" in text
    assert f"  {first}" in text


def test_a_damaged_version_is_listed_as_damaged(place):
    first, _second, third = names(place)
    (place.catalog / manifest_name(first)).write_text("{")
    flip(place.catalog / manifest_name(third))
    rows = reported(place.cli("versions", "list", "catalog", "--json"))
    assert [row["damage"] is not None for row in rows] == [True, False, True]
    text = said(place.cli("versions", "list", "catalog"))
    assert f"  {first}  damaged" in text
    assert f"→ {third}  damaged" in text
    (place.catalog / manifest_name(third)).unlink()
    assert "is missing" in reported(place.cli("versions", "list", "catalog", "--json"))[2]["damage"]


def test_list_works_with_a_damaged_pointer_and_publish_repairs_it(place):
    version = names(place)[1]
    (place.catalog / "LATEST.json").write_text('{"version": ')
    done = place.cli("versions", "list", "catalog", "--json")
    assert len(json.loads(done.stdout)) == 3
    refused(done, 1, "LATEST.json", "damaged", "versions publish")
    refused(place.cli("versions", "rollback", "catalog"), 1, "LATEST.json", "versions publish")
    assert said(place.cli("versions", "publish", "catalog", version)) == f"{version} is now the current version.\n"
    assert current_version(place) == version


# ---------------------------------------------------------------------------------------------------- verify


def test_verify_finds_one_flipped_byte_in_any_file(place):
    version = names(place)[2]
    assert "all match the manifest" in said(place.cli("versions", "verify", "catalog"))
    folder = place.catalog / "versions" / version
    one_of_each = {(path.parent, path.suffix): path for path in sorted(folder.glob("*/*"))}
    assert len(one_of_each) == 3  # vectors, indexes, assets
    for path in (place.catalog / "LATEST.json", folder / "manifest.json", *one_of_each.values()):
        whole = path.read_bytes()
        flip(path)
        done = place.cli("versions", "verify", "catalog")
        refused(done, 1, path.name)
        assert done.stdout == ""
        path.write_bytes(whole)
    assert place.cli("versions", "verify", "catalog").returncode == 0


def test_verify_all_reports_every_damaged_version(place):
    first, second, third = names(place)
    path = next((place.catalog / "versions" / second / "vectors").iterdir())
    flip(path)
    done = place.cli("versions", "verify", "catalog", "--all", "--json")
    refused(done, 1, path.name, "sha256")
    verdicts = json.loads(done.stdout)
    assert [(verdict["version"], bool(verdict["damage"])) for verdict in verdicts] == [
        (first, False),
        (second, True),
        (third, False),
    ]
    refused(place.cli("versions", "verify", "catalog", second), 1, path.name)
    assert said(place.cli("versions", "verify", "catalog", first)).startswith(f"{first}: ")
    refused(place.cli("versions", "verify", "catalog", "nine"), 2, "has no version 'nine'")
    refused(place.cli("versions", "verify", "catalog", first, "--all"), 2, "--all", first)


def test_every_command_accepts_the_beginning_of_a_version_name(place):
    first, second, third = names(place)
    said(place.cli("versions", "verify", "catalog", "000002")).startswith(f"{second}: ")
    by_name = said(place.cli("versions", "diff", "catalog", first, second, "--json"))
    assert said(place.cli("versions", "diff", "catalog", "000001", "000002-", "--json")) == by_name
    exported = reported(place.cli("export", "catalog", "out", "--to", "faiss", "--version", "000001", "--json"))
    assert exported["version"] == first
    said(place.cli("versions", "rollback", "catalog", "000001"))
    assert current_version(place) == first
    said(place.cli("versions", "publish", "catalog", "000003"))
    assert current_version(place) == third
    with open_catalog(place.catalog, version="000002") as opened:
        assert opened.version == second
    said(place.cli("versions", "prune", "catalog", "--drop", "000001"))
    assert names(place) == [second, third]


def test_an_ambiguous_or_unknown_version_lists_the_versions(place):
    all_names = ", ".join(names(place))
    for command in (["verify", "catalog"], ["diff", "catalog"], ["rollback", "catalog"], ["publish", "catalog"]):
        refused(place.cli("versions", *command, "00000"), 2, f"catalog: 3 versions fit '00000': {all_names}.")
        refused(place.cli("versions", *command, "000009"), 2, f"has no version '000009'. It has {all_names}.")
    refused(place.cli("versions", "prune", "catalog", "--drop", "000009"), 2, f"It has {all_names}.")
    refused(place.cli("export", "catalog", "out", "--to", "faiss", "--version", "9"), 2, f"It has {all_names}.")


# ---------------------------------------------------------------------------------------------------- diff


def test_diff_shows_the_changes_between_two_nights(place):
    first, second, _third = names(place)
    found = reported(place.cli("versions", "diff", "catalog", first, second, "--json"))
    kinds = {kind["kind"]: kind for kind in found["kinds"]}
    counts = {kind: {k: v for k, v in it["counts"].items() if v} for kind, it in kinds.items()}
    assert counts == {"image": {"moved": 1}, "text": {"added": 2, "removed": 1, "changed": 1}}
    assert kinds["image"]["samples"]["moved"] == ["p000.jpg → renamed.jpg"]
    assert kinds["text"]["samples"]["added"] == ["t900", "t901"]
    assert (kinds["text"]["samples"]["removed"], kinds["text"]["samples"]["changed"]) == (["t029"], ["t003"])
    assert found["settings"] == {}
    text = said(place.cli("versions", "diff", "catalog", first, second, "--limit", "1"))
    assert f"{first} → {second}" in text
    assert "text: 30 → 31 assets; 2 added, 1 removed, 1 changed" in text
    assert "added: … and 1 more" in text


def test_diff_compares_the_current_with_the_previous_version_by_default(place):
    first, second, third = names(place)
    found = reported(place.cli("versions", "diff", "catalog", "--json"))
    assert (found["old"], found["new"]) == (second, third)
    assert found["settings"] == {"prepare.jpeg_quality": [92, 80]}
    assert found["kinds"][1]["samples"]["metadata"] == ["t005"]
    assert found == reported(place.cli("versions", "diff", "catalog", second, "--json"))
    text = said(place.cli("versions", "diff", "catalog"))
    assert "prepare.jpeg_quality: 92 → 80" in text
    assert "image: 20 → 20 assets; no difference" in text
    refused(place.cli("versions", "diff", "catalog", "nine"), 2, "has no version 'nine'")
    said(place.cli("versions", "publish", "catalog", first))
    refused(place.cli("versions", "diff", "catalog"), 2, "no version before", first)


# ---------------------------------------------------------------------------------------------------- rollback


def test_rollback_publishes_the_previous_version_until_the_first(place):
    first, second, third = names(place)
    before = (place.catalog / "LATEST.json").read_bytes()
    text = said(place.cli("versions", "rollback", "catalog", "--dry-run"))
    assert text.splitlines() == [
        f"{second} would be current again, instead of {third}.",
        "Stop the schedule first: the next run publishes the sources again.",
    ]
    assert (place.catalog / "LATEST.json").read_bytes() == before
    for target, current in ((second, third), (first, second)):
        assert said(place.cli("versions", "rollback", "catalog")).splitlines() == [
            f"{target} is current again, instead of {current}.",
            "Stop the schedule now: the next run publishes the sources again.",
        ]
        assert current_version(place) == target
    refused(place.cli("versions", "rollback", "catalog"), 2, f"{first} is the first version; there is nothing to roll")
    refused(place.cli("versions", "rollback", "catalog", third), 2, third, "newer than the current version")
    refused(place.cli("versions", "rollback", "catalog", first), 2, "is the current version")
    said(place.cli("versions", "publish", "catalog", "3"))
    assert current_version(place) == third
    said(place.cli("versions", "rollback", "catalog", first))
    assert current_version(place) == first


@pytest.mark.parametrize("command", ["rollback", "publish"])
def test_a_damaged_version_is_never_published(place, command):
    _, second, third = names(place)
    path = next((place.catalog / "versions" / second / "index").iterdir())
    flip(path)
    refused(place.cli("versions", command, "catalog", second), 1, path.name, "damaged")
    assert current_version(place) == third


def test_a_version_of_an_older_release_can_be_published(place):
    version = names(place)[1]
    path = place.catalog / manifest_name(version)
    raw = json.loads(path.read_bytes())
    for index in raw["indexes"]:
        index.pop("norms", None)
    path.write_text(json.dumps(raw))
    assert read_manifest(Store(str(place.catalog)), version).to_bytes() != path.read_bytes()
    said(place.cli("versions", "rollback", "catalog"))
    assert current_version(place) == version
    assert place.cli("versions", "verify", "catalog").returncode == 0


# ---------------------------------------------------------------------------------------------------- prune


def test_prune_reports_what_it_deletes(place):
    first, second, third = names(place)
    (place.catalog / "units").mkdir(exist_ok=True)
    for i, days in enumerate((1, 8, 9)):
        unit = place.catalog / "units" / f"{i}.parquet"
        unit.write_bytes(b"paid")
        os.utime(unit, (time.time() - days * 86_400,) * 2)
    planned = reported(place.cli("versions", "prune", "catalog", "--keep", "2", "--dry-run", "--json"))
    assert names(place) == [first, second, third]
    text = said(place.cli("versions", "prune", "catalog", "--keep", "2", "--dry-run"))
    assert f"delete: version {first}, " in text
    assert "delete: 2 units, 8 bytes: each is older than 7 days" in text
    assert "keep: 1 unit, 4 bytes: it is younger than 7 days" in text
    assert re.search(r"\n[\d,]+ bytes would be freed\.\n$", text)
    done = reported(place.cli("versions", "prune", "catalog", "--keep", "2", "--json"))
    assert (done["dry_run"], planned["dry_run"]) == (False, True)
    assert {**done, "dry_run": True} == planned
    assert [piece["name"] for piece in done["deleted"] if piece["sort"] == "version"] == [first]
    assert [piece["name"] for piece in done["kept"]] == [second, third, "0"]
    assert done["freed_bytes"] > 0
    assert names(place) == [second, third]
    assert [path.name for path in place.catalog.glob("units/*")] == ["0.parquet"]
    text = said(place.cli("versions", "prune", "catalog", "--keep", "2"))
    assert f"keep: version {third}, " in text
    assert text.endswith("\n0 bytes freed.\n")
    said(place.cli("versions", "rollback", "catalog"))
    assert place.cli("versions", "verify", "catalog", "--all").returncode == 0


def test_a_run_after_a_prune_sends_nothing_again(nights, tmp_path):
    shutil.copytree(nights.folder, tmp_path / "copy")
    place = Place(tmp_path / "copy")
    said(place.cli("versions", "prune", "catalog", "--keep", "1", "--units-older-than", "0"))
    assert len(names(place)) == 1
    done = place.cli("run", "job.yaml", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["counts"]["embedded"], report["counts"]["reused"]) == (0, 51)


def test_prune_is_refused_during_a_run_and_publish_is_not(place):
    first, _second, _ = names(place)
    with hold(Store(str(place.catalog)), "run"):
        refused(
            place.cli("versions", "prune", "catalog", "--keep", "1"), 4, "another run is under way", str(os.getpid())
        )
        said(place.cli("versions", "rollback", "catalog"))
        said(place.cli("versions", "publish", "catalog", first))
    assert len(names(place)) == 3


def test_an_invalid_prune_rule_is_reported(place):
    refused(place.cli("versions", "prune", "catalog", "--keep", "0"), 2, "--keep must be at least 1, got 0")
    refused(place.cli("versions", "prune", "catalog", "--older-than", "-1"), 2, "--older-than", "-1")


def test_each_command_reports_a_missing_catalog_and_writes_nothing(tmp_path):
    place = Place(tmp_path)
    for command in (["list"], ["verify"], ["verify", "--all"], ["diff"], ["rollback"], ["prune"], ["publish", "nine"]):
        refused(place.cli("versions", command[0], "catalog", *command[1:]), 2, "catalog: there is no catalog here")
    assert list(tmp_path.iterdir()) == []

"""Incremental runs send only new content, follow changes, and give the result of a run from scratch."""

import contextlib
import csv
import hashlib
import io
import json
import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from epithre_beam.configs import load_config
from epithre_beam.configs.errors import CatalogError, EpithreBeamError, UnwritableError
from epithre_beam.index import Store, open_catalog
from epithre_beam.index.publish.verify import find_damage
from epithre_beam.index.versions.latest import read_latest
from epithre_beam.index.versions.manifest import read_manifest
from epithre_beam.pipelines.jobs.estimate import estimate, plan_table
from epithre_beam.pipelines.jobs.run import run
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults
from epithre_beam.transforms.epithre.emulator.hash_model import content_digest

from ..conftest import KEY, write_images

pytestmark = pytest.mark.slow  # several nights a test

DIMENSION = 16


class Night:
    """A folder of images and a table of texts with seeded changes, and catalogs made of them."""

    def __init__(self, folder: Path, emulator: Emulator, seed: int, images: int = 30, texts: int = 40) -> None:
        self.folder = folder
        self.emulator = emulator
        self.rng = random.Random(seed)
        self.numbers = iter(range(10_000))
        self.images = folder / "pictures"
        self.images.mkdir(parents=True)
        self.texts: dict[str, list[str]] = {}
        for _ in range(images):
            self.add_image()
        for _ in range(texts):
            self.add_text()

    # ------------------------------------------------------------------ changes of a day

    def add_image(self) -> Path:
        number = next(self.numbers)
        (path,) = write_images(self.folder / "drawn", 1, seed=number)
        target = self.images / f"{'sub/' if number % 3 == 0 else ''}p{number:05d}.jpg"
        target.parent.mkdir(exist_ok=True)
        shutil.move(path, target)
        return target

    def add_text(self) -> None:
        number = next(self.numbers)
        self.texts[f"t{number:05d}"] = [f"a text with the number {number}", str(number / 2)]

    def some_image(self) -> Path:
        return self.rng.choice(sorted(self.images.rglob("*.jpg")))

    def some_text(self) -> str:
        return self.rng.choice(sorted(self.texts))

    def edit_image(self) -> None:
        shutil.move(self.add_image(), self.some_image())

    def delete_image(self) -> None:
        self.some_image().unlink()

    def rename_image(self) -> None:
        path = self.some_image()
        path.rename(self.images / f"renamed{next(self.numbers)}.jpg")

    def copy_image(self) -> None:
        shutil.copyfile(self.some_image(), self.images / f"copy{next(self.numbers)}.jpg")

    def touch_image(self) -> None:
        os.utime(self.some_image())

    def spoil_image(self) -> None:
        self.some_image().write_bytes(b"no picture")

    def edit_text(self) -> None:
        self.texts[self.some_text()][0] += f" edited {next(self.numbers)}"

    def edit_price(self) -> None:
        self.texts[self.some_text()][1] = str(next(self.numbers))

    def delete_text(self) -> None:
        del self.texts[self.some_text()]

    def rename_text(self) -> None:
        self.texts[f"r{next(self.numbers)}"] = self.texts.pop(self.some_text())

    def copy_text(self) -> None:
        self.texts[f"c{next(self.numbers)}"] = list(self.texts[self.some_text()])

    def shuffle_texts(self) -> None:
        names = list(self.texts)
        self.rng.shuffle(names)
        self.texts = {name: self.texts[name] for name in names}

    def go_by(self, changes: int) -> None:
        """Apply a number of seeded changes."""
        hands = [
            self.add_image, self.edit_image, self.delete_image, self.rename_image, self.copy_image,
            self.touch_image, self.spoil_image, self.add_text, self.edit_text, self.edit_price, self.delete_text,
            self.rename_text, self.copy_text, self.shuffle_texts,
        ]  # fmt: skip
        for hand in self.rng.choices(hands, k=changes):
            hand()

    # ------------------------------------------------------------------ runs and results

    def run(self, catalog: str = "catalog", **settings) -> dict:
        with (self.folder / "texts.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text", "price"])
            writer.writerows([name, *values] for name, values in self.texts.items())
        job = {
            "catalog": catalog,
            "sources": [
                {"kind": "image", "files": "pictures/**/*.jpg"},
                {"kind": "text", "table": "texts.csv", "id": "id", "text": "text", "metadata": {"price": "double"}},
            ],
            "embed": {"base_url": self.emulator.base_url, "dimension": DIMENSION, "unit_references": 16},
            "gates": {"max_dead_share": 0.9, "max_shrinkage": 0.9},
            "index": {"recall_queries": 11},
        }
        for name, value in settings.items():
            section, _, key = name.partition("__")
            job.setdefault(section, {})[key] = value
        path = self.folder / "job.yaml"
        path.write_text(json.dumps(job))
        self.emulator.reset()
        return run(load_config(path))

    def contents(self) -> dict[str, tuple[str, bytes]]:
        """The contents that can be embedded, by digest."""
        found = [("image", p.read_bytes()) for p in self.images.rglob("*.jpg")]
        found = [(kind, data) for kind, data in found if data != b"no picture"]
        found += [("text", text.encode()) for text, _ in self.texts.values()]
        return {content_digest(kind, data).hex(): (kind, data) for kind, data in found}


@pytest.fixture
def emulator(monkeypatch):
    monkeypatch.setenv("EPITHRE_KEY", KEY)
    with Emulator(EmulatorSettings(dimension=DIMENSION, api_keys=(KEY,))) as emulator:
        yield emulator


def rows_of(catalog: Path) -> dict[tuple[str, str], dict]:
    """All fields of each asset in the current version; the vector as bytes."""
    version = open_catalog(catalog).version
    found = {}
    for path in sorted((catalog / "versions" / version / "vectors").iterdir()):
        for row in pq.read_table(path).to_pylist():
            row["embedding"] = np.array(row["embedding"], np.float32).tobytes()
            assert (row["kind"], row["asset_id"]) not in found
            found[row["kind"], row["asset_id"]] = row
    return found


def dead_of(catalog: Path) -> set[tuple[str, str, str]]:
    version = open_catalog(catalog).version
    paths = (catalog / "versions" / version / "dead_letters").glob("*.parquet")
    return {(row["kind"], row["asset_id"], row["reason"]) for p in paths for row in pq.read_table(p).to_pylist()}


def answers_of(catalog: Path, seed: int) -> list:
    """Hits of random queries and of stored vectors, for each kind and for both, with copies."""
    with open_catalog(catalog) as opened:
        drawn = np.random.default_rng(seed).standard_normal((12, DIMENSION)).astype(np.float32)
        known = [np.frombuffer(row["embedding"], np.float32) for _, row in sorted(rows_of(catalog).items())[::7]]
        queries = np.concatenate([drawn / np.linalg.norm(drawn, axis=1, keepdims=True), known])
        found = []
        for kinds in (None, "image", "text"):
            for merge in ("score", "quota", "standardised"):
                hits = opened.search(queries, k=9, kinds=kinds, merge=merge, query_kind="text")
                found.append([[(h.kind, h.asset_id, h.score, h.uri, dict(h.metadata)) for h in one] for one in hits])
        return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_incremental_runs_equal_one_run_from_scratch(tmp_path, emulator, seed):
    night = Night(tmp_path, emulator, seed)
    catalog = tmp_path / "catalog"
    known: set[str] = set()
    for day in range(5):
        if day:
            night.go_by(12)
        report = night.run()
        contents = set(night.contents())
        # Content that was deleted and came back may be sent again; other content is not.
        assert set(emulator.payments()) <= contents - (known & contents)
        assert set(emulator.payments().values()) <= {1}
        known = contents
        counts = report["counts"]
        made = [counts[name] for name in ("unchanged", "touched", "changed", "moved", "copied", "new")]
        assert sum(made) == counts["embedded"] + counts["reused"] == counts["assets"] - counts["dead"]
        store = Store(str(catalog))
        assert not list(find_damage(store, read_manifest(store, read_latest(store).version)))
        assert not list((catalog / "units").glob("*"))
    night.run(catalog="scratch")
    assert rows_of(catalog) == rows_of(tmp_path / "scratch")
    assert dead_of(catalog) == dead_of(tmp_path / "scratch")
    assert answers_of(catalog, seed) == answers_of(tmp_path / "scratch", seed)


def test_each_type_of_change_is_counted(tmp_path, emulator):
    night = Night(tmp_path, emulator, 5)
    night.run()
    paths = sorted(night.images.glob("*.jpg"))
    paths[0].rename(night.images / "moved.jpg")
    shutil.copyfile(paths[1], night.images / "copied.jpg")
    os.utime(paths[2])
    shutil.move(night.add_image(), paths[3])
    paths[4].unlink()
    night.add_image()
    names = sorted(night.texts)
    night.texts["moved"] = night.texts.pop(names[0])
    night.texts["copied"] = list(night.texts[names[1]])
    night.texts[names[2]][0] = "another text"
    night.texts[names[3]][1] = "77.5"
    del night.texts[names[4]]
    night.add_text()
    counts = night.run()["counts"]
    assert len(emulator.payments()) == 4
    expected = {"moved": 2, "copied": 2, "touched": 1, "changed": 2, "new": 2, "deleted": 4, "embedded": 4}
    assert {name: counts[name] for name in expected} == expected
    assert counts["unchanged"] == 70 - 2 * 4 + 1  # texts: changed, deleted and moved; images also touched
    assert rows_of(tmp_path / "catalog")["text", names[3]]["metadata"] == {"price": 77.5}


def test_a_plan_predicts_the_run(tmp_path, emulator):
    night = Night(tmp_path, emulator, 6)
    night.run()
    night.go_by(15)
    night.run(catalog="unused")  # writes the table
    config = load_config(tmp_path / "job.yaml").model_copy(update={"catalog": str(tmp_path / "catalog")})
    emulator.reset()
    plan = estimate(config)
    assert not emulator.log
    counts = night.run()["counts"]
    assert plan.unchanged == counts["unchanged"]
    assert plan.deleted == counts["deleted"]
    assert plan.base == read_manifest(Store(config.catalog), read_latest(Store(config.catalog)).version).previous
    assert len(emulator.payments()) <= plan.assets_to_send <= plan.assets_to_read == plan.new + plan.differing
    assert plan.prepared_anew == {}
    shown = _shown(plan_table(plan))
    assert re.search(rf"changes +{plan.unchanged} unchanged, {plan.new} added", shown)
    assert f" {plan.deleted} removed, {plan.other_metadata} with changed metadata, since {plan.base}" in shown
    assert f"{plan.differing} to check (changed, or only written again)" in shown
    assert re.search(r"to send +at most \d+ assets in about \d+ requests?, plus a few to test the API", shown)
    assert f"about {plan.upload_bytes:,} bytes; more if images must be converted" in shown
    after = estimate(config)
    assert (plan.writes_nothing, after.writes_nothing, after.assets_to_read) == (False, True, 0)
    shown = _shown(plan_table(after))
    assert "nothing changed; a run would write nothing" in shown
    assert not re.search(r"vectors|to send|time", shown)
    other = config.model_copy(update={"index": config.index.model_copy(update={"recall_k": 7})})
    assert not estimate(other).writes_nothing
    assert re.search(r"to send +nothing", _shown(plan_table(estimate(other))))


@pytest.mark.parametrize(
    ("minutes", "words"),
    [
        (None, "no limit is configured"),
        (0.001, "under 1 s (the rate limit allows it)"),
        (1.5, "at least 90 s at the limit"),
        (90, "at least 90.0 minutes at the limit"),
    ],
)
def test_a_plan_says_how_long_the_limit_makes_it(tmp_path, emulator, minutes, words):
    night = Night(tmp_path, emulator, 8)
    night.run(catalog="unused")  # writes the table
    config = load_config(tmp_path / "job.yaml").model_copy(update={"catalog": str(tmp_path / "catalog")})
    assert words in _shown(plan_table(replace(estimate(config), minutes_at_limit=minutes)))


def _shown(table):
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_a_plan_says_why_every_vector_is_new(tmp_path, emulator):
    night = Night(tmp_path, emulator, 7)
    night.run()
    config = load_config(tmp_path / "job.yaml")
    other = config.model_copy(update={"embed": config.embed.model_copy(update={"model": "other"})})
    plan = estimate(other)
    assert plan.assets_to_send == 70
    assert plan.every_vector_is_new_because == ["embed.model was 'epithre-embed' and is 'other'"]
    assert estimate(config).every_vector_is_new_because == []


@pytest.mark.parametrize("dead", [3, 0])
def test_permanent_failures_are_retried_only_after_a_change(tmp_path, emulator, dead):
    night = Night(tmp_path, emulator, 8)
    for path in sorted(night.images.glob("*.jpg"))[:dead]:
        path.write_bytes(b"no picture")
    night.run()
    night.add_text()
    report = night.run()
    assert report["counts"]["dead"] == dead
    assert report["dead_letters"]["by_reason"] == ({"not_a_picture": dead} if dead else {})
    assert len(emulator.payments()) == 1
    if dead:
        assert night.run()["unchanged"]
        shutil.move(night.add_image(), min(night.images.glob("*.jpg")))
        assert night.run()["counts"]["dead"] == dead - 1


@pytest.mark.parametrize("is_permanent", [True, False], ids=["retry-failed", "missing"])
def test_assets_that_fail_again_for_the_same_reason_make_no_version(tmp_path, emulator, is_permanent):
    """Otherwise a file that is missing for good would cost a whole version each night."""
    night = Night(tmp_path, emulator, 11)
    bad = min(night.images.glob("*.jpg"))
    if is_permanent:
        bad.write_bytes(b"no picture")
    else:
        bad.unlink()
        bad.symlink_to(tmp_path / "not mounted")
    settings = {"embed__retry_dead": is_permanent}
    first = night.run(**settings)
    assert first["counts"]["dead"] == 1
    again = night.run(**settings)
    assert again["unchanged"]
    assert (again["version"], again["counts"]["dead"]) == (first["version"], 1)
    assert again["dead_letters"]["by_reason"] == first["dead_letters"]["by_reason"]
    assert [path.name for path in (tmp_path / "catalog/versions").iterdir()] == [first["version"]]
    assert not list((tmp_path / "catalog").glob("runs/*"))
    if is_permanent:
        bad.write_bytes(b"")  # another reason
        assert night.run(**settings)["dead_letters"]["by_reason"] == {"empty_file": 1}
    bad.unlink()
    shutil.move(night.add_image(), bad)
    report = night.run(**settings)
    assert (report["counts"]["dead"], report.get("unchanged")) == (0, None)
    assert answers_of(tmp_path / "catalog", 1)


def test_a_gate_holds_a_shrunk_source_until_it_is_published(tmp_path, emulator):
    night = Night(tmp_path, emulator, 9, images=30, texts=60)
    first = night.run()["version"]
    gone = dict(list(night.texts.items())[:25])
    night.texts = {name: value for name, value in night.texts.items() if name not in gone}
    report = night.run(gates__max_shrinkage=0.2)
    assert "gates.max_shrinkage allows a kind to lose 20.00%, but of 60 text rows" in report["held_back"][0]
    assert open_catalog(tmp_path / "catalog").version == first
    night.texts |= gone
    assert night.run(gates__max_shrinkage=0.2)["unchanged"]
    night.texts = {name: value for name, value in night.texts.items() if name not in gone}
    report = night.run(gates__max_shrinkage=0.5)
    assert not report["held_back"]
    assert not emulator.payments()


def test_assets_of_a_damaged_file_are_read_again(tmp_path, emulator):
    night = Night(tmp_path, emulator, 10, images=10, texts=1500)
    night.run()
    catalog = tmp_path / "catalog"
    expected = rows_of(catalog)
    (path,) = catalog.glob("versions/*/vectors/text-*")
    metadata = pq.read_metadata(path)
    assert metadata.num_row_groups > 2
    column = metadata.schema.names.index("item") if "item" in metadata.schema.names else metadata.num_columns - 1
    chunk = metadata.row_group(1).column(column)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    night.add_image()
    report = night.run()
    store = Store(str(catalog))
    assert not list(find_damage(store, read_manifest(store, report["version"])))
    rows = rows_of(catalog)
    assert {key: row for key, row in rows.items() if key in expected} == expected
    assert len(rows) == len(expected) + 1


def test_a_run_replaces_a_version_with_a_missing_file(tmp_path, emulator):
    night = Night(tmp_path, emulator, 11)
    night.run()
    catalog = tmp_path / "catalog"
    next(catalog.glob("versions/*/index/text-*.faiss")).unlink()
    report = night.run()
    assert not report.get("unchanged")
    assert not emulator.payments()
    assert open_catalog(catalog).version == report["version"]


def test_new_index_settings_build_new_indexes_and_send_nothing(tmp_path, emulator):
    night = Night(tmp_path, emulator, 12)
    night.run()
    before = rows_of(tmp_path / "catalog")
    full = rows_of(tmp_path / "catalog")
    report = night.run(index__vector_type="float16")
    assert report["counts"]["unchanged"] == 70
    assert not emulator.log
    half = rows_of(tmp_path / "catalog")
    for key, row in full.items():
        vector = np.frombuffer(row.pop("embedding"), np.float32)
        assert half[key].pop("embedding") == vector.astype(np.float16).astype(np.float32).tobytes()
    assert half == full
    night.run(index__vector_type="float32")  # needs float32 vectors, which only the previous version has
    assert not emulator.payments()
    assert rows_of(tmp_path / "catalog") == before


def test_vectors_of_a_failed_run_are_reused_after_units_change(tmp_path, monkeypatch):
    """The run fails before it writes a version; then assets are added and removed, so that all units change."""
    monkeypatch.setenv("EPITHRE_KEY", KEY)
    out_of_quota = Faults(quota_429=1.0, start_at_request=6)
    with Emulator(EmulatorSettings(dimension=DIMENSION, api_keys=(KEY,), faults=out_of_quota)) as emulator:
        night = Night(tmp_path, emulator, 13, images=60, texts=60)
        with pytest.raises(EpithreBeamError):
            night.run(embed__batch_items=16, embed__max_concurrency=1)
        units = [path for path in (tmp_path / "catalog/units").iterdir() if ".dead." not in path.name]
        kept = {sha for path in units for sha in pq.read_table(path).column("content_sha256").to_pylist()}
        assert kept
        emulator.reset(faults=Faults())
        for _ in range(5):
            night.add_image()
            night.add_text()
            night.delete_text()
            night.delete_image()
        report = night.run()
        contents = {hashlib.sha256(data).hexdigest(): digest for digest, (_, data) in night.contents().items()}
        assert not {contents[sha] for sha in kept & set(contents)} & set(emulator.payments())
    assert report["counts"]["reused"] == len(kept & set(contents))


def test_a_run_without_changes_rebuilds_a_damaged_index(tmp_path, emulator):
    night = Night(tmp_path, emulator, 14)
    night.run()
    catalog = tmp_path / "catalog"
    path = next(catalog.glob("versions/*/index/image-*.faiss"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    report = night.run()
    assert not report.get("unchanged")
    assert not emulator.payments()
    assert open_catalog(catalog).version == report["version"]


def test_changed_metadata_makes_a_new_version(tmp_path, emulator):
    night = Night(tmp_path, emulator, 15)
    night.run()
    night.edit_price()
    counts = night.run()["counts"]
    assert (counts["unchanged"], counts["other_metadata"]) == (70, 1)
    assert not emulator.log


def test_contents_of_older_versions_are_reused(tmp_path, emulator):
    """Versions are held for some nights, one is published, and then the sources return to their first state."""
    night = Night(tmp_path, emulator, 16)
    night.run()
    all_texts = dict(night.texts)
    night.texts = dict(list(all_texts.items())[:12])
    for _ in range(4):
        assert night.run(gates__max_shrinkage=0.1)["held_back"]
    assert not night.run(gates__max_shrinkage=1.0)["held_back"]
    night.texts = all_texts
    night.run()
    assert not emulator.payments()


def test_a_plan_predicts_the_shrinkage_gate(tmp_path, emulator):
    night = Night(tmp_path, emulator, 17)
    night.run()
    night.texts = dict(list(night.texts.items())[:10])
    held = night.run(gates__max_shrinkage=0.5)["held_back"]
    assert estimate(load_config(tmp_path / "job.yaml")).gate_failures == held
    assert "but of 40 text rows" in held[0]


def test_a_plan_reports_what_it_cannot_know_without_a_request(tmp_path, emulator):
    night = Night(tmp_path, emulator, 18)
    night.run()
    config = load_config(tmp_path / "job.yaml")
    assert estimate(config).uncertain_because is None

    def moved_to(url: str):
        return config.model_copy(update={"embed": config.embed.model_copy(update={"base_url": url})})

    assert (
        "to http://127.0.0.1:1/v1: if it serves another model"
        in estimate(moved_to("http://127.0.0.1:1/v1")).uncertain_because
    )
    plan = estimate(moved_to("https://api.example/v1"))  # the API never reuses vectors of an emulator
    assert plan.assets_to_send == 70
    assert "not by https://api.example/v1" in plan.every_vector_is_new_because[0]


def test_a_failed_run_leaves_no_incomplete_version(tmp_path, emulator, monkeypatch):
    night = Night(tmp_path, emulator, 19)
    night.run()
    night.add_text()
    monkeypatch.setattr(Store, "open_write", _full_disk_at(Store.open_write, ".faiss"))
    with pytest.raises(UnwritableError, match="cannot be written"):
        night.run()
    assert len(list((tmp_path / "catalog/versions").iterdir())) == 1
    assert list((tmp_path / "catalog/units").iterdir())


def _full_disk_at(open_write, suffix: str):
    @contextlib.contextmanager
    def opened(self, name, **options):
        if name.endswith(suffix):
            raise OSError(28, "No space left on device")
        with open_write(self, name, **options) as file:
            yield file

    return opened


def test_a_catalog_without_latest_json_is_not_started_again(tmp_path, emulator):
    """A new start compares with nothing, so that no gate can detect missing assets."""
    night = Night(tmp_path, emulator, 20)
    for _ in range(2):
        night.add_text()
        night.run()
    pointer = tmp_path / "catalog/LATEST.json"
    kept = pointer.read_bytes()
    pointer.unlink()
    with pytest.raises(CatalogError, match=r"LATEST.json is missing, but .*versions publish"):
        night.run()
    pointer.write_bytes(kept)
    assert night.run()["unchanged"]

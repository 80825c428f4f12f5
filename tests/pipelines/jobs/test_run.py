"""The main job with real processes, a real server and a real catalog."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from epithre_beam.index import open_catalog
from epithre_beam.index.publish.verify import find_damage
from epithre_beam.index.storage.store import Store
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults, Limits
from epithre_beam.transforms.epithre.emulator.hash_model import content_digest, hash_vector

from ..conftest import KEY, sentences, write_images, write_texts

pytestmark = pytest.mark.slow  # a run or several a test

ENGINES = {
    "in_memory": (),
    "multi_threading": ("--direct_running_mode=multi_threading", "--direct_num_workers=2"),
    "multi_processing": ("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
    "bundle_repeat": ("--direct_runner_bundle_repeat=2",),
    "bundle_based": ("--runner=BundleBasedDirectRunner",),
}


def rows_of(catalog: Path, kind: str, version: str = "*"):
    tables = [pq.read_table(p) for p in sorted(catalog.glob(f"versions/{version}/vectors/{kind}-*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def assert_every_vector_is_on_its_own_asset(place, dimension=64):
    """The hash model's vector, a function of the content alone."""
    for row in rows_of(place.catalog, "image"):
        content = Path(row["uri"]).read_bytes()
        assert row["content_sha256"] == hashlib.sha256(content).hexdigest()
        if row["prepared"] is None:
            np.testing.assert_allclose(row["embedding"], hash_vector("image", content, dimension), atol=1e-5)
    for row in rows_of(place.catalog, "text"):
        np.testing.assert_allclose(row["embedding"], hash_vector("text", row["text"].encode(), dimension), atol=1e-5)


def digests(catalog: Path):
    """The version's files, except the manifest and the report, which contain times."""
    (version,) = (catalog / "versions").iterdir()
    files = [
        p for p in version.rglob("*") if p.is_file() and p.name not in {"manifest.json", "report.json", "report.html"}
    ]
    return {str(p.relative_to(version)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


@pytest.mark.core
def test_every_engine_writes_the_same_bytes(place):
    found = {}
    for engine, options in ENGINES.items():
        has_other_hashes = engine == "in_memory"
        done = place.cli("run", "job.yaml", "--", *options, imports_itself=has_other_hashes)
        assert done.returncode == 0, (engine, done.stderr)
        assert_every_vector_is_on_its_own_asset(place)
        found[engine] = digests(place.catalog)
        assert len(found[engine]) == 6
        shutil.rmtree(place.catalog)
    assert all(digest == found["in_memory"] for digest in found.values())


def serve(**settings):
    return Emulator(EmulatorSettings(dimension=64, api_keys=(KEY,), **settings))


FAULTS = (
    "rate_429",
    "error_500",
    "error_503",
    "drop_connection",
    "html_error",
    "truncate_body",
    "out_of_order",
    "missing_item",
    "duplicate_index",
    "nan",
    "wrong_dimension",
    "unnormalised",
    "ignore_base64",
    "hang",
)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_asset_becomes_a_vector_or_dead_letter_under_faults(place, fault):
    with serve(faults=Faults(**{fault: 0.2, "hang_s": 30})) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=4, embed__timeout_s=2)
        done = place.cli("run", "job.yaml", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["counts"]["assets"] == 90
    assert sum(report["counts"]["per_kind"].values()) + report["counts"]["dead"] == 90
    assert report["counts"]["dead"] == 0
    assert_every_vector_is_on_its_own_asset(place)


@pytest.mark.parametrize("names", ["param", "prose", "nowhere"])
def test_only_poisoned_assets_become_dead_letters(place, names):
    with serve(faults=Faults(poison_marker="number 7", poison_names=names)) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = place.cli("run", "job.yaml", "--json")
    assert done.returncode == 0, done.stderr
    letters = json.loads(done.stdout)["dead_letters"]
    assert letters["by_reason"] == {"refused": 1}
    assert letters["samples"]["refused"][0]["asset_id"] == "t007"
    assert_every_vector_is_on_its_own_asset(place)


@pytest.mark.core
@pytest.mark.parametrize("refusal", [401, 402, 403, 404])
def test_permanent_refusals_end_the_run_without_publishing(place, refusal):
    with serve(faults=Faults(refuse_all=refusal)) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = place.cli("run", "job.yaml")
    assert done.returncode == 2  # no retry helps
    assert not (place.catalog / "LATEST.json").exists()
    assert len(sentences(done.stderr)) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert KEY not in done.stderr + done.stdout


@pytest.mark.core
def test_a_run_without_changes_sends_reads_and_writes_nothing(place):
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        assert place.cli("run", "job.yaml").returncode == 0
        billed = emulator.payments()
        assert max(billed.values()) == 1
        before = {path: path.stat().st_mtime_ns for path in place.catalog.rglob("*") if path.is_file()}
        for image in (place.folder / "pictures").iterdir():
            content = image.read_bytes()
            facts = image.stat()
            image.write_bytes(content[::-1])  # a run that reads it fails the test
            os.utime(image, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        emulator.reset()
        done = place.cli("run", "job.yaml", "--json")
        assert done.returncode == 0, done.stderr
        assert not emulator.log
    report = json.loads(done.stdout)
    assert report["status"] == "unchanged"
    assert report["counts"]["reused"] == report["counts"]["unchanged"] == 90
    assert before == {path: path.stat().st_mtime_ns for path in place.catalog.rglob("*") if path.is_file()}


def test_the_same_content_is_sent_once(place):
    images = sorted((place.folder / "pictures").iterdir())
    for i in range(10):
        shutil.copyfile(images[0], place.folder / "pictures" / f"copy{i}.jpg")
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = place.cli("run", "job.yaml", "--json")
        billed = emulator.payments()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["deduplicated"] == 10
    assert max(billed.values()) == 1
    assert len(billed) == 90
    assert_every_vector_is_on_its_own_asset(place)


def test_copies_in_several_units_are_sent_once(place):
    """A placeholder image: 150 copies in units of 16."""
    first = min((place.folder / "pictures").iterdir())
    for i in range(150):
        shutil.copyfile(first, place.folder / "pictures" / f"copy{i}.jpg")
    with serve(faults=Faults(latency_s=0.05)) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = place.cli("run", "job.yaml", "--json")
        billed = emulator.payments()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["deduplicated"] == 150
    assert set(billed.values()) == {1}
    assert_every_vector_is_on_its_own_asset(place)


def finished_contents(catalog: Path) -> set[str]:
    """The contents of finished units, by the emulator's digests."""
    found = set()
    for path in catalog.glob("units/*.parquet"):
        if not path.name.endswith(".dead.parquet"):
            for row in pq.read_table(path, columns=["kind", "uri", "text"]).to_pylist():
                content = row["text"].encode() if row["kind"] == "text" else Path(row["uri"]).read_bytes()
                found.add(content_digest(row["kind"], content).hex())
    return found


def test_a_killed_run_is_finished_without_sending_finished_units_again(place):
    write_images(place.folder / "pictures", 260, seed=9, start=100)
    rng = random.Random(4)
    finished: dict[str, int] = {}
    with serve(faults=Faults(latency_s=0.1)) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=4, embed__max_concurrency=2)
        for _ in range(12):
            # Wait for requests instead of time, because a busy machine starts slowly.
            wanted = len(emulator.log) + rng.randint(0, 16)
            process = place.start("run", "job.yaml")
            while len(emulator.log) < wanted and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.communicate()
            while emulator.stats()["in_service"]:  # requests in flight are answered
                time.sleep(0.01)
            billed = emulator.payments()
            for digest in finished_contents(place.catalog) if place.catalog.exists() else ():
                finished.setdefault(digest, billed[digest])
            if (place.catalog / "LATEST.json").exists():
                assert not list(find_damage(Store(str(place.catalog)), open_catalog(place.catalog).manifest))
        done = place.cli("run", "job.yaml", "--json")
        billed = emulator.payments()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["assets"] == 350
    assert_every_vector_is_on_its_own_asset(place)
    contents = [("image", p.read_bytes()) for p in (place.folder / "pictures").iterdir()]
    contents += [("text", f"text number {i}".encode()) for i in range(50)]
    assert {content_digest(kind, content).hex() for kind, content in contents} == set(billed)
    assert finished
    assert all(billed[digest] == count for digest, count in finished.items())


def test_a_run_leaves_no_temporary_files(place):
    place.write_job(embed__rate_limiter="host")
    temporary = place.folder / "temporary"
    temporary.mkdir()
    done = place.cli("run", "job.yaml", imports_itself=True, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in temporary.rglob("*")] == [
        f"epithre-beam-{os.geteuid()}"
    ]  # the user's own folder, empty


@pytest.mark.core
def test_sigterm_ends_at_once_and_keeps_finished_work(place):
    with serve(faults=Faults(latency_s=0.5)) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=4, embed__max_concurrency=1)
        process = place.start("run", "job.yaml")
        deadline = time.monotonic() + 60
        while not list(place.catalog.glob("units/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.05)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - started < 10
        assert process.returncode == 128 + signal.SIGTERM
        assert "Run the command again" in errors
        finished = finished_contents(place.catalog)
        assert finished
        emulator.reset(faults=Faults())
        assert place.cli("run", "job.yaml").returncode == 0
        assert not finished & set(emulator.payments())


def assert_spread_over_the_minute(emulator, requests_per_minute):
    """All requests of a job together keep the distance of the limit; a busy machine only sends later."""
    instants = [a.decided_ns for a in emulator.log if a.path.endswith("embeddings") and a.decision == "admitted"]
    assert len(instants) >= 20
    assert max(instants) - min(instants) >= ((len(instants) - 1) * 60 / requests_per_minute - 1.5) * 1e9
    assert emulator.worst_window().requests <= requests_per_minute
    assert not [a for a in emulator.log if a.status == 429]


def test_the_rate_limit_holds_over_a_whole_job(place):
    with serve(limits=Limits(requests_per_minute=240)) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=4, embed__requests_per_minute=240)
        done = place.cli("run", "job.yaml", "--json")
        assert_spread_over_the_minute(emulator, 240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["api"]["answers_429"] == 0


@pytest.mark.core
def test_only_new_contents_are_sent_when_sources_change(place):
    """After new, edited, renamed, deleted and copied files, exactly the distinct new contents are sent."""
    images = place.folder / "pictures"
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        assert place.cli("run", "job.yaml").returncode == 0
        names = sorted(p.name for p in images.iterdir())
        emulator.reset()
        new = write_images(images, 3, seed=77, start=500)
        (images / names[0]).rename(images / "renamed.jpg")
        (images / names[1]).unlink()
        shutil.copyfile(images / names[2], images / "copy.jpg")
        os.utime(images / names[3])
        edited = images / names[4]
        edited.write_bytes(write_images(place.folder / "tmp", 1, seed=78)[0].read_bytes())
        lines = (place.folder / "texts.csv").read_text().splitlines()
        lines.insert(1, "t000a,a new text near the top,1")
        lines[10] = "t008,an edited text,2"
        (place.folder / "texts.csv").write_text("\n".join(lines) + "\n")
        done = place.cli("run", "job.yaml", "--json")
        assert done.returncode == 0, done.stderr
        expected = {content_digest("image", p.read_bytes()).hex() for p in [*new, edited]}
        expected |= {content_digest("text", t).hex() for t in (b"a new text near the top", b"an edited text")}
        assert emulator.payments() == dict.fromkeys(expected, 1)
    assert json.loads(done.stdout)["counts"]["embedded"] == 6
    version = open_catalog(place.catalog).version
    for kind in ("image", "text"):
        for row in rows_of(place.catalog, kind, version):
            content = row["text"].encode() if kind == "text" else Path(row["uri"]).read_bytes()
            np.testing.assert_allclose(row["embedding"], hash_vector(kind, content, 64), atol=1e-5)
            assert row["width"] is not None or kind == "text"


@pytest.mark.parametrize(
    ("change", "billed"), [({"prepare__jpeg_quality": 80}, 0), ({"embed__model": "epithre-lyt"}, 90)]
)
def test_a_new_model_or_preparation_sends_what_it_changes(place, change, billed):
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        assert place.cli("run", "job.yaml").returncode == 0
        emulator.reset()
        place.write_job(embed__base_url=emulator.base_url, **change)
        assert place.cli("run", "job.yaml").returncode == 0
        assert len(emulator.payments()) == billed  # every image here is sent unchanged


def test_only_transient_failures_are_retried(place):
    target = place.folder / "pictures" / "p000.jpg"
    content = target.read_bytes()
    target.unlink()
    (place.folder / "pictures.csv").write_text(
        "id,path\n" + "".join(f"{p.name},pictures/{p.name}\n" for p in [target, *sorted(target.parent.iterdir())])
    )
    with serve() as emulator:
        place.write_job(
            embed__base_url=emulator.base_url,
            sources=[{"kind": "image", "table": "pictures.csv", "id": "id", "uri": "path"}],
        )
        done = place.cli("run", "job.yaml", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["dead_letters"]["by_reason"] == {"missing": 1}
        emulator.reset()
        target.write_bytes(content)
        done = place.cli("run", "job.yaml", "--json")
        assert json.loads(done.stdout)["counts"]["dead"] == 0
        assert_every_vector_is_on_its_own_asset(place)


@pytest.mark.core
def test_metadata_changes_send_no_vectors(place):
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        assert place.cli("run", "job.yaml").returncode == 0
        emulator.reset()
        text = (place.folder / "texts.csv").read_text().replace(".5", ".75")
        (place.folder / "texts.csv").write_text(text)
        assert place.cli("run", "job.yaml").returncode == 0
        assert not emulator.payments()
    prices = {row["metadata"]["price"] for row in rows_of(place.catalog, "text", open_catalog(place.catalog).version)}
    assert prices == {i + 0.75 for i in range(50)}


def test_metadata_stays_with_its_own_asset(place):
    assert place.cli("run", "job.yaml").returncode == 0
    assert {r["asset_id"]: r["metadata"]["price"] for r in rows_of(place.catalog, "text")} == {
        f"t{i:03d}": i + 0.5 for i in range(50)
    }
    assert all(r["metadata"] is None or r["metadata"]["price"] is None for r in rows_of(place.catalog, "image"))


@pytest.mark.core
def test_a_gate_holds_a_bad_version_until_it_is_published_manually(place):
    for path in sorted((place.folder / "pictures").iterdir())[:8]:
        path.write_bytes(b"not a picture")
    done = place.cli("run", "job.yaml")
    assert done.returncode == 3, done.stderr
    assert "gates.max_dead_share" in done.stderr
    assert not (place.catalog / "LATEST.json").exists()
    version = next((place.catalog / "versions").iterdir()).name
    assert place.cli("versions", "publish", "catalog", version).returncode == 0
    assert len(open_catalog(place.catalog)) == 82
    place.write_job(gates__max_dead_share=0.1)
    assert place.cli("run", "job.yaml").returncode == 0


def test_near_identical_texts_are_published_and_ties_are_reported(place):
    """Their scores differ by less than fp16 resolution, so that rounding decides the order."""
    with (place.folder / "texts.csv").open("w") as file:
        file.write("id,text\n")
        file.writelines(f"t{i},sepeda merah nomor {i}\n" for i in range(1, 151))
    place.write_job(
        sources=[{"kind": "text", "table": "texts.csv", "id": "id", "text": "text"}],
        embed={"base_url": "emulator"},
        index__target_recall=1.0,
    )
    done = place.cli("run", "job.yaml")
    assert done.returncode == 0, done.stderr
    folder = place.catalog / "versions" / open_catalog(place.catalog).version
    report = json.loads((folder / "report.json").read_text())
    assert report["recall"] == {"text->text": 1.0}
    assert 0.05 < report["ties"]["text->text"] < 0.9
    percent = f"{100 * report['ties']['text->text']:.1f}"
    assert f"recall    text->text 1.000 ({percent}% near ties)" in done.stdout + done.stderr
    assert f"near tie: text-&gt;text {percent} %" in (folder / "report.html").read_text()


def test_full_recall_is_reached_in_few_dimensions(place):
    """In 16 dimensions 3000 vectors lie so close that fp16 swaps a few neighbours."""
    write_texts(place.folder / "texts.csv", 3000)
    place.write_job(
        sources=[{"kind": "text", "table": "texts.csv", "id": "id", "text": "text"}],
        embed__dimension=16,
        index__target_recall=1.0,
        index__recall_queries=1000,
    )
    done = place.cli("run", "job.yaml", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["recall"] == {"text->text": 1.0}
    assert 0 < report["ties"]["text->text"] < 0.02


@pytest.mark.core
def test_a_plan_predicts_the_run(place):
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__requests_per_minute=60)
        plan = json.loads(place.cli("plan", "job.yaml", "--json").stdout)
        assert not emulator.log
        assert not place.catalog.exists()
        report = json.loads(place.cli("run", "job.yaml", "--json", "--set", "embed.requests_per_minute=null").stdout)
        again = json.loads(place.cli("plan", "job.yaml", "--json").stdout)
    assert plan["assets"] == {"image": 40, "text": 50}
    assert plan["requests"] == report["api"]["requests"]
    assert plan["assets_to_send"] == 90
    assert plan["minutes_at_limit"] == pytest.approx(plan["requests"] / 60)
    assert abs(plan["upload_bytes"] / report["api"]["bytes_up"] - 1) < 0.1
    assert (again["assets_to_send"], again["requests"]) == (0, 0)


def test_no_secret_is_anywhere(place):
    with serve() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = place.cli("run", "job.yaml", "--", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
        assert done.returncode == 0
    assert KEY not in done.stdout + done.stderr
    for path in place.folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_photographs_of_every_orientation_reach_the_api_upright(place):
    photos = Path(__file__).parents[4] / "shared" / "data" / "photos"
    if not photos.is_dir():
        pytest.skip(f"Landscape_1.jpg … of github.com/recurser/exif-orientation-examples are not in {photos}")
    for name in ("Landscape", "Portrait"):
        for i in range(1, 9):
            shutil.copyfile(photos / f"{name}_{i}.jpg", place.folder / f"{name}_{i}.jpg")
    sources = [{"kind": "image", "files": "*_[1-8].jpg"}]
    place.write_job(sources=sources, embed__emulator_model="attributes", embed__dimension=4000)
    done = place.cli("run", "job.yaml")
    assert done.returncode == 0, done.stderr
    rows = {row["asset_id"]: row for row in rows_of(place.catalog, "image")}
    assert len(rows) == 16
    for name in ("Landscape", "Portrait"):
        group = [rows[f"{name}_{i}.jpg"] for i in range(1, 9)]
        assert len({(row["width"], row["height"]) for row in group}) == 1
        assert [row["prepared"] for row in group] == [None] + ["upright;jpeg q92;rules 2"] * 7
        vectors = np.array([row["embedding"] for row in group])
        assert (vectors @ vectors.T).min() > 0.99


def test_a_folder_of_ordinary_images_works_by_default(place):
    shutil.rmtree(place.folder / "pictures")
    folder = place.folder / "my photos"
    names = [
        "IMG_0001.JPG", "été à la plage.jpeg", "写真/猫.png", "صور/قطة.webp", "a b/c [1] #2 100%.jpg", "🚲.jpg",
        "e\u0301.jpg", "deep/er/still/x.Jpg", ".hidden.jpg", "notes.txt",
    ]  # fmt: skip
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        source = write_images(place.folder / "tmp", 1, seed=i)[0]
        if name.endswith((".png", ".webp")):
            from PIL import Image

            Image.open(source).save(folder / name)
        else:
            shutil.copyfile(source, folder / name)
    (folder / "a text.jpg").write_text("this is no picture")
    (folder / "empty.jpg").write_bytes(b"")
    with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:  # noqa: PTH123 - bytes that are not UTF-8
        file.write(write_images(place.folder / "tmp", 1, seed=99)[0].read_bytes())
    place.write_job(sources=[{"kind": "image", "files": "my photos"}])
    done = place.cli("run", "job.yaml", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["dead_letters"]["by_reason"] == {"not_a_picture": 1, "empty_file": 1}
    found = {row["asset_id"] for row in rows_of(place.catalog, "image")}
    assert found == {*names[:8], "caf%E9.jpg"}


@pytest.mark.core
def test_image_columns_and_text_files_are_sources(place):
    import pyarrow as pa

    paths = sorted((place.folder / "pictures").iterdir())
    table = pa.table({"sku": [p.stem for p in paths], "jpg": [p.read_bytes() for p in paths]})
    pq.write_table(table, place.folder / "pictures.parquet", row_group_size=7)
    (place.folder / "docs").mkdir()
    for i in range(5):
        (place.folder / "docs" / f"{i}.txt").write_text(f"text in file {i}")
    place.write_job(
        sources=[
            {"kind": "image", "table": "pictures.parquet", "id": "sku", "bytes": "jpg"},
            {"kind": "text", "files": "docs/*.txt"},
        ]
    )
    done = place.cli("run", "job.yaml")
    assert done.returncode == 0, done.stderr
    rows = rows_of(place.catalog, "image")
    assert len(rows) == 40
    for row in rows:
        content = (place.folder / "pictures" / f"{row['asset_id']}.jpg").read_bytes()
        np.testing.assert_allclose(row["embedding"], hash_vector("image", content, 64), atol=1e-5)
    texts = {row["asset_id"]: row["text"] for row in rows_of(place.catalog, "text")}
    assert texts == {f"{i}.txt": f"text in file {i}" for i in range(5)}


def test_an_image_too_large_for_the_api_is_resized_and_noted(place):
    rng = np.random.default_rng(0)
    from PIL import Image

    Image.fromarray(rng.integers(0, 256, (300, 400, 3)).astype(np.uint8)).save(
        place.folder / "pictures" / "large.jpg", quality=95
    )
    with serve(limits=Limits(max_body_bytes=120_000)) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = place.cli("run", "job.yaml", "--json")
    assert done.returncode == 0, done.stderr
    row = next(row for row in rows_of(place.catalog, "image") if row["asset_id"] == "large.jpg")
    assert row["prepared"].startswith("downscaled 200x150")
    assert (row["width"], row["height"]) == (400, 300)
    del rng


def test_texts_keep_their_vectors_when_texts_are_added(place):
    """References decide the content of units: new ones change the units and never mix up rows."""
    assert place.cli("run", "job.yaml").returncode == 0
    first = {row["asset_id"]: row["embedding"] for row in rows_of(place.catalog, "text")}
    write_texts(place.folder / "texts.csv", 70)
    assert place.cli("run", "job.yaml").returncode == 0
    version = open_catalog(place.catalog).version
    second = {row["asset_id"]: row["embedding"] for row in rows_of(place.catalog, "text", version)}
    assert len(second) == 70
    assert all(second[name] == vector for name, vector in first.items())


def test_float16_halves_the_vectors_and_finds_the_same_hits(place):
    place.write_job(index__vector_type="float16", embed__dimension=512)
    assert place.cli("run", "job.yaml").returncode == 0
    with open_catalog(place.catalog) as catalog:
        for kind in ("image", "text"):
            (path,) = place.catalog.glob(f"versions/*/vectors/{kind}-*.parquet")
            table = pq.read_table(path)
            assert str(table.schema.field("embedding").type.value_type) == "halffloat"
            vectors = np.array(table.column("embedding").to_pylist(), np.float32)
            found = catalog.search(vectors, k=1, kinds=(kind,))
            assert [hits[0].asset_id for hits in found] == table.column("asset_id").to_pylist()


@pytest.mark.core
def test_the_report_page_works_offline_and_escapes_ids(place):
    (place.folder / "pictures" / "<script>alert(1)<.jpg").write_text("no picture")
    assert place.cli("run", "job.yaml").returncode == 0
    (page,) = place.catalog.glob("versions/*/report.html")
    text = page.read_text()
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert "not_a_picture" in text
    assert "text-&gt;image" in text
    assert "://" not in text
    assert text.count("<svg") >= 9
    assert "plots are missing" not in text


def test_the_time_series_of_a_report_add_up_to_its_totals(place):
    (place.folder / "pictures" / "none.jpg").write_text("no picture")
    with serve(faults=Faults(latency_s=0.05, error_500=0.2)) as emulator:
        place.write_job(embed__base_url=emulator.base_url, embed__batch_items=4)
        assert place.cli("run", "job.yaml").returncode == 0
    (path,) = place.catalog.glob("versions/*/report.json")
    report = json.loads(path.read_text())
    reported = {name: sum(counts) for name, counts in report["series"]["counts"].items()}
    assert reported == {
        "assets": report["counts"]["assets"],
        "dead": 1,
        "items": report["api"]["items_embedded"],
        "requests": report["api"]["requests"],
        "retries": sum(report["api"]["retries"].values()),
        "answers_429": 0,
    }
    assert reported["retries"] > 0
    assert sum(report["histograms"]["latency_s"]["counts"]) == reported["requests"] - reported["retries"]
    for kind, rows in report["counts"]["per_kind"].items():
        assert sum(report["histograms"]["norm_deviation"][kind]["counts"]) == rows
    assert set(report["histograms"]["scores"]) == set(report["recall"])


@pytest.mark.core
@pytest.mark.parametrize("rate_limiter", ["host", "redis"])
def test_the_rate_limit_holds_over_lanes_in_three_processes(place, rate_limiter, redis_server):
    with serve(limits=Limits(requests_per_minute=240), faults=Faults(latency_s=0.02)) as emulator:
        place.write_job(
            embed__base_url=emulator.base_url,
            embed__batch_items=4,
            embed__requests_per_minute=240,
            embed__rate_limiter=rate_limiter,
            embed__lanes=3,
            **({"embed__redis_url": redis_server.url} if rate_limiter == "redis" else {}),
        )
        options = ("--direct_running_mode=multi_processing", "--direct_num_workers=3")
        done = place.cli("run", "job.yaml", "--json", "--", *options, timeout=170)
        assert done.returncode == 0, done.stderr
        assert_spread_over_the_minute(emulator, 240)
        assert max(emulator.payments().values()) == 1
    assert_every_vector_is_on_its_own_asset(place)
    report = json.loads(done.stdout)
    assert report["api"]["throttled_s"] > 0


def test_a_run_without_redis_fails_with_one_line(place):
    place.write_job(embed__rate_limiter="redis", embed__redis_url="redis://127.0.0.1:9/0")
    done = place.cli("run", "job.yaml")
    assert done.returncode == 1
    assert "redis://127.0.0.1:9/0: the rate limiter cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.core
def test_retry_failed_sends_only_the_dead_letters(place):
    with serve(faults=Faults(poison_marker="number 7")) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        assert json.loads(place.cli("run", "job.yaml", "--json").stdout)["counts"]["dead"] == 1
        emulator.reset(faults=Faults())
        assert json.loads(place.cli("run", "job.yaml", "--json").stdout)["counts"]["dead"] == 1
        assert not emulator.payments()
        done = place.cli("retry-failed", "job.yaml", "--json")
        assert json.loads(done.stdout)["counts"]["dead"] == 0
        assert set(emulator.payments()) == {content_digest("text", b"text number 7").hex()}
    assert_every_vector_is_on_its_own_asset(place)
    version = open_catalog(place.catalog).version
    assert [r["asset_id"] for r in rows_of(place.catalog, "text", version)].count("t007") == 1


def test_costs_are_reported_when_prices_are_configured(place):
    place.write_job(embed__price_per_1000_requests=1000.0)
    planned = json.loads(place.cli("plan", "job.yaml", "--json").stdout)
    report = json.loads(place.cli("run", "job.yaml", "--json").stdout)
    assert planned["cost"] == planned["requests"] == report["api"]["cost"] == report["api"]["requests"]


@pytest.mark.core
def test_beam_metrics_count_what_was_sent(place, monkeypatch):
    import apache_beam as beam

    from epithre_beam.configs import load_config
    from epithre_beam.pipelines.jobs.base import compare
    from epithre_beam.transforms.embed_units import EmbedUnits
    from epithre_beam.transforms.embedding.lane import LaneSetup
    from epithre_beam.transforms.planning.plan import write_plan
    from epithre_beam.transforms.workers.run_folder import RunFolder

    monkeypatch.setenv("EPITHRE_KEY", KEY)
    with serve(limits=Limits(requests_per_minute=100)) as emulator:
        job = load_config(place.write_job(embed__base_url=emulator.base_url, embed__requests_per_minute=100))
        folder = RunFolder(url=job.catalog, version="v")
        folder.begin()
        with compare(job.sources, job.metadata_types) as comparison:
            plan = write_plan(
                folder.store(), "v", comparison, embedding_config_hash="00", unit_references=16, base=None
            )
        setup = LaneSetup(
            run=folder,
            plan=plan.name,
            embed=job.embed,
            prepare=job.prepare,
            sources=job.sources,
            embedding_config_hash="00",
        )
        pipeline = beam.Pipeline(runner="FnApiRunner")
        _ = pipeline | beam.Create(plan.units) | EmbedUnits(setup=setup)
        result = pipeline.run()
        result.wait_until_finish()
        sent = len([a for a in emulator.log if a.path.endswith("embeddings")])
    counters = {c.key.metric.name: c.committed for c in result.metrics().query()["counters"]}
    assert counters["RatelimitRequestsTotal"] == sent
    assert counters["items_sent"] == 90
    assert counters["vectors"] == 90
    assert counters["cumulativeThrottlingSeconds"] >= 1

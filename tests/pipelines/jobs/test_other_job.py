"""A catalog belongs to one job, and a run does not replace most of it without consent."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from epithre_beam.configs import load_config
from epithre_beam.configs.errors import OtherJobError
from epithre_beam.index import Manifest, Store
from epithre_beam.index.versions.latest import latest_bytes, published_manifest, read_latest
from epithre_beam.index.versions.layout import LATEST, manifest_name
from epithre_beam.pipelines.jobs.build_index import build_index, import_vectors
from epithre_beam.pipelines.jobs.estimate import estimate
from epithre_beam.pipelines.jobs.run import run
from epithre_beam.transforms.planning.job_identity import identity_of

from ..conftest import Place, sentences, write_images

pytestmark = pytest.mark.slow  # several runs a test

EMBED = {"base_url": "emulator", "emulator_model": "hash", "dimension": 16}


def write_table(path: Path, of: str, count: int = 12, price: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{of}-{i},a text of {of} about {i},{price}.5" for i in range(count)]
    path.write_text("\n".join(["id,text,price", *rows]) + "\n")
    return path


def write_job(folder: Path, catalog: Path, *tables: str, job: str | None = None, **embed: object) -> Path:
    columns = {"id": "id", "text": "text", "metadata": {"price": "double"}}
    sources = [{"kind": "text", "table": table, **columns} for table in tables]
    config = {"catalog": str(catalog), "sources": sources, "embed": {**EMBED, **embed}}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config | ({} if job is None else {"job": job})))
    return path


def write_image_job(folder: Path, files: str) -> Path:
    path = folder / f"{files}.yaml"
    sources = [{"kind": "image", "files": files}]
    path.write_text(yaml.safe_dump({"catalog": "catalog", "sources": sources, "embed": EMBED}))
    return path


def write_vectors(folder: Path, of: str, count: int = 12) -> str:
    folder.mkdir()
    rows = [{"id": f"{of}-{i}", "kind": "text", "embedding": [1.0, float(i)] * 8} for i in range(count)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
    return str(folder)


def manifest_of(catalog: Path) -> Manifest:
    return published_manifest(Store(str(catalog)))


def ids_of(catalog: Path) -> set[str]:
    tables = (catalog / "versions" / manifest_of(catalog).version / "vectors").glob("*.parquet")
    return {name for path in tables for name in pq.read_table(path, columns=["asset_id"]).column(0).to_pylist()}


def twelve(of: str) -> set[str]:
    return {f"{of}-{i}" for i in range(12)}


class Shops:
    """Two shops with the same layout, each with its own job, and the catalog of the first."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.catalog = folder, folder / "catalog"
        for name in ("a", "b"):
            write_table(folder / name / "products.csv", name)
            write_job(folder / name, self.catalog, "products.csv")

    def run(self, name: str, *sets: str, adopt: bool = False) -> dict:
        return run(load_config(self.folder / name / "job.yaml", sets), adopt=adopt)

    def files(self) -> list[Path]:
        return sorted(path for path in self.catalog.rglob("*") if not path.name.endswith(".lock"))


@pytest.fixture
def shops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shops:
    monkeypatch.delenv("EPITHRE_KEY", raising=False)
    found = Shops(tmp_path)
    assert found.run("a")["counts"]["new"] == 12
    return found


# ---------------------------------------------------------------------------------------------------- identity


def test_another_job_is_refused_before_sending_and_needs_adopt(place: Place, shops: Shops) -> None:
    before, latest = shops.files(), (shops.catalog / LATEST).read_bytes()
    refused = place.cli("run", shops.folder / "b" / "job.yaml", "--json")
    assert refused.returncode == 2
    document = json.loads(refused.stdout)
    assert (document["status"], document["code"]) == ("usage", "other_job")
    (sentence,) = sentences(refused.stderr)
    assert all(f"{shops.folder}/{name}/products.csv" in sentence for name in ("a", "b"))
    assert "0 of its 12 assets: nothing was sent" in sentence
    assert "--adopt" in sentence
    assert (shops.files(), (shops.catalog / LATEST).read_bytes()) == (before, latest)
    adopted = place.cli("run", shops.folder / "b" / "job.yaml", "--json", "--adopt", "--log-format", "json")
    assert adopted.returncode == 0, adopted.stderr
    assert any(json.loads(line)["event"] == "adopted" for line in adopted.stderr.splitlines())
    assert ids_of(shops.catalog) == twelve("b")
    with pytest.raises(OtherJobError):
        shops.run("a")
    assert shops.run("b").get("unchanged")


def test_another_job_is_refused_before_any_request(shops: Shops) -> None:
    """The server does not answer; a run would request its model to decide on reuse."""
    with pytest.raises(OtherJobError):
        shops.run("b", "embed.base_url=http://127.0.0.1:9/v1")


def _moved(shops: Shops) -> Path:
    shutil.move(shops.folder / "a", shops.folder / "elsewhere")
    return shops.folder / "elsewhere" / "job.yaml"


def _copied_with_its_catalog(shops: Shops) -> Path:
    folder = shops.folder / "copy"
    shutil.copytree(shops.folder / "a", folder)
    shutil.copytree(shops.catalog, folder / "catalog")
    return write_job(folder, folder / "catalog", "products.csv")


def _renamed_file(shops: Shops) -> Path:
    path = shops.folder / "a" / "job.yaml"
    return path.rename(path.with_name("nightly.yaml"))


def _another_day(shops: Shops) -> Path:
    """A table with the date in its name; most rows are those of the previous day."""
    write_table(shops.folder / "a" / "products-2026-10-02.csv", "a", 13, price=2)
    return write_job(shops.folder / "a", shops.catalog, "products-2026-10-02.csv")


def _one_more_source(shops: Shops) -> Path:
    write_table(shops.folder / "a" / "more.csv", "more", 30)
    return write_job(shops.folder / "a", shops.catalog, "more.csv", "products.csv")


def _absolute_path(shops: Shops) -> Path:
    return write_job(shops.folder / "jobs", shops.catalog, str(shops.folder / "a" / "products.csv"))


def _named(shops: Shops) -> Path:
    return write_job(shops.folder / "a", shops.catalog, "products.csv", job="shop-a")


def _fewer_for_a_try(shops: Shops) -> Path:
    write_table(shops.folder / "a" / "some.csv", "a", 8)
    return write_job(shops.folder / "a", shops.catalog, "some.csv")


def _another_model(shops: Shops) -> Path:
    shutil.move(shops.folder / "a", shops.folder / "elsewhere")
    return write_job(shops.folder / "elsewhere", shops.catalog, "products.csv", dimension=32)


EDITS = [
    _moved, _copied_with_its_catalog, _renamed_file, _another_day, _one_more_source, _absolute_path, _named,
    _fewer_for_a_try, _another_model,
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_ordinary_edits_keep_the_job(shops: Shops, edit) -> None:
    config = load_config(edit(shops))
    assert estimate(config).another_job is None
    report = run(config)
    assert not report["held_back"]
    job = manifest_of(Path(config.catalog)).job
    assert report.get("unchanged") or job == identity_of(config)


def test_an_image_with_the_same_name_and_another_size_is_different(tmp_path: Path) -> None:
    """Different cameras use the same file names."""
    for name, seed in (("a", 1), ("b", 2)):
        write_images(tmp_path / name, 12, seed=seed)
    sizes = [{path.name: path.stat().st_size for path in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert sum(sizes[0][name] == size for name, size in sizes[1].items()) < 2
    run(load_config(write_image_job(tmp_path, "a")))
    with pytest.raises(OtherJobError, match=r"lists [01] of its 12 assets"):
        run(load_config(write_image_job(tmp_path, "b")))
    shutil.copytree(tmp_path / "a", tmp_path / "b", dirs_exist_ok=True, copy_function=shutil.copyfile)
    assert not run(load_config(tmp_path / "b.yaml"))["held_back"]


def test_a_job_name_decides_the_owner_of_a_catalog(shops: Shops) -> None:
    """Adoption writes a version with the new job name even if no asset changes."""
    write_job(shops.folder / "a", shops.catalog, "products.csv", job="shop")
    write_table(shops.folder / "a" / "products.csv", "a", 13)
    assert not shops.run("a")["held_back"]
    write_job(shops.folder / "b", shops.catalog, "products.csv", job="shop")
    assert shops.run("b", "gates.max_turnover=1")["held_back"] == []
    assert ids_of(shops.catalog) == twelve("b")
    write_job(shops.folder / "b", shops.catalog, "products.csv", job="store")
    with pytest.raises(OtherJobError, match=r"belongs to the job shop \(.*, and this is the job store \("):
        shops.run("b")
    counts = shops.run("b", adopt=True)["counts"]
    assert (counts["unchanged"], counts["embedded"]) == (12, 0)
    assert shops.run("b").get("unchanged")


def test_a_catalog_of_an_older_release_accepts_the_first_job(shops: Shops) -> None:
    store = Store(str(shops.catalog))
    latest = read_latest(store)
    assert latest is not None
    raw = orjson.loads(store.read(manifest_name(latest.version)))
    assert raw.pop("job")["sources"] == [f"text {shops.folder}/a/products.csv"]
    data = orjson.dumps(raw)
    store.write(manifest_name(latest.version), data)
    store.write(LATEST, latest_bytes(latest.version, hashlib.sha256(data).hexdigest()))
    assert shops.run("b", "gates.max_turnover=1")["held_back"] == []
    with pytest.raises(OtherJobError):
        shops.run("a")


def test_of_two_simultaneous_first_jobs_one_is_refused(place: Place) -> None:
    catalog = place.folder / "shared"
    for name in ("a", "b"):
        write_table(place.folder / name / "products.csv", name)
    jobs = [write_job(place.folder / name, catalog, "products.csv") for name in ("a", "b")]
    both = [place.start("run", job, "--quiet") for job in jobs]
    said = [process.communicate(timeout=120) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 2], [0, 4]), said
    winner = codes.index(0)
    assert ids_of(catalog) == twelve("ab"[winner])
    again = place.cli("run", jobs[1 - winner], "--quiet")
    assert again.returncode == 2, again.stderr
    assert ids_of(catalog) == twelve("ab"[winner])


def test_an_import_is_a_job_and_a_new_index_is_not(shops: Shops, tmp_path: Path) -> None:
    catalog = str(shops.catalog)
    build_index(catalog, rebuild=True)
    assert manifest_of(shops.catalog).job == identity_of(load_config(shops.folder / "a" / "job.yaml"))
    with pytest.raises(OtherJobError, match=r"another job, vectors .*/other, which lists 0 of its 12 assets"):
        import_vectors(catalog, write_vectors(tmp_path / "other", "b"))
    same, more, fewer = (write_vectors(tmp_path / f"{count}", "a", count) for count in (12, 15, 4))
    assert not import_vectors(catalog, same)["held_back"]  # ids decide, because contents are unknown
    assert not import_vectors(catalog, more)["held_back"]
    (reason,) = import_vectors(catalog, fewer, ["gates.max_shrinkage=1"])["held_back"]
    assert "11 are gone and 0 changed" in reason
    assert not import_vectors(catalog, str(tmp_path / "other"), adopt=True)["held_back"]
    assert ids_of(shops.catalog) == twelve("b")


# ---------------------------------------------------------------------------------------------------- turnover


def test_the_turnover_gate_holds_a_source_with_other_assets(place: Place, shops: Shops) -> None:
    job = shops.folder / "a" / "job.yaml"
    write_table(shops.folder / "a" / "products.csv", "other")
    held = place.cli("run", job, "--json")
    assert held.returncode == 3, held.stderr
    document = json.loads(held.stdout)
    (reason,) = document["held_back"]
    assert "12 are gone and 0 changed (100.0%)" in reason
    assert "--set" not in reason
    assert f"versions publish {shops.catalog} {document['version']}" in document["message"]
    assert ids_of(shops.catalog) == twelve("a")
    assert estimate(load_config(job)).gate_failures == [reason]
    let = place.cli("versions", "publish", shops.catalog, document["version"])
    assert let.returncode == 0, let.stderr
    assert ids_of(shops.catalog) == twelve("other")
    write_table(shops.folder / "a" / "products.csv", "third")
    assert place.cli("run", job, "--quiet", "--set", "gates.max_turnover=1").returncode == 0
    assert ids_of(shops.catalog) == twelve("third")


@pytest.mark.parametrize("changed", [6, 7])
def test_other_contents_under_the_same_ids_count_as_turnover(shops: Shops, changed: int) -> None:
    table = shops.folder / "a" / "products.csv"
    table.write_text(table.read_text().replace("about", "on", changed))
    held = shops.run("a")["held_back"]
    assert len(held) == (changed == 7)
    assert all("0 are gone and 7 changed (58.3%)" in sentence for sentence in held)


@pytest.mark.parametrize("setting", ["embed.dimension=32", "embed.emulator_model=attributes"])
def test_embedding_again_is_not_turnover_but_other_assets_are(shops: Shops, setting: str) -> None:
    assert shops.run("a", setting)["held_back"] == []
    write_table(shops.folder / "a" / "products.csv", "other")
    report = shops.run("a")
    assert report["every_vector_is_new_because"]
    (reason,) = report["held_back"]
    assert "12 are gone" in reason
    assert estimate(load_config(shops.folder / "a" / "job.yaml")).gate_failures == [reason]


def test_another_preparation_is_not_turnover_but_other_assets_are(shops: Shops) -> None:
    report = shops.run("a", "prepare.max_text_chars=31000")
    assert (report["held_back"], report["every_vector_is_new_because"]) == ([], [])
    write_table(shops.folder / "a" / "products.csv", "other")
    report = shops.run("a", "prepare.max_text_chars=30000")
    assert report["every_vector_is_new_because"] == []
    (reason,) = report["held_back"]
    assert "12 are gone" in reason


def test_new_metadata_and_new_rows_are_not_turnover(shops: Shops) -> None:
    write_table(shops.folder / "a" / "products.csv", "a", 40, price=9)
    assert shops.run("a")["held_back"] == []


def test_touched_or_moved_images_are_not_turnover(
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "pictures", 12)
    config = load_config(write_image_job(tmp_path, "pictures"))
    run(config)
    for image in (tmp_path / "pictures").iterdir():
        os.utime(image, (1, 1))
    plan = estimate(config)
    assert plan.gate_failures == []
    assert "0 are gone and 12 changed" in plan.possible_gate_failures[0]
    assert run(config)["held_back"] == []
    (tmp_path / "pictures").rename(tmp_path / "photos")
    config = load_config(write_image_job(tmp_path, "photos"))
    report = run(config)
    assert (report["held_back"], report["counts"]["touched"]) == ([], 12)
    write_images(tmp_path / "photos", 12, seed=7)
    plan = estimate(config)
    (reason,) = run(config)["held_back"]
    assert "0 are gone and 12 changed" in reason
    assert [*plan.gate_failures, *plan.possible_gate_failures] == [reason]


def test_a_plan_reports_that_the_run_will_fail(place: Place, shops: Shops) -> None:
    shown = place.cli("plan", shops.folder / "b" / "job.yaml")
    assert shown.returncode == 0
    assert "will fail without --adopt" in " ".join(shown.stdout.split())
    document = json.loads(place.cli("plan", shops.folder / "b" / "job.yaml", "--json").stdout)
    assert f"{shops.folder}/b/products.csv" in document["another_job"]
    assert "12 are gone" in document["gate_failures"][0]

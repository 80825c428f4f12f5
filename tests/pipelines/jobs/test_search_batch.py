"""Bulk search: every query gets the hits of a single search exactly once, also after failures."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from epithre_beam.configs.errors import CatalogBusyError, CatalogError, ConfigError, UnwritableError
from epithre_beam.configs.load import load_search_job
from epithre_beam.configs.search_schema import SearchJob
from epithre_beam.index import open_catalog
from epithre_beam.index.search.where import parse_where
from epithre_beam.index.storage.store import Store
from epithre_beam.index.versions.lease import hold
from epithre_beam.pipelines.jobs.build_index import import_vectors
from epithre_beam.pipelines.jobs.launch import Runner
from epithre_beam.pipelines.jobs.search_batch import search_batch

pytestmark = pytest.mark.slow  # a run or several a test

_DIMENSION = 16
_ROWS = 300


def unit_vectors(rows, seed):
    vectors = np.random.default_rng(seed).standard_normal((rows, _DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_vectors(path, vectors, kind="text", prefix="q", **columns):
    table = {
        "id": [f"{prefix}{i}" for i in range(len(vectors))],
        "kind": [kind] * len(vectors),
        "embedding": pa.array(list(vectors), pa.list_(pa.float32())),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**table, **columns}), path, row_group_size=20)


def make_catalog(folder, catalog, seed=0, model="elsewhere", copies=0, overrides=()):
    """Both kinds, with metadata; the first `copies` texts are duplicates."""
    for i, kind in enumerate(("image", "text")):
        vectors = unit_vectors(_ROWS, seed + i)
        if kind == "text" and copies:
            vectors = np.concatenate([vectors, vectors[:copies]])
        rng = np.random.default_rng(seed)
        rows = len(vectors)
        write_vectors(
            folder / kind / "part.parquet",
            vectors,
            kind,
            f"{kind}-",
            uri=[f"https://example.org/{kind}/{j}" for j in range(rows)],
            lang=rng.choice(["id", "en"], rows).tolist(),
            price=rng.random(rows).tolist(),
        )
    import_vectors(str(catalog), str(folder), overrides, model=model, metadata=["lang:string", "price:double"])
    return catalog


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bulk")
    return make_catalog(folder / "vectors", folder / "catalog", copies=5)


@pytest.fixture
def write_job(tmp_path, catalog):
    def write(**changes):
        job = {"catalog": str(catalog), "output": "found", "vectors": [{"files": "queries"}]}
        job = {name: value for name, value in {**job, **changes}.items() if value is not None}
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    write_vectors(tmp_path / "queries" / "a.parquet", unit_vectors(70, 5), "text")
    write_vectors(tmp_path / "queries" / "b.parquet", unit_vectors(30, 6), "image")
    return write


def hits_of(report, output):
    files = sorted((output / report["result"] / "hits").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(path) for path in files])


def by_query(table):
    lists = {}
    for row in table.to_pylist():
        lists.setdefault((row["query_kind"], row["query_id"]), []).append(row)
    return lists


@pytest.mark.parametrize(
    "search",
    [
        {"k": 7},
        {"k": 5, "kinds": ["image"], "min_score": 0.4},
        {"k": 9, "merge": "quota"},
        {"k": 9, "merge": "standardised", "where": {"lang": "id", "price": {"$lt": 0.5}}},
        {"k": 1000, "metadata": ["price"], "columns": ["text", "uri"]},
    ],
)
@pytest.mark.core
def test_hits_equal_those_of_single_searches(search, write_job, catalog, tmp_path):
    report = search_batch(load_search_job(write_job(search=search, block_queries=32)))
    found = by_query(hits_of(report, tmp_path / "found"))
    with open_catalog(catalog) as opened:
        where = search.get("where") and parse_where(search["where"], opened.assets("text").schema)
        for kind, rows, seed in (("text", 70, 5), ("image", 30, 6)):
            lists = opened.search(
                unit_vectors(rows, seed),
                search["k"],
                kinds=search.get("kinds"),
                where=where,
                merge=search.get("merge", "score"),
                query_kind=kind,
            )
            for i, wanted in enumerate(lists):
                wanted = [hit for hit in wanted if hit.score >= search.get("min_score", -2)]
                got = found.pop((kind, f"q{i}"), [])
                assert [row["rank"] for row in got] == list(range(1, len(wanted) + 1))
                assert [(row["kind"], row["asset_id"]) for row in got] == [(h.kind, h.asset_id) for h in wanted]
                assert [row["score"] for row in got] == pytest.approx([hit.score for hit in wanted], abs=1e-6)
                if "metadata" in search:
                    assert [row["metadata"] for row in got] == [{"price": h.metadata["price"]} for h in wanted]
                    assert [(row["uri"], row["text"]) for row in got] == [(h.uri, h.text) for h in wanted]
    assert not found
    assert report["searched"] == 100


@pytest.mark.core
@pytest.mark.parametrize("search", [{"k": 7}, {"k": 200, "merge": "quota", "where": {"lang": "id"}}])
def test_a_catalog_distributed_over_workers_gives_the_same_hits(search, write_job, tmp_path):
    several = make_catalog(
        tmp_path / "v", tmp_path / "several", copies=40, overrides=["index.rows_per_index=50", "index.rows_per_file=25"]
    )
    assert len(list(several.glob("versions/*/index/image-*-of-00008.faiss"))) == 8
    job = {"catalog": str(several), "search": search, "block_queries": 32}
    whole = search_batch(load_search_job(write_job(**job)))
    dealt = search_batch(load_search_job(write_job(**job, worker_index_mb=0.004, output="dealt")))
    assert hits_of(whole, tmp_path / "found").equals(hits_of(dealt, tmp_path / "dealt"))
    again = search_batch(load_search_job(write_job(**job, worker_index_mb=0.004, output="dealt")))
    assert (again["hits"], again["searched"]) == (dealt["hits"], dealt["searched"]) == (whole["hits"], 100)


def test_near_duplicates_exclude_the_asset_itself(write_job, tmp_path):
    job = {"vectors": None, "assets": [{"kind": "text"}]}
    search = {"k": 3, "kinds": ["text"], "min_score": 0.999}
    twice = search_batch(load_search_job(write_job(**job, search=search)))
    pairs = {(r["query_id"], r["asset_id"]) for r in hits_of(twice, tmp_path / "found").to_pylist()}
    planted = {(f"text-{i}", f"text-{_ROWS + i}") for i in range(5)}
    assert pairs == planted | {(b, a) for a, b in planted}
    once = search_batch(load_search_job(write_job(**job, search={**search, "pairs_once": True})))
    assert {(r["query_id"], r["asset_id"]) for r in hits_of(once, tmp_path / "found").to_pylist()} == {
        tuple(sorted(pair)) for pair in planted
    }
    assert once["cut_off"] == 0
    short = search_batch(load_search_job(write_job(**job, search={"k": 1, "kinds": ["text"], "min_score": -1})))
    assert short["cut_off"] == _ROWS + 5


def test_assets_of_another_catalog_need_the_same_model(write_job, tmp_path):
    other = make_catalog(tmp_path / "other", tmp_path / "other-catalog", seed=0)
    job = {"vectors": None, "assets": [{"catalog": str(other), "kind": "image"}], "search": {"k": 1}}
    report = search_batch(load_search_job(write_job(**job)))
    rows = hits_of(report, tmp_path / "found").to_pylist()
    assert len(rows) == _ROWS
    # The same vectors under the same ids: an asset of another catalog is not "itself".
    assert all(row["asset_id"] == row["query_id"] and row["score"] > 0.999 for row in rows)
    different = make_catalog(tmp_path / "third", tmp_path / "third-catalog", model="another")
    with pytest.raises(ConfigError, match=r"assets\[0\].catalog must have the same model: model is .*another"):
        search_batch(load_search_job(write_job(**{**job, "assets": [{"catalog": str(different)}]})))


def test_unknown_ids_are_dead_letters_that_a_gate_counts(write_job, tmp_path):
    (tmp_path / "wanted.csv").write_text("sku\n" + "\n".join(f"image-{i}" for i in (7, 3, 250)) + "\nimage-9999\n")
    job = {"vectors": None, "assets": [{"kind": "image", "ids": "wanted.csv", "id": "sku"}]}
    report = search_batch(load_search_job(write_job(**job)))
    assert {key[1] for key in by_query(hits_of(report, tmp_path / "found"))} == {"image-7", "image-3", "image-250"}
    letters = pq.read_table(tmp_path / "found" / report["result"] / "dead_letters").to_pylist()
    assert [(letter["asset_id"], letter["reason"]) for letter in letters] == [("image-9999", "missing")]
    assert (report["searched"], report["dead"], report["held_back"]) == (3, 1, [])
    (tmp_path / "wanted.csv").write_text("sku\nimage-7\nimage-3\nimage-250\n")
    fixed = search_batch(load_search_job(write_job(**job)))
    assert not (tmp_path / "found" / fixed["result"] / "dead_letters").exists()
    (tmp_path / "wanted.csv").write_text("sku\nimage-9999\n")
    none = search_batch(load_search_job(write_job(**job)))
    assert none["held_back"][-1] == "the only image query got no vector."
    (tmp_path / "wanted.csv").write_text("sku\nimage-7\nimage-3\nimage-250\nimage-9999\n")
    held = search_batch(load_search_job(write_job(**job, gates={"max_dead_share": 0.1}, output="other")))
    assert held["held_back"] == ["gates.max_dead_share allows 10.00%, but 1 of 4 queries (25.0%) got no vector."]
    assert not (tmp_path / "other" / "LATEST.json").exists()


def test_a_text_that_cannot_be_sent_is_a_dead_letter(place):
    assert place.cli("run", "job.yaml", "-q").returncode == 0
    (place.folder / "asked.jsonl").write_text('{"n": 1, "words": "  "}\n')
    job = {"catalog": "catalog", "output": "found", "gates": {"max_dead_share": 1}}
    job["queries"] = [{"kind": "text", "table": "asked.jsonl", "id": "n", "text": "words"}]
    (place.folder / "search.yaml").write_text(yaml.safe_dump(job))
    done = place.cli("search-batch", "search.yaml", "--json", "-q")
    assert done.returncode == 3
    report = json.loads(done.stdout)
    assert report["held_back"] == ["the only text query got no vector."]
    letters = pq.read_table(place.folder / "found" / report["result"] / "dead_letters").to_pylist()
    assert [(letter["asset_id"], letter["reason"]) for letter in letters] == [("1", "empty_text")]
    assert len(hits_of(report, place.folder / "found")) == 0


def test_invalid_vectors_are_dead_letters(write_job, tmp_path):
    vectors = unit_vectors(200, 9)
    vectors[3, 2], vectors[150] = np.nan, 0
    write_vectors(tmp_path / "queries" / "a.parquet", vectors)
    report = search_batch(load_search_job(write_job(search={"k": 2}, block_queries=64)))
    assert (report["searched"], report["dead"]) == (228, 2)
    letters = pq.read_table(tmp_path / "found" / report["result"] / "dead_letters").to_pylist()
    assert {letter["asset_id"]: letter["detail"] for letter in letters} == {
        "q3": "a.parquet row 4: the vector must be finite, got nan as number 3 of 16",
        "q150": "a.parquet row 151: the vector must not be zero",
    }
    again = search_batch(load_search_job(write_job(search={"k": 2}, block_queries=64)))
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in report.items() if k != "seconds"}


def test_an_output_folder_with_other_content_is_refused(write_job, catalog, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in catalog.rglob("*")}
    with pytest.raises(ConfigError, match="is a catalog"):
        search_batch(load_search_job(write_job(output=str(catalog))))
    assert {path: path.stat().st_mtime_ns for path in catalog.rglob("*")} == before
    (tmp_path / "mine" / "results" / "old").mkdir(parents=True)
    with pytest.raises(ConfigError, match="contains 'results', which search-batch did not write"):
        search_batch(load_search_job(write_job(output="mine")))
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["results", "old"]
    (tmp_path / "new").mkdir()
    assert search_batch(load_search_job(write_job(output="new")))["searched"] == 100


def test_errors_of_the_output_name_the_output(write_job, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in ("file/found", "/proc/found"):
        with pytest.raises(ConfigError, match=r"^output '.*' cannot be (created|written)"):
            search_batch(load_search_job(write_job(output=place)))
    with pytest.raises(ConfigError, match=r"^output: .* is a file\. Name a folder"):
        search_batch(load_search_job(write_job(output="file")))
    with (
        hold(Store(str(tmp_path / "found")), "run"),
        pytest.raises(CatalogBusyError, match=r"^output .*: another run is under way") as reported,
    ):
        search_batch(load_search_job(write_job()))
    assert "catalog" not in str(reported.value)
    (tmp_path / "other" / "results").mkdir(parents=True)
    (tmp_path / "other" / "search-batch.json").touch()
    (tmp_path / "other" / "LATEST.json").mkdir()  # LATEST.json cannot be written, which fails at the end
    with pytest.raises(UnwritableError, match=r"^output '.*' cannot be written") as reported:
        search_batch(load_search_job(write_job(output="other")))
    assert "catalog" not in str(reported.value)


def test_a_duplicate_query_is_reported_with_both_lines(place):
    assert place.cli("run", "job.yaml", "-q").returncode == 0
    (place.folder / "asked.csv").write_text("n,words\n1,x\n2,y\n1,z\n")
    job = {"catalog": "catalog", "output": "found"}
    job["queries"] = [{"kind": "text", "table": "asked.csv", "id": "n", "text": "words"}]
    (place.folder / "search.yaml").write_text(yaml.safe_dump(job))
    done = place.cli("search-batch", "search.yaml", "-q")
    assert done.returncode == 1
    for words in ("queries[0] (line 2 of ", "queries[0] (line 4 of "):
        assert words in done.stderr


def test_latest_json_names_the_result_and_old_ones_are_removed(write_job, tmp_path):
    output = tmp_path / "found"
    names = [search_batch(load_search_job(write_job(search={"k": k})))["result"] for k in (1, 2, 3, 3)]
    assert names[2] == names[3]
    latest = json.loads((output / "LATEST.json").read_text())
    assert latest == {"result": names[3], "results": [names[2], names[1]]}
    assert {f"results/{path.name}" for path in (output / "results").iterdir()} == {names[1], names[2]}
    assert not (output / "runs").exists() or not list((output / "runs").iterdir())


@pytest.mark.core
def test_queries_are_embedded_like_single_searches_and_only_once(place):
    assert place.cli("run", "job.yaml", "-q").returncode == 0
    words = [f"what is asked for: number {i}" for i in range(40)]

    def search(*texts):
        lines = "".join(f"{i},{text}\n" for i, text in enumerate(texts))
        (place.folder / "asked.csv").write_text("n,words\n" + lines)
        job = {
            "catalog": "catalog",
            "output": "found",
            "queries": [
                {"kind": "text", "table": "asked.csv", "id": "n", "text": "words"},
                {"kind": "image", "files": "pictures/p00*.jpg"},
            ],
            "search": {"k": 3},
            "embed": {"unit_references": 8},
        }
        (place.folder / "search.yaml").write_text(yaml.safe_dump(job))
        done = place.cli("search-batch", "search.yaml", "--json", "-q")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = search(*words)
    assert (first["searched"], first["embedded"], first["status"]) == (50, 50, "searched")
    found = by_query(hits_of(first, place.folder / "found"))
    shown = place.cli("search", "catalog", "--json", "-k", 3, *(a for w in words[:3] for a in ("--text", w)))
    for i, result in enumerate(json.loads(shown.stdout)["results"]):
        got = found["text", str(i)]
        assert [(row["kind"], row["asset_id"]) for row in got] == [(h["kind"], h["asset_id"]) for h in result["hits"]]
        assert {row["query"] for row in got} == {words[i]}
        assert {row["query_source"] for row in got} == {"queries[0]"}
    # An image of the catalog, sent as a query, finds itself: it is not known to be the same asset.
    assert all(rows[0]["asset_id"] == name for (kind, name), rows in found.items() if kind == "image")
    again = search(*words)
    assert (again["embedded"], again["requests"], again["result"]) == (0, 0, first["result"])
    changed = search("something new at the front", *words)
    assert changed["embedded"] == 1
    assert changed["result"] != first["result"]
    assert len({row["query_id"] for row in hits_of(changed, place.folder / "found").to_pylist()}) == 51


@pytest.mark.core
def test_a_killed_job_resumes_with_the_same_result(write_job, place, tmp_path):
    write_vectors(tmp_path / "queries" / "a.parquet", unit_vectors(1500, 5), "text")
    path = write_job(block_queries=20, search={"k": 50})
    process = place.start("search-batch", path, "--quiet")
    output = tmp_path / "found"
    deadline = time.monotonic() + 60
    while len(list(output.glob("results/*/hits/*.parquet"))) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {p: p.stat().st_mtime_ns for p in output.glob("results/*/hits/*.parquet")}
    assert 5 <= len(before) < 77
    assert not (output / "LATEST.json").exists()
    (output / ".lease.json").unlink(missing_ok=True)
    report = search_batch(load_search_job(path))
    assert all(p.stat().st_mtime_ns == written for p, written in before.items())
    whole = search_batch(load_search_job(write_job(block_queries=20, search={"k": 50}, output="whole")))
    assert hits_of(report, output).equals(hits_of(whole, tmp_path / "whole"))


@pytest.mark.core
def test_several_processes_find_the_same_hits(write_job, tmp_path):
    one = search_batch(load_search_job(write_job(block_queries=20)))
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    two = search_batch(load_search_job(write_job(block_queries=20, output="two")), Runner(beam_options=options))
    assert hits_of(one, tmp_path / "found").equals(hits_of(two, tmp_path / "two"))


def test_example_jobs_parse_and_the_shipped_schema_is_current():
    configs = Path(__file__).parents[3] / "configs"
    jobs = sorted((configs / "searches").glob("*.yaml"))
    assert [load_search_job(job).catalog for job in jobs] == [str(configs / "searches" / "catalog")] * 3
    assert json.loads((configs / "search.schema.json").read_text()) == SearchJob.model_json_schema()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vectors": None}, "the config: there are no queries. Add an entry to `queries`, `vectors` or `assets`"),
        ({"search": {"k": 0}}, "search.k must be at least 1, got 0"),
        ({"search": {"kind": "image"}}, "search.kind is not a known key. Did you mean 'kinds'"),
        (
            {"search": {"metadata": ["colour"]}},
            "search.metadata must name metadata columns of the catalog (lang, price)",
        ),
        ({"search": {"where": {"colour": "red"}}}, "colour"),
        ({"search": {"min_score": 2}}, "search.min_score must be at most 1, got 2"),
        ({"search": {"pairs_once": True}}, "search.pairs_once applies only to `assets`"),
        ({"vectors": [{"files": "nowhere"}]}, "vectors[0].files"),
        ({"assets": [{"ids": "x.csv"}]}, "`ids` needs `kind`"),
        ({"embed": {"model": "other"}}, "embed.model must be the catalog's ('elsewhere'), got 'other'. Remove it"),
        ({"embed": {"dimension": 8}}, "embed.dimension must be the catalog's"),
        ({"embed": {"batch_itms": 8}}, "embed.batch_itms is not a known key. Did you mean 'batch_items'?"),
        ({"embed": {"api_key": "k"}}, "embed.api_key: a config must not contain the key"),
    ],
)
def test_an_invalid_job_is_reported_and_nothing_is_written(changes, sentence, write_job, tmp_path):
    with pytest.raises((ConfigError, ValueError)) as reported:
        search_batch(load_search_job(write_job(**changes)))
    assert sentence in str(reported.value)
    assert not list(tmp_path.glob("found/results/*"))


def test_vectors_of_another_length_are_refused(write_job, tmp_path):
    write_vectors(tmp_path / "short" / "a.parquet", unit_vectors(4, 1)[:, :8])
    with pytest.raises(ConfigError, match=r"vectors\[0\].files must have vectors of 16 dimensions .* got 8"):
        search_batch(load_search_job(write_job(vectors=[{"files": "short"}])))


def test_missing_and_damaged_catalogs_are_reported(write_job, tmp_path):
    with pytest.raises(CatalogError, match="there is no catalog here"):
        search_batch(load_search_job(write_job(catalog=str(tmp_path / "nothing"))))
    broken = make_catalog(tmp_path / "v", tmp_path / "broken")
    index = next(broken.glob("versions/*/index/text-*.faiss"))
    data = bytearray(index.read_bytes())
    data[len(data) // 2] ^= 1
    index.write_bytes(data)
    with pytest.raises(CatalogError, match=r"text-00000-of-00001.faiss"):
        search_batch(load_search_job(write_job(catalog=str(broken))))

"""`evaluate` on real catalogs: it separates model and index errors, compares catalogs and reports invalid labels."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from epithre_beam.configs import IndexConfig
from epithre_beam.configs.errors import CatalogError, ConfigError, QueryError
from epithre_beam.index import open_catalog
from epithre_beam.index.ann.exact import as_stored
from epithre_beam.pipelines.jobs.evaluate import Question, evaluate

from ...index.conftest import clustered_vectors, make
from ..browser import PHONE, keep_screenshot, opened
from ..conftest import Place, sentences, write_images, write_texts

DIMENSION = 64
ROWS = 1500
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def write_pairs(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@dataclass(frozen=True, kw_only=True)
class Known:
    """Vectors with known neighbours, under a coarse index and, in the current version, an exact one."""

    catalog: str
    coarse: str
    exact: str
    pairs: Path
    vectors: dict[str, np.ndarray]
    labels: dict[tuple[str, str], set[str]]
    """Labels by the query's id and the kind of the relevant assets."""


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    versions = [f"00000{i}-20250102T030405Z-abcdef" for i in (1, 2)]
    drawn = {"image": clustered_vectors(ROWS, DIMENSION, 1), "text": clustered_vectors(ROWS, DIMENSION, 2)}
    coarse = IndexConfig(exact_up_to_mb=0, target_recall=0.3, dimensions=(16,))
    make(folder / "c", drawn, rows_per_unit=300, rows_per_file=800, index=coarse, version=versions[0])
    made = make(folder / "c", drawn, rows_per_unit=300, rows_per_file=800, version=versions[1], previous=versions[0])
    ids = {kind: made.assets[kind].column("asset_id").to_pylist() for kind in drawn}
    labels, rows = {}, []
    for query in range(0, 300, 5):
        name = ids["text"][query]
        for kind in drawn:
            order = np.argsort(-(made.vectors[kind] @ made.vectors["text"][query]))
            best = [i for i in order.tolist() if kind == "image" or i != query][:5]
            labels[name, kind] = {ids[kind][i] for i in best}
            row = {"query_kind": "text", "query_id": name, "relevant_kind": kind}
            rows.append({**row, "relevant": sorted(labels[name, kind])})
    return Known(
        catalog=str(folder / "c"),
        coarse=versions[0],
        exact=versions[1],
        pairs=write_pairs(folder / "pairs.jsonl", rows),
        vectors={name: made.vectors["text"][i] for i, name in enumerate(ids["text"])},
        labels=labels,
    )


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """24 images and 30 texts with hash vectors, where only equal texts are similar; one image is invalid."""
    place = Place(tmp_path_factory.mktemp("embedded"))
    write_images(place.folder / "pictures", 24)
    (place.folder / "pictures" / "none.jpg").write_text("no picture")
    texts = write_texts(place.folder / "texts.csv", 30)
    with (place.folder / "texts.csv").open("a") as file:
        file.write("p001.jpg,an id of both kinds,1\n")
        file.write(f'<b>evil</b>,"{HOSTILE}",2\n')
    place.write_job()
    assert place.cli("run", "job.yaml").returncode == 0
    rows = [{"query": text, "relevant": name} for name, text in texts.items()]
    rows += [{"image": f"pictures/p{i:03d}.jpg", "relevant": f"t{i:03d}"} for i in range(10)]
    rows += [{"query": HOSTILE, "relevant": "<b>evil</b>"}, {"query": "nothing " + HOSTILE, "relevant": "t000"}]
    write_pairs(place.folder / "pairs.jsonl", rows)
    return place


def shares_found(known, version, ask):
    """The share of its labels that each query finds; `ask` returns the kinds and ids of the hits."""
    with open_catalog(known.catalog, version=version) as opened_catalog:
        for name, vector in known.vectors.items():
            if (name, "image") in known.labels:
                right = {(kind, one) for kind in ("image", "text") for one in known.labels[name, kind]}
                answer = [hit for hit in ask(opened_catalog, vector) if hit != ("text", name)]
                yield right, answer


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "text"])
def test_errors_of_index_and_model_are_separated(known, kind):
    """The labels are the exact neighbours, so every miss is an error of the index."""
    found = evaluate([(known.catalog, known.coarse)], Question(pairs=known.pairs, ks=(5,)))["directions"]
    found = found[f"text->{kind}"]
    (figures,) = found["catalogs"]
    assert found["queries"] == 60
    assert figures["exact"]["recall@5"]["value"] == pytest.approx(1.0, abs=0.01)  # queries are rounded to fp16

    def ask(opened_catalog, vector):
        (hits,) = opened_catalog.search(vector, 5 if kind == "image" else 6, kinds=kind)
        return [(hit.kind, hit.asset_id) for hit in hits]

    shares = [len(right & set(answer[:5])) / 5 for right, answer in shares_found(known, known.coarse, ask)]
    assert figures["index"]["recall@5"]["value"] == pytest.approx(np.mean(shares), abs=0.01)
    error = figures["index_error"]["recall@5"]
    assert 0 < error["low"] < error["value"] < error["high"]
    assert any("The index finds" in sentence and "it loses" in sentence for sentence in found["words"])
    assert all(failure["cause"] == "index" for failure in found["worst"][:5])


def test_metrics_at_k_use_a_search_with_that_k(known):
    """An index searches more cells for longer lists, so the start of a long list is better than a short one."""
    short = evaluate([(known.catalog, known.coarse)], Question(pairs=known.pairs, ks=(5,)))
    both = evaluate([(known.catalog, known.coarse)], Question(pairs=known.pairs, ks=(5, 100)))
    for direction, found in short["directions"].items():
        figures = both["directions"][direction]["catalogs"][0]["index"]
        assert figures["recall@5"] == found["catalogs"][0]["index"]["recall@5"]
        assert figures["recall@100"]["value"] > figures["recall@5"]["value"]


def test_an_exact_index_makes_no_error(known):
    document = evaluate([(known.catalog, known.exact)], Question(pairs=known.pairs, ks=(1, 5)))
    for found in document["directions"].values():
        errors = [interval["value"] for interval in found["catalogs"][0]["index_error"].values()]
        assert errors == pytest.approx([0.0] * len(errors), abs=0.01)


@pytest.mark.parametrize("merge", [None, "score", "quota", "standardised"])
def test_near_duplicates_do_not_count_as_errors_of_an_exact_index(tmp_path, merge):
    """fp16 cannot order these rows; the labels are the first neighbours of exact search."""
    rng = np.random.default_rng(7)
    drawn = {kind: 1 + 2e-2 * rng.standard_normal((300, DIMENSION)) for kind in ("image", "text")}
    drawn = {k: (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for k, v in drawn.items()}
    made = make(tmp_path / "c", drawn, rows_per_unit=100, rows_per_file=300)
    rows = []
    for kind, vectors in made.vectors.items():
        ids = made.assets[kind].column("asset_id").to_pylist()
        scores = as_stored(vectors).astype("f8") @ vectors.T.astype("f8")  # asset queries use stored vectors
        for query in range(0, 300, 5):
            best = [ids[i] for i in np.argsort(-scores[query]).tolist() if i != query][:5]
            row = {"query_kind": kind, "query_id": ids[query], "relevant_kind": kind, "relevant": best}
            rows.append(row)
    pairs = write_pairs(tmp_path / "pairs.jsonl", rows)
    document = evaluate([(str(made.folder), None)], Question(pairs=pairs, ks=(1, 5), merge=merge))
    for direction, found in document["directions"].items():
        (figures,) = found["catalogs"]
        assert all(interval == {"value": 0, "low": 0, "high": 0} for interval in figures["index_error"].values())
        assert all(failure["cause"] == "model" for failure in found["worst"])
        if direction in {"text->text", "image->image"}:
            assert figures["exact"]["recall@5"]["value"] > 0.9
            assert figures["index"]["recall@5"]["value"] < 0.85
            assert any("loses nothing: the difference is near ties" in sentence for sentence in found["words"])


def test_two_versions_are_compared_on_the_same_labels(known):
    places = [(known.catalog, known.coarse), (known.catalog, known.exact)]
    found = evaluate(places, Question(pairs=known.pairs, ks=(5,)))["directions"]["text->image"]
    difference = found["difference"]["index"]["recall@5"]
    first, second = (figures["index"]["recall@5"] for figures in found["catalogs"])
    assert difference["value"] == pytest.approx(second["value"] - first["value"], abs=1e-5)
    assert difference["low"] > 0
    assert found["difference"]["exact"]["recall@5"]["value"] == 0
    assert any(f"With the index, {known.exact} is better" in sentence for sentence in found["words"])
    assert any("shows no significant difference" in sentence for sentence in found["words"])


@pytest.mark.parametrize("merge", ["score", "quota", "standardised"])
def test_a_merged_list_is_rated_as_search_returns_it(known, merge):
    question = Question(pairs=known.pairs, ks=(10,), merge=merge)
    found = evaluate([(known.catalog, known.exact)], question)["directions"]["text->all"]
    assert found["relevant"] == 600
    if merge == "quota":  # the query itself takes no turn
        assert found["catalogs"][0]["index"]["recall@10"]["value"] == pytest.approx(1.0, abs=0.02)
        return

    def ask(opened_catalog, vector):
        (hits,) = opened_catalog.search(vector, 11, merge=merge, query_kind="text")
        return [(hit.kind, hit.asset_id) for hit in hits]

    shares = [len(right & set(answer[:10])) / len(right) for right, answer in shares_found(known, known.exact, ask)]
    assert found["catalogs"][0]["index"]["recall@10"]["value"] == pytest.approx(np.mean(shares), abs=0.01)


def test_evaluation_is_deterministic(known):
    asked = Question(pairs=known.pairs, ks=(5,))
    assert evaluate([(known.catalog, None)], asked) == evaluate([(known.catalog, None)], asked)


def test_text_and_image_queries_are_embedded_by_the_catalogs_model(embedded):
    done = embedded.cli("evaluate", "catalog", "--pairs", "pairs.jsonl", "--json", "-k", "1,5")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    texts, images = (document["directions"][name] for name in ("text->text", "image->text"))
    assert (texts["queries"], images["queries"]) == (32, 10)
    assert texts["catalogs"][0]["index"]["recall@1"]["value"] == pytest.approx(31 / 32, abs=1e-6)
    assert images["catalogs"][0]["exact"]["recall@5"]["value"] < 0.7  # a hash does not know image content
    assert texts["worst"][0]["query"]["text"] == "nothing " + HOSTILE
    assert texts["worst"][0]["cause"] == "model"
    assert texts["failing"] == 1


def test_the_table_and_the_page_show_the_results(embedded):
    done = embedded.cli(
        "evaluate", "catalog", "--pairs", "pairs.jsonl", "--against", "catalog", "--html", "page.html", COLUMNS="160"
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"recall@1\s+│\s*0\.969 \[", done.stdout)
    assert "shows no significant difference" in done.stdout
    with opened(embedded.folder / "page.html") as page:
        assert page.locator("h1").inner_text() == "Evaluation with labelled queries"
        assert page.locator("svg.plot").count() == 2
        assert page.locator("h2").all_inner_texts() == ["All directions", "image → text", "text → text"]
        assert "B − A, index" in page.locator(".figures thead").first.inner_text()
        page.locator("summary").last.click()
        assert page.get_by_text("nothing <script>").is_visible()
        assert page.locator(".failures img").count() >= 8
        keep_screenshot(page, "evaluation", full_page=True)
    with opened(embedded.folder / "page.html", color_scheme="dark", **PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        keep_screenshot(page, "evaluation-phone", full_page=True)


def ask(place, rows, **question):
    return evaluate(
        [(str(place.catalog), None)], Question(pairs=write_pairs(place.folder / "some.jsonl", rows), **question)
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        pytest.param(
            {"query": "x", "relevant": "t999"}, "neither a vector nor a dead letter of relevant 't999'", id="unknown"
        ),
        pytest.param({"query": "x", "relevant": "t000", "relevant_kind": "image"}, "'t000' (line 1)", id="other kind"),
        pytest.param({"query": "x", "relevant": "p001.jpg"}, "'p001.jpg' is the id of an image and", id="two"),
        pytest.param(
            {"query_kind": "text", "query_id": "t999", "relevant": "t001"}, "'t999' does not exist in", id="query"
        ),
        pytest.param(
            {"query_kind": "image", "query_id": "none.jpg", "relevant": "t000"},
            "image 'none.jpg' is a dead letter",
            id="dead",
        ),
    ],
)
def test_unknown_and_ambiguous_ids_are_reported(embedded, row, words):
    with pytest.raises(ConfigError) as raised:
        ask(embedded, [row])
    assert words in str(raised.value)


def test_an_id_of_both_kinds_is_resolved_by_its_kind(embedded):
    row = {"query_kind": "text", "query_id": "t000", "relevant": "p001.jpg", "relevant_kind": "text"}
    assert list(ask(embedded, [row])["directions"]) == ["text->text"]


def test_a_pair_repeated_without_its_kind_is_a_duplicate(embedded):
    row = {"query_kind": "text", "query_id": "t000", "relevant": "t001"}
    with pytest.raises(ConfigError, match="line 2: relevant 't001' is a duplicate of line 1"):
        ask(embedded, [row, {**row, "relevant_kind": "text"}])


def test_drop_unknown_leaves_out_and_counts_unknown_pairs(embedded):
    rows = [
        {"query_kind": "text", "query_id": "t000", "relevant": ["t001", "t999"]},
        {"query_kind": "text", "query_id": "t002", "relevant": "t998"},
        {"query_kind": "text", "query_id": "t997", "relevant": "t001"},
    ]
    document = ask(embedded, rows, drop_unknown=True)
    assert document["pairs"] | {"file": ""} == {"file": "", "queries": 1, "pairs": 1, "dropped": 3}
    with pytest.raises(ConfigError, match="no labelled pair has"):
        ask(embedded, rows[1:], drop_unknown=True)


def test_dead_letters_count_as_not_found_and_are_reported(embedded):
    row = {"query_kind": "text", "query_id": "t000", "relevant": ["none.jpg", "p000.jpg"], "relevant_kind": "image"}
    found = ask(embedded, [row], ks=(100,))["directions"]["text->image"]
    assert found["catalogs"][0]["exact"]["recall@100"]["value"] == 0.5
    assert found["dead"] == [1]
    assert any(
        "Of the 2 labelled assets, 1 has no vector (1 dead letter) and counts as" in sentence
        for sentence in found["words"]
    )
    alone = ask(embedded, [{**row, "relevant": "none.jpg"}])["directions"]["text->image"]
    assert alone["worst"][0]["cause"] == "dead letter"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--pairs", "none.jsonl"], "none.jsonl", id="no file"),
        pytest.param(["--pairs", "pairs.jsonl", "-k", "0"], "-k must be whole numbers from 1 to 100", id="k of 0"),
        pytest.param(["--pairs", "pairs.jsonl", "-k", "5,x"], "-k must be", id="k of x"),
        pytest.param(["--pairs", "pairs.jsonl", "-k", "101"], "-k must be", id="k beyond"),
        pytest.param(
            ["--pairs", "pairs.jsonl", "--html", "nowhere/x.html"],
            "--html 'nowhere/x.html' cannot be written",
            id="no folder",
        ),
        pytest.param(["--pairs", "pairs.jsonl", "--merge", "sum"], "--merge must be", id="merge"),
        pytest.param(["--pairs", "pairs.jsonl", "--confidence", "95"], "--confidence must be", id="confidence"),
    ],
)
def test_invalid_options_are_reported(embedded, arguments, words, capfd, monkeypatch):
    from epithre_beam.pipelines.commands import cli

    monkeypatch.chdir(embedded.folder)
    monkeypatch.setattr(sys, "argv", ["epithre-beam", "evaluate", "catalog", *arguments])
    monkeypatch.setattr(cli, "_reporter", cli.Reporter())
    assert cli.main() == 2
    (sentence,) = sentences(capfd.readouterr().err)
    assert words in sentence


def test_a_query_that_cannot_be_sent_is_reported_with_its_line(embedded):
    (embedded.folder / "pictures" / "broken.jpg").write_bytes(b"GIF89a")
    rows = [{"query": "x", "relevant": "t000"}, {"image": "pictures/broken.jpg", "relevant": "t001"}]
    with pytest.raises(QueryError, match=r"some.jsonl line 2: the query 'broken.jpg' cannot be sent"):
        ask(embedded, rows)


def test_a_damaged_vector_file_is_reported(known, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(known.catalog, copy)
    path = min((copy / "versions" / known.exact / "vectors").glob("image-*.parquet"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CatalogError, match=path.name):
        evaluate([(str(copy), known.exact)], Question(pairs=known.pairs))


def test_the_command_imports_no_beam():
    program = (
        "import sys, epithre_beam.pipelines.jobs.evaluate, epithre_beam.pipelines.jobs.look\n"
        "assert not {'apache_beam', 'sklearn', 'scipy', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

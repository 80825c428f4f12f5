"""The figures equal those of reference implementations, and invalid labels are refused with their row."""

import json

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import ndcg_score

from epithre_beam.configs.errors import ConfigError
from epithre_beam.transforms.evaluation.figures import (
    SubjectFigures,
    Wanted,
    compare_figures,
    first_ranks,
    mean_intervals,
    recall_curve,
    score_lists,
)
from epithre_beam.transforms.evaluation.labelled import read_labels
from epithre_beam.transforms.evaluation.phrases import say_direction

KS = (1, 3, 10)


def drawn(seed, queries=40, rows=60, width=25):
    """Lists without duplicates, some of them short, and graded labels, some of assets without a vector."""
    rng = np.random.default_rng(seed)
    found = np.array([rng.permutation(rows)[:width] for _ in range(queries)])
    found[rng.random(found.shape) < 0.02] = -1
    query, labelled, grades = [], [], []
    for q in range(queries):
        right = rng.permutation(rows)[: rng.integers(1, 8)]
        query += [q] * len(right)
        labelled += np.where(rng.random(len(right)) < 0.1, -1, right).tolist()
        grades += [float(rng.integers(1, 4)), *rng.integers(0, 4, len(right) - 1).astype(float)]
    wanted = Wanted(queries=queries, query=np.array(query), rows=np.array(labelled), grades=np.array(grades))
    return found, wanted


def naive(found, wanted, ks):
    """The textbook definitions, one query and one rank at a time."""
    figures = {f"recall@{k}": [] for k in ks} | {f"mrr@{ks[-1]}": []} | {f"ndcg@{k}": [] for k in ks}
    for q in range(wanted.queries):
        of_query = wanted.query == q
        grades = {r: g for r, g in zip(wanted.rows[of_query].tolist(), wanted.grades[of_query], strict=True) if r >= 0}
        relevant = int((wanted.grades[of_query] > 0).sum())
        gains = [grades.get(row, 0.0) for row in found[q].tolist()]
        ideal = sorted(wanted.grades[of_query].tolist(), reverse=True)
        for k in ks:
            figures[f"recall@{k}"].append(sum(gain > 0 for gain in gains[:k]) / relevant)
            dcg = sum(gain / np.log2(place + 2) for place, gain in enumerate(gains[:k]))
            figures[f"ndcg@{k}"].append(dcg / sum(g / np.log2(place + 2) for place, g in enumerate(ideal[:k])))
        places = [place for place, gain in enumerate(gains[: ks[-1]], 1) if gain > 0]
        figures[f"mrr@{ks[-1]}"].append(1 / places[0] if places else 0.0)
    return figures


@pytest.mark.parametrize("seed", range(5))
def test_figures_follow_the_definitions(seed):
    found, wanted = drawn(seed)
    computed, expected = score_lists(found, wanted, KS), naive(found, wanted, KS)
    assert list(computed) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(computed[name], values, err_msg=name)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_ndcg_equals_that_of_scikit_learn(k):
    rng = np.random.default_rng(k)
    queries, rows = 12, 30
    grades = rng.integers(0, 4, (queries, rows)).astype(float)
    grades[:, 0] = 1
    scores = rng.permuted(np.tile(np.arange(rows, dtype=float), (queries, 1)), axis=1)
    query, labelled = np.divmod(np.arange(queries * rows), rows)
    wanted = Wanted(queries=queries, query=query, rows=labelled, grades=grades.ravel())
    ours = score_lists(np.argsort(-scores, axis=1), wanted, [k])[f"ndcg@{k}"]
    theirs = [ndcg_score(grades[[q]], scores[[q]], k=k) for q in range(queries)]
    np.testing.assert_allclose(ours, theirs)


def test_figures_do_not_depend_on_label_order():
    found, wanted = drawn(9)
    order = np.random.default_rng(1).permutation(len(wanted.query))
    parts = {"query": wanted.query[order], "rows": wanted.rows[order], "grades": wanted.grades[order]}
    shuffled = score_lists(found, Wanted(queries=wanted.queries, **parts), KS)
    for name, values in score_lists(found, wanted, KS).items():
        np.testing.assert_allclose(shuffled[name], values)


def test_perfect_list_scores_one_and_empty_list_zero():
    wanted = Wanted(queries=1, query=np.zeros(2, int), rows=np.array([4, 7]), grades=np.array([2.0, 1.0]))
    assert {float(one[0]) for one in score_lists(np.array([[4, 7, 1]]), wanted, (2, 5)).values()} == {1.0}
    assert {float(one[0]) for one in score_lists(np.array([[-1, -1]]), wanted, (2, 5)).values()} == {0.0}
    assert first_ranks(np.array([[3, 7]]), wanted) == 2
    assert first_ranks(np.array([[3, 5]]), wanted) == 0
    assert recall_curve(np.array([[4, 3, 7]]), wanted).tolist() == [0.5, 0.5, 1.0]


def test_asset_without_vector_lowers_the_figures():
    alive = Wanted(queries=1, query=np.zeros(2, int), rows=np.array([0, 1]), grades=np.ones(2))
    dead = Wanted(queries=1, query=np.zeros(2, int), rows=np.array([0, -1]), grades=np.ones(2))
    found = np.array([[0, 1]])
    assert score_lists(found, dead, [2])["recall@2"] == 0.5
    assert score_lists(found, dead, [2])["ndcg@2"] < score_lists(found, alive, [2])["ndcg@2"]


def test_intervals_equal_those_of_scipy():
    values = np.random.default_rng(3).beta(2, 5, 200)
    (ours,) = mean_intervals(values[:, None], 0.9)
    theirs = bootstrap(
        (values,), np.mean, confidence_level=0.9, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.08 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.08 * width)


def test_intervals_of_a_difference_are_paired():
    """A small difference between two catalogs with correlated answers is significant."""
    rng = np.random.default_rng(4)
    first = rng.random(300)
    second = first + 0.01 + 0.001 * rng.standard_normal(300)
    apart = mean_intervals(np.stack([first, second], axis=1), 0.95)
    (difference,) = mean_intervals((second - first)[:, None], 0.95)
    assert apart[0].high > apart[1].low
    assert 0.009 < difference.low < difference.value < difference.high < 0.011


def test_intervals_have_the_stated_coverage():
    rng = np.random.default_rng(5)
    inside = 0
    for seed in range(200):
        (interval,) = mean_intervals((rng.random(80) < 0.7).astype(float)[:, None], 0.9, seed=seed)
        inside += interval.low <= 0.7 <= interval.high
    assert 168 <= inside <= 195


def test_single_or_equal_queries_have_zero_width_intervals():
    for values in (np.array([[0.25]]), np.full((50, 1), 0.25)):
        (interval,) = mean_intervals(values, 0.95)
        assert (interval.value, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25))


def subject(index, exact, resolved=None):
    figures = (index, exact, exact if resolved is None else resolved)
    return SubjectFigures(*({"recall@10": np.array(values)} for values in figures))


def compared(index, exact, other=None):
    one = subject(index, exact)
    two = () if other is None else (subject(other, other),)
    found = compare_figures([one, *two], 0.95)
    return {"queries": len(index), "relevant": len(index), "dead": [0] * (1 + len(two)), **found}


def test_sentences_separate_model_error_and_index_error():
    lossless = " ".join(say_direction(compared([1.0] * 30 + [0.0] * 10, [1.0] * 30 + [0.0] * 10), [10], ["c"]))
    assert "finds 75.0 % of the relevant assets among the first 10" in lossless
    assert "the model ranks the other 25.0 % lower" in lossless
    assert "The index finds the same share" in lossless
    lossy = " ".join(say_direction(compared([1.0] * 20 + [0.0] * 20, [1.0] * 40), [10], ["c"]))
    assert "finds all of the relevant assets among" in lossy
    assert "it loses 50.0 points" in lossy
    assert "too few" not in lossy
    assert "12 queries are too few" in " ".join(say_direction(compared([1.0] * 12, [1.0] * 12), [10], ["c"]))


def test_sentences_do_not_count_near_ties_as_loss():
    exact, index = [1.0] * 40, [1.0] * 30 + [0.0] * 10
    figures = compare_figures([subject(index, exact, index)], 0.95)
    assert figures["catalogs"][0]["index_error"]["recall@10"] == {"value": 0, "low": 0, "high": 0}
    assert figures["catalogs"][0]["exact"]["recall@10"]["value"] == 1
    found = {"queries": 40, "relevant": 40, "dead": [0], **figures}
    words = " ".join(say_direction(found, [10], ["c"]))
    assert "The index finds 75.0 % and loses nothing: the difference is near ties" in words


def test_sentences_name_a_significantly_better_catalog_only():
    better = say_direction(compared([0.0] * 40, [0.0] * 40, [1.0] * 30 + [0.0] * 10), [10], ["a", "b"])
    assert any("With the index, b is better in recall@10, by 75.0 points" in sentence for sentence in better)
    worse = say_direction(compared([1.0] * 40, [1.0] * 40, [0.0] * 40), [10], ["a", "b"])
    assert any("a is better in recall@10, by 100.0 points (100.0 to 100.0)" in sentence for sentence in worse)
    rng = np.random.default_rng(2)
    first, second = rng.random(40), rng.random(40)
    none = say_direction(compared(first, first, second), [10], ["a", "b"])
    assert sum("no significant difference" in sentence for sentence in none) == 2


OF_ASSET = {"query_id": "y", "query_kind": "text"}
ROWS = [
    {"query": "sepeda merah", "relevant": "a.jpg", "relevant_kind": "image", "grade": 2},
    {"query": "sepeda merah", "relevant": "b.jpg", "relevant_kind": "image", "grade": 1},
    {"query": "an orange cat", "relevant": "ç 9", "relevant_kind": "text", "grade": 1},
]


def write(folder, name, rows):
    path = folder / name
    if name.endswith(".csv"):
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
        path.write_text("\n".join(lines) + "\n", "utf-8-sig")
    elif name.endswith(".jsonl"):
        path.write_bytes(b"\n\n".join(map(orjson.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_all_formats_give_the_same_labels(tmp_path):
    read = [read_labels(write(tmp_path, f"pairs.{name}", ROWS)) for name in ("csv", "jsonl", "parquet")]
    assert read[0] == read[1] == read[2]
    assert [query.words for query in read[0]] == ["sepeda merah", "an orange cat"]
    assert [(one.asset_id, one.kind, one.grade) for one in read[0][0].relevant] == [
        ("a.jpg", "image", 2.0),
        ("b.jpg", "image", 1.0),
    ]
    places = [[one.place for one in queries[0].relevant] for queries in read]
    assert places == [["line 2", "line 3"], ["line 1", "line 3"], ["row 1", "row 2"]]


def test_list_of_ids_equals_separate_rows(tmp_path):
    listed = [{"query": "x", "relevant": ["a", "b"], "relevant_kind": "image", "grade": [2, 1]}]
    rows = [{"query": "x", "relevant": name, "relevant_kind": "image", "grade": g} for name, g in (("a", 2), ("b", 1))]
    for name in ("one.jsonl", "one.parquet"):
        (query,) = read_labels(write(tmp_path, name, listed))
        (expected,) = read_labels(write(tmp_path, "many.jsonl", rows))
        assert [(one.asset_id, one.kind, one.grade) for one in query.relevant] == [
            (one.asset_id, one.kind, one.grade) for one in expected.relevant
        ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        pytest.param({"query": "x"}, "relevant must be an asset id", id="no relevant"),
        pytest.param({"query": "x", "relevant": []}, "relevant must be an asset id", id="no ids"),
        pytest.param({"query": "x", "relevant": ["a", ""]}, "relevant must be a non-empty text", id="an empty id"),
        pytest.param({"query": "x", "relevant": "a", "grade": -1}, "grade must be a number of at least 0", id="grade"),
        pytest.param({"query": "x", "relevant": "a", "grade": "nan"}, "grade must be", id="NaN"),
        pytest.param({"query": "x", "relevant": "a", "grade": True}, "grade must be", id="truth"),
        pytest.param({"query": "x", "relevant": "a", "grade": 0}, "no asset with a grade above 0", id="nothing right"),
        pytest.param({"query": "x", "relevant": "a", "relevant_kind": "video"}, "image or text", id="kind"),
        pytest.param({"query": "x", "relevant": ["a", "b"], "grade": [1]}, "2 values, one for each id", id="lengths"),
        pytest.param({"query": "x", "query_id": "y", "relevant": "a"}, "exactly one of", id="two queries"),
        pytest.param({"relevant": "a", "grade": 1, "query": None}, "exactly one of", id="no query"),
        pytest.param({"query": "  ", "relevant": "a"}, "non-empty text", id="blank query"),
        pytest.param({"query_id": "y", "relevant": "a"}, "needs a query_kind", id="id without kind"),
        pytest.param({**OF_ASSET, "relevant": "y", "relevant_kind": "text"}, "itself", id="self"),
        pytest.param({"image": "none.jpg", "relevant": "a"}, "no such file", id="missing image"),
        pytest.param({"image": "../secret.jpg", "relevant": "a"}, "below the folder", id="outside"),
        pytest.param({"image": "/etc/hostname", "relevant": "a"}, "below the folder", id="absolute"),
        pytest.param({"image": "link.jpg", "relevant": "a"}, "below the folder", id="a link outside"),
    ],
)
def test_error_names_an_invalid_row(tmp_path, row, words):
    folder = tmp_path / "labels"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(ConfigError, match=words) as raised:
        read_labels(write(folder, "pairs.jsonl", [{"query": "fine", "relevant": "z"}, row]))
    assert "line 3" in str(raised.value) or "'x'" in str(raised.value)


def test_error_names_both_lines_of_a_duplicate_pair(tmp_path):
    with pytest.raises(ConfigError, match=r"line 5.*'a.jpg' is a duplicate of line 2"):
        read_labels(write(tmp_path, "pairs.csv", [*ROWS, ROWS[0]]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param("a.csv", "", "has no rows", id="empty csv"),
        pytest.param("a.csv", "query,relevant\n", "has no rows", id="head only"),
        pytest.param("a.jsonl", "\n\n", "has no rows", id="empty jsonl"),
        pytest.param("a.csv", "query,right\nx,a\n", "column `relevant`", id="no relevant column"),
        pytest.param("a.csv", "relevant,grade\nx,1\n", "one of `query`", id="no query column"),
        pytest.param(
            "a.csv", 'query,relevant\n\n"x\ny",a\nx,a,b\n', "a.csv line 5: 3 cells, but the header has 2", id="ragged"
        ),
        pytest.param("a.jsonl", "[1]\n", "must be a JSON object", id="no object"),
        pytest.param("a.jsonl", "\n{\n", "line 2: invalid JSON", id="no json"),
        pytest.param("a.parquet", "PAR1", "cannot be read as parquet", id="no parquet"),
        pytest.param("a.txt", "x", ".csv, .jsonl or .parquet", id="suffix"),
        pytest.param("none.csv", None, "No such file", id="missing"),
    ],
)
def test_error_names_an_invalid_file(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words) as raised:
        read_labels(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_error_names_a_file_with_invalid_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"query,relevant\n\xff\xfe,a\n")
    with pytest.raises(ConfigError, match="cannot be read as csv"):
        read_labels(tmp_path / "a.csv")


def test_integers_are_valid_ids(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"query": "x", "relevant": [7, "8"]}))
    assert [one.asset_id for one in read_labels(path)[0].relevant] == ["7", "8"]


@pytest.mark.parametrize(
    "name", ["grades", "Grade", " grade", "grad", "relevant kind", "relevance", "query kind", "query_id "]
)
def test_misspelt_column_is_refused(tmp_path, name):
    path = tmp_path / "pairs.csv"
    path.write_text(f"query,relevant,{name}\ncat,a,1\n")
    with pytest.raises(ConfigError, match=f"unknown column '{name}'. Did you mean"):
        read_labels(path)
    for other in (tmp_path / "pairs.jsonl", tmp_path / "pairs.parquet"):
        row = {"query": "cat", "relevant": "a", name: 1}
        if other.suffix == ".jsonl":
            other.write_bytes(orjson.dumps(row))
        else:
            pq.write_table(pa.Table.from_pylist([row]), other)
        with pytest.raises(ConfigError, match="unknown column"):
            read_labels(other)


def test_duplicate_column_is_refused_and_unknown_ones_logged(tmp_path, caplog):
    path = tmp_path / "pairs.csv"
    path.write_text("query,relevant,grade,grade\ncat,a,1,0\n")
    with pytest.raises(ConfigError, match="duplicate column 'grade'"):
        read_labels(path)
    path.write_text("query,relevant,note\ncat,a,fine\n")
    assert len(read_labels(path)) == 1
    assert "ignored columns: 'note'" in caplog.text

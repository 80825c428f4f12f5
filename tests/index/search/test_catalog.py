"""A search returns the same hits as NumPy, and never rows that a condition excludes."""

import functools
import operator
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import IndexConfig
from epithre_beam.configs.errors import ArgumentError
from epithre_beam.index import Hit, Store, open_catalog

from ..conftest import publish_texts

Floats = npt.NDArray[np.float32]


Draw = Callable[..., Floats]


FP16 = 3e-4
"""Maximum difference between a score from fp16 vectors and the exact score."""


def exact_scores(made: Any, query: Floats, kinds: tuple[str, ...]) -> dict[tuple[str, int], float]:
    """Return the inner product of every row with the query, computed by NumPy."""
    return {(k, row): float(s) for k in kinds for row, s in enumerate(made.vectors[k] @ query)}


def assert_best(made: Any, hits: list[Hit], scores: dict[tuple[str, int], float], k: int) -> None:
    """Check that the hits are the k best of `scores`, best first, each with its own score and asset."""
    best = sorted(scores.values(), reverse=True)[:k]
    assert len(hits) == len(best)
    np.testing.assert_allclose([hit.score for hit in hits], best, atol=FP16)
    assert len({(hit.kind, hit.row) for hit in hits}) == len(hits)
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.kind, hit.row], abs=FP16)
        assert_own_asset(made, hit)
    found = [hit.score for hit in hits]
    assert found == sorted(found, reverse=True)


def assert_own_asset(made: Any, hit: Hit) -> None:
    asset = made.assets[hit.kind].slice(hit.row, 1).to_pylist()[0]
    assert (hit.asset_id, hit.uri, hit.text, hit.metadata) == (
        asset["asset_id"],
        asset["uri"],
        asset["text"],
        asset["metadata"],
    )


@pytest.fixture(scope="module")
def gap(make_catalog: Any, draw_vectors: Draw) -> Any:
    """A catalog with a gap between the kinds, like that of a model with a modality gap."""

    def apart(vectors: Floats, sign: float) -> Floats:
        moved = vectors.copy()
        moved[:, 0] += sign
        return moved / np.linalg.norm(moved, axis=1, keepdims=True)

    vectors = {"image": apart(draw_vectors(80, 24, 1), 0.7), "text": apart(draw_vectors(70, 24, 2), -0.7)}
    return make_catalog(vectors, recall_queries=100)


# ---------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("kinds", [("image",), ("text",), ("image", "text"), ("text", "image"), None, "text"], ids=str)
@pytest.mark.parametrize("k", [1, 10, 50, 10_000])
def test_search_returns_the_same_hits_as_numpy(small: Any, draw_vectors: Draw, kinds: Any, k: int) -> None:
    queries = np.concatenate([draw_vectors(10, 16, 3), small.vectors["image"][:5], small.vectors["text"][:5]])
    asked = ("image", "text") if kinds is None else (kinds,) if isinstance(kinds, str) else kinds
    with small.open() as catalog:
        for query, hits in zip(queries, catalog.search(queries, k, kinds=kinds), strict=True):
            assert_best(small, hits, exact_scores(small, query, asked), k)


def test_search_in_4000_dimensions_returns_the_same_hits_as_numpy(make_catalog: Any, draw_vectors: Draw) -> None:
    made = make_catalog({"image": draw_vectors(60, 4000, 1), "text": draw_vectors(40, 4000, 2)}, recall_queries=10)
    queries = draw_vectors(5, 4000, 3)
    with made.open() as catalog:
        for query, hits in zip(queries, catalog.search(queries, 20), strict=True):
            assert_best(made, hits, exact_scores(made, query, ("image", "text")), 20)


def test_every_row_finds_itself_first(small: Any) -> None:
    with small.open() as catalog:
        for kind, vectors in small.vectors.items():
            found = catalog.search(vectors, 1, kinds=kind)
            assert [hits[0].row for hits in found] == list(range(len(vectors)))
            assert [hits[0].score for hits in found] == pytest.approx([1.0] * len(vectors), abs=FP16)


def test_search_accepts_all_array_forms(small: Any, draw_vectors: Draw) -> None:
    """One row, lists, doubles and strided arrays return the same hits."""
    queries = draw_vectors(4, 16, 3)
    with small.open() as catalog:
        expected = catalog.search(queries, 5)
        for form in (queries.tolist(), np.asfortranarray(queries), queries.astype("f8"), np.repeat(queries, 2, 0)[::2]):
            assert catalog.search(form, 5) == expected
        assert [catalog.search(query, 5)[0] for query in queries] == expected
        assert catalog.search(np.empty((0, 16)), 5) == []
        assert catalog.search(queries, np.int64(5)) == expected  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- the merges


def test_merge_by_score_favours_the_kind_of_the_query(gap: Any) -> None:
    with gap.open() as catalog:
        for kind, vectors in gap.vectors.items():
            kinds = [hit.kind for hits in catalog.search(vectors[:20], 10) for hit in hits]
            assert kinds.count(kind) > 0.9 * len(kinds)


@pytest.mark.parametrize("k", [1, 2, 9, 10])
def test_merge_by_quota_alternates_between_kinds(gap: Any, k: int) -> None:
    queries = gap.vectors["image"][:8]
    with gap.open() as catalog:
        own = {kind: catalog.search(queries, k, kinds=kind) for kind in gap.vectors}
        for q, hits in enumerate(catalog.search(queries, k, merge="quota")):
            assert len(hits) == k
            for i in range(0, k - 1, 2):
                assert {hits[i].kind, hits[i + 1].kind} == {"image", "text"}
            for kind, alone in own.items():
                chosen = [hit for hit in hits if hit.kind == kind]
                assert chosen == alone[q][: len(chosen)]


def test_merge_by_quota_fills_up_with_the_other_kind(make_catalog: Any, draw_vectors: Draw) -> None:
    made = make_catalog({"image": draw_vectors(30, 8, 1), "text": draw_vectors(2, 8, 2)})
    with made.open() as catalog:
        kinds = [hit.kind for hit in catalog.search(draw_vectors(1, 8, 3), 10, merge="quota")[0]]
    assert (len(kinds), kinds.count("text")) == (10, 2)


@pytest.mark.parametrize("query_kind", ["image", "text"])
def test_merge_standardised_orders_by_standard_deviations_above_the_mean(gap: Any, query_kind: Any) -> None:
    queries = gap.vectors[query_kind][:10]
    figures = {kind: gap.index(kind).scores[f"{query_kind}->{kind}"] for kind in gap.vectors}
    with gap.open() as catalog:
        for query, hits in zip(
            queries, catalog.search(queries, 20, merge="standardised", query_kind=query_kind), strict=True
        ):
            exact = exact_scores(gap, query, ("image", "text"))
            standard = {key: (s - figures[key[0]].mean) / figures[key[0]].std for key, s in exact.items()}
            best = sorted(standard.values(), reverse=True)[:20]
            np.testing.assert_allclose([standard[hit.kind, hit.row] for hit in hits], best, atol=0.01)
            assert {hit.kind for hit in hits} == {"image", "text"}  # no gap any more
            for hit in hits:
                assert hit.score == pytest.approx(exact[hit.kind, hit.row], abs=FP16)


def test_score_figures_cover_all_pairs(gap: Any) -> None:
    """This catalog was built with all rows as queries."""
    for kind, vectors in gap.vectors.items():
        for query_kind, queries in gap.vectors.items():
            scores, figures = queries @ vectors.T, gap.index(kind).scores[f"{query_kind}->{kind}"]
            assert (figures.mean, figures.std) == pytest.approx((scores.mean(), scores.std()), abs=1e-4)


def test_merges_agree_for_a_single_kind(small: Any, draw_vectors: Draw) -> None:
    queries = draw_vectors(4, 16, 5)
    with small.open() as catalog:
        expected = catalog.search(queries, 7, kinds="text")
        assert catalog.search(queries, 7, kinds="text", merge="quota") == expected
        assert catalog.search(queries, 7, kinds="text", merge="standardised", query_kind="image") == expected


# ---------------------------------------------------------------------------------------------------- conditions

Condition = tuple[pc.Expression, Callable[[dict[str, Any]], bool | None]]


def compared(field: tuple[str, ...], word: str, value: Any) -> Condition:
    compare = getattr(operator, word)

    def holds(asset: dict[str, Any]) -> bool | None:
        found = functools.reduce(operator.getitem, field, asset)
        return None if found is None else bool(compare(found, value))

    return compare(pc.field(*field), value), holds


ORDER = st.sampled_from(["lt", "ge", "eq", "ne"])


SAME = st.sampled_from(["eq", "ne"])


CONDITIONS: st.SearchStrategy[Condition] = st.one_of(
    st.builds(
        compared, st.just(("metadata", "lang")), st.sampled_from(["eq", "ne"]), st.sampled_from(["id", "en", "x"])
    ),
    st.builds(compared, st.just(("metadata", "price")), ORDER, st.integers(0, 70).map(lambda i: i / 10)),
    st.builds(compared, st.just(("size_bytes",)), ORDER, st.integers(990, 1070)),
    st.builds(compared, st.just(("kind",)), SAME, st.sampled_from(["image", "text"])),
    st.builds(compared, st.just(("asset_id",)), ORDER, st.integers(0, 70).map(lambda i: f"image {i:05d}")),
)


@settings(max_examples=80, deadline=None)
@given(conditions=st.lists(CONDITIONS, min_size=1, max_size=3), k=st.sampled_from([1, 5, 200]))
def test_condition_returns_the_best_matching_rows_only(
    small: Any, draw_vectors: Draw, conditions: list[Condition], k: int
) -> None:
    """Conditions are joined by `&`. A condition on a missing value does not match."""
    where = functools.reduce(operator.and_, (expression for expression, _ in conditions))
    meets = {
        (kind, row)
        for kind, table in small.assets.items()
        for row, asset in enumerate(table.to_pylist())
        if all(holds(asset) for _, holds in conditions)
    }
    queries = draw_vectors(3, 16, 8)
    with small.open() as catalog:
        for query, hits in zip(queries, catalog.search(queries, k, where=where), strict=True):
            assert {(hit.kind, hit.row) for hit in hits} <= meets
            scores = {key: s for key, s in exact_scores(small, query, ("image", "text")).items() if key in meets}
            assert_best(small, hits, scores, k)


@pytest.mark.parametrize("merge", ["score", "quota", "standardised"])
def test_condition_applies_in_every_merge(small: Any, draw_vectors: Draw, merge: Any) -> None:
    where = (pc.field("metadata", "lang") == "en") | (pc.field("metadata", "price").is_null())
    with small.open() as catalog:
        for hits in catalog.search(draw_vectors(5, 16, 8), 30, where=where, merge=merge, query_kind="text"):
            assert len(hits) == 30
            assert all(hit.metadata["lang"] == "en" or hit.metadata["price"] is None for hit in hits)


@pytest.mark.parametrize(
    "where",
    [
        pc.field("nope") == 1,
        pc.field("metadata", "nope") == 1,
        pc.field("size_bytes"),
    ],
    ids=str,
)
def test_invalid_condition_raises_and_lists_the_columns(small: Any, draw_vectors: Draw, where: Any) -> None:
    with (
        small.open() as catalog,
        pytest.raises(ValueError, match=r"where must be a condition on .*'asset_id'.*") as caught,
    ):
        catalog.search(draw_vectors(1, 16), where=where)
    assert len(str(caught.value).splitlines()) == 1


# ---------------------------------------------------------------------------------------------------- wrong calls


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"k": 0}, "k must be a whole number from 1 to 10000, got 0"),
        ({"k": -1}, "k must be a whole number from 1 to 10000, got -1"),
        ({"k": 10_001}, "k must be a whole number from 1 to 10000, got 10001"),
        ({"k": 1.0}, "k must be a whole number from 1 to 10000, got 1.0"),
        ({"k": True}, "k must be a whole number from 1 to 10000, got True"),
        ({"k": "3"}, "k must be a whole number from 1 to 10000, got '3'"),
        ({"vectors": np.zeros((2, 15))}, r"vectors must have the shape \(n, 16\), got \(2, 15\)"),
        ({"vectors": np.zeros((1, 2, 16))}, r"vectors must have the shape \(n, 16\), got \(1, 2, 16\)"),
        ({"vectors": []}, r"vectors must have the shape \(n, 16\), got \(0,\)"),
        ({"vectors": 1.0}, r"vectors must have the shape \(n, 16\), got \(\)"),
        ({"vectors": None}, "vectors must"),
        ({"vectors": "a sentence"}, r"vectors must be numbers with the shape \(n, 16\)"),
        ({"vectors": [[1.0] * 16, [1.0]]}, r"vectors must be numbers with the shape \(n, 16\)"),
        ({"vectors": np.full((1, 16), 1j)}, r"vectors must be numbers with the shape \(n, 16\): got complex numbers"),
        ({"vectors": np.full((1, 16), np.nan)}, "vectors must be finite, got nan as number 1 of vector 1"),
        ({"vectors": np.diag([1] * 15 + [np.inf])[9:]}, "vectors must be finite, got inf as number 16 of vector 7"),
        ({"vectors": np.full((1, 16), np.inf)}, "vectors must be finite, got inf"),
        ({"vectors": np.full((1, 16), 1e300)}, "vectors must be finite, got inf"),
        ({"kinds": "audio"}, r"kinds must be among \('image', 'text'\), got 'audio'"),
        ({"kinds": ("image", "audio")}, r"kinds must be among \('image', 'text'\), got 'audio'"),
        ({"kinds": ()}, r"kinds must be some of \('image', 'text'\), got \(\)\. Omit it for all kinds"),
        ({"kinds": iter(())}, r"kinds must be some of \('image', 'text'\), got <.*>\. Omit it for all kinds"),
        ({"kinds": 5}, r"kinds must be among \('image', 'text'\), got 5"),
        ({"kinds": [["image"]]}, r"kinds must be among \('image', 'text'\), got \['image'\]"),
        ({"kinds": [None]}, r"kinds must be among \('image', 'text'\), got None"),
        ({"recall": "0.9"}, "recall must be from 0 to 1, got '0.9'"),
        ({"recall": -0.1}, "recall must be from 0 to 1, got -0.1"),
        ({"recall": float("nan")}, "recall must be from 0 to 1, got nan"),
        ({"recall": True}, "recall must be from 0 to 1, got True"),
        ({"recall": 1.5}, "recall must be from 0 to 1, got 1.5"),
        ({"where": True}, r"where must be a pyarrow expression, got bool\. Use `parse_where\("),
        (
            {"where": pc.field("lang") == "id"},
            r"where: 'lang' is a metadata column\. Name it as pc\.field\(\"metadata\", \"lang\"\)",
        ),
        (
            {"where": pc.field("metadata", "price") > "much"},
            r"where: pc\.field\(\"metadata\", \"price\"\) has the type double and is compared with \"much\", of the",
        ),
        ({"where": {"lang": "id"}}, r"where must be a pyarrow expression, got dict\. Use `parse_where\("),
        ({"where": '{"lang": "id"}'}, r"where must be a pyarrow expression, got str\. Use `parse_where\("),
        ({"merge": ["score"]}, r"merge must be 'score', 'quota' or 'standardised', got \['score'\]"),
        ({"merge": None}, "merge must be 'score', 'quota' or 'standardised', got None"),
        ({"query_kind": "video"}, "query_kind must be 'image' or 'text', got 'video'"),
        ({"merge": "best"}, "merge must be 'score', 'quota' or 'standardised', got 'best'"),
        ({"merge": "standardised"}, "merge='standardised' needs query_kind\\. Set it to 'image' or 'text'"),
        ({"merge": "standardised", "query_kind": "audio"}, "query_kind must be 'image' or 'text', got 'audio'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else repr(value).partition(" object at ")[0][:40],
)
@pytest.mark.filterwarnings("error")
def test_search_raises_for_invalid_arguments_with_rule_and_value(
    small: Any, draw_vectors: Draw, arguments: dict[str, Any], sentence: str
) -> None:
    with small.open() as catalog, pytest.raises(ValueError, match=f"^{sentence}.*\\.$"):
        catalog.search(**{"vectors": draw_vectors(1, 16), **arguments})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: c.find_rows(np.eye(1, 16), kind=None), "kind must be among"),
        (lambda c: c.find_rows(np.eye(1, 16), kind=("image", "text")), "kind must be among"),
        (lambda c: c.find_rows(np.eye(1, 16), kind=["image"]), "kind must be among"),
        (lambda c: c.assets(None), "kind must be among"),
        (lambda c: c.assets("audio"), "kind must be among"),
        (lambda c: c.find_asset(None, "image 00001"), "kind must be among"),
        (lambda c: c.asset({}, 0), "kind must be among"),
        (lambda c: c.asset("image", 61), "rows must be from 0 to 60, got 61"),
        (lambda c: c.asset("image", -1), "rows must be from 0 to 60, got -1"),
        (lambda c: c.asset("image", "0"), "rows must be whole numbers"),
        (lambda c: c.vectors("image", [[1], [2, 3]]), "rows must be whole numbers in one dimension"),
        (lambda c: c.vectors("image", 1.5), "rows must be whole numbers in one dimension"),
        (lambda c: c.vectors("image", None), "rows must be whole numbers in one dimension"),
        (lambda c: c.vectors("image", [0.0]), "rows must be whole numbers in one dimension"),
    ],
)
def test_other_methods_raise_for_invalid_arguments(small: Any, call: Any, sentence: str) -> None:
    with small.open() as catalog, pytest.raises(ArgumentError, match=f"^{sentence}.*\\.$"):
        call(catalog)


def test_closed_catalog_raises(small: Any, draw_vectors: Draw) -> None:
    with small.open() as catalog:
        assert len(catalog) == 106
    catalog.close()  # a second call is no error
    calls = (
        lambda: catalog.search(draw_vectors(1, 16)),
        lambda: catalog.assets("image"),
        lambda: len(catalog),
        lambda: catalog.kinds,
    )
    for call in calls:
        with pytest.raises(ValueError, match="The catalog is closed"):
            call()


def test_catalog_with_one_kind_raises_for_the_other(make_catalog: Any, draw_vectors: Draw) -> None:
    made = make_catalog({"text": draw_vectors(12, 8)})
    with made.open() as catalog:
        assert catalog.kinds == ("text",)
        with pytest.raises(ValueError, match=r"kinds must be among \('text',\), got 'image'\."):
            catalog.search(draw_vectors(1, 8), kinds="image")
        with pytest.raises(ValueError, match="needs the score figures of image->text"):
            catalog.search(draw_vectors(1, 8), merge="standardised", query_kind="image")


def test_open_catalog_has_version_kinds_and_repr(small: Any) -> None:
    with small.open() as catalog:
        assert catalog.version == small.manifest.version
        assert (catalog.dimension, catalog.kinds, len(catalog)) == (16, ("image", "text"), 106)
        assert repr(catalog) == (
            f"Catalog({str(small.folder)!r}, version={catalog.version!r}, assets={{'image': 61, 'text': 45}})"
        )


# ---------------------------------------------------------------------------------------------------- threads


def test_search_is_thread_safe(small: Any, draw_vectors: Draw) -> None:
    queries = draw_vectors(40, 16, 3)
    where = pc.field("metadata", "lang") == "id"
    with small.open() as catalog:
        plain, limited = catalog.search(queries, 10), catalog.search(queries, 10, where=where)

        def ask(i: int) -> bool:
            if i % 2:
                return catalog.search(queries, 10) == plain
            return catalog.search(queries, 10, where=where) == limited

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(64)))


def test_close_does_not_break_running_searches(small: Any, draw_vectors: Draw) -> None:
    queries = draw_vectors(40, 16, 3)
    catalog = small.open()
    expected = catalog.search(queries, 10)
    begun = threading.Barrier(5)

    def ask_until_closed() -> int:
        begun.wait(20)
        answered = 0
        while True:
            try:
                assert catalog.search(queries, 10) == expected
            except ValueError:
                return answered
            answered += 1

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask_until_closed) for _ in range(4)]
        begun.wait(20)
        threading.Event().wait(0.1)
        catalog.close()
        assert all(future.result(20) > 0 for future in asked)


# ---------------------------------------------------------------------------------------------------- equal scores


@pytest.fixture(scope="module")
def shuffled(make_catalog: Any, draw_vectors: Draw) -> Any:
    """The same assets, many of them duplicates, in three row orders."""
    copies = {"image": [60, 9, 3, *[1] * 20], "text": [40, 20, 2, *[1] * 10]}
    vectors = {
        kind: np.repeat(draw_vectors(len(counts), 24, seed), counts, axis=0)
        for seed, (kind, counts) in enumerate(copies.items(), 1)
    }
    made = []
    for seed, rows_per_unit in enumerate((13, 7, 50)):
        orders = {kind: np.random.default_rng([seed, 5]).permutation(len(rows)) for kind, rows in vectors.items()}
        made.append(
            make_catalog(
                {kind: rows[orders[kind]] for kind, rows in vectors.items()},
                numbers={kind: order.tolist() for kind, order in orders.items()},
                rows_per_unit=rows_per_unit,
                recall_queries=200,  # all rows: a sample, and thus `standardised`, would depend on the order
            )
        )
    return made


def reported(results: list[list[Hit]]) -> list[list[tuple[Any, ...]]]:
    """Return all fields of each hit except the row."""
    return [[(h.asset_id, h.kind, h.uri, h.text, h.score, h.metadata) for h in hits] for hits in results]


@pytest.mark.parametrize("merge", ["score", "quota", "standardised"])
@pytest.mark.parametrize("kinds", [("image",), ("text", "image")], ids=str)
@pytest.mark.parametrize("where", [None, pc.field("metadata", "lang") == "id"], ids=["all", "where"])
def test_hits_do_not_depend_on_row_order(shuffled: Any, draw_vectors: Draw, merge: Any, kinds: Any, where: Any) -> None:
    vectors = shuffled[0].vectors
    queries = np.concatenate([draw_vectors(6, 24, 9), vectors["image"][:10], vectors["text"][:10]])
    catalogs = [made.open() for made in shuffled]
    for k in (1, 2, 3, 5, 9, 10, 20, 39, 40, 41, 60, 61, 100, 500):
        found = [
            reported(catalog.search(queries, k, kinds=kinds, merge=merge, query_kind="text", where=where))
            for catalog in catalogs
        ]
        assert found[0] == found[1] == found[2]


def test_equal_scores_are_ordered_by_kind_then_id_for_any_k(shuffled: Any, draw_vectors: Draw) -> None:
    queries = np.concatenate([draw_vectors(3, 24, 9), shuffled[0].vectors["image"][:8]])
    with shuffled[0].open() as catalog:
        for every, k in [(hits, k) for hits in [catalog.search(queries, 1000)] for k in (1, 7, 30, 59, 60, 90)]:
            for hits in every:
                assert len(hits) == len(catalog)
                assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.kind, hit.asset_id))
            assert catalog.search(queries, k) == [hits[:k] for hits in every]


def test_hits_of_duplicates_are_ordered_by_id(make_catalog: Any, draw_vectors: Draw) -> None:
    order = np.random.default_rng(3).permutation(300)
    made = make_catalog({"text": np.repeat(draw_vectors(1, 8, 1), 300, axis=0)}, numbers={"text": order.tolist()})
    with made.open() as catalog:
        for k in (1, 10, 299, 300, 301):
            found = [hit.asset_id for hit in catalog.search(draw_vectors(1, 8, 2), k)[0]]
            assert found == [f"text {i:05d}" for i in range(min(k, 300))]


# ---------------------------------------------------------------------------------------------------- single assets


def test_every_asset_is_found_by_id_with_its_fields(small: Any) -> None:
    with small.open() as catalog:
        for kind, table in small.assets.items():
            for row, asset in enumerate(table.to_pylist()):
                assert catalog.find_asset(kind, asset["asset_id"]) == row
                said = catalog.asset(kind, row)
                assert (said.kind, said.row) == (kind, row)
                for name in (
                    "asset_id",
                    "uri",
                    "text",
                    "content_sha256",
                    "media_type",
                    "size_bytes",
                    "width",
                    "height",
                ):
                    assert getattr(said, name) == asset[name]
        assert catalog.metadata_types == {"lang": "string", "price": "double"}
        assert catalog.url == str(small.folder)


def test_find_asset_handles_any_unicode_id_before_and_after_sorting(draw_vectors: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters = list("aZ0 é\u00ad漢\uffff\U0001f600\U0010ffff")
    ids = list({"".join(rng.choice(letters, rng.integers(1, 6))) for _ in range(300)})
    absent = [f"{name}{letter}" for name in ids for letter in ("", *letters) if f"{name}{letter}" not in set(ids)]
    publish_texts(Store(str(tmp_path)), {}, {"asset_id": ids}, draw_vectors(len(ids), 8), IndexConfig())
    with open_catalog(tmp_path) as catalog:
        for _ in range(3):  # the hundredth call sorts the ids
            assert [catalog.find_asset("text", name) for name in ids] == list(range(len(ids)))
            assert {catalog.find_asset("text", name) for name in (*absent, "\ud800", None)} == {None}  # type: ignore[arg-type]


def test_find_asset_returns_none_for_unknown_ids(small: Any) -> None:
    with small.open() as catalog:
        for wrong in ("image 1", "", "text 00001", "image 00001 ", "\ud800", "x" * 100_000, None, 3):
            assert catalog.find_asset("image", wrong) is None  # type: ignore[arg-type]


def test_vectors_are_returned_in_requested_order(small: Any) -> None:
    rng = np.random.default_rng(0)
    with small.open() as catalog:
        for kind, vectors in small.vectors.items():
            rows = rng.integers(0, len(vectors), 200)
            found = catalog.vectors(kind, rows)
            assert (found.dtype, found.shape) == (np.float32, (200, 16))
            np.testing.assert_allclose(found, vectors[rows], atol=FP16)
            assert catalog.vectors(kind, []).shape == (0, 16)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([-1], "rows must be from 0 to 60, got -1"),
        ([0, 61], "rows must be from 0 to 60, got 61"),
        ([1.0], "rows must be whole numbers in one dimension"),
        ([True], "rows must be whole numbers in one dimension"),
        (3, "rows must be whole numbers in one dimension"),
        (["1"], "rows must be whole numbers in one dimension"),
    ],
    ids=str,
)
def test_invalid_rows_raise(small: Any, rows: Any, sentence: str) -> None:
    with small.open() as catalog:
        with pytest.raises(ValueError, match=f"^{sentence}"):
            catalog.vectors("image", rows)
        if isinstance(rows, list):
            with pytest.raises(ValueError, match=f"^{sentence}"):
                catalog.asset("image", rows[-1])
        with pytest.raises(ValueError, match=r"kind must be among \('image', 'text'\), got 'audio'"):
            catalog.asset("audio", 0)  # type: ignore[arg-type]

"""Which rows count as right: what rounding to fp16 does to scores, and what each tolerance lets through.

    python benchmarks/near_ties.py [--rows 10000] [--queries 100]

Some sets are ordinary (random, the spectra of `clustered.py`), some are correct and unusual: near duplicates, one-hot,
bits and whole numbers scaled to unit norm, two dimensions. Queries are rows, which do not find themselves; for the
spectra they are fresh rows of the other kind, too. Everything is seeded. For each set, at k = 10:

- error: the standard deviation of stored less exact scores of the best 110 rows, the greatest, and the bound for it;
- for each rule how far below the k-th a row may score and be right (median over queries; `bound`: twice the proved
  bound; `formula`: six deviations of the difference of two independent errors, by the fourth moment of the query;
  `measured`: twice the greatest error of the query's best rows, the rule that is used);
- scan: the recall of the exact scan of the stored vectors, which must be 1;
- below: rows below the k-th that would be right, as a share of k: what the rule gives away on this set;
- half: the recall of a scan of half of the rows, and codes: that of 4 bits a number without the vectors. Both are worse
  indexes, and must be seen as such.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from clustered import Clustered
from figures import Recording, Table, add_results_option

from epithre_beam.index.ann.exact import as_stored
from epithre_beam.index.ann.precision import EQUAL, compare_scores, error_bound

Floats = npt.NDArray[np.float32]
K, KEPT = 10, 110


def unit(vectors: npt.NDArray[np.floating]) -> Floats:
    vectors = vectors.astype(np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def data_sets(rows: int, queries: int) -> Iterator[tuple[str, Floats, Floats, bool]]:
    """Name, rows, queries, and whether the queries are the first of the rows."""
    rng = np.random.default_rng(0)
    for dimension in (64, 768, 4000):
        drawn = unit(rng.standard_normal((rows, dimension)))
        yield f"random, {dimension}", drawn, drawn[:queries], True
    for spectrum in "ABC":
        data = Clustered(spectrum)
        for kind in ("image", "text"):
            drawn = np.concatenate([data.rows(kind, block) for block in range(-(-rows // 512))])[:rows]
            yield f"spectrum {spectrum}, {kind} → {kind}", drawn, drawn[:queries], True
            other = "text" if kind == "image" else "image"
            yield f"spectrum {spectrum}, {other} → {kind}", drawn, data.queries(other, queries), False  # type: ignore[arg-type]
    for dimension in (64, 768, 4000):
        for apart in (1e-1, 1e-2, 1e-3):
            base = rng.standard_normal(dimension) / dimension**0.5
            drawn = unit(base + apart / dimension**0.5 * rng.standard_normal((rows // 10, dimension)))
            yield f"near duplicates, {dimension}, {apart:g}", drawn, drawn[:queries], True
    drawn = unit(rng.standard_normal((rows, 2)))
    yield "2 dimensions", drawn, drawn[:queries], True
    sparse = np.zeros((rows, 768))
    for row in sparse:
        row[rng.choice(768, 3, replace=False)] = rng.random(3) + 0.1
    yield "3 of 768", unit(sparse), unit(sparse)[:queries], True
    bits = unit(rng.random((rows, 768)) < 0.1)
    yield "bits, 768", bits, bits[:queries], True
    whole = unit(np.rint(rng.standard_normal((rows, 64)) * 3) + np.eye(64)[0])
    yield "whole numbers, 64", whole, whole[:queries], True


def coded(vectors: Floats) -> Floats:
    """Sixteen levels for each dimension, evenly over its values."""
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    step = np.maximum(high - low, 1e-12) / 15
    return (np.rint((vectors - low) / step) * step + low).astype(np.float32)


def best(scores: Floats, count: int) -> npt.NDArray[np.int64]:
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def measure(name: str, rows: Floats, queries: Floats, is_rows: bool) -> dict[str, list[str]]:
    dimension = rows.shape[1]
    exact, stored = queries @ rows.T, queries @ as_stored(rows).T
    rough = queries @ coded(rows).T
    half = np.where(np.arange(len(rows)) % 2, stored, -np.inf).astype(np.float32)
    if is_rows:
        for scores in (exact, stored, rough, half):
            scores[np.arange(len(queries)), np.arange(len(queries))] = -np.inf
    kept = best(exact, KEPT)
    of_kept, as_kept = np.take_along_axis(exact, kept, 1), np.take_along_axis(stored, kept, 1)
    errors, _ = compare_scores(of_kept, as_kept, dimension)
    every = (as_kept - of_kept)[np.isfinite(of_kept)]
    bar = of_kept[:, K - 1]
    moments = np.sqrt(np.sum(queries.astype(np.float64) ** 4, axis=1))
    rules = {
        "none": np.zeros(len(queries)),
        "1e-4": np.full(len(queries), 1e-4),
        "bound": np.full(len(queries), 2 * error_bound(dimension)),
        "formula": 6 * 2**0.5 * 2.0**-11 / 3**0.5 * moments,
        "measured": 2 * errors,
    }
    answers = {"scan": best(stored, K), "half": best(half, K), "codes": best(rough, K)}
    lines = {"": [name, f"{every.std():.1e}", f"{np.abs(every).max():.1e}", f"{error_bound(dimension):.1e}"]}
    for rule, tolerance in rules.items():
        edge = (bar - tolerance - EQUAL)[:, None]
        recalls = [(np.take_along_axis(exact, found, 1) >= edge).mean() for found in answers.values()]
        below = ((exact >= edge) & (exact < bar[:, None] - EQUAL)).sum(axis=1).mean() / K
        cells = [recalls[0], below, recalls[1], recalls[2]]
        lines[rule] = [name, f"{np.median(tolerance):.1e}", *(f"{cell:.3f}" for cell in cells)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=100)
    add_results_option(parser)
    options = parser.parse_args()
    recording = Recording.start("near_ties", options)
    found = [measure(*data) for data in data_sets(options.rows, options.queries)]
    tables = {"Rounding": Table(("set", "deviation", "greatest", "bound"), [lines[""] for lines in found])}
    for rule in list(found[0])[1:]:
        columns = ("set", "tolerance", "scan", "below", "half", "codes")
        tables[f"Rule: {rule}"] = Table(columns, [lines[rule] for lines in found])
    recording.store({}, tables)


if __name__ == "__main__":
    main()

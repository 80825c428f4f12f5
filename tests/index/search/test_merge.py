"""Merging orders the hits of several kinds as requested, for all queries at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.index.search.merge import merge_kinds


def naive(found, k, merge, figures):
    """Merge one query at a time by sorting tuples."""
    lists = []
    for q in range(len(found[0][0])):
        entries = []
        for kind, (scores, rows) in enumerate(found):
            mean, std = figures[kind]
            for rank, (score, row) in enumerate(zip(scores[q].tolist(), rows[q].tolist(), strict=True)):
                if row >= 0:
                    key = rank if merge == "quota" else -(score - mean) / std
                    entries.append((key, -score, kind, rank, row))
        entries.sort()
        lists.append([(kind, row, -negative) for _, negative, kind, _, row in entries[:k]])
    return lists


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    merge=st.sampled_from(["score", "quota", "standardised"]),
    widths=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    k=st.integers(1, 12),
)
def test_merge_equals_sorting_each_query(seed, merge, widths, k):
    rng = np.random.default_rng(seed)
    queries, found = 4, []
    for width in widths:
        # Few different scores, so that many are equal. Some of the last rows of a query are missing.
        scores = -np.sort(-rng.integers(0, 4, (queries, width)) / np.float32(4), axis=1).astype(np.float32)
        rows = np.stack([rng.permutation(width) for _ in range(queries)]).astype(np.int64).reshape(queries, width)
        rows[np.arange(width) >= rng.integers(0, width + 1, queries)[:, None]] = -1
        found.append((scores, rows))
    figures = [(float(rng.random()), 0.5) for _ in widths] if merge == "standardised" else [(0.0, 1.0)] * len(widths)
    merged = merge_kinds(found, k, merge, figures)
    assert merged.rows.shape[1] <= k
    for q, wanted in enumerate(naive(found, k, merge, figures)):
        got = zip(merged.kinds[q].tolist(), merged.rows[q].tolist(), merged.scores[q].tolist(), strict=True)
        there = [hit for hit in got if hit[1] >= 0]
        assert there == [pytest.approx(hit) for hit in wanted]
        assert (merged.rows[q][len(there) :] == -1).all()

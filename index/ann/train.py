"""Fits what all indexes of a catalog share to a sample, and plans which index files to build."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ...configs import IndexConfig
from ...configs.errors import CatalogError
from ..storage.store import Store
from ..vectors.distribution import checked_deviations
from ..vectors.sample import Sample, SampleRule, read_sample
from ..vectors.shards import ShardRecord
from ..versions.layout import model_name
from .codes import LEAST_ROWS, Coded, Projected, build_codes, bytes_a_row, code_rows, search_codes
from .exact import as_stored, check_format
from .products import product
from .projection import fit_axes
from .recall import mean_recall, rate_answers, recall_at
from .truth import TIE_CANDIDATES, Queries, StoredScores, Truth
from .tuning_queries import read_queries

_MB = 1_000_000
_FIXED_MB = 640
"""The fixed memory of a worker that builds an index file: Python with its libraries, and blocks of rows."""
_LEAST_ROWS_PER_FILE = 10_000
_SAMPLE_K_FACTOR = 5
_LEAST_TRAINING_ROWS = 2000
_ROWS_PER_TRAINING_ROW = 8
_ESTIMATED_FROM_ROWS = 100_000
"""From this many rows of a kind on, the number of axes is estimated, because projecting to all of them costs more."""


@dataclass(frozen=True, kw_only=True)
class IndexTask:
    """An index file to build: consecutive Parquet files of a kind."""

    kind: str
    number: int
    count: int
    shards: tuple[ShardRecord, ...]
    first_row: int
    """The position of its first row among those of its kind."""
    with_codes: bool


@dataclass(frozen=True, kw_only=True)
class AssetsTask:
    """A kind's table of assets to write."""

    kind: str
    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The result of `train_indexes` that the next steps read."""

    axes: npt.NDArray[np.float32]
    queries: tuple[Queries, ...]

    @classmethod
    def read(cls, store: Store, version: str) -> "Model":
        with np.load(io.BytesIO(store.read(model_name(version))), allow_pickle=False) as model:
            kinds = sorted(name.removeprefix("rows_") for name in model if name.startswith("rows_"))
            queries = (Queries(kind=k, rows=model[f"rows_{k}"], vectors=model[f"vectors_{k}"]) for k in kinds)
            return cls(axes=model["axes"], queries=tuple(q for q in queries if len(q.rows)))


def has_codes(rows: int, dimension: int, settings: IndexConfig) -> bool:
    """Whether a kind with `rows` rows needs codes; smaller ones are scanned exactly."""
    return rows >= LEAST_ROWS and rows * dimension * 2 > settings.exact_up_to_mb * _MB


def training_rows(rows: int, settings: IndexConfig) -> int:
    """The vectors of a kind with `rows` rows that the axes are fitted to: an eighth, but at least 2,000."""
    return min(settings.training_rows, max(_LEAST_TRAINING_ROWS, rows // _ROWS_PER_TRAINING_ROW))


def sample_rules(rows: Mapping[str, int], dimension: int, settings: IndexConfig) -> dict[str, SampleRule]:
    """The rules, by kind, for the rows to sample while the Parquet files are written."""
    # The axes are fitted to all kinds.
    with_codes = any(has_codes(count, dimension, settings) for count in rows.values())
    wanted = {
        kind: settings.recall_queries + (training_rows(count, settings) if with_codes else 0)
        for kind, count in rows.items()
    }
    return {kind: SampleRule.for_rows(count, wanted[kind], settings.seed) for kind, count in rows.items()}


def rows_per_index(dimension: int, settings: IndexConfig) -> int:
    """Returns the maximum rows of an index file, limited by the settings and by memory.

    Raises:
        CatalogError: When `build_memory_mb` is too small for any index file.
    """
    widest = code_dimensions(dimension, settings)
    # Axes and queries, their products with a row group, and the training rows of the axes.
    fixed_mb = _FIXED_MB + (4 * dimension * (2 * settings.training_rows + 2 * dimension) + 4 * 512 * dimension) / _MB
    each = bytes_a_row(widest)
    least_mb = math.ceil(fixed_mb + _LEAST_ROWS_PER_FILE * each / _MB)
    if settings.build_memory_mb < least_mb:
        raise CatalogError(
            f"index.build_memory_mb must be at least {least_mb} for an index of {dimension} dimensions with "
            f"index.training_rows {settings.training_rows}, got {settings.build_memory_mb}. "
            "Raise it or index.exact_up_to_mb."
        )
    return min(settings.rows_per_index, int((settings.build_memory_mb - fixed_mb) * _MB / each))


def code_dimensions(dimension: int, settings: IndexConfig) -> list[int]:
    """The dimensions that vectors may be projected to, ascending."""
    return sorted({min(size, dimension) for size in settings.dimensions})


def train_indexes(
    store: Store, version: str, shards: Sequence[ShardRecord], dimension: int, settings: IndexConfig
) -> list[IndexTask | AssetsTask]:
    """Fits the axes of the catalog, draws the queries, and returns the files to build.

    The queries are rows that are not used for training. The fitted model is written to the run's folder for the next
    steps.

    Raises:
        CatalogError: When the settings leave too little memory, the file of queries is invalid, or a row is not a
            unit vector of that dimension.
    """
    check_format(dimension)
    rows = {kind: sum(s.rows for s in _of_kind(shards, kind)) for kind in sorted({s.kind for s in shards})}
    coded = [kind for kind in rows if has_codes(rows[kind], dimension, settings)]
    limit = rows_per_index(dimension, settings) if coded else settings.rows_per_index
    given = read_queries(settings.queries, dimension) if settings.queries else {}
    model: dict[str, npt.NDArray[Any]] = {}
    training: dict[str, Sample] = {}
    queries = []
    for kind in sorted({*rows, *given}):
        drawn_rows, vectors = np.empty(0, np.int64), np.empty((0, dimension), np.float32)
        if rows.get(kind):
            wanted = settings.recall_queries + (training_rows(rows[kind], settings) if coded else 0)
            files = [(s.sample, s.rows) for s in _of_kind(shards, kind)]
            sample = read_sample(store, kind, files, wanted)
            if len(sample.rows):
                checked_deviations(sample.vectors, sample.rows, kind, dimension)
            drawn_rows, vectors = sample.rows[: settings.recall_queries], sample.vectors[: settings.recall_queries]
            training[kind] = sample.without(settings.recall_queries) if len(sample.rows) == wanted else sample
        if kind in given:
            drawn_rows = np.concatenate([drawn_rows, np.full(len(given[kind]), -1)])
            vectors = np.concatenate([vectors, given[kind]])
        model[f"rows_{kind}"], model[f"vectors_{kind}"] = drawn_rows, vectors
        queries.append(Queries(kind=kind, rows=drawn_rows, vectors=vectors))
    axes = np.empty((0, dimension), np.float32)
    if coded:
        axes = fit_axes([s.vectors for s in training.values()], code_dimensions(dimension, settings)[-1], settings.seed)
        if max(rows.values()) >= _ESTIMATED_FROM_ROWS:
            axes = axes[: _axes_needed(axes, {kind: training[kind] for kind in coded}, queries, settings)]
    model["axes"] = axes
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **model)
    store.write(model_name(version), data.getvalue())
    tasks: list[IndexTask | AssetsTask] = []
    for kind in rows:
        groups = list(_grouped(_of_kind(shards, kind), limit))
        first = 0
        for number, group in enumerate(groups):
            tasks.append(
                IndexTask(
                    kind=kind,
                    number=number,
                    count=len(groups),
                    shards=tuple(group),
                    first_row=first,
                    with_codes=kind in coded,
                )
            )
            first += sum(s.rows for s in group)
        tasks.append(AssetsTask(kind=kind, shards=tuple(_of_kind(shards, kind))))
    return tasks


def _grouped(shards: Sequence[ShardRecord], limit: int) -> Iterator[list[ShardRecord]]:
    """Groups consecutive files into about equal numbers of rows, each at most `limit` if the files allow it."""
    total = sum(s.rows for s in shards)
    count = max(1, math.ceil(total / limit))
    group: list[ShardRecord] = []
    rows = 0
    for shard in shards:
        if group and (rows + shard.rows > limit or (rows + shard.rows / 2) * count / total >= 1):
            yield group
            group, rows = [], 0
        group.append(shard)
        rows += shard.rows
    yield group


def fewest_dimensions(
    held: Projected,
    truths: Sequence[Truth],
    stored: Sequence[StoredScores],
    sizes: Sequence[int],
    k_factor: int,
    first_row: int,
    settings: IndexConfig,
) -> Coded:
    """Codes the rows in the smallest of `sizes` with which the right rows are among k x `k_factor` candidates.

    The test scans all codes and allows half of the loss that the target permits; the other half is for scanning only
    some of the cells. If no size is sufficient, the last one is used, and searches must score more candidates.
    """
    rows, k = len(held.vectors), settings.recall_k
    width = min(k_factor * k, rows)
    for size in sizes[:-1]:
        coded = code_rows(held, size)
        index = build_codes(held, coded, 1)
        reached = 1.0
        for truth, scores in zip(truths, stored, strict=True):
            found = search_codes(index, truth.queries.vectors, min(width + 1, rows), 1) + first_row
            rated = rate_answers(truth, [found], k, scores)
            reached = min(reached, mean_recall(recall_at(rated, k, width)))
        if reached >= (1 + settings.target_recall) / 2:
            return coded
    return code_rows(held, sizes[-1])


def _axes_needed(
    axes: npt.NDArray[np.float32],
    samples: Mapping[str, Sample],
    queries: Sequence[Queries],
    settings: IndexConfig,
) -> int:
    """Estimates from a sample how many of the axes the indexes will use.

    The estimate uses fewer candidates than a search scores, because the best of all rows are closer together than the
    best of a sample. If the estimate is too low, the measured recall makes searches score more candidates.
    """
    needed = 0
    sizes = code_dimensions(axes.shape[1], settings)
    for kind, sample in samples.items():
        truths, scores = [], []
        for asked in queries:
            # Row numbers in the sample differ from those of the queries, and no query is in the sample.
            held_out = Queries(kind=asked.kind, rows=np.full(len(asked.rows), -1), vectors=asked.vectors)
            truth = Truth(held_out, settings.recall_k + TIE_CANDIDATES, is_same_kind=asked.kind == kind)
            truth.add(product(asked.vectors, sample.vectors.T), 0)
            scores.append(truth.scores_by(partial(_read_sample_rows, sample)))
            truth.compare(scores[-1], settings.recall_k)
            truths.append(truth)
        held = Projected(
            vectors=product(sample.vectors, axes.T).astype(np.float16),
            order=np.arange(len(sample.rows)),
            axes=axes,
            seed=settings.seed,
        )
        needed = max(needed, fewest_dimensions(held, truths, scores, sizes, _SAMPLE_K_FACTOR, 0, settings).dimension)
    return needed


def _read_sample_rows(sample: Sample, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return as_stored(sample.vectors[rows])


def _of_kind(shards: Sequence[ShardRecord], kind: str) -> list[ShardRecord]:
    return sorted((s for s in shards if s.kind == kind), key=lambda s: s.shard)

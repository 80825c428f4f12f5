"""Makes clustered unit vectors of both kinds, block by block. The index benchmarks use them in place of real vectors.

    python benchmarks/clustered.py FOLDER [--rows 100000] [--spectrum A] [--seed 0] [--measure]

writes `image-00000.parquet`, `text-00000.parquet` and so on, with the columns `id`, `kind` and `embedding`. With
`--measure` it writes nothing and prints the difficulty of each direction.

How a vector is made. Each draw has a cluster, whose centre both kinds share, and a deviation from it:
`z = centre + spread * tail * noise`, with each axis scaled by the spectrum. The map of the kind then takes the latent
axes into 4000 dimensions, the offset of the kind is added, and the sum is scaled to unit norm.

Why a query of the other kind is harder. The offsets of the two kinds have unrelated directions and a fixed share of
each vector's squared norm. This is the modality gap, at which a joint index fails; it moves a query out of the cells
that were trained on the other kind. The map of images is an isometry. The map of texts is the same map distorted, by a
random matrix over the latent axes (`matrix`) or by a random scale for each of the 4000 dimensions (`scale`). The true
neighbours of a text are therefore in other cells than the nearest ones, and in more clusters. `measure_difficulty`
gives the size of the effect. With 51,200 rows of each kind in 904 cells, the share of the ten true neighbours in the
8 % of the cells that are nearest to the query is, for text → image and image → image: A 0.93 and 0.99, B 0.95 and 1.00,
C 0.64 and 0.99. For image → text and text → text it is 0.95 and 0.99 in A, 0.66 and 0.98 in C; in B both are equal
(0.99), because of the distortion of the texts.

The latent axes are split into groups of 256, each with its own range of the 4000 dimensions, so that the product costs
the same for every rank. This does not change inner products; strong and weak axes are spread over all groups.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Kind = Literal["image", "text"]
Floats = npt.NDArray[np.float32]

KINDS: tuple[Kind, Kind] = ("image", "text")
DIMENSION = 4000
BLOCK_ROWS = 512
FILE_ROWS = 98 * BLOCK_ROWS
_GROUP = 256


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """A distribution of vectors."""

    rank: int
    """Latent axes; a multiple of 256."""
    decay: float
    """The variance of latent axis i falls as (i + 1) ** -decay."""
    clusters: int
    families: int
    """Number of families of clusters; clusters lie around the centre of their family. 0: no families."""
    zipf: bool
    """Whether cluster j is drawn in proportion to 1 / (j + 20); otherwise all clusters are equally likely."""
    spread: float
    """Standard deviation of a row around the centre of its cluster, relative to that of the centres."""
    tail: float
    """Degrees of freedom of a Student t distribution for each row; 0: normal."""
    distortion: Literal["matrix", "scale"]
    strength: float
    """Strength of the distortion of texts: weight of a random matrix added to the identity, or sigma of a log-normal
    scale."""
    offset: float
    """Average share of the kind's offset in a vector's squared norm."""


SPECTRA = {
    "A": Spectrum(
        rank=256,
        decay=0.0,
        clusters=3000,
        families=0,
        zipf=False,
        spread=0.8,
        tail=0.0,
        distortion="matrix",
        strength=0.6,
        offset=0.3,
    ),
    "B": Spectrum(
        rank=1024,
        decay=0.6,
        clusters=6000,
        families=300,
        zipf=True,
        spread=1.7,
        tail=4.0,
        distortion="scale",
        strength=0.8,
        offset=0.3,
    ),
    "C": Spectrum(
        rank=2048,
        decay=0.1,
        clusters=1000,
        families=0,
        zipf=False,
        spread=2.2,
        tail=0.0,
        distortion="matrix",
        strength=0.5,
        offset=0.3,
    ),
}
"""A has few axes, B a long spectrum, C an almost flat one. With 20,480 rows of each kind the best 256 axes of C keep
0.94 of the ten true neighbours among the first hundred, 512 axes keep 0.99."""


class Clustered:
    """Rows and queries of one spectrum. Every block depends only on the seed, its kind and its number."""

    def __init__(self, spectrum: str, seed: int = 0) -> None:
        self.spectrum = shape = SPECTRA[spectrum]
        self._seed = seed
        rng = np.random.default_rng((seed, 0))
        axes = rng.permutation(np.arange(1, shape.rank + 1) ** -shape.decay)
        self._axes = np.sqrt(axes / axes.sum()).astype(np.float32)
        centres = rng.standard_normal((shape.clusters, shape.rank), np.float32)
        if shape.families:
            family = rng.integers(shape.families, size=shape.clusters)
            centres = rng.standard_normal((shape.families, shape.rank), np.float32)[family] + 0.6 * centres
        self._centres = centres * (self._axes / np.sqrt(np.mean(centres**2, dtype=np.float64)).astype(np.float32))
        weights = 1 / (np.arange(shape.clusters) + 20) if shape.zipf else np.ones(shape.clusters)
        self._shares = np.cumsum(weights / weights.sum())
        self._maps = {"image": _isometries(rng, shape.rank)}
        self._maps["text"] = _distorted(rng, self._maps["image"], shape)
        length = np.sqrt(shape.offset / (1 - shape.offset) * (1 + shape.spread**2))
        offsets = rng.standard_normal((2, DIMENSION))
        offsets *= length / np.linalg.norm(offsets, axis=1, keepdims=True)
        self._offsets = dict(zip(KINDS, offsets.astype(np.float32), strict=True))

    def rows(self, kind: Kind, block: int) -> Floats:
        """Draw one block of a kind: float32, (512, 4000), C-contiguous, unit norm."""
        return self._draw(kind, np.random.default_rng((self._seed, 1, KINDS.index(kind), block)))

    def queries(self, kind: Kind, count: int) -> Floats:
        """Draw vectors of a kind that are not rows: float32, (count, 4000), unit norm."""
        blocks = range(-(-count // BLOCK_ROWS))
        drawn = [self._draw(kind, np.random.default_rng((self._seed, 2, KINDS.index(kind), b))) for b in blocks]
        return np.concatenate(drawn)[:count]

    def _draw(self, kind: Kind, rng: np.random.Generator) -> Floats:
        shape = self.spectrum
        latent = rng.standard_normal((BLOCK_ROWS, shape.rank), np.float32)
        latent *= shape.spread * self._axes
        if shape.tail:
            # Scaled to the variance of a normal, so that `spread` means the same.
            tail = np.sqrt((shape.tail - 2) / rng.chisquare(shape.tail, BLOCK_ROWS))
            latent *= tail.astype(np.float32)[:, None]
        latent += self._centres[np.searchsorted(self._shares, rng.random(BLOCK_ROWS) * self._shares[-1])]
        vectors = np.empty((BLOCK_ROWS, DIMENSION), np.float32)
        maps = self._maps[kind]
        width = DIMENSION // len(maps)
        for group, matrix in enumerate(maps):
            stretch = slice(group * width, (group + 1) * width)
            vectors[:, stretch] = latent[:, group * _GROUP : (group + 1) * _GROUP] @ matrix
        vectors += self._offsets[kind]
        vectors /= np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
        return vectors


def _isometries(rng: np.random.Generator, rank: int) -> list[Floats]:
    """Draw a (256, width) matrix with orthonormal rows for each group of latent axes."""
    groups = rank // _GROUP
    drawn = (rng.standard_normal((DIMENSION // groups, _GROUP)) for _ in range(groups))
    return [np.ascontiguousarray(np.linalg.qr(matrix)[0].T, np.float32) for matrix in drawn]


def _distorted(rng: np.random.Generator, maps: list[Floats], shape: Spectrum) -> list[Floats]:
    if shape.distortion == "scale":
        scales = np.exp(rng.normal(0, shape.strength, (len(maps), 1, DIMENSION // len(maps))))
        return [matrix * scale.astype(np.float32) for matrix, scale in zip(maps, scales, strict=True)]
    noise = rng.normal(0, shape.strength / np.sqrt(_GROUP), (len(maps), _GROUP, _GROUP)).astype(np.float32)
    return [matrix + other @ matrix for matrix, other in zip(maps, noise, strict=True)]


def asset_id(kind: Kind, row: int) -> str:
    return f"{kind}-{row:08d}"


def row_of(asset_id: str) -> int:
    return int(asset_id.rpartition("-")[2])


def write_folder(folder: Path, data: Clustered, rows: int) -> None:
    """Write `rows` rows of each kind, one block in each row group, uncompressed. Make two blocks at a time."""
    schema = pa.schema([("id", pa.string()), ("kind", pa.string()), ("embedding", pa.list_(pa.float32(), DIMENSION))])
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as makers:
        for kind in KINDS:
            for number, first in enumerate(range(0, rows, FILE_ROWS)):
                last = min(first + FILE_ROWS, rows)
                path = folder / f"{kind}-{number:05d}.parquet"
                blocks = _in_turn(makers, data, kind, range(first // BLOCK_ROWS, -(-last // BLOCK_ROWS)))
                with pq.ParquetWriter(
                    path, schema, compression="none", use_dictionary=False, write_statistics=False
                ) as writer:
                    for start, vectors in zip(range(first, last, BLOCK_ROWS), blocks, strict=True):
                        ids = [asset_id(kind, row) for row in range(start, min(start + BLOCK_ROWS, last))]
                        values = pa.array(vectors[: len(ids)].reshape(-1))
                        column = pa.FixedSizeListArray.from_arrays(values, DIMENSION)
                        writer.write_table(
                            pa.table([pa.array(ids), pa.array([kind] * len(ids)), column], schema=schema)
                        )
                with path.open("rb+") as file:
                    os.fsync(file.fileno())


def _in_turn(makers: ThreadPoolExecutor, data: Clustered, kind: Kind, blocks: range) -> Iterator[Floats]:
    """Yield the blocks in order, with at most four in memory."""
    ahead = []
    for block in blocks:
        ahead.append(makers.submit(data.rows, kind, block))
        if len(ahead) == 4:
            yield ahead.pop(0).result()
    for made in ahead:
        yield made.result()


def read_blocks(folder: Path, kind: Kind) -> Iterator[Floats]:
    """Yield the vectors of a kind, one row group at a time, in the order of their ids."""
    for path in sorted(folder.glob(f"{kind}-*.parquet")):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                column: Any = file.read_row_group(group, columns=["embedding"], use_threads=False).column(0)
                for chunk in column.chunks:
                    yield chunk.flatten().to_numpy().reshape(-1, DIMENSION)


def find_exactly(folder: Path, kind: Kind, queries: Floats, k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the exact nearest rows of a kind by inner product: scores and row numbers, (queries, k), best first."""
    scores = np.full((len(queries), 0), -np.inf, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    first = 0
    for vectors in read_blocks(folder, kind):
        found = queries @ vectors.T
        numbers = np.broadcast_to(np.arange(first, first + len(vectors)), found.shape)
        scores, rows = np.hstack([scores, found]), np.hstack([rows, numbers])
        best = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        first += len(vectors)
    order = np.argsort(-scores, axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How hard it is to find the ten true neighbours of a query of one kind among the rows of another."""

    direction: str
    in_nearest_cells: dict[float, float]
    """Share of the true neighbours in the cells nearest to the query, by the share of the cells."""
    gap: float
    """Difference of the tenth and the hundredth score, in standard deviations of all scores."""


def measure_difficulty(
    data: Clustered, rows: int, queries: int = 300, targets: tuple[Kind, ...] = KINDS
) -> list[Difficulty]:
    """Measure each direction with 4 · √rows cells of spherical k-means over the first rows of a kind."""
    import faiss

    found = []
    for target in targets:
        vectors = np.concatenate([data.rows(target, block) for block in range(-(-rows // BLOCK_ROWS))])[:rows]
        cells = int(4 * np.sqrt(rows))
        means = faiss.Kmeans(DIMENSION, cells, niter=8, spherical=True, seed=0, min_points_per_centroid=1)
        means.train(vectors[: 22 * cells])
        cell = np.argmax(vectors @ means.centroids.T, axis=1)
        for source in KINDS:
            drawn = data.queries(source, queries)
            scores = drawn @ vectors.T
            best = np.argsort(-scores, axis=1)[:, :100]
            places = np.argsort(np.argsort(-(drawn @ means.centroids.T), axis=1), axis=1)
            place = np.take_along_axis(places, cell[best[:, :10]], 1) / cells
            top = np.take_along_axis(scores, best, 1)
            found.append(
                Difficulty(
                    direction=f"{source}->{target}",
                    in_nearest_cells={share: float((place < share).mean()) for share in (0.02, 0.08, 0.3)},
                    gap=float(((top[:, 9] - top[:, 99]) / scores.std(axis=1)).mean()),
                )
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=100_000, help="of each kind")
    parser.add_argument("--spectrum", choices=SPECTRA, default="A")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    data = Clustered(options.spectrum, options.seed)
    if options.measure:
        for difficulty in measure_difficulty(data, options.rows):
            print(difficulty)
    elif options.folder:
        write_folder(options.folder, data, options.rows)
    else:
        parser.error("name a folder to write to, or use --measure")


if __name__ == "__main__":
    main()

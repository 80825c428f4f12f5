"""A map of a catalog: its assets in two dimensions, with similar assets close together.

scikit-learn is imported only when a map is made.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...index.search.catalog import Catalog
from ...index.vectors.sample import asset_hashes

COMPONENTS = 50
_PERPLEXITY = 30.0
_FEWEST = 8
"""For fewer points, t-SNE has no neighbourhoods to preserve, and the first two principal components suffice."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The assets on the map."""

    kinds: tuple[str, ...]
    """The kind of each asset."""
    rows: tuple[int, ...]
    """The row of each asset among the assets of its kind."""
    assets: pa.Table
    """Ids, URIs, texts and metadata, in the same order."""
    vectors: Floats
    """float32, (points, dimension)."""


def draw_assets(catalog: Catalog, points: int, seed: int = 0) -> Drawn:
    """Sample assets of all kinds by the hashes of their ids, independent of the history of the catalog.

    Args:
        catalog: The catalog to show.
        points: Largest number of assets. Each kind has about the same share as in the catalog.
        seed: Seed of the sample.
    """
    hashes, kinds, rows = [], [], []
    for number, kind in enumerate(catalog.kinds):
        ids = catalog.assets(kind).column("asset_id")  # type: ignore[arg-type]
        of_kind = [hashed for chunk in ids.chunks for hashed in (asset_hashes(chunk.to_pylist(), seed),)]
        hashes.append(np.concatenate(of_kind) if of_kind else np.empty(0, np.uint64))
        kinds.append(np.full(len(ids), number))
        rows.append(np.arange(len(ids)))
    all_hashes, all_kinds, all_rows = (np.concatenate(parts) for parts in (hashes, kinds, rows))
    chosen = np.lexsort((all_rows, all_kinds, all_hashes))[:points]
    tables, vectors, places = [], [], []
    for number, kind in enumerate(catalog.kinds):
        of_number = np.flatnonzero(all_kinds[chosen] == number)
        taken = all_rows[chosen][of_number]
        if len(taken):
            table = catalog.assets(kind)  # type: ignore[arg-type]
            names = [name for name in ("asset_id", "uri", "text", "metadata") if name in table.schema.names]
            tables.append(table.select(names).take(pa.array(taken)))
            vectors.append(catalog.vectors(kind, taken))  # type: ignore[arg-type]
            places.append(of_number)
    order = np.argsort(np.concatenate(places))
    return Drawn(
        kinds=tuple(catalog.kinds[number] for number in all_kinds[chosen].tolist()),
        rows=tuple(all_rows[chosen].tolist()),
        assets=pa.concat_tables(tables).take(pa.array(order)),
        vectors=np.concatenate(vectors)[order],
    )


def align_kinds(vectors: Floats, kinds: Sequence[str]) -> Floats:
    """Subtract the mean of each kind and normalise the result to norm 1.

    A model places images and texts in different regions of its space (the modality gap). Without the alignment, a map
    of both would show only this gap.
    """
    aligned = np.array(vectors, np.float32)
    for kind in dict.fromkeys(kinds):
        of_kind = np.array([one == kind for one in kinds])
        aligned[of_kind] -= aligned[of_kind].mean(axis=0)
    norms = np.linalg.norm(aligned, axis=1, keepdims=True)
    aligned /= np.maximum(norms, 1e-12)
    return aligned


def project(vectors: Floats, seed: int = 0, threads: int = 1) -> npt.NDArray[np.float64]:
    """Project vectors to two dimensions: PCA to 50 components, then t-SNE, both by scikit-learn.

    Args:
        vectors: float32, (n, dimension).
        seed: Seed of both steps; the same vectors and seed give the same map on one machine.
        threads: Threads for t-SNE. They wait by spinning, so on a busy machine two threads are far slower than one.

    Returns:
        float64, (n, 2), from 0 to 1 along the longer side.

    Raises:
        ImportError: When scikit-learn is not installed.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    points = len(vectors)
    flat = np.zeros((points, 2))
    axes = min(COMPONENTS, points - 1, vectors.shape[1])
    if axes >= 1 and np.ptp(vectors, axis=0).max() > 1e-6:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # components without variance, if most rows are copies
            main = PCA(axes, svd_solver="randomized", random_state=seed).fit_transform(vectors)
            if points >= _FEWEST and axes >= 2:
                perplexity = min(_PERPLEXITY, (points - 1) / 3)
                with threadpool_limits(threads, "openmp"):
                    flat = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(main)
            else:
                flat[:, : min(axes, 2)] = main[:, :2]
    places: npt.NDArray[np.float64] = np.asarray(flat, np.float64) - np.min(flat, axis=0)
    places /= places.max() or 1.0
    return places


def describe_columns(types: Mapping[str, str]) -> dict[str, str]:
    """Return how to colour each metadata column: `scale` for numbers and times, otherwise `category`."""
    scales = {"int", "double", "date", "timestamp"}
    return {name: "scale" if kind in scales else "category" for name, kind in types.items()}

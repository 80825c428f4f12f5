"""Real queries from a file, to tune and measure an index with."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ...configs.errors import CatalogError
from ..storage.remote import connect
from ..versions.layout import KINDS

MOST_QUERIES = 1000
"""The maximum per kind; the first ones of the file are used. More would take time and add little."""


def read_queries(url: str, dimension: int) -> dict[str, npt.NDArray[np.float32]]:
    """Reads query vectors from a Parquet file, or a folder of them, with the columns `kind` and `embedding`.

    Returns:
        For each kind, float32, (queries, dimension), unit norm.

    Raises:
        CatalogError: When the file cannot be read or a vector is invalid.
    """
    try:
        fs, path = connect(url, {})
        names = sorted(fs.find(path)) if fs.isdir(path) else [path]
        tables = []
        for name in names:
            if name.endswith(".parquet") or name == path:
                with fs.open(name, "rb") as file:
                    tables.append(pq.read_table(file, columns=["kind", "embedding"], use_threads=False))
        table = pa.concat_tables(tables)
        kinds = np.array(table.column("kind").to_pylist())
        vectors = np.array(table.column("embedding").to_pylist(), np.float32)
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise CatalogError(
            f"index.queries: {url} cannot be read ({reason}). It must be a Parquet file, or a folder of Parquet files, "
            f"with the columns `kind` and `embedding` of {dimension} numbers."
        ) from error
    if unknown := sorted({str(kind) for kind in kinds} - set(KINDS)):
        raise CatalogError(f"index.queries: kind must be one of {', '.join(KINDS)}, got {unknown[0]!r} in {url}.")
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise CatalogError(
            f"index.queries: vectors must have {dimension} dimensions, got shape {vectors.shape[1:]} in {url}."
        )
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms < 1e-6))
    if len(bad):
        raise CatalogError(f"index.queries: row {bad[0]} of {url} is zero or not finite. Remove or correct the vector.")
    vectors /= norms[:, None]
    return {kind: vectors[kinds == kind][:MOST_QUERIES] for kind in KINDS if (kinds == kind).any()}

"""The stock FAISS export: one index file per kind that needs no further settings, and the assets of its rows.

A kind whose index is one file with codes becomes an `IndexRefine`: the codes select candidates and the fp16 vectors in
the same file score them. Both search parameters are stored in the file. Every other kind becomes an exact index.
Both are assembled from the bytes of existing files, so memory is one block.
"""

import struct
from typing import IO, Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...configs.errors import StoreError
from ..ann.exact import FACTORY, empty_index, index_header, read_header
from ..ann.kind_index import rows_probed
from ..ann.tune import probed_cells
from ..storage.store import HashingWriter
from .folder import ExportFolder
from .kind_source import KindSource

_LIST = 100
"""Stock tools use the stored search parameters for any k; the parameters are chosen for this k."""
_LEAST_FACTOR = 10.0
_ADVICE = "Install the faiss-cpu version in constraints.txt."


def write_faiss(folder: ExportFolder, source: KindSource) -> dict[str, Any]:
    """Writes `<kind>.faiss` and `<kind>.parquet`, with the same rows. Returns the search parameters of the index."""
    with folder.file(f"{source.kind}.faiss", source.entry.rows) as file:
        facts = write_stock_index(file, source)
    with (
        folder.file(f"{source.kind}.parquet", source.entry.rows) as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), source.schema(), compression="zstd") as writer,
    ):
        for table in source.tables():
            writer.write_table(table)
    return facts


def write_stock_index(file: HashingWriter, source: KindSource) -> dict[str, Any]:
    """Writes one file that stock `faiss.read_index` opens: metric inner product, ids are row positions.

    Returns:
        `factory` and, for an index with codes, the stored `nprobe` and `k_factor`: those of its most thorough
        operating point, increased for k = 100.

    Raises:
        StoreError: When a file of the source, or the installed FAISS, uses another format.
    """
    rows = 0
    for vectors in source.vectors:
        vectors.seek(0)
        rows += read_header(vectors, source.dimension)
    codes = source.codes[0] if len(source.codes) == 1 else None
    if codes is None:
        file.write(index_header(source.dimension, rows))
        _write_vectors(file, source)
        return {"factory": FACTORY}
    place, cells = find_nprobe(codes)
    points = [point for point in source.entry.operating_points if point.cells_share is not None]
    share = max((point.cells_share or 1.0 for point in points), default=1.0)
    share = min(1.0, rows_probed(share, _LIST, source.entry.recall_k, rows) / rows)
    k_factor = max([_LEAST_FACTOR, *(point.k_factor or 1.0 for point in points)])
    nprobe = probed_cells(share, cells)
    header, end = _refine_frame(source.dimension, rows, k_factor)
    file.write(header)
    codes.seek(0)
    file.write(codes.read(place))
    file.write(nprobe.to_bytes(8, "little"))
    codes.seek(place + 8)
    for block in source.encoded(codes):
        file.write(block)
    file.write(index_header(source.dimension, rows))
    _write_vectors(file, source)
    file.write(end)
    return {"factory": source.entry.factory, "nprobe": nprobe, "k_factor": k_factor}


def _write_vectors(file: HashingWriter, source: KindSource) -> None:
    for vectors in source.vectors:
        vectors.seek(0)
        read_header(vectors, source.dimension)
        for block in source.encoded(vectors):
            file.write(block)


def _refine_frame(dimension: int, rows: int, k_factor: float) -> tuple[bytes, bytes]:
    """The bytes of a stored `IndexRefine` before and after its two parts."""
    part = empty_index(dimension)
    other = empty_index(dimension)
    refine = faiss.IndexRefine(part, other)
    refine.k_factor = k_factor
    whole = faiss.serialize_index(refine).tobytes()
    stored, end = faiss.serialize_index(part).tobytes(), np.float32(k_factor).tobytes()
    header = bytearray(whole[: len(whole) - 2 * len(stored) - len(end)])
    if whole != bytes(header) + stored + stored + end or header[8:16] != bytes(8):
        raise StoreError(
            f"faiss {faiss.__version__} writes IndexRefine in a format that this release does not support. {_ADVICE}"
        )
    header[8:16] = rows.to_bytes(8, "little")
    return bytes(header), end


_HEADER = struct.Struct("<4siqqq?i")
"""The header of any stored index: type name, dimension, rows, two unused numbers, is trained, metric."""


def find_nprobe(codes: IO[bytes]) -> tuple[int, int]:
    """Returns the position of `nprobe` (8 bytes) in a codes file, and its number of cells.

    Raises:
        StoreError: When the file is not one that `codes.write_codes` writes.
    """
    codes.seek(0)
    outer, *_ = _unpack(codes, _HEADER)
    (transforms,) = _unpack(codes, struct.Struct("<i"))
    transform, _has_bias = _unpack(codes, struct.Struct("<4s?"))
    if (outer, transforms, transform) != (b"IxPT", 1, b"LTra"):
        raise StoreError(f"The codes file has an unknown header ({outer!r}, {transforms}, {transform!r}). {_ADVICE}")
    for _ in ("matrix", "bias"):
        (numbers,) = _unpack(codes, struct.Struct("<q"))
        codes.seek(4 * numbers, 1)
    codes.seek(9, 1)  # its two dimensions, and whether it is trained
    inner, *_ = _unpack(codes, _HEADER)
    place = codes.tell() + 8
    cells, nprobe = _unpack(codes, struct.Struct("<qq"))
    if not inner.startswith(b"Iw") or not 1 <= nprobe <= cells:
        raise StoreError(f"The codes file has an unknown index ({inner!r}, cells {cells}, nprobe {nprobe}). {_ADVICE}")
    return place, cells


def _unpack(file: IO[bytes], form: struct.Struct) -> tuple[Any, ...]:
    data = file.read(form.size)
    if len(data) != form.size:
        raise StoreError(f"The codes file ends too early. {_ADVICE}")
    return form.unpack(data)

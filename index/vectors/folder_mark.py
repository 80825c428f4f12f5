"""The file `_vectors.json` of a folder of vectors: what made them, and the files with their rows and sums."""

import functools
from collections.abc import Iterable, Mapping
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from ...configs.errors import ArgumentError, StoreError
from ..storage.store import Store
from ..versions.layout import embedding_field
from ..versions.values import Count, Dimension, FileName, Sha256, Size, Text
from .units import check_sizes

MARK = "_vectors.json"
"""Its name is hidden from tools that read a folder of Parquet files."""
_MOST_BYTES = 64_000_000
_TYPES = {
    "kind": pa.string(),
    "content_sha256": pa.string(),
    "media_type": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
    "prepared": pa.string(),
}
"""The columns by which a vector can be reused."""


class MadeVectors(BaseModel):
    """What made a vector besides its content. Vectors are comparable, and reused, if all of it is equal."""

    model_config = ConfigDict(frozen=True, extra="allow")

    model: Text
    dimension: Dimension
    dialect: Text
    server: Text | None = None
    """The fingerprint of an emulator; None for any other server."""

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of_json(cls, text: Any) -> "MadeVectors | None":
        """Read the `made_by` of an element; None if it is something else."""
        try:
            return cls.model_validate_json(text)
        except (ValidationError, TypeError):
            return None


class MarkedFile(BaseModel):
    """A file of the folder."""

    model_config = ConfigDict(frozen=True)

    name: FileName
    rows: Count
    size_bytes: Size
    sha256: Sha256


class FolderMark(BaseModel):
    """The content of `_vectors.json`."""

    model_config = ConfigDict(frozen=True)

    rows: Count
    dimension: Dimension | None
    made_by: MadeVectors | None = None
    """None: unknown, as of rows that were not made by `EmbedAssets`."""
    files: tuple[MarkedFile, ...]

    @property
    def made_by_json(self) -> str | None:
        """`made_by` as elements have it: a JSON object with sorted keys."""
        if self.made_by is None:
            return None
        return orjson.dumps(self.made_by.model_dump(), option=orjson.OPT_SORT_KEYS).decode()


def read_mark(store: Store) -> FolderMark | None:
    """Read the mark of a folder; None if there is none, or it is not one that `write_mark` wrote."""
    try:
        return FolderMark.model_validate_json(store.read(MARK, _MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError, StoreError, ValidationError):
        return None


def write_mark(store: Store, files: Iterable[Mapping[str, Any]], dimension: int | None, made_by: str | None) -> None:
    """Write the mark. It comes last: a folder that has it is complete."""
    listed = list(files)
    mark = {
        "rows": sum(file["rows"] for file in listed),
        "dimension": dimension,
        "made_by": None if made_by is None else orjson.loads(made_by),
        "files": listed,
    }
    store.write(MARK, orjson.dumps(mark, option=orjson.OPT_INDENT_2))


def made_by_of(row: Mapping[str, Any], dimension: int) -> str:
    """Return what made a row's vector; empty if that is unknown, as of a vector that was cut after it was made.

    Raises:
        ArgumentError: If `made_by` is not as `EmbedAssets` wrote it.
    """
    made_by = row.get("made_by")
    if made_by is None:
        return ""
    read = MadeVectors.of_json(made_by) if isinstance(made_by, str) else None
    if read is None:
        raise ArgumentError(
            f"Asset {row.get('id')!r:.80}: made_by must be as EmbedAssets wrote it, or None, got {made_by!r:.80}."
        )
    return str(made_by) if read.dimension == dimension else ""


def check_made_by(made_by: Iterable[str]) -> None:
    """Check that vectors were made by one model and request. Empty ones are unknown, and allowed.

    Raises:
        ArgumentError: If there are several: a folder of both could not be searched.
    """
    known = sorted({one for one in made_by if one})
    if len(known) > 1:
        raise ArgumentError(
            "WriteVectors: all vectors of a folder must be made by the same model and request, "
            f"got {known[0]:.200} and {known[1]:.200}. Write each into a folder of its own."
        )


def open_marked(file: IO[bytes], dimension: int) -> Any:
    """Open a file of the folder to reuse its vectors; page checksums are verified on read.

    Args:
        file: The file, open and seekable.
        dimension: As the mark states it.

    Raises:
        pa.ArrowInvalid: When the file is damaged or has other columns.
    """
    try:
        opened = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
        schema = opened.schema_arrow
        found = {name: schema.field(name).type for name in (*_TYPES, "embedding")}
    except (KeyError, UnicodeDecodeError) as error:
        raise pa.ArrowInvalid(f"its footer cannot be read: {error}") from error
    if found != {**_TYPES, "embedding": embedding_field(dimension).type}:
        raise pa.ArrowInvalid("its columns are not those of a file of vectors")
    check_sizes(opened.metadata)
    return opened

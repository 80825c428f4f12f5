"""Reads the bytes of assets that carry the settings of their source with them, so that any worker can read them."""

import threading
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ...configs import PrepareConfig, SourceConfig
from .reading import Reader
from .references import Reference

_WITHOUT_SOURCE = SourceConfig(kind="image", files="-")
"""Of an asset that the program created itself: its uri is read as it is, with fsspec's own options."""


def source_json(source: SourceConfig) -> str:
    """Return what is needed to read an asset of a source: its settings that differ from their defaults."""
    return source.model_dump_json(exclude_defaults=True, exclude={"metadata"})


class AssetReader:
    """Reads assets from many threads. Use one for each process: it shares connections and opens them lazily.

    A `source` decides which files may be read, and must come from the author of the pipeline.
    """

    def __init__(self, settings: PrepareConfig) -> None:
        self._sources = [_WITHOUT_SOURCE]
        self._positions: dict[str | None, int] = {None: 0}
        self._lock = threading.Lock()
        self._reader = Reader(self._sources, settings)

    def read(self, uri: str, *, kind: str, size_bytes: int | None = None, source: str | None = None) -> bytes:
        """Return the bytes at a uri.

        Args:
            uri: As in the asset.
            kind: `image` or `text`.
            size_bytes: The listed size, if it is known: a file that is too large is then not read.
            source: As `source_json` returned it; None: the uri is read without the rules of a source.

        Raises:
            Unpreparable: If the file is missing, unreadable, not allowed, or larger than `max_file_bytes`.
            ValidationError: If `source` was not returned by `source_json`.
        """
        with self._lock:
            position = self._positions.get(source)
            if position is None:
                self._sources.append(SourceConfig.model_validate_json(source or ""))
                position = self._positions[source] = len(self._sources) - 1
        return self._reader.read(
            Reference(
                asset_id="", kind=kind, uri=uri, text=None, fingerprint="", size_bytes=size_bytes, source=position
            )
        )

    def close(self) -> None:
        self._reader.close()


def metadata_rows(table: pa.Table) -> list[Mapping[str, Any] | None]:
    """Return the metadata of references as plain values; numbers that JSON does not have (NaN, infinity) are None."""
    if "metadata" not in table.column_names:
        return [None] * len(table)
    return [
        {name: None if isinstance(v, float) and v - v != 0 else v for name, v in row.items()}
        for row in table.column("metadata").to_pylist()
    ]

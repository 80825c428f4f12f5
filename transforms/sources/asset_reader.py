"""Reads the bytes of assets that carry the settings of their source with them, so that any worker can read them."""

import threading
from collections.abc import Mapping, Sequence
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

    Args:
        settings: The limits of what is read.
        within: The folders that uris without a source may point into; None: everywhere.
        storage_options: Options for fsspec, for uris without a source.
    """

    def __init__(
        self,
        settings: PrepareConfig,
        *,
        within: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        without = _WITHOUT_SOURCE
        if within is not None:
            without = SourceConfig(kind="image", table="-", id="id", uri="uri", within=tuple(within))
        self._sources = [without.model_copy(update={"storage_options": dict(storage_options or {})})]
        self._positions: dict[str | None, int] = {None: 0}
        self._lock = threading.Lock()
        self._reader = Reader(self._sources, settings)

    @property
    def references(self) -> Reader:
        """A reader of references whose source is a `position_of`."""
        return self._reader

    def position_of(self, source: str | None) -> int:
        """Return the position of a source, as `source_json` returned it; None: the uri is read without one."""
        with self._lock:
            position = self._positions.get(source)
            if position is None:
                self._sources.append(SourceConfig.model_validate_json(source or ""))
                position = self._positions[source] = len(self._sources) - 1
        return position

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
        position = self.position_of(source)
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

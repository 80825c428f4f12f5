"""Reads the bytes of assets of any pipeline: at any uri, or only below some folders."""

import threading

import orjson

from ...configs import PrepareConfig, SourceConfig
from ..sources.reading import Reader


class AssetReader(Reader):
    """A reader whose sources are found as assets name them.

    Args:
        settings: The limits of what is read.
        within: The folders that uris may point into; None: everywhere.
        storage_options: A JSON object with the options for fsspec.
    """

    def __init__(self, settings: PrepareConfig, within: tuple[str, ...] | None, storage_options: str) -> None:
        options = orjson.loads(storage_options)
        if within is None:
            # The kind and the pattern do not matter for reading.
            default = SourceConfig(kind="image", files="*", storage_options=options)
        else:
            default = SourceConfig(kind="image", table="*", id="id", uri="uri", within=within, storage_options=options)
        self._known: list[SourceConfig] = [default]
        self._numbers: dict[str | None, int] = {None: 0}
        self._adding = threading.Lock()
        super().__init__(self._known, settings)

    def number_of(self, source: str | None) -> int:
        """Return the number of a source for a reference.

        Args:
            source: The settings of the source as JSON; None: uris are read as they are.
        """
        with self._adding:
            if source not in self._numbers:
                self._known.append(SourceConfig.model_validate_json(source or "{}"))
                self._numbers[source] = len(self._known) - 1
            return self._numbers[source]

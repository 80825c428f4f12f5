"""The transform that lists the assets of sources."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.transforms.window import GlobalWindows
from apache_beam.typehints.decorators import no_annotations
from apache_beam.utils.windowed_value import WindowedValue

from ..configs import PrepareConfig, SourceConfig
from ..configs.errors import ArgumentError, ConfigError
from ..configs.load import parse_sources
from .elements import Asset, DeadAsset, check_asset, metadata_json
from .sources.asset_reader import AssetReader, metadata_rows, source_json
from .sources.files import FoundFile
from .sources.list_sources import list_references, list_tables, table_references
from .sources.unpreparable import Unpreparable

_NAMESPACE = "epithre_beam"
_LABEL = "sources"
_UNKNOWN_SIZE = 300_000
"""Bytes that a file of unknown size counts as."""


class ReadResult(NamedTuple):
    """The output of `ReadAssets`."""

    assets: beam.PCollection[Asset]
    """One asset for each file, or each row of a table."""
    dead: beam.PCollection[DeadAsset]
    """Assets whose content could not be read; empty unless `content=True`."""


class ReadAssets(beam.PTransform):  # type: ignore[misc]
    r"""List the assets of sources, as a job does. Each source is a glob of files or the rows of a table.

    Images and text files are listed by reference: `EmbedAssets` reads them where it embeds them, by the rules of their
    source (`within`, `storage_options`). Texts of tables are part of the asset. The input is the pipeline itself, the
    output a `ReadResult`. Both of its PCollections are bounded and in the global window.

    Ids must be unique within a kind. `ReadAssets` does not check it, because that needs a shuffle of all ids; a catalog
    refuses duplicates.

    Args:
        sources: A source, or several: each a `SourceConfig`, or a mapping with its keys, as in a job's `sources`.
            Relative paths start at the working folder of the program that builds the pipeline.
        prepare: A `PrepareConfig`, or a mapping with its keys; `max_file_bytes` limits what `content` reads.
        content: Read the bytes of each asset into `content` instead of naming their place in `uri`. Use it for steps
            other than `EmbedAssets` that need the bytes; if a shuffle follows, all bytes cross it.
        readers: Files that a worker reads at a time, for `content`. On Dask it is one.
        memory_mb: Memory for the content of files that are being read or wait for those before them, about.

    Raises:
        ArgumentError: When it is applied to a PCollection.
        ConfigError: When a source or `prepare` is wrong. While the pipeline runs: when no file matches, or a table
            lacks a column.
        SourceError: While the pipeline runs, when a folder or table cannot be read, or a table has invalid values.

    >>> import pathlib, tempfile
    >>> import apache_beam as beam
    >>> from epithre_beam import transforms as epithre
    >>> table = pathlib.Path(tempfile.mkdtemp(), "products.csv")
    >>> _ = table.write_text("sku,title\np1,red ceramic mug\n")
    >>> with beam.Pipeline() as p:
    ...     source = {"kind": "text", "table": str(table), "id": "sku", "text": "title"}
    ...     _ = (p | epithre.ReadAssets(source)).assets | beam.Map(lambda asset: print(asset.id, asset.text))
    p1 red ceramic mug
    """

    def __init__(
        self,
        sources: SourceConfig | Mapping[str, Any] | Sequence[SourceConfig | Mapping[str, Any]],
        prepare: PrepareConfig | Mapping[str, Any] | None = None,
        *,
        content: bool = False,
        readers: int = 16,
        memory_mb: int = 160,
    ) -> None:
        super().__init__()
        for name, value in (("readers", readers), ("memory_mb", memory_mb)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"ReadAssets: {name} must be an int of at least 1, got {value!r:.80}.")
        self._readers, self._memory = readers, memory_mb * 1_000_000
        if isinstance(sources, (str, os.PathLike)):
            raise ConfigError(
                "ReadAssets: a source must be a mapping, such as "
                f'{{"kind": "image", "files": "{sources!s:.80}"}}, got a {type(sources).__name__}.'
            )
        several = [sources] if isinstance(sources, (SourceConfig, Mapping)) else sources
        self._sources, self._prepare = parse_sources(several, prepare, "ReadAssets")
        self._content = content

    @no_annotations  # type: ignore[untyped-decorator]  # Beam warns about a named tuple, although it takes one
    def expand(self, begin: beam.pvalue.PBegin) -> ReadResult:
        if not isinstance(begin, beam.pvalue.PBegin):
            raise ArgumentError(
                f"{self.label} begins a pipeline, so apply it to the pipeline itself, got {type(begin).__name__}."
            )
        sources = begin | "Sources" >> beam.Create(range(len(self._sources)))
        files = sources | "ListFiles" >> beam.FlatMap(list_files, self._sources).with_output_types(Asset)
        rows = (
            sources
            | "ListTables" >> beam.FlatMap(find_tables, self._sources).with_output_types(tuple[int, FoundFile])
            | "SpreadTables" >> beam.Reshuffle()
            | "ReadTables" >> beam.FlatMap(read_table, self._sources).with_output_types(Asset)
        )
        # References are small: spreading them here spreads the reading and embedding that follows.
        assets = (files, rows) | "Join" >> beam.Flatten() | "SpreadAssets" >> beam.Reshuffle()
        if not self._content:
            dead = begin | "NoDead" >> beam.Create([]).with_output_types(DeadAsset)
            return ReadResult(assets, dead)
        # Dask drops what leaves `finish_bundle`, so it gets each file before the next one is read.
        readers = 1 if type(begin.pipeline.runner).__name__ == "DaskRunner" else self._readers
        read = assets | "ReadContent" >> beam.ParDo(_ReadContent(self._prepare, readers, self._memory))
        return ReadResult(
            read | "Assets" >> beam.Filter(_is_alive).with_output_types(Asset),
            read | "Dead" >> beam.Filter(_is_dead).with_output_types(DeadAsset),
        )

    def display_data(self) -> dict[str, Any]:
        places = [source.files or source.table for source in self._sources]
        return {
            "sources": DisplayDataItem(", ".join(str(place) for place in places), label="Sources"),
            "content": DisplayDataItem(self._content, label="Reads the content"),
        }


def list_files(position: int, sources: Sequence[SourceConfig]) -> Iterator[Asset]:
    """List the files of a source; nothing for a table."""
    source = sources[position]
    if source.files is not None:
        yield from _assets(list_references(source, position, {}, _LABEL), source)


def find_tables(position: int, sources: Sequence[SourceConfig]) -> Iterator[tuple[int, FoundFile]]:
    """List the files of a source's table; nothing for a source of files."""
    source = sources[position]
    if source.table is not None:
        for file in list_tables(source, f"{_LABEL}[{position}]"):
            yield position, file


def read_table(table: tuple[int, FoundFile], sources: Sequence[SourceConfig]) -> Iterator[Asset]:
    position, file = table
    source = sources[position]
    yield from _assets(table_references(source, file, position, f"{_LABEL}[{position}]"), source)


def _assets(tables: Iterable[pa.Table], source: SourceConfig) -> Iterator[Asset]:
    place, listed = source_json(source), Metrics.counter(_NAMESPACE, "assets_listed")
    for table in tables:
        listed.inc(len(table))
        for row, metadata in zip(table.drop_columns(_metadata(table)).to_pylist(), metadata_rows(table), strict=True):
            yield Asset(
                id=row["asset_id"],
                kind=row["kind"],
                uri=row["uri"],
                text=row["text"],
                fingerprint=row["fingerprint"],
                metadata=None if metadata is None else metadata_json(metadata, f"Asset {row['asset_id']!r:.80}"),
                size_bytes=row["size_bytes"],
                source=None if row["uri"] is None else place,
            )


def _metadata(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name == "metadata"]


class _ReadContent(beam.DoFn):  # type: ignore[misc]
    """Replace the uri of an asset by its bytes. An asset that cannot be read becomes a `DeadAsset`.

    Several files are read at once. Elements leave in the order in which they came, on the DoFn's own thread, because
    Beam loses metrics of other threads.
    """

    def __init__(self, prepare: PrepareConfig, readers: int, memory: int) -> None:
        self._prepare = prepare
        self._readers = readers
        self._memory = memory

    def setup(self) -> None:
        self._reader = AssetReader(self._prepare)
        self._threads = ThreadPoolExecutor(self._readers, thread_name_prefix="read")

    def start_bundle(self) -> None:
        self._reading: deque[tuple[int, Asset, Future[bytes] | None]] = deque()
        self._held = 0

    def process(self, element: Any) -> Iterator[Asset | DeadAsset]:
        asset = Asset(*element)
        size = 0 if asset.uri is None else asset.size_bytes or _UNKNOWN_SIZE
        while self._reading and (self._held + size > self._memory or len(self._reading) >= 2 * self._readers):
            yield self._take()
        self._held += size
        future = None if asset.uri is None else self._threads.submit(self._read, asset)
        self._reading.append((size, asset, future))
        while self._reading and (self._readers == 1 or _is_done(self._reading[0][2])):
            yield self._take()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        while self._reading:
            yield GlobalWindows.windowed_value(self._take())

    def teardown(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def _read(self, asset: Asset) -> bytes:
        return self._reader.read(asset.uri or "", kind=asset.kind, size_bytes=asset.size_bytes, source=asset.source)

    def _take(self) -> Asset | DeadAsset:
        """Wait for the file that came first, and return its asset."""
        size, asset, future = self._reading.popleft()
        self._held -= size
        if future is None:
            return asset
        try:
            content = future.result()
        except Unpreparable as failure:
            Metrics.counter(_NAMESPACE, "dead_assets").inc()
            return DeadAsset(
                id=asset.id,
                kind=asset.kind,
                uri=asset.uri,
                stage="read",
                reason=failure.reason.value,
                detail=failure.detail,
                attempts=0,
            )
        return check_asset(asset._replace(uri=None, content=content, size_bytes=len(content), source=None))


def _is_done(future: "Future[bytes] | None") -> bool:
    return future is None or future.done()


def _is_alive(element: Any) -> bool:
    return not isinstance(element, DeadAsset)


def _is_dead(element: Any) -> bool:
    return isinstance(element, DeadAsset)

"""The transform that writes embedded assets to Parquet files."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.coders import RowCoder, registry
from apache_beam.metrics import Metrics
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue
from pydantic import TypeAdapter, ValidationError

from ..configs.errors import ArgumentError, ConfigError
from ..configs.load import anchored
from ..configs.schema import Location, MetadataType, check_metadata_name
from ..index.storage.store import Store
from ..index.vectors.hidden_folder import check_is_new, delete_dead, new_hidden_folder
from ..index.vectors.vector_files import (
    COLUMNS,
    MergeTask,
    PartWriter,
    VectorPart,
    VectorsSetup,
    finish_folder,
    plan_files,
    write_file,
)
from .elements import EmbeddedAsset, check_elements, warn_of_empty
from .workers.steps import under_one_key

_NAMESPACE = "epithre_beam"
_MOST_FILE_BYTES = 100_000_000_000

log = logging.getLogger("epithre_beam.vectors")


class VectorFile(NamedTuple):
    """A Parquet file that `WriteVectors` wrote."""

    path: str
    """Path or URL."""
    rows: int
    """Number of vectors in it."""
    size_bytes: int
    """Its size in bytes."""
    sha256: str
    """SHA-256 of its bytes, as 64 hexadecimal digits."""


registry.register_coder(VectorFile, RowCoder)


class WriteVectors(beam.PTransform):  # type: ignore[misc]
    """Write embedded assets to Parquet files, which stock tools and `epithre-beam index --from` read.

    Input: a bounded PCollection of `EmbeddedAsset`, or of `beam.Row` with `id`, `kind`, `embedding` and any of its
    other fields, in any windows. Output: PCollection of `VectorFile` with one element for each file, after all are
    written.

    A file has the columns `id`, `kind`, `uri`, `text`, `content_sha256`, `fingerprint`, `media_type`, `size_bytes`,
    `width`, `height`, `prepared`, `metadata` (JSON), a column for each name in `metadata`, and `embedding`
    (fixed_size_list of float32). Each row is written once, whatever Beam repeats. Vectors do not cross a shuffle.
    A file's name comes from its content. Files appear completely, after all vectors are there, and `_vectors.json`
    appears last. Without elements, it is the only file, with `"rows": 0`. While it is written, the folder has a hidden
    folder `.writing-…`. One that a killed pipeline left is named in a warning by the next pipeline into the folder, and
    deleted by it when nothing was written there for a week; writers show every hour that they are alive.

    `_vectors.json` has the model, dimension and request that made the vectors, from `made_by` of the elements. So
    `index --from` knows the model, and `EmbedAssets(cache=folder)` reuses the vectors. Vectors of several models are
    refused. If some elements have no `made_by`, the model is unknown.

    Args:
        folder: A path or fsspec URL. It must not have Parquet files yet. A relative path starts at the working folder
            of the program that builds the pipeline.
        metadata: Names of metadata values that get a column, with their types (`string`, `int`, `double`, `bool`,
            `date`, `timestamp`).
        file_bytes: Size of a file, about. Small bundles are merged into files of this size.

    Raises:
        ConfigError: When an argument is wrong. While the pipeline runs: when the folder already has vectors.
        ArgumentError: When the input is unbounded or has other elements, or the runner cannot run it. While the
            pipeline runs: when vectors have different dimensions or models.

    >>> import tempfile
    >>> import apache_beam as beam
    >>> from epithre_beam import transforms as epithre
    >>> with beam.Pipeline() as p:
    ...     rows = p | beam.Create([beam.Row(id="p1", kind="text", text="mug", embedding=[0.6, 0.8])])
    ...     _ = rows | epithre.WriteVectors(tempfile.mkdtemp()) | beam.Map(lambda file: print(file.rows))
    1
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        metadata: Mapping[str, MetadataType] | None = None,
        file_bytes: int = 256_000_000,
    ) -> None:
        super().__init__()
        self._setup = VectorsSetup(
            store=Store(_folder(folder)),
            hidden=new_hidden_folder(),
            metadata=_metadata(metadata or {}),
            file_bytes=_file_bytes(file_bytes),
        )

    def expand(self, embedded: beam.PCollection) -> beam.PCollection[VectorFile]:
        check_elements(embedded, EmbeddedAsset, self.label)
        if not embedded.is_bounded:
            raise ArgumentError(
                f"{self.label} takes a bounded PCollection, got an unbounded one: it could not tell when its files are "
                "complete. For a stream, use a sink of Beam, such as WriteToFiles or a vector database."
            )
        if type(embedded.pipeline.runner).__name__ == "DaskRunner":
            raise ArgumentError(f"{self.label} does not run on Dask, which loses what a bundle returns at its end.")
        begin = embedded.pipeline | "Begin" >> beam.Create([0])
        # Used once: an engine that repeats it for a second use would find the files of this pipeline.
        checked = embedded.pipeline | "First" >> beam.Create([0]) | "CheckFolder" >> beam.Map(check, self._setup)
        parts = (
            embedded
            | "GlobalWindow" >> beam.WindowInto(GlobalWindows())
            # The side input delays writing, and embedding in the same stage, until the folder is checked.
            | "WriteParts" >> beam.ParDo(_WriteParts(self._setup), beam.pvalue.AsSingleton(checked))
        )
        files = (
            (begin | "KeepBegin" >> beam.Map(under_one_key), parts | "KeepParts" >> beam.Map(under_one_key))
            | "JoinParts" >> beam.Flatten()
            | "GroupParts" >> beam.GroupByKey()
            | "PlanFiles" >> beam.FlatMap(plan, self._setup)
            | "SpreadFiles" >> beam.Reshuffle()
            | "WriteFiles" >> beam.Map(write, self._setup)
        )
        return (
            (begin | "KeepBegin2" >> beam.Map(under_one_key), files | "KeepFiles" >> beam.Map(under_one_key))
            | "JoinFiles" >> beam.Flatten()
            | "GroupFiles" >> beam.GroupByKey()
            | "Finish" >> beam.FlatMap(finish, self._setup).with_output_types(VectorFile)
        )

    def display_data(self) -> dict[str, Any]:
        return {
            "folder": DisplayDataItem(self._setup.store.url, label="Folder"),
            "file_bytes": DisplayDataItem(self._setup.file_bytes, label="Bytes of a file"),
            "metadata": DisplayDataItem(", ".join(self._setup.metadata), label="Metadata columns"),
        }


def _folder(folder: str | os.PathLike[str]) -> str:
    try:
        url = TypeAdapter(Location).validate_python(os.fspath(folder))
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(f"WriteVectors: folder must be a path or URL without a password ({reason}).") from None
    return anchored(url, Path.cwd())


def _metadata(types: Mapping[str, str]) -> dict[str, str]:
    for name, kind in types.items():
        try:
            TypeAdapter(MetadataType).validate_python(kind)
            check_metadata_name(name)
        except (ValidationError, ValueError, TypeError):
            raise ConfigError(
                "WriteVectors: metadata must map names of columns to types such as 'string', "
                f"got {name!r:.80}: {kind!r:.80}."
            ) from None
        if name in {*COLUMNS, "embedding"}:
            raise ConfigError(f"WriteVectors: metadata must not have the name of another column, got {name!r}.")
    return dict(sorted(types.items()))


def _file_bytes(size: int) -> int:
    if not isinstance(size, int) or not 0 < size <= _MOST_FILE_BYTES:
        raise ConfigError(f"WriteVectors: file_bytes must be from 1 to {_MOST_FILE_BYTES:,}, got {size!r:.80}.")
    return size


def check(begin: int, setup: VectorsSetup) -> int:
    check_is_new(setup.store)
    for name in delete_dead(setup.store, setup.hidden):
        log.warning(
            "%s/%s was left by a pipeline that was killed, or belongs to one that runs. Delete it if none runs; it is "
            "deleted by itself after a week without a sign of life.",
            setup.store.url,
            name,
        )
    return begin


class _WriteParts(beam.DoFn):  # type: ignore[misc]
    """Write the vectors of a bundle. A part is only used if its bundle succeeds."""

    def __init__(self, setup: VectorsSetup) -> None:
        self._setup = setup

    def start_bundle(self) -> None:
        self.teardown()  # what a failed bundle left
        self._writer = PartWriter(self._setup)

    def process(self, element: Any, _checked: int) -> Iterator[VectorPart]:
        row = _as_dict(element)
        part = self._writer.add(row, row["embedding"])
        if part is not None:
            yield _counted(part)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        part = self._writer.finish()
        if part is not None:
            yield GlobalWindows.windowed_value_at_end_of_window(_counted(part))

    def teardown(self) -> None:
        writer: PartWriter | None = getattr(self, "_writer", None)
        if writer is not None:
            writer.abandon()


def _as_dict(element: Any) -> Mapping[str, Any]:
    row: Mapping[str, Any] | None = None
    if isinstance(element, beam.Row):
        row = element.as_dict()
    elif hasattr(element, "_asdict"):
        row = element._asdict()
    if row is None or not {"id", "kind", "embedding"} <= row.keys():
        raise ArgumentError(
            "WriteVectors takes elements of type EmbeddedAsset, or beam.Row with its fields, "
            f"got {type(element).__name__}."
        )
    return row


def _counted(part: VectorPart) -> VectorPart:
    Metrics.counter(_NAMESPACE, "vectors_written").inc(part.rows)
    return part


def plan(element: tuple[int, Iterable[int | VectorPart]], setup: VectorsSetup) -> list[MergeTask]:
    parts = [part for part in element[1] if isinstance(part, VectorPart)]
    return plan_files(parts, setup.file_bytes)


def write(task: MergeTask, setup: VectorsSetup) -> VectorPart:
    Metrics.counter(_NAMESPACE, "vector_files_written").inc()
    return write_file(task, setup)


def finish(element: tuple[int, Iterable[int | VectorPart]], setup: VectorsSetup) -> Iterator[VectorFile]:
    files = [file for file in element[1] if isinstance(file, VectorPart)]
    if files:
        warn_of_empty(setup.metadata, (file.filled for file in files), "WriteVectors")
    for file in finish_folder(files, setup):
        path = f"{setup.store.url.rstrip('/')}/{file.name}"
        yield VectorFile(path=path, rows=file.rows, size_bytes=file.size_bytes, sha256=file.sha256)

"""The clip-retrieval export: a folder that `clip-retrieval back` opens.

The server keeps one metadata table per folder, shared by its `image.index` and `text.index`. Each of our kinds has its
own rows, so each kind becomes a separate index in `indices_paths.json`, named after the kind.
"""

import urllib.parse
import urllib.request
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from .folder import ExportFolder
from .kind_source import KindSource
from .stock_faiss import write_stock_index

INDICES = "indices_paths.json"
_ROWS_PER_BATCH = 1024
_COLUMNS = ("asset_id", "url", "image_path", "caption", "uri", "metadata")
_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in _COLUMNS])
"""The server sends values as JSON and opens `image_path` as a path, so all columns are strings without nulls."""


def write_clip_kind(folder: ExportFolder, source: KindSource) -> dict[str, Any]:
    """Writes `<kind>/<kind>.index` and the metadata of its rows. Returns the search parameters of the index."""
    with folder.file(f"{source.kind}/{source.kind}.index", source.entry.rows) as file:
        facts = write_stock_index(file, source)
    with (
        folder.file(f"{source.kind}/metadata/00000.arrow", source.entry.rows) as file,
        pa.ipc.new_file(pa.PythonFile(file, mode="w"), _SCHEMA) as writer,
    ):
        for table in source.tables():
            for first in range(0, len(table), _ROWS_PER_BATCH):
                writer.write_table(_metadata(table.slice(first, _ROWS_PER_BATCH)))
    return facts


def write_clip_indices(folder: ExportFolder, kinds: list[str]) -> None:
    """Writes the configuration file of the server. Everything that the server would download is disabled."""
    indices = {
        kind: {
            "indice_folder": kind,
            "columns_to_return": list(_COLUMNS),
            "use_arrow": True,
            "enable_hdf5": False,
            "enable_faiss_memory_mapping": False,
            "reorder_metadata_by_ivf_index": False,
            "enable_mclip_option": False,
            "provide_safety_model": False,
            "provide_violence_detector": False,
            "provide_aesthetic_embeddings": False,
        }
        for kind in kinds
    }
    folder.write(INDICES, orjson.dumps(indices, option=orjson.OPT_INDENT_2).decode() + "\n")


def _metadata(table: pa.Table) -> pa.Table:
    uris = table.column("uri").to_pylist()
    rows = len(table)
    structs = table.column("metadata").to_pylist() if "metadata" in table.schema.names else [None] * rows
    columns = {
        "asset_id": table.column("asset_id"),
        "url": [uri if uri and uri.startswith(("http://", "https://")) else "" for uri in uris],
        "image_path": [_path(uri) for uri in uris],
        "caption": pc.fill_null(table.column("text"), ""),
        "uri": pc.fill_null(table.column("uri"), ""),
        "metadata": [orjson.dumps(struct or {}).decode() for struct in structs],
    }
    return pa.table(columns, schema=_SCHEMA)


def _path(uri: str | None) -> str:
    """The path of a local `file://` URI or absolute path; empty for other URIs."""
    if not uri:
        return ""
    if uri.startswith("file://"):
        return urllib.request.url2pathname(urllib.parse.urlsplit(uri).path)
    return uri if uri.startswith("/") else ""

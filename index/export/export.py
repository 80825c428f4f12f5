"""Exports: a version of a catalog as other tools want it, in a folder of its own.

Three forms: `faiss` (a stock index and a table a kind), `clip-retrieval` (a folder for its server) and `pgvector`
(files for PostgreSQL's COPY). Every file of the catalog that is read is proved first. The folder has a mark,
`export.json`, which says that the export is whole only when it is.
"""

import contextlib
import datetime
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from ...configs.errors import ArgumentError, CatalogError
from ..local.local_files import local_files
from ..storage.store import Store
from ..versions.history import find_version
from ..versions.latest import published_manifest
from ..versions.layout import KINDS
from ..versions.manifest import IndexEntry, Manifest, read_manifest
from .clip import write_clip_indices, write_clip_kind
from .folder import ExportFolder
from .kind_source import KindSource
from .pgvector import check_for_pgvector, write_pgvector_kind, write_sql
from .stock_faiss import write_faiss

Form = Literal["faiss", "clip-retrieval", "pgvector"]
FORMS: tuple[Form, ...] = get_args(Form)


def export_catalog(
    store: Store,
    folder: Store,
    form: Form,
    *,
    kinds: Collection[str] = (),
    version: str | None = None,
    overwrite: bool = False,
    cache_folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes a version of the catalog into a folder, for another tool.

    Args:
        store: The catalog.
        folder: New or empty, or with an export that was not finished, which is then begun anew.
        form: For what.
        kinds: Absent: all that the version has.
        version: Its name, or the beginning of it; absent: the published one.
        overwrite: Whether a finished export in the folder is replaced.
        cache_folder: For files of a remote catalog; see `open_catalog`.
        progress: Is told now and then how many bytes of the catalog were read, and of about how many.

    Returns:
        What `export.json` says: form, catalog, version, the figures of each kind, the files with their sha256.

    Raises:
        CatalogError: When there is nothing to export, or a file of the catalog is missing or damaged.
        StoreError: When the folder cannot be written, or another export took it.
        ArgumentError: When an argument is not as it must be, or the folder is somebody else's.
    """
    if form not in FORMS:
        raise ArgumentError(f"to must be one of {', '.join(FORMS)}, got {form!r}.")
    manifest = read_manifest(store, find_version(store, version)) if version is not None else published_manifest(store)
    entries = _chosen(manifest, kinds)
    _check_place(store, folder)
    if form == "pgvector":
        check_for_pgvector(manifest.dimension, manifest.metadata_types)
    about = {
        "form": form,
        "catalog": store.url,
        "version": manifest.version,
        "model": manifest.model,
        "dimension": manifest.dimension,
        "metric": manifest.metric,
    }
    target = ExportFolder(folder, about)
    names = [manifest.file(name) for entry in entries for name in entry.names]
    with (
        local_files(store, manifest.version, names, cache_folder=cache_folder) as paths,
        contextlib.ExitStack() as held,
    ):
        total, done = sum(entry.size_bytes for entry in names), 0

        def advance(read: int) -> None:
            nonlocal done
            done += read
            if progress is not None:
                progress(min(done, total), total)

        sources = [_opened(entry, manifest, paths, held, advance) for entry in entries]
        target.begin(overwrite=overwrite)
        facts = _write(target, form, sources, manifest)
        advance(total)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return target.finish({"created_at": now, "kinds": facts})


def _write(target: ExportFolder, form: Form, sources: list[KindSource], manifest: Manifest) -> dict[str, Any]:
    write_kind = {"faiss": write_faiss, "clip-retrieval": write_clip_kind, "pgvector": write_pgvector_kind}[form]
    facts = {}
    for source in sources:
        facts[source.kind] = {"rows": source.entry.rows, **write_kind(target, source)}
    if form == "clip-retrieval":
        write_clip_indices(target, list(facts))
    if form == "pgvector":
        write_sql(target, facts, manifest.dimension)
    return facts


def _chosen(manifest: Manifest, kinds: Collection[str]) -> list[IndexEntry]:
    there = {entry.kind: entry for entry in manifest.indexes if entry.rows}
    for kind in kinds:
        if kind not in KINDS:
            raise ArgumentError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
        if kind not in there:
            raise ArgumentError(f"kind must be one that version {manifest.version} has assets of, got {kind!r}.")
    if not there:
        raise CatalogError(f"Version {manifest.version} has no assets, so there is nothing to export.")
    return [entry for kind, entry in sorted(there.items()) if not kinds or kind in kinds]


def _check_place(store: Store, folder: Store) -> None:
    """What is in a catalog's folder is the catalog's own, and `versions prune` may delete it."""
    if type(store.fs) is not type(folder.fs):
        return
    catalog, place = store.path("").rstrip("/"), folder.path("").rstrip("/")
    if place == catalog or place.startswith(f"{catalog}/"):
        raise ArgumentError(f"{folder.url} must not be in the catalog {store.url}: name a folder elsewhere.")


def _opened(
    entry: IndexEntry,
    manifest: Manifest,
    paths: Mapping[str, Path],
    held: contextlib.ExitStack,
    advance: Callable[[int], None],
) -> KindSource:
    """Opened before anything is written: what is open stays readable, even if the version is pruned meanwhile."""
    return KindSource(
        entry=entry,
        dimension=manifest.dimension,
        types=manifest.metadata_types,
        assets=held.enter_context(paths[entry.assets].open("rb")),
        vectors=[held.enter_context(paths[name].open("rb")) for name in entry.files],
        codes=[
            None if part.codes is None else held.enter_context(paths[part.codes].open("rb")) for part in entry.parts
        ],
        advance=advance,
    )

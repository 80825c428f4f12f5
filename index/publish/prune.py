"""Prune a catalog: delete old versions, old units and leftovers of killed runs.

Pruning is safe while runs and readers are active. Prune holds the lease, so no run is active. It lists the versions to
delete and condemns them in LATEST.json, so no process publishes them afterwards. It deletes the manifest of a version
first, so a partly deleted version never looks complete.
"""

import contextlib
import datetime
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from ...configs.errors import ArgumentError, CatalogError, NoCatalogError
from ..storage.obstacles import file_in_the_way
from ..storage.partials import writer_of
from ..storage.store import Store, StoredFile
from ..versions.history import VersionInfo, list_versions
from ..versions.latest import condemned_in, left_in, read_latest
from ..versions.layout import manifest_name, run_folder, version_folder
from ..versions.lease import LEASE, Lease, hold
from ..versions.readers import read_holds
from .publish import fence

_DAY_S = 86_400
_VERSION = re.compile(r"\d{6,}-\d{8}T\d{6}Z-[0-9a-f]+")
_PARTIAL = re.compile(r"(?:(?:versions|units|runs|readers)/(?:.*/)?)?\.[^/]+\.[0-9a-f]{12}\.partial")
_UNIT = re.compile(r"units/([^/.]+)(\.dead)?\.parquet")

Sort = Literal["version", "unfinished version", "unit", "run", "partial file", "reader's hold"]


@dataclass(frozen=True, kw_only=True)
class PruneRules:
    """What prune may delete."""

    keep: int = 3
    """Number of versions to keep: the current one, the one before it, then the newest."""
    older_than_days: float | None = None
    """Keep all versions younger than this number of days."""
    units_older_than_days: float = 7.0
    """Keep units younger than this number of days. After a killed run, units may hold vectors that no version has."""
    drop: tuple[str, ...] = ()
    """Versions to delete regardless of the other rules. The only way to delete one newer than the current version."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ArgumentError(f"--keep must be at least 1, got {self.keep}.")
        for name, days in (("--older-than", self.older_than_days), ("--units-older-than", self.units_older_than_days)):
            if days is not None and not 0 <= days <= 100_000:
                raise ArgumentError(f"{name} must be a number of days from 0 to 100000, got {days:g}.")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A group of files that is deleted or kept together, and the reason."""

    sort: Sort
    name: str
    files: tuple[str, ...]
    """In the order of deletion."""
    size_bytes: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Deleted and kept pieces, as planned or as done."""

    published: str | None
    deleted: tuple[Piece, ...]
    kept: tuple[Piece, ...]

    @property
    def freed_bytes(self) -> int:
        return sum(piece.size_bytes for piece in self.deleted)


def prune(store: Store, rules: PruneRules, *, dry_run: bool = False) -> Pruning:
    """Delete what `rules` allow. With `dry_run`, only return what would be deleted.

    Raises:
        CatalogBusyError: If a run or another prune holds the catalog.
        CatalogError: If there is no catalog, or LATEST.json or the manifest of the current version is damaged.
            Old versions may still be needed then.
        SwapConflictError: If a version to delete was published in the meantime. Nothing was deleted.
    """
    if not any(store.names(folder) for folder in ("versions", "units", "runs")):
        if store.is_local and (file := file_in_the_way(store.path(""))) is not None:
            raise NoCatalogError(f"{file} is a file. Give the folder of a catalog.")
        raise NoCatalogError(
            f"{store.url}: there is no catalog here, it has neither versions nor units. Check the path."
        )
    with hold(store, "prune") as lease:
        planned = _plan(store, rules)
        if dry_run:
            return planned
        done = _carry_out(store, planned, lease) if planned.deleted else planned
        _remove_empty_folders(store)
        return done


def _plan(store: Store, rules: PruneRules) -> Pruning:
    now_s = time.time()
    latest = read_latest(store)
    versions = list_versions(store, latest)
    files = store.listing()
    held, void_holds = read_holds(store)
    _check_drop(store, rules, versions)
    stores_now_s = next((f.modified_s for f in files if f.name == LEASE and f.modified_s is not None), now_s)
    condemned = condemned_in(None if latest is None else latest.data)
    left = left_in(None if latest is None else latest.data)
    decided = [
        *_decide_versions(versions, _folders(files, "versions"), rules, held, condemned, left, now_s),
        *_decide_unfinished(
            versions, _folders(files, "versions"), held, stores_now_s, nothing_published=latest is None
        ),
        *_decide_units(files, rules, stores_now_s),
        *(Decided(True, _piece("run", run, its, "has ended")) for run, its in _folders(files, "runs").items()),
    ]
    going = {name for goes, piece in decided if goes for name in piece.files}
    leftovers = [file for file in files if file.name not in going]
    decided += _decide_leftovers(leftovers, void_holds, stores_now_s, is_local=store.is_local)
    return Pruning(
        published=None if latest is None else latest.version,
        deleted=tuple(piece for goes, piece in decided if goes),
        kept=tuple(piece for goes, piece in decided if not goes),
    )


def _check_drop(store: Store, rules: PruneRules, versions: Sequence[VersionInfo]) -> None:
    """Raise ArgumentError if a version in `drop` does not exist or is published."""
    for version in rules.drop:
        info = next((info for info in versions if info.version == version), None)
        if info is None:
            raise ArgumentError(
                f"--drop {version}: {store.url} has no such version. "
                f"Run `epithre-beam versions list {shlex.quote(store.url)}` to see all versions."
            )
        if info.is_published:
            raise ArgumentError(f"--drop {version}: this is the current version. Publish another one first.")


def _carry_out(store: Store, planned: Pruning, lease: Lease) -> Pruning:
    versions = [piece for piece in planned.deleted if piece.sort in {"version", "unfinished version"}]
    if fence(store, [piece.name for piece in versions]) is None and versions:
        raise CatalogError(f"{store.url} has no current version any more. Nothing was deleted.")
    deleted, kept = [], list(planned.kept)
    for piece in planned.deleted:
        lease.check()
        if piece in versions:
            reader = _delete_version(store, piece.name)
            if reader is not None:
                kept.append(replace(piece, why=f"is in use by a reader ({reader}); the next prune deletes it"))
                continue
        elif piece.sort == "run":
            store.delete(run_folder(piece.name))
        else:
            for name in piece.files:
                store.delete(name)
        deleted.append(piece)
    return replace(planned, deleted=tuple(deleted), kept=tuple(kept))


def _delete_version(store: Store, version: str) -> str | None:
    """Delete a version unless a reader holds it. Return that reader, or None after the deletion.

    Holds are read before and after the deletion of the manifest, since a reader first writes its hold and then reads
    the manifest: a reader that found the manifest is seen by the second check.
    """
    if reader := read_holds(store).readers.get(version):
        return reader
    store.delete(manifest_name(version))
    if reader := read_holds(store).readers.get(version):
        return reader
    store.delete(version_folder(version))
    return None


def _remove_empty_folders(store: Store) -> None:
    """Remove empty version folders that a killed prune left on a local disk."""
    if not store.is_local:
        return
    for version in store.local_path("versions").glob("*"):
        if _VERSION.fullmatch(version.name) and version.is_dir():
            for folder in [*sorted(version.rglob("*/"), reverse=True), version]:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()


class Decided(NamedTuple):
    """A piece, and whether prune deletes it."""

    goes: bool
    piece: Piece


def _decide_versions(
    versions: Sequence[VersionInfo],
    folders: dict[str, list[StoredFile]],
    rules: PruneRules,
    held: dict[str, str],
    condemned: Sequence[str],
    left: Sequence[str],
    now_s: float,
) -> list[Decided]:
    published = next((v for v in versions if v.is_published), None)
    if published is not None and published.damage is not None:
        raise CatalogError(f"{published.damage} Nothing is pruned while the current version is damaged.")
    previous = published.manifest.previous if published and published.manifest else None
    # An unpublished version that is held back by a gate is a draft. Every attempt writes one; only the newest matters.
    named = {v.manifest.previous for v in versions if v.manifest is not None}
    drafts = [
        v.version
        for v in versions
        if v.manifest is not None
        and v.manifest.gate_failures
        and not v.is_published
        and v.version not in {*named, *left}
    ]
    whole = [v.version for v in versions if v.manifest is not None and v.version not in drafts]
    ranked = ([published.version] if published else []) + ([previous] if previous in whole else []) + whole[::-1]
    among = list(dict.fromkeys(ranked))[: rules.keep]

    def why_kept(info: VersionInfo) -> str | None:
        if published is None:
            return "is kept while no version is current"
        if info is published:
            return "is the current version"
        if info.version in held:
            return f"is in use by a reader ({held[info.version]})"
        if info.version in condemned or info.version in rules.drop:
            return None
        if info.version == previous and info.version in among:
            return "is the previous version, for `versions rollback`"
        if info.version > published.version and info.manifest is None:
            return f"is newer than the current version and cannot be read: {info.damage}"
        if info.version == max(drafts, default="") > published.version and info.manifest is not None:
            return f"is held back by a gate and newer than the current version: {' '.join(info.manifest.gate_failures)}"
        if info.version > published.version and info.version not in drafts:
            return f"is newer than the current version; use `--drop {info.version}` to delete it"
        if info.version in among:
            return f"is among the newest {rules.keep}"
        if rules.older_than_days is not None and not _is_older(_made_s(info), rules.older_than_days, now_s):
            return f"is younger than {rules.older_than_days:g} days"
        return None

    decided = []
    for info in versions:
        kept = why_kept(info)
        gone = f"is not among the newest {rules.keep}"
        if info.version in drafts:
            gone = "was held back by a gate and is replaced by a newer version"
        if info.version in rules.drop:
            gone = "is named by --drop"
        if info.version in condemned:
            gone = "was left half deleted by a prune that did not finish"
        decided.append(
            Decided(kept is None, _piece("version", info.version, folders.get(info.version, []), kept or gone))
        )
    return decided


def _decide_unfinished(
    versions: Sequence[VersionInfo],
    folders: dict[str, list[StoredFile]],
    held: dict[str, str],
    now_s: float,
    *,
    nothing_published: bool,
) -> list[Decided]:
    """Decide on folders without a manifest, left by killed runs or by a killed prune."""
    known = {info.version for info in versions}
    decided = []
    for version, its in folders.items():
        if version in known or not _VERSION.fullmatch(version):
            continue
        kept = None
        if version in held:
            kept = f"is in use by a reader ({held[version]})"
        elif nothing_published:
            kept = "is kept while no version is published"
        elif not all(_is_older(file.modified_s, 1, now_s) for file in its):
            kept = "has no manifest and is younger than a day"
        decided.append(Decided(kept is None, _piece("unfinished version", version, its, kept or "has no manifest")))
    return decided


def _decide_units(files: Sequence[StoredFile], rules: PruneRules, now_s: float) -> list[Decided]:
    """Decide on units. Vectors are deleted before dead letters, since the vectors mark a unit as complete."""
    units: dict[str, list[StoredFile]] = {}
    for file in files:
        if match := _UNIT.fullmatch(file.name):
            units.setdefault(match[1], []).append(file)
    days = f"{rules.units_older_than_days:g} days"
    decided = []
    for unit, its in units.items():
        goes = all(_is_older(file.modified_s, rules.units_older_than_days, now_s) for file in its)
        its.sort(key=lambda file: ".dead." in file.name)
        decided.append(Decided(goes, _piece("unit", unit, its, f"is {'older' if goes else 'younger'} than {days}")))
    return decided


def _decide_leftovers(
    files: Sequence[StoredFile], void_holds: Sequence[str], now_s: float, *, is_local: bool
) -> list[Decided]:
    decided = []
    for file in files:
        if _PARTIAL.fullmatch(file.name):
            goes = _is_older(file.modified_s, 1, now_s)
            why = f"is not finished and is {'older' if goes else 'younger'} than a day"
            writer = writer_of(file.name) if is_local else "unknown"
            if writer == "dead":
                goes, why = True, "is not finished and its process is dead"
            elif writer == "alive":
                goes, why = False, "is being written"
            decided.append(Decided(goes, _piece("partial file", file.name, [file], why)))
        elif file.name in void_holds:
            decided.append(Decided(True, _piece("reader's hold", file.name, [file], "has expired")))
    return decided


def _folders(files: Sequence[StoredFile], top: str) -> dict[str, list[StoredFile]]:
    """Group files by their folder below `top`."""
    folders: dict[str, list[StoredFile]] = {}
    for file in files:
        parts = file.name.split("/")
        if parts[0] == top and len(parts) > 2:
            folders.setdefault(parts[1], []).append(file)
    return folders


def _piece(sort: Sort, name: str, files: Sequence[StoredFile], why: str) -> Piece:
    names = tuple(file.name for file in files)
    return Piece(sort=sort, name=name, files=names, size_bytes=sum(file.size_bytes for file in files), why=why)


def _made_s(info: VersionInfo) -> float | None:
    if info.manifest is None:
        return info.modified_s
    return datetime.datetime.fromisoformat(info.manifest.created_at).timestamp()


def _is_older(modified_s: float | None, days: float, now_s: float) -> bool:
    """Whether a file is older than `days`. A file of unknown age never is."""
    return modified_s is not None and now_s - modified_s > days * _DAY_S

"""The commands of `epithre-beam versions`: list, verify, compare, publish and prune versions."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ...configs.errors import CatalogError, ConfigError, UnknownVersionError
from ...configs.words import of_count
from ...index.publish.prune import Piece
from ...index.publish.publish import publish
from ...index.storage.store import Store
from ...index.versions.complete import existing_versions, publish_command
from ...index.versions.history import VersionInfo, find_version, list_versions, version_before
from ...index.versions.latest import nothing_published, published_manifest, read_latest
from ...index.versions.layout import LATEST
from ...index.versions.manifest import read_manifest
from ...index.versions.stored_names import GATE_FAILURES
from ..console.documents import json_text
from ..console.help import Commands
from ..console.options import CatalogUrl, DryRun, Json

versions = typer.Typer(
    cls=Commands,
    help="List, verify, compare, publish and prune the versions of a catalog.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@versions.command("list")
def list_(catalog: CatalogUrl, as_json: Json = False) -> None:
    """List the versions. An arrow marks the current version."""
    store = Store(catalog)
    damage, latest = None, None
    try:
        latest = read_latest(store)
    except CatalogError as error:
        damage = error  # the versions are needed to repair it
    found = list_versions(store, latest)
    if not found and damage is None:
        raise nothing_published(store)
    if as_json:
        _print(json_text([_row(info) for info in found]))
    else:
        for info in found:
            _print_version(info)
    if damage is not None:
        raise damage


def _row(info: VersionInfo) -> dict[str, Any]:
    manifest = info.manifest
    row: dict[str, Any] = {
        "version": info.version,
        "is_published": info.is_published,
        "size_bytes": info.size_bytes,
        "damage": info.damage,
        "created_at": None,
        "model": None,
        "per_kind": {},
        "dead": None,
        GATE_FAILURES: [],
        "previous": None,
    }
    if manifest is not None:
        row |= {
            "created_at": manifest.created_at,
            "model": manifest.made_by.name,
            "per_kind": manifest.counts.per_kind,
            "dead": manifest.counts.dead,
            GATE_FAILURES: list(manifest.gate_failures),
            "previous": manifest.previous,
        }
    return row


def _print_version(info: VersionInfo) -> None:
    mark = "→" if info.is_published else " "
    if info.manifest is None:
        _print(f"{mark} {info.version}  damaged, {info.size_bytes:,} bytes")
        _print(f"    {info.damage}")
        return
    row = _row(info)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in row["per_kind"].items()) or "no assets"
    _print(f"{mark} {info.version}  {kinds}, {of_count(row['dead'], 'dead letter')}, {info.size_bytes:,} bytes")
    _print(f"    {row['created_at']}  {row['model']}  after {row['previous'] or 'none'}")
    for sentence in row[GATE_FAILURES]:
        _print(f"    {'was ' if info.is_published else ''}held back by a gate: {sentence}")


@versions.command()
def verify(
    catalog: CatalogUrl,
    version: Annotated[str | None, typer.Argument(metavar="VERSION", help="Default: the current version.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Verify every version that has a manifest.")] = False,
    as_json: Json = False,
) -> None:
    """Read a version completely and verify its files, rows, ids, indexes and norms, and LATEST.json."""
    from ...index.publish.verify import verify_versions

    if every and version is not None:
        raise ConfigError(f"--all verifies every version and takes no VERSION, got {version!r}. Remove one of them.")
    verdicts = []
    store = Store(catalog)
    for verdict in verify_versions(store, version and find_version(store, version), every=every):
        verdicts.append(verdict)
        if not verdict.damage and not as_json:
            files = of_count(verdict.files, "file")
            _print(f"{verdict.version}: {files}, {verdict.size_bytes:,} bytes, all match the manifest.")
    damage = [sentence for verdict in verdicts for sentence in verdict.damage]
    if as_json:
        _print(json_text([asdict(verdict) for verdict in verdicts]))
    if damage:
        raise CatalogError("\n".join(damage))


@versions.command()
def diff(
    catalog: CatalogUrl,
    old: Annotated[
        str | None, typer.Argument(metavar="OLD", help="Default: the version before the current one.")
    ] = None,
    new: Annotated[str | None, typer.Argument(metavar="NEW", help="Default: the current version.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Maximum ids to list per change.")] = 10,
    as_json: Json = False,
) -> None:
    """Show the differences between two versions: settings, and assets of each kind. No vector is read."""
    from ...index.publish.diff import diff_versions

    store = Store(catalog)
    before = read_manifest(store, find_version(store, old) if old else version_before(store))
    after = read_manifest(store, find_version(store, new)) if new else published_manifest(store)
    found = diff_versions(store, before, after, samples=limit)
    if as_json:
        _print(json_text(asdict(found)))
        return
    _print(f"{found.old} → {found.new}")
    for name, (was, now) in found.settings.items():
        _print(f"  {name}: {json_text(was)} → {json_text(now)}")
    for kind in found.kinds:
        counted = ", ".join(f"{count:,} {_WORDS[change]}" for change, count in kind.counts.items() if count)
        _print(f"  {kind.kind}: {kind.old_rows:,} → {of_count(kind.new_rows, 'asset')}; {counted or 'no difference'}")
        for change, names in kind.samples.items():
            for name in names:
                _print(f"    {_WORDS[change]}: {name}")
            if names and kind.counts[change] > len(names):
                _print(f"    {_WORDS[change]}: … and {kind.counts[change] - len(names):,} more")


_WORDS = {
    "added": "added",
    "removed": "removed",
    "moved": "moved",
    "changed": "changed",
    "metadata": "with changed metadata",
    "relocated": "at a changed URI",
}


@versions.command("publish")
def publish_(
    catalog: CatalogUrl,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="The version: its name, the beginning, or the number.")
    ],
) -> None:
    """Verify VERSION and make it the current version, such as one that is held back by a gate."""
    store = Store(catalog)
    version = find_version(store, version)
    try:
        latest = read_latest(store)
        expected = None if latest is None else latest.data
    except CatalogError:
        expected = store.read(LATEST)  # damaged: publishing repairs it
    _make_current(store, version, expected)
    _print(f"{version} is now the current version.")


@versions.command()
def rollback(
    catalog: CatalogUrl,
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="Default: the version before the current one.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Verify the previous version or an older VERSION, and make it the current version."""
    store = Store(catalog)
    latest = read_latest(store)
    if version is None and latest is not None and read_manifest(store, latest.version).previous is None:
        raise UnknownVersionError(f"{latest.version} is the first version; there is nothing to roll back to.")
    target = find_version(store, version) if version else version_before(store)
    if latest is None:
        raise CatalogError(f"{store.url} has no current version. Publish {target}: {publish_command(store, target)}.")
    expected, current, _ = latest
    if target not in existing_versions(store):
        why = "It was pruned." if version is None else f"See `epithre-beam versions list {shlex.quote(store.url)}`."
        raise UnknownVersionError(f"{store.url} has no version {target} to roll back to. {why}")
    if target >= current:
        what = "the current version" if target == current else "newer than the current version"
        raise ConfigError(
            f"rollback needs an older version, but {target} is {what} ({current}). "
            f"Name an older one, or use {publish_command(store, target)}."
        )
    _make_current(store, target, expected, dry_run=dry_run)
    _print(f"{target} {'would be' if dry_run else 'is'} current again, instead of {current}.")
    when = "Stop the schedule first" if dry_run else "Stop the schedule now"
    _print(f"{when}: the next run publishes the sources again.")


@versions.command()
def prune(
    catalog: CatalogUrl,
    keep: Annotated[
        int,
        typer.Option(
            help="Number of versions to keep: the current one, the previous one, then the newest others. "
            "1: no rollback is possible afterwards."
        ),
    ] = 3,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Delete only versions older than this.")
    ] = None,
    units_older_than: Annotated[float, typer.Option(metavar="DAYS", help="Delete only units older than this.")] = 7,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VERSION", help="Delete this version too, even if it is newer than the current version. Repeatable."
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete old versions, unused units, and the remains of killed runs."""
    from ...index.publish.prune import PruneRules
    from ...index.publish.prune import prune as prune_catalog

    store = Store(catalog)
    rules = PruneRules(
        keep=keep,
        older_than_days=older_than,
        units_older_than_days=units_older_than,
        drop=tuple(find_version(store, version) for version in drop or ()),
    )
    done = prune_catalog(store, rules, dry_run=dry_run)
    if as_json:
        document = {"dry_run": dry_run, **asdict(done), "freed_bytes": done.freed_bytes}
        _print(json_text(document))
        return
    _print_pieces("keep", done.kept)
    _print_pieces("delete" if dry_run else "deleted", done.deleted)
    _print(f"{done.freed_bytes:,} bytes {'would be freed' if dry_run else 'freed'}.")


def _print_pieces(verb: str, pieces: Sequence[Piece]) -> None:
    """Prints a line per piece; units with the same reason share a line."""
    units: dict[str, list[Piece]] = {}
    for piece in pieces:
        if piece.sort == "unit":
            units.setdefault(piece.why, []).append(piece)
        else:
            sort = piece.sort if piece.sort != "reader's hold" else "file of a reader"
            _print(f"{verb}: {sort} {piece.name}, {piece.size_bytes:,} bytes: {piece.why}")
    for why, same in units.items():
        size_bytes = sum(piece.size_bytes for piece in same)
        _print(
            f"{verb}: {of_count(len(same), 'unit')}, {size_bytes:,} bytes: {'it' if len(same) == 1 else 'each'} {why}"
        )


def _make_current(store: Store, version: str, expected: bytes | None, *, dry_run: bool = False) -> None:
    """Verifies a version and publishes it. `expected` was read before, so a version that prune deletes is refused."""
    from ...index.publish.verify import find_damage

    manifest = read_manifest(store, version)
    damage = list(find_damage(store, manifest))
    if damage:
        raise CatalogError("\n".join(damage))
    if dry_run:
        return
    publish(store, manifest, expected)
    latest = read_latest(store)
    if latest is None or latest.version != version:
        raise CatalogError(
            f"Another run published {latest and latest.version} at the same time. Run the command again."
        )


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")

"""Publishing: the one write that puts a version in force, and what became of it when its answer was lost."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from ...configs.errors import CatalogError, SwapConflictError, SwapUnknownError
from ..storage.store import Store
from ..versions.latest import condemned_in, latest_bytes, left_in, parse_latest, read_latest
from ..versions.layout import LATEST, manifest_name
from ..versions.manifest import Manifest, read_manifest


def publish(store: Store, manifest: Manifest, expected: bytes | None) -> None:
    """Writes the manifest's name into LATEST.json, if that still holds `expected`.

    `expected` is LATEST.json as it was before anything of the version was written or, for a version that exists
    already, verified: what prune deletes is then never published.

    Raises:
        CatalogError: When the version's manifest is not there.
        SwapConflictError: When another run has published since, or prune has condemned the version.
        SwapUnknownError: When it cannot be found out whether the version is published.
    """
    version = manifest.version
    condemned = condemned_in(expected)
    if version in condemned:
        raise SwapConflictError(f"{store.url} has condemned version {version}, prune is deleting it: choose another.")
    try:
        # What is stored: an older release wrote fewer fields into its manifests than this one would.
        digest = hashlib.sha256(store.read(manifest_name(version))).hexdigest()
    except FileNotFoundError as error:
        raise CatalogError(f"{store.url} has no version {version!r}: {manifest_name(version)} is missing.") from error
    try:
        store.swap(LATEST, expected, latest_bytes(version, digest, condemned, _left(expected, version)))
    except (SwapConflictError, SwapUnknownError) as error:
        end = how_it_ended(store, version, expected)
        is_refused = isinstance(error, SwapConflictError) and error.is_certain
        if end == "unknown" and not is_refused:
            raise SwapUnknownError(
                f"It is not known whether version {version} was published in {store.url}: nothing was deleted; "
                "`epithre-beam versions list` shows it when the store answers again."
            ) from error
        if end != "published":
            raise SwapConflictError(f"{store.url}/{LATEST} was changed by another run since this one began.") from error


def _left(expected: bytes | None, version: str) -> list[str]:
    """Newer versions that were in force, the one that `version` takes the place of among them."""
    parsed = None if expected is None else parse_latest(expected)
    names = [*left_in(expected), *([] if parsed is None else [parsed["version"]])]
    return [name for name in names if name > version]


def fence(store: Store, condemned: Sequence[str] = ()) -> bytes | None:
    """Swaps LATEST.json onto itself, so that no run that read it before can publish, and condemns versions.

    Only condemned versions may be deleted afterwards: who reads LATEST.json from now on refuses to publish them, who
    read it before is refused. Names stay condemned, whatever is published meanwhile, until their manifest is gone.

    Returns:
        The new content; None when nothing is published, and then no version may be deleted.

    Raises:
        SwapConflictError: When a condemned version is the one in force, or another run was faster.
        SwapUnknownError: When the storage does not tell; nothing may be deleted.
    """
    latest = read_latest(store)
    if latest is None:
        return None
    expected, version, digest = latest
    if version in condemned:
        raise SwapConflictError(f"{store.url} has published version {version} in the meantime: it must not be deleted.")
    earlier = [name for name in condemned_in(expected) if store.size(manifest_name(name)) is not None]
    left = [name for name in left_in(expected) if name not in condemned]
    data = latest_bytes(version, digest, [*earlier, *condemned], left)
    store.swap(LATEST, expected, data)
    return data


End = Literal["published", "conflict", "unknown"]


def how_it_ended(store: Store, version: str, expected: bytes | None) -> End:
    """What became of an attempt to publish `version` over `expected` whose answer was lost or was a refusal."""
    began = None if expected is None else parse_latest(expected)
    try:
        latest = read_latest(store)
        chain: Iterable[str | None] = () if latest is None else _ancestry(store, latest.version)
        if expected is not None and began is None:
            chain = itertools.islice(chain, 1)  # without a beginning, what is older may be older than the attempt
        found = None if latest is None else latest.data
        return check_end(version, expected, None if began is None else began["version"], found, chain)
    except Exception:  # whatever a store's driver raises: what cannot be read is not known
        return "unknown"


def check_end(
    version: str, expected: bytes | None, began: str | None, found: bytes | None, chain: Iterable[str | None]
) -> End:
    """Decides from what LATEST.json holds now.

    Args:
        version: What was to be published.
        expected: What LATEST.json held when the attempt began.
        began: The version that `expected` names; None when there was none, or it was damaged.
        found: What it holds now.
        chain: The version in force, its `previous`, and so on; None where one is gone and its own is not known.
    """
    if found == expected:
        return "unknown"  # a request that is under way may still change it
    for name in chain:
        if name == version:
            return "published"
        if name is None:
            return "unknown"
        if name == began:
            break  # what is older was not published by this attempt
    # Contents never return, so that a request that is still under way will be refused.
    return "conflict"


def _ancestry(store: Store, version: str | None) -> Iterator[str | None]:
    while version is not None:
        yield version
        try:
            version = read_manifest(store, version).previous
        except CatalogError:  # pruned since
            yield None
            return

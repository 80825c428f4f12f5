"""Publishing: the write that makes a version current, and its outcome when the answer is lost."""

import hashlib
import itertools
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from ...configs.errors import CatalogError, SwapConflictError, SwapUnknownError
from ..storage.store import Store
from ..versions.latest import condemned_in, latest_bytes, left_in, parse_latest, read_latest
from ..versions.layout import LATEST, manifest_name
from ..versions.manifest import Manifest, read_manifest


def publish(store: Store, manifest: Manifest, expected: bytes | None) -> None:
    """Make a version current by writing it into LATEST.json, if that file still holds `expected`.

    Read `expected` before writing the first file of the version or, for an existing version, before verifying it. A
    version that prune deletes is then never published.

    Raises:
        CatalogError: If the manifest of the version is missing.
        SwapConflictError: If another run has published since, or prune has condemned the version.
        SwapUnknownError: If the outcome is unknown: the version may or may not be published.
    """
    version = manifest.version
    condemned = condemned_in(expected)
    if version in condemned:
        raise SwapConflictError(f"{store.url}: prune is deleting version {version}. Choose another version.")
    try:
        # Hash the stored bytes: this release would write more fields than an older one did.
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
                f"{store.url}: it is unknown whether version {version} was published. Nothing was deleted. "
                f"When the store answers again, run `epithre-beam versions list {shlex.quote(store.url)}` to check."
            ) from error
        if end != "published":
            raise SwapConflictError(
                f"{store.url}/{LATEST}: another run changed it after this run started. Run again."
            ) from error


def _left(expected: bytes | None, version: str) -> list[str]:
    """Return versions newer than `version` that were current, including the one that it replaces."""
    parsed = None if expected is None else parse_latest(expected)
    names = [*left_in(expected), *([] if parsed is None else [parsed["version"]])]
    return [name for name in names if name > version]


def fence(store: Store, condemned: Sequence[str] = ()) -> bytes | None:
    """Rewrite LATEST.json with condemned versions, so that no run that read the old content can publish.

    Only condemned versions may be deleted afterwards: a run that reads the new LATEST.json does not publish them, and
    a run that read the old one fails to swap it. A name stays condemned, also after further publications, until its
    manifest is gone.

    Returns:
        The new content. None if nothing is published; no version may be deleted then.

    Raises:
        SwapConflictError: If a condemned version is current, or another run changed LATEST.json first.
        SwapUnknownError: If the outcome of the write is unknown. Nothing may be deleted then.
    """
    latest = read_latest(store)
    if latest is None:
        return None
    expected, version, digest = latest
    if version in condemned:
        raise SwapConflictError(f"{store.url}: version {version} was published in the meantime. It was not deleted.")
    earlier = [name for name in condemned_in(expected) if store.size(manifest_name(name)) is not None]
    left = [name for name in left_in(expected) if name not in condemned]
    data = latest_bytes(version, digest, [*earlier, *condemned], left)
    store.swap(LATEST, expected, data)
    return data


End = Literal["published", "conflict", "unknown"]


def how_it_ended(store: Store, version: str, expected: bytes | None) -> End:
    """Find the outcome of an attempt to publish `version` over `expected` that got no answer or was refused."""
    began = None if expected is None else parse_latest(expected)
    try:
        latest = read_latest(store)
        chain: Iterable[str | None] = () if latest is None else _ancestry(store, latest.version)
        if expected is not None and began is None:
            chain = itertools.islice(chain, 1)  # without `began`, older versions may predate the attempt
        found = None if latest is None else latest.data
        return check_end(version, expected, None if began is None else began["version"], found, chain)
    except Exception:  # drivers of stores raise any type; without an answer the outcome is unknown
        return "unknown"


def check_end(
    version: str, expected: bytes | None, began: str | None, found: bytes | None, chain: Iterable[str | None]
) -> End:
    """Decide the outcome from the content of LATEST.json.

    Args:
        version: The version to publish.
        expected: Content of LATEST.json when the attempt began.
        began: The version in `expected`; None if there was none or it was damaged.
        found: Content of LATEST.json now.
        chain: The current version, its `previous` and so on; None where a version is gone and its `previous` unknown.
    """
    if found == expected:
        return "unknown"  # a pending request may still change it
    for name in chain:
        if name == version:
            return "published"
        if name is None:
            return "unknown"
        if name == began:
            break  # older versions were not published by this attempt
    # The file never holds the same content twice, so a pending request will be refused.
    return "conflict"


def _ancestry(store: Store, version: str | None) -> Iterator[str | None]:
    while version is not None:
        yield version
        try:
            version = read_manifest(store, version).previous
        except CatalogError:  # pruned since
            yield None
            return

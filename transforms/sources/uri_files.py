"""Looks up and reads the files that a table's URIs name. Links and redirects must stay in the source's folders."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ...configs import SourceConfig
from .files import file_info, filesystem
from .references import local_path
from .uri_safety import allowed_prefixes, is_within

_PIECE_BYTES = 1 << 20


class OutsideError(Exception):
    """A link or redirect points outside of the folders that `within` allows."""


def uri_info(uri: str, source: SourceConfig) -> Mapping[str, Any]:
    """Return the store's facts of a file; empty if it does not exist.

    Raises:
        OutsideError: If a redirect points outside of `within`. Nothing is sent to its target.
        Exception: Any error of a driver.
    """
    path = local_path(uri)
    if path is not None:
        return file_info(LocalFileSystem(), path) or {}
    return file_info(*filesystem(uri, _options(uri, source))) or {}


def check_opened(file: IO[bytes], path: str, source: SourceConfig) -> None:
    """Raise OutsideError if an open local file is not within: a link may have changed after it was resolved."""
    own = f"/proc/self/fd/{file.fileno()}"
    opened = os.readlink(own) if Path(own).is_symlink() else os.path.realpath(path)  # noqa: PTH115 - odd bytes stay
    if not is_within(opened, allowed_prefixes(source)):
        raise OutsideError("the opened file is a different one")


def read_remote(uri: str, source: SourceConfig, most: int) -> bytes:
    """Read a remote file, over HTTP at most `most + 1` bytes, so that a larger file is noticed.

    Raises:
        OutsideError: If a redirect points outside of `within`. Nothing is sent to its target.
        Exception: Any error of a driver.
    """
    fs, path = filesystem(uri, _options(uri, source))
    if not _is_http(uri):
        return bytes(fs.cat_file(path))
    # As a stream, without a request for the size: the response may have any length, or no end.
    pieces: list[bytes] = []
    left = most + 1
    with fs.open(path, "rb", block_size=0, size=1) as file:
        while left > 0 and (piece := file.read(min(left, _PIECE_BYTES))):
            pieces.append(piece)
            left -= len(piece)
    return b"".join(pieces)


def _is_http(uri: str) -> bool:
    return fsspec.core.split_protocol(uri)[0] in {"http", "https"}


def _options(uri: str, source: SourceConfig) -> Mapping[str, Any]:
    if not _is_http(uri) or source.uri is None:
        return source.storage_options
    return {**source.storage_options, "get_client": functools.partial(_client, allowed_prefixes(source))}


async def _client(allowed: tuple[str, ...], **options: Any) -> Any:
    """Create fsspec's aiohttp session with a check of each redirect before it is followed."""
    import aiohttp
    from yarl import URL

    async def check(_session: Any, _context: Any, step: Any) -> None:
        named = step.response.headers.get("Location") or step.response.headers.get("URI") or ""
        target = step.url.join(URL(named))
        if not is_within(str(target), allowed):
            raise OutsideError(f"a redirect points to {target.scheme}://{target.host or ''}:{target.port or ''}")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(check)
    return aiohttp.ClientSession(trace_configs=[trace], **options)

"""Checks where the URIs of a table may point. They are untrusted: the check comes before any connection."""

import functools
import json
import os
import posixpath
import re
import urllib.parse
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ...configs import SourceConfig
from ...configs.errors import ConfigError, MissingDriverError
from ...index.storage.remote import driver_class
from .files import file_info, filesystem
from .globs import fixed_part
from .references import local_path

_HTTP = {"http": 80, "https": 443}


def joined(base: str, uri: str) -> str:
    """Make a table's uri absolute: a relative one starts at `base`."""
    if "://" in uri or uri.startswith("/"):
        return uri
    if "://" not in base:
        return f"{base}/{uri}"
    # Stores treat `..` as a name. One that is left after joining is refused when the file is read.
    protocol, _, folder = base.partition("://")
    return f"{protocol}://{posixpath.normpath(f'{folder}/{uri}')}"


def allowed_prefixes(source: SourceConfig) -> tuple[str, ...]:
    """Return the folders that a table's URIs may point into."""
    if source.within:
        return source.within
    table = source.table or ""
    folder = table.rpartition("/")[0] or posixpath.dirname(table)
    fixed = fixed_part(table) or posixpath.dirname(table)
    if fixed != folder and not _is_a_file(table, json.dumps(source.storage_options, default=str)):
        folder = fixed
    return (f"{folder}/" if folder.endswith(":/") else folder,)


def check_prefixes(source: SourceConfig, place: str) -> None:
    """Raise ConfigError for an invalid entry of `within`."""
    for prefix in source.within:
        try:
            _top(prefix)
        except MissingDriverError as error:
            raise ConfigError(f"{place}.within: {prefix!r} needs a driver: {error}") from error
        except Exception as error:  # drivers raise errors of any type
            raise ConfigError(
                f"{place}.within must have paths and URLs of folders, got {prefix!r}: {error}."
            ) from error


def is_within(uri: str, prefixes: tuple[str, ...]) -> bool:
    """Whether `uri` is below one of `prefixes`, after `..` and links in local paths are resolved.

    A table's uri is untrusted: the check makes no connection, and imports no driver that `prefixes` do not name.
    """
    return any(_is_below(uri, prefix) for prefix in prefixes)


class _Top(NamedTuple):
    """A folder that URIs may point into."""

    kind: Any
    """The class of its file systems."""
    protocols: frozenset[str]
    host: str
    """Host and other parameters of the connection."""
    path: str


def _is_below(uri: str, prefix: str) -> bool:
    try:
        top = _top(prefix)
        if local_path(uri) is None and ("::" in uri or ".." in re.split(r"[/\\]", urllib.parse.unquote(uri))):
            return False
        protocol = _protocol(uri)
        if protocol not in top.protocols:
            return False
        host, path = _place(uri, protocol, top.kind)
    except Exception:  # drivers raise errors of any type for invalid URLs
        return False
    return host == top.host and path.startswith(top.path)


def _protocol(url: str) -> str:
    return "file" if local_path(url) is not None else fsspec.core.split_protocol(url)[0] or "file"


@functools.lru_cache(maxsize=64)
def _top(prefix: str) -> _Top:
    protocol = _protocol(prefix)
    kind = driver_class(protocol)
    names = (kind.protocol,) if isinstance(kind.protocol, str) else kind.protocol
    host, path = _place(prefix, protocol, kind)
    return _Top(kind, frozenset((protocol, *names)), host, path.rstrip("/") + "/")


def _place(url: str, protocol: str, kind: Any) -> tuple[str, str]:
    """Return host and path of a URL without a connection."""
    if (path := local_path(url)) is not None:
        return "", os.path.realpath(path)
    if protocol in _HTTP:
        if re.search(r"[\x00-\x20\x7f\\]", url):
            raise ValueError("clients read such characters differently")
        parts = urllib.parse.urlsplit(url)
        user = parts.netloc.rpartition("@")[0]
        return f"{parts.scheme}://{user}@{parts.hostname}:{parts.port or _HTTP[parts.scheme]}", parts.path or "/"
    path = str(kind._strip_protocol(url))  # noqa: SLF001 - as a file system does it, without a connection
    if issubclass(kind, LocalFileSystem):
        return "", os.path.realpath(path)
    return repr(kind._get_kwargs_from_urls(url)), path  # noqa: SLF001


@functools.lru_cache(maxsize=64)
def _is_a_file(table: str, options: str) -> bool:
    """Whether a file has this very name although it looks like a glob. The listing prefers such a file too."""
    try:
        info = file_info(*filesystem(table, json.loads(options)))
    except Exception:  # if the lookup fails, allow the smaller folder
        return True
    return info is not None and info["type"] == "file"

"""Where the URIs of a table may point. They are hostile: nothing is connected to before one is known to be within."""

import functools
import os
import posixpath
import re
import urllib.parse
from typing import NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ...configs import SourceConfig
from ...index.storage.remote import driver_class
from .globs import fixed_part
from .references import local_path


def joined(base: str, uri: str) -> str:
    """A table's uri as a whole one: a relative one starts at `base`."""
    if "://" in uri or uri.startswith("/"):
        return uri
    if "://" not in base:
        return f"{base}/{uri}"
    # Stores take `..` for a name; what is left of it after joining is refused when it is read.
    protocol, _, folder = base.partition("://")
    return f"{protocol}://{posixpath.normpath(f'{folder}/{uri}')}"


def allowed_prefixes(source: SourceConfig) -> tuple[str, ...]:
    """The folders that a table's URIs may point into."""
    if source.within:
        return source.within
    folder = fixed_part(source.table or "") or posixpath.dirname(source.table or "")
    return (f"{folder}/" if folder.endswith(":/") else folder,)


def is_within(uri: str, prefixes: tuple[str, ...]) -> bool:
    """Whether `uri` stays below one of `prefixes`, with `..` and links in local paths resolved.

    A table's uri is hostile: nothing is connected to before it is known to be within.
    """
    try:
        path = local_path(uri)
        if path is not None:
            place = _Place("file", "", os.path.realpath(path))
        else:
            if "::" in uri or ".." in re.split(r"[/\\]", urllib.parse.unquote(uri)):
                return False
            place = _place_of(uri)
    except (ValueError, ImportError, OSError):
        return False
    return any(place.is_below(top) for top in map(_top, prefixes))


class _Place(NamedTuple):
    """What a URL names."""

    protocol: str
    host: str
    """And what else makes the connection."""
    path: str

    def is_below(self, top: "_Place") -> bool:
        return (self.protocol, self.host) == (top.protocol, top.host) and self.path.startswith(top.path)


def _place_of(url: str) -> _Place:
    protocol = fsspec.core.split_protocol(url)[0] or "file"
    kind = driver_class(protocol)
    path = str(kind._strip_protocol(url))  # noqa: SLF001 - as a file system does it, without connecting to one
    if issubclass(kind, LocalFileSystem):
        return _Place("file", "", os.path.realpath(path))
    return _Place(kind.__name__, repr(kind._get_kwargs_from_urls(url)), path)  # noqa: SLF001


@functools.lru_cache(maxsize=64)
def _top(prefix: str) -> _Place:
    place = _place_of(prefix)
    return place._replace(path=place.path.rstrip("/") + "/")

"""Files that a pattern matches, on any file system, in the order of their names."""

import functools
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from ...configs.errors import ConfigError, SourceError
from ...configs.words import of_count
from ...index.storage.remote import connect, has_pages
from .buckets import walk_bucket
from .globs import fixed_part, glob_regex


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file that a pattern matched."""

    path: str
    id: str
    info: Mapping[str, Any]


@dataclass
class PassedOver:
    """What folders hold that is not taken, so that nobody wonders where it is."""

    suffixes: Counter[str] = field(default_factory=Counter)
    """Of files, in lower case; empty for those that have none."""
    linked_folders: int = 0

    def __bool__(self) -> bool:
        return bool(self.suffixes or self.linked_folders)

    def __str__(self) -> str:
        """Such as `4 files (.avif, .jfif), 1 linked folder`."""
        names = ", ".join(sorted(suffix or "no suffix" for suffix in self.suffixes))
        files = f"{of_count(self.suffixes.total(), 'file')} ({names})" if self.suffixes else ""
        folders = of_count(self.linked_folders, "linked folder") if self.linked_folders else ""
        return ", ".join(filter(None, (files, folders)))


class Matches(NamedTuple):
    """What a pattern stands for: the file system, and its files."""

    fs: Any
    files: Iterator[FoundFile]


def filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The fsspec file system of `url` without its listing caches, and the path on it."""
    return connect(url, options)


def match_files(
    url: str,
    options: Mapping[str, Any],
    place: str,
    folder_suffixes: tuple[str, ...] | None,
    passed_over: PassedOver | None = None,
) -> Matches:
    """Files that `url` stands for: itself, all of a folder with a known suffix, or a glob's matches.

    A prefix is listed once and filtered here, because stores answer `**` in one listing and `d*/e/*` in many.

    Args:
        url: A path or fsspec URL.
        options: For fsspec.
        place: Of the URL in the job, for errors.
        folder_suffixes: Of what is taken from a folder; None: a folder is none.
        passed_over: Is told what of a folder is not taken, as it is listed.

    Raises:
        ConfigError: When nothing matches.
    """
    fs, path = filesystem(url, options)
    info = file_info(fs, path)
    if info is not None and info["type"] == "file":
        return Matches(fs, iter([FoundFile(path=path, id=posixpath.basename(path), info=info)]))
    if info is not None and folder_suffixes is not None:
        folder = path.rstrip("/")
        counted = PassedOver() if passed_over is None else passed_over
        matches = functools.partial(_has_suffix, suffixes=folder_suffixes, passed_over=counted)
        sought = f"no file below {url!r} ends in {', '.join(folder_suffixes)}"
    else:
        folder = fixed_part(path)
        pattern = re.compile(glob_regex(path[len(folder) :].lstrip("/")), re.DOTALL)
        matches = functools.partial(_matches, pattern=pattern)
        sought = f"no file matches {url!r}"
    found = _walk(fs, folder, matches, passed_over)
    first = next(found, None)
    if first is None:
        if file_info(fs, folder or "/") is None:
            sought += f": there is no folder {folder!r}"
        elif info is not None and folder_suffixes is None:
            sought = f"{url!r} is a folder. Name its tables, as in folder/*.csv"
        raise ConfigError(f"{place}: {sought}.")

    def chain() -> Iterator[FoundFile]:
        yield first
        yield from found

    return Matches(fs, chain())


def _walk(fs: Any, folder: str, matches: Callable[[str], bool], passed_over: PassedOver | None) -> Iterator[FoundFile]:
    """The files below `folder` whose name below it matches, in order of their names; hidden ones are passed over."""
    if isinstance(fs, LocalFileSystem):
        yield from _walk_local(folder, matches, passed_over)
        return
    is_paged = has_pages(fs) and folder.strip("/")
    has_begun = False
    try:
        for path, info in walk_bucket(fs, folder) if is_paged else sorted(fs.find(folder, detail=True).items()):
            has_begun = True
            name = path[len(folder) :].lstrip("/")
            if not any(part.startswith(".") for part in name.split("/")) and matches(name):
                yield FoundFile(path=path, id=name, info=info)
    except FileNotFoundError:
        if has_begun:  # what is not listed would be taken for deleted
            raise


def _walk_local(folder: str, matches: Callable[[str], bool], passed_over: PassedOver | None) -> Iterator[FoundFile]:
    """Links to files are followed, links to folders are not: they may lead in circles."""
    open_folders = [_entries(folder, "")]
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
            continue
        below, item = entry
        name = f"{below}{item.name}"
        if item.name.startswith("."):
            continue
        if item.is_dir(follow_symlinks=False):
            open_folders.append(_entries(folder, f"{name}/"))
        elif item.is_symlink() and os.path.isdir(item.path):  # noqa: PTH112 - a link in a circle is none, and no error
            if passed_over is not None:
                passed_over.linked_folders += 1
        elif matches(name):
            try:
                status = item.stat()
            except OSError:  # a link that leads nowhere or in a circle, or a file that is gone since
                continue
            if stat.S_ISREG(status.st_mode):
                yield FoundFile(path=item.path.replace("//", "/"), id=name, info=_local_info(status))


def _entries(folder: str, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What a folder holds, in order.

    Raises:
        SourceError: When it cannot be listed: its assets would be taken for deleted.
    """
    try:
        entries = sorted(os.scandir(f"{folder}/{below}"), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise SourceError(f"The folder {f'{folder}/{below}'!r} cannot be listed: {error.strerror or error}.") from error
    for entry in entries:
        yield below, entry


def _local_info(status: os.stat_result) -> dict[str, Any]:
    # Nanoseconds as a whole number: a float would round them, and a fingerprint must not.
    return {"size": status.st_size, "mtime": str(status.st_mtime_ns)}


def _has_suffix(name: str, suffixes: tuple[str, ...], passed_over: PassedOver) -> bool:
    if name.lower().endswith(suffixes):
        return True
    passed_over.suffixes[posixpath.splitext(name)[1].lower()] += 1
    return False


def _matches(name: str, pattern: re.Pattern[str]) -> bool:
    return pattern.fullmatch(name) is not None


def file_info(fs: Any, path: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if isinstance(fs, LocalFileSystem) and info["type"] == "file":
        info |= _local_info(os.stat(path))  # noqa: PTH116 - a path that may hold undecodable bytes
    return info

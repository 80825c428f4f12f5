"""Finds the files that a pattern matches, on any file system, in the order of their names."""

import functools
import itertools
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from ...configs.errors import ConfigError, UnreadableSourceError
from ...configs.words import of_count
from ...index.storage.remote import connect, has_pages
from .buckets import walk_bucket
from .globs import fixed_part, glob_regex

BROKEN_LINK: Mapping[str, Any] = {"size": None}
"""The `info` of a link that leads to no file."""


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file that a pattern matched."""

    path: str
    id: str
    info: Mapping[str, Any]


@dataclass
class PassedOver:
    """Counts what a listing skips, so that the log can report it."""

    suffixes: Counter[str] = field(default_factory=Counter)
    """Number of skipped files by suffix in lower case; "" for files without a suffix."""
    linked_folders: int = 0
    linked_folder: str = ""
    """The path of the first one."""

    def __bool__(self) -> bool:
        return bool(self.suffixes or self.linked_folders)

    def __str__(self) -> str:
        """Return, for example, `4 files (.avif, .jfif), 1 linked folder (/data/old)`."""
        names = ", ".join(sorted(suffix or "no suffix" for suffix in self.suffixes))
        files = f"{of_count(self.suffixes.total(), 'file')} ({names})" if self.suffixes else ""
        folders = ""
        if self.linked_folders:
            more = ", …" if self.linked_folders > 1 else ""
            folders = f"{of_count(self.linked_folders, 'linked folder')} ({self.linked_folder}{more})"
        return ", ".join(filter(None, (files, folders)))


class Matches(NamedTuple):
    """The matches of a pattern: the file system and the files."""

    fs: Any
    files: Iterator[FoundFile]


def filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the fsspec file system of `url`, without listing caches, and the path on it."""
    return connect(url, options)


def match_files(
    url: str,
    options: Mapping[str, Any],
    place: str,
    folder_suffixes: tuple[str, ...] | None,
    passed_over: PassedOver | None = None,
) -> Matches:
    """Return the files of `url`: the file itself, the files of a folder with a known suffix, or the matches of a glob.

    The fixed prefix is listed once and filtered here: a store lists `**` in one go, but `d*/e/*` in many.

    Args:
        url: A path or fsspec URL.
        options: Storage options for fsspec.
        place: Place of the URL in the job, for errors.
        folder_suffixes: Suffixes of the files that are read from a folder. None: a folder is not allowed.
        passed_over: Counts what is skipped in a folder, while it is listed.

    Raises:
        ConfigError: If no file matches.
        UnreadableSourceError: If a folder cannot be listed.
    """
    fs, path = filesystem(url, options)
    info = file_info(fs, path)
    if info is not None and info["type"] == "file":
        return Matches(fs, iter([FoundFile(path=path, id=posixpath.basename(path), info=info)]))
    if info is None and isinstance(fs, LocalFileSystem) and Path(path).is_symlink():
        # Not a dead letter: all assets of the source would count as deleted.
        raise ConfigError(
            f"{place}: no file matches {url!r}, because it is a link to {str(Path(path).readlink())!r}, which does not "
            "exist. Is its disk mounted? Check the path."
        )
    counted = PassedOver() if passed_over is None else passed_over
    if info is not None and folder_suffixes is not None:
        folder = path.rstrip("/")
        matches = functools.partial(_has_suffix, suffixes=folder_suffixes, passed_over=counted)
    else:
        folder = fixed_part(path)
        pattern = re.compile(glob_regex(path[len(folder) :].lstrip("/")), re.DOTALL)
        matches = functools.partial(_matches, pattern=pattern)
    found = _walk(fs, folder, matches, passed_over)
    first = next(found, None)
    if first is None:
        if info is not None and folder_suffixes is not None:
            raise ConfigError(_nothing_in(fs, url, place, folder_suffixes, counted))
        if info is not None:
            raise ConfigError(f"{place}: {url!r} is a folder. Name its tables, as in folder/*.csv.")
        raise ConfigError(_no_match(fs, path, folder, url, place))

    def chain() -> Iterator[FoundFile]:
        for file in itertools.chain([first], found):
            if folder_suffixes is None and file.info is BROKEN_LINK:
                raise UnreadableSourceError(
                    f"{place}: {file.path} is a link to a table that does not exist. Without its rows, their assets "
                    "would count as deleted. Restore the table, or remove the link."
                )
            yield file

    return Matches(fs, chain())


def _nothing_in(fs: Any, url: str, place: str, suffixes: tuple[str, ...], counted: PassedOver) -> str:
    """The message for a folder without a file that is read."""
    if not counted:
        return f"{place}: no file is in the folder {url!r}. {_mounted(fs)}Check the folder, or name another one."
    return (
        f"{place}: no file below {url!r} ends in {', '.join(suffixes)}; it has {counted}. Name another folder, or a "
        "pattern for its files, as in folder/*.img."
    )


def _no_match(fs: Any, path: str, folder: str, url: str, place: str) -> str:
    """The message for a path or a pattern that matches no file: the first part of it that does not exist."""
    if file_info(fs, folder or "/") is None:
        return (
            f"{place}: no file matches {url!r}, because the folder {folder!r} does not exist. "
            f"{_mounted(fs)}Check the path."
        )
    if re.search(r"[*?\[{]", path[len(folder) :]):
        return f"{place}: no file in the folder {folder!r} matches the pattern {url!r}. Correct the pattern."
    what = "file" if posixpath.splitext(path)[1] else "folder"
    return f"{place}: the {what} {url!r} does not exist. {_mounted(fs)}Check the path."


def _mounted(fs: Any) -> str:
    return "Is its disk mounted? " if isinstance(fs, LocalFileSystem) else ""


def _walk(fs: Any, folder: str, matches: Callable[[str], bool], passed_over: PassedOver | None) -> Iterator[FoundFile]:
    """Yield the files below `folder` whose relative name matches, in the order of names. Skip hidden files."""
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
        if has_begun:  # files that are not listed would count as deleted
            raise


def _walk_local(folder: str, matches: Callable[[str], bool], passed_over: PassedOver | None) -> Iterator[FoundFile]:
    """Follow links to files, but not links to folders: they may form a cycle."""
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
        elif item.is_symlink() and os.path.isdir(item.path):  # noqa: PTH112 - False for a cyclic link
            if passed_over is not None:
                passed_over.linked_folders += 1
                passed_over.linked_folder = passed_over.linked_folder or item.path.replace("//", "/")
        elif matches(name):
            try:
                status = item.stat()
            except OSError:
                # A link that leads to no file is listed, so that it becomes a dead letter: its asset would count as
                # deleted otherwise, and come back as a new one. A file that was deleted meanwhile is left out.
                if item.is_symlink():
                    yield FoundFile(path=item.path.replace("//", "/"), id=name, info=BROKEN_LINK)
                continue
            if stat.S_ISREG(status.st_mode):
                yield FoundFile(path=item.path.replace("//", "/"), id=name, info=_local_info(status))


def _entries(folder: str, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the entries of a folder, in order.

    Raises:
        UnreadableSourceError: If the folder cannot be listed: its assets would count as deleted.
    """
    try:
        entries = sorted(os.scandir(f"{folder}/{below}"), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UnreadableSourceError(
            f"The folder {f'{folder}/{below}'!r} cannot be listed: {error.strerror or error}."
        ) from error
    for entry in entries:
        yield below, entry


def _local_info(status: os.stat_result) -> dict[str, Any]:
    # Whole nanoseconds: a float would round them, and the fingerprint would miss changes.
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

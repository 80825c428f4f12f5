"""Lists buckets page by page in the order of names, several folders at once, in constant memory."""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...index.storage.remote import Page, list_page

_LISTERS = 8
_PAGES_AHEAD = 3
"""For each folder. A page has 1,000 names and takes about 1 MB of memory."""


def walk_bucket(fs: Any, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the facts of every file below `folder`, in the order of the paths.

    A listing that fits into one page takes one request. A longer one is read folder by folder, eight at a time, if
    there is at most one page of folders; otherwise page by page, with the next page requested ahead.

    Raises:
        OSError: If the store does not answer. A file that is not listed would count as deleted.
        FileNotFoundError: If the bucket does not exist.
    """
    first = list_page(fs, folder)
    if first.token is None:
        yield from first.files
        return
    top = list_page(fs, folder, is_flat=False)
    while len(top.folders) == 1 and not top.files and top.token is None:
        folder = top.folders[0]
        top = list_page(fs, folder, is_flat=False)
    if top.token is not None or len(top.folders) < 2:
        yield from _flat(fs, folder)
        return
    # The slash takes part in the order: a-1.jpg, a.jpg, a/1.jpg.
    entries: dict[str, tuple[str, dict[str, Any]] | None] = {path: (path, info) for path, info in top.files}
    entries |= {f"{path}/": None for path in top.folders}
    order = sorted(entries)
    listed = _folders(fs, [path.rstrip("/") for path in order if entries[path] is None])
    try:
        for path in order:
            file = entries[path]
            if file is not None:
                yield file
            else:
                yield from next(listed)
    finally:
        listed.close()


def _flat(fs: Any, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    listed = _folders(fs, [folder])
    try:
        yield from next(listed)
    finally:
        listed.close()


def _folders(fs: Any, folders: list[str]) -> Any:
    """Yield the files of each folder, in this order, while eight folders are listed ahead."""
    stopped = threading.Event()
    pages: list[queue.Queue[Page | Exception]] = [queue.Queue(_PAGES_AHEAD) for _ in folders]
    pool = ThreadPoolExecutor(_LISTERS, thread_name_prefix="listing")
    try:
        # In order, so that the folder that the caller waits for has always been started.
        for folder, answers in zip(folders, pages, strict=True):
            pool.submit(_list_into, fs, folder, answers, stopped)
        for answers in pages:
            yield _files(answers)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _files(answers: "queue.Queue[Page | Exception]") -> Iterator[tuple[str, dict[str, Any]]]:
    while True:
        page = answers.get()
        if isinstance(page, Exception):
            raise page
        yield from page.files
        if page.token is None:
            return


def _list_into(fs: Any, folder: str, answers: "queue.Queue[Page | Exception]", stopped: threading.Event) -> None:
    token = None
    while not stopped.is_set():
        page: Page | Exception
        try:
            page = list_page(fs, folder, token)
        except Exception as error:  # raised again in the thread that uses the listing
            page = error
        while not stopped.is_set():
            try:
                answers.put(page, timeout=0.2)
            except queue.Full:
                continue
            break
        if isinstance(page, Exception) or page.token is None:
            return
        token = page.token

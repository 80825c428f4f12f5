"""The hidden folder of a pipeline that writes vectors, and what pipelines that were killed left.

No process knows of all workers of a pipeline, so a folder that is in use shows it by its files: workers write a sign of
life now and then. A folder in which nothing was written for a week belongs to nobody.
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable

from ...configs.errors import ConfigError
from ..storage.store import Store
from ..versions.layout import UNITS
from .folder_mark import MARK, read_mark

_PREFIX = ".writing-"
DEAD_AFTER_S = 7 * 86_400.0
"""Seconds without a sign of life after which a hidden folder is deleted: longer than any pause of a pipeline."""
SIGN_EVERY_S = 3600.0
"""Seconds between the signs of life of a writer."""


def new_hidden_folder() -> str:
    return f"{_PREFIX}{uuid.uuid4().hex[:12]}"


def check_is_new(store: Store) -> None:
    """Check that a folder has no vectors yet, besides those of the cache of `EmbedAssets`.

    Raises:
        ConfigError: If it has some: rows of an earlier pipeline would be mixed with new ones.
    """
    names = [
        name for name in store.names("") if not name.startswith((".", f"{UNITS}/", "_cache/")) and "/." not in name
    ]
    found = [name for name in names if name.lower().endswith(".parquet")]
    if not found and MARK in names and ((mark := read_mark(store)) is None or mark.files):
        found = [MARK]  # its files are gone; the mark of a pipeline without vectors is replaced
    if found:
        raise ConfigError(
            f"{store.url}: the folder already has vectors ({found[0]}). Name a new folder, or delete its files."
        )


def delete_dead(store: Store, own: str, *, dead_after_s: float = DEAD_AFTER_S) -> list[str]:
    """Delete the hidden folders that certainly belong to no running pipeline, and return the names of the others.

    Args:
        store: The folder of vectors.
        own: Name of the hidden folder of this pipeline, which is neither deleted nor returned.
        dead_after_s: Seconds without a sign of life, by the storage's clock, after which a folder is deleted.
    """
    signs: dict[str, list[float | None]] = defaultdict(list)
    for file in store.listing():
        top, _, rest = file.name.partition("/")
        if top.startswith(_PREFIX) and top != own and rest:
            signs[top].append(file.modified_s)
    left = []
    now_s = time.time()
    for name, times in sorted(signs.items()):
        known = [at for at in times if at is not None]
        if len(known) == len(times) and now_s - max(known) > dead_after_s:
            store.delete(name)
        else:
            left.append(name)
    return left


class SignOfLife:
    """Writes a small file into a hidden folder now and then, for as long as a writer has rows to write."""

    def __init__(self, store: Store, hidden: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._name = f"{hidden}/alive-{uuid.uuid4().hex[:12]}"
        self._clock = clock
        self._next_s = clock() + SIGN_EVERY_S

    def give(self) -> None:
        """Write the file if the last one was written an hour ago. Of short bundles, the parts are a sign."""
        if self._clock() >= self._next_s:
            self._next_s = self._clock() + SIGN_EVERY_S
            self._store.write(self._name, b"")

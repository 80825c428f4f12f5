"""Matrix products whose bits do not depend on the number of threads.

A BLAS library divides a product among its threads, and the sums of a part depend on the part's shape. Codes, axes and
with them whole index files would then depend on how many cores a worker was given: Dask gives each of its workers one
thread of BLAS, other engines all of them. Here the parts have a fixed shape, and BLAS computes each in one thread.
"""

import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from ..storage.forks import ForkedLock

Limits = list[tuple[Any, int]]
"""Libraries with a number of threads for each."""

_TILE_ROWS = 256
"""Parts of a product: as fast as the library's own threads on two cores, and enough of them for eight."""


class _OneThread:
    """Limits BLAS to one thread while anybody is inside."""

    def __init__(self) -> None:
        self._lock = ForkedLock()
        self._inside = 0
        self._before: Limits = []
        self._threads = 1

    def enter(self) -> tuple[int, Limits]:
        """Sets the limit. Returns the number of threads that BLAS had before, and what `leave` restores."""
        of_thread, of_process = _libraries()
        with self._lock:
            own = [(library, library.num_threads) for library in of_thread]
            if not self._inside:
                self._before = [(library, library.num_threads) for library in of_process]
                self._threads = max((threads for _, threads in own + self._before), default=1)
                _set_threads([(library, 1) for library in of_process])
            self._inside += 1
        _set_threads([(library, 1) for library in of_thread])
        return self._threads, own

    def leave(self, own: Limits) -> None:
        _set_threads(own)
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _set_threads(self._before)


@functools.cache
def _libraries() -> tuple[list[Any], list[Any]]:
    """The BLAS libraries of numpy and FAISS: those with a number of threads for each thread, and for the process."""
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    of_thread = [library for library in libraries if getattr(library, "threading_layer", None) == "openmp"]
    return of_thread, [library for library in libraries if library not in of_thread]


def _set_threads(limits: Limits) -> None:
    for library, threads in limits:
        # In newer versions of threadpoolctl, a library obeys only one thread of the process until that gives it up.
        if give_up := getattr(library, "clear_controlling_thread", None):
            give_up(force=True)
        library.set_num_threads(threads)


_one_thread = _OneThread()


@contextlib.contextmanager
def one_thread() -> Iterator[int]:
    """Computes with BLAS and LAPACK in one thread; gives the number of threads that they would have used."""
    threads, own = _one_thread.enter()
    try:
        yield threads
    finally:
        _one_thread.leave(own)


def _limit_this_thread() -> None:
    _set_threads([(library, 1) for library in _libraries()[0]])


def product(left: npt.NDArray[Any], right: npt.NDArray[Any], minus: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
    """Multiplies two matrices with as many threads as BLAS has, and the same bits for any number of them.

    Args:
        left: (rows, n), float32 or float64.
        right: (n, columns), of the same type.
        minus: (n,), of the same type: subtracted from each row of `left` first, a part at a time.

    Returns:
        (rows, columns), of the same type.
    """
    found = np.empty((len(left), right.shape[1]), left.dtype)

    def multiply(first: int) -> None:
        part = slice(first, first + _TILE_ROWS)
        np.matmul(left[part] if minus is None else left[part] - minus, right, out=found[part])

    tiles = range(0, len(left), _TILE_ROWS)
    with one_thread() as threads:
        if min(threads, len(tiles)) > 1:
            with ThreadPoolExecutor(min(threads, len(tiles)), initializer=_limit_this_thread) as pool:
                list(pool.map(multiply, tiles))
        else:
            for first in tiles:
                multiply(first)
    return found

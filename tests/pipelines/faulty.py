"""Run the program in processes that die, or lose their storage, at a chosen step of the catalog's store.

`python faulty.py writer` imports everything once and forks a process for each order, a line of JSON on its standard
input; `python faulty.py reader` opens a catalog in a loop. Both answer in lines of JSON. What they run is the real
program on real files: the store's functions are only told when they are called.
"""

import contextlib
import ctypes
import json
import os
import queue
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

_VERSION = re.compile(r"\d{6}-\d{8}T\d{6}Z-[0-9a-f]+")
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{12}\.partial")
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522
_OPENINGS_PAUSE_S = 0.2


class Steps:
    """Every step of the store, named as `before write versions/<version>/manifest.json`, and what happens at one.

    Args:
        catalog: Steps of files elsewhere, such as a database of the run's own, are not counted.
        at: The step's name and its number among those of this name, from 0; None: nothing happens.
        deed: What happens: `kill`, or a command's words, or `chmod`, or `limit`.
    """

    def __init__(self, catalog, at=None, deed="kill"):
        self.catalog = Path(catalog)
        self.seen = Counter()
        self.log = []
        self._at = None if at is None else (at[0], at[1])
        self._deed = deed
        self._lock = threading.Lock()

    def name_of(self, path):
        """A file's path in the catalog, the same in every run; None for other files."""
        path = Path(os.path.abspath(path))  # noqa: PTH100 - links stay
        if not path.is_relative_to(self.catalog):
            return None
        if partial := _PARTIAL.fullmatch(path.name):
            path = path.with_name(partial[1])
        return _VERSION.sub("<version>", str(path.relative_to(self.catalog)))

    def reached(self, what, path):
        """Count a step, and return whether it is the chosen one."""
        name = self.name_of(path)
        if name is None:
            return False
        with self._lock:
            step = f"{what} {name}"
            is_it = (step, self.seen[step]) == self._at
            self.log.append([step, self.seen[step]])
            self.seen[step] += 1
        return is_it

    def step(self, what, path):
        if self.reached(what, path):
            self.do()

    def do(self):
        if self._deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._deed == "chmod":
            for folder in [self.catalog, *(path for path in self.catalog.rglob("*") if path.is_dir())]:
                folder.chmod(0o555)
        elif self._deed == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        else:
            deadline = time.monotonic() + 10  # another thread may be writing a file
            while subprocess.run(self._deed, check=False, capture_output=True).returncode:
                if time.monotonic() > deadline:
                    os._exit(99)
                time.sleep(0.01)

    def install(self):
        from epithre_beam.index.storage.store import HashingWriter, Store

        def reported(owner, function, what, path_of):
            original = getattr(owner, function)

            def call(*args, **kwargs):
                path = path_of(*args)
                self.step(f"before {what}", path)
                result = original(*args, **kwargs)
                self.step(f"after {what}", path)
                return result

            setattr(owner, function, call)

        reported(Store, "swap", "swap", lambda store, name, *_: store.path(name))
        reported(Store, "delete", "delete", lambda store, name: store.path(name))
        reported(os, "fsync", "sync", lambda number: Path(f"/proc/self/fd/{number}").readlink())
        reported(Path, "replace", "rename", lambda path, _: path)
        open_write, write = Store.open_write, HashingWriter.write

        @contextlib.contextmanager
        def open_and_report(store, name, **options):
            self.step("before open", store.path(name))
            with open_write(store, name, **options) as file:
                self.step("after open", store.path(name))
                yield file

        def write_and_report(writer, data):
            path = getattr(writer._file, "name", "/nowhere")  # writes to memory are not steps
            self.step("before write", path)
            if self.reached("half of write", path):
                writer._file.write(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
                writer._file.flush()
                self.do()
            length = write(writer, data)
            self.step("after write", path)
            return length

        Store.open_write, HashingWriter.write = open_and_report, write_and_report


def drop_the_right_to_write_anywhere():
    """Drop CAP_DAC_OVERRIDE, with which root ignores file modes."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Sets(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = Header(_CAPABILITY_VERSION_3, 0), (Sets * 2)()
    if libc.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capget")
    sets[0].effective &= ~(1 << _CAP_DAC_OVERRIDE)
    sets[0].permitted &= ~(1 << _CAP_DAC_OVERRIDE)
    if libc.capset(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capset")


def write_on_order():
    """Fork a process for each order: {arguments, folder, catalog, at, deed, is_ordinary_user}."""
    from preloaded import import_all  # next to this script

    import_all()
    for line in sys.stdin:
        order = json.loads(line)
        began_s = time.monotonic()
        process = os.fork()
        if not process:
            run_in_this_process(order)
        _, status = os.waitpid(process, 0)
        answer = {"returncode": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - began_s}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def run_in_this_process(order):
    """Run the command line; its streams and steps go to files in `order["folder"]`."""
    code = 98
    try:
        os.chdir(order["folder"])
        for number, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
            file = os.open(name, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0), 0o644)
            os.dup2(file, number)
            os.close(file)
        if order["is_ordinary_user"]:
            drop_the_right_to_write_anywhere()
        steps = Steps(order["catalog"], order["at"], order["deed"])
        steps.install()
        from epithre_beam.pipelines.commands.cli import main

        sys.argv = ["epithre-beam", *order["arguments"]]
        code = main()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path("steps").write_text(json.dumps(steps.log))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Watcher:
    """Opens a catalog repeatedly, verifies and searches it, and counts the results."""

    def __init__(self, catalog, expected):
        import numpy as np

        self._catalog = catalog
        self._expected = expected
        self._queries = np.random.default_rng(5).standard_normal((2, 64)).astype(np.float32)
        self.seen = Counter()
        self.order = []
        self.problems = []

    def look(self):
        from epithre_beam.configs.errors import CatalogError, NoCatalogError
        from epithre_beam.index import open_catalog
        from epithre_beam.index.publish.verify import find_damage
        from epithre_beam.index.storage.store import Store

        try:
            with open_catalog(self._catalog) as catalog:
                found = answers(catalog, self._queries)
                which = str(self._expected.index(found)) if found in self._expected else "other answers"
                if damage := list(find_damage(Store(self._catalog), catalog.manifest)):
                    self.problems.append(f"{catalog.version} is damaged: {damage}")
        except CatalogError as error:
            which = "nothing"
            if not isinstance(error, NoCatalogError) and "has no current version" not in str(error):
                self.problems.append(f"{type(error).__name__}: {error}")
        except Exception as error:
            which = "error"
            self.problems.append(f"{type(error).__name__}: {error}")
        self.seen[which] += 1
        if self.order[-1:] != [which]:
            self.order.append(which)


def answers(catalog, queries):
    """All hits of the queries, in an order that depends only on the assets."""
    hits = catalog.search(queries, k=1000)
    return [[[hit.asset_id, hit.kind, round(hit.score, 5)] for hit in found] for found in hits]


def read_in_a_loop():
    """Orders: {catalog, expected} to watch another catalog, {} to pause. Each is answered after one more look."""
    orders, watcher = queue.SimpleQueue(), None

    def listen():
        for line in sys.stdin:
            orders.put(json.loads(line))
        os._exit(0)  # the parent has ended

    threading.Thread(target=listen, daemon=True).start()
    while True:
        if not orders.empty():
            order = orders.get()
            watcher = Watcher(**order) if order else watcher
            watcher.look()
            reported = {"seen": watcher.seen, "order": watcher.order, "problems": watcher.problems}
            sys.stdout.write(json.dumps(reported) + "\n")
            sys.stdout.flush()
            watcher = watcher if order else None
        elif watcher is not None:
            watcher.look()
        time.sleep(_OPENINGS_PAUSE_S)


if __name__ == "__main__":
    {"writer": write_on_order, "reader": read_in_a_loop}[sys.argv[1]]()

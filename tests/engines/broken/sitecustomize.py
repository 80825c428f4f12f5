"""A bug in a worker: writing a shard fails in a catalog that has the file `BUG`.

Python imports this module at startup if its folder is on PYTHONPATH.
"""

import importlib.abc
import importlib.machinery
import sys
from pathlib import Path

MODULE = "epithre_beam.index.vectors.shards"


class Breaker(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the module with the other finders, and changes it after the import."""

    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        for finder in sys.meta_path:
            found = None if finder is self else finder.find_spec(name, path, target)
            if found is not None:
                self._loader, found.loader = found.loader, self
                return found
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        self._loader.exec_module(module)
        really = module.write_shard

        def write_shard(store, *arguments):
            if Path(store.url, "BUG").exists():
                return 1 / 0
            return really(store, *arguments)

        module.write_shard = write_shard


sys.meta_path.insert(0, Breaker())

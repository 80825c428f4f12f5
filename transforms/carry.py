"""Rows of the version before that are taken over: read, checked, given the metadata of today."""

import contextlib
from typing import Any

import pyarrow as pa

from ..index.store import Store
from ..index.units import CarriedGroup, DamagedFileError, open_vectors
from .plan import PlanReader, carried_name


class CarriedRows:
    """Reads carried groups of one run, in their order. Use `with`: it keeps the last file open."""

    def __init__(self, store: Store, version: str) -> None:
        self._store = store
        self._version = version
        self._stack = contextlib.ExitStack()
        self._rows: PlanReader | None = None
        self._name = ""
        self._file: Any = None

    def __enter__(self) -> "CarriedRows":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read(self, group: CarriedGroup) -> pa.Table:
        """The rows of a group with all their columns, every page checked.

        Raises:
            DamagedFileError: When a page is damaged, or another asset stands where one was taken over from.
        """
        if self._rows is None:
            self._rows = self._stack.enter_context(PlanReader(self._store, carried_name(self._version)))
        wanted = self._rows.read(group.row_group)
        try:
            table = self._open(group.file).read_row_group(group.group, use_threads=False)
            if len(wanted) < len(table):
                table = table.take(wanted.column("position"))
            same = table.column("asset_id").equals(wanted.column("asset_id"))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise self._damage(group.file, str(error)) from error
        if not same:
            raise self._damage(group.file, "its rows are not those that were compared")
        if "metadata" in table.schema.names:
            table = table.drop_columns(["metadata"])
        if "metadata" in wanted.schema.names:
            table = table.append_column("metadata", wanted.column("metadata"))
        return table

    def _open(self, name: str) -> Any:
        if name != self._name:
            handle = self._stack.enter_context(contextlib.closing(self._store.open_read(name)))
            self._file = open_vectors(handle)
            self._name = name
        return self._file

    def _damage(self, name: str, why: str) -> DamagedFileError:
        reason = " ".join(why.split())[:200]
        return DamagedFileError(name, f"{self._store.url}/{name} is damaged ({reason}).")

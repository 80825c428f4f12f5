"""Casts cells of a table to a declared type."""

import uuid

import pyarrow as pa
import pyarrow.compute as pc


def cast_cells(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast cells of a table to a declared type.

    Raises:
        pa.ArrowInvalid: If a cell cannot be cast.
        pa.ArrowNotImplementedError: If no cell of the column's type can be cast.
    """
    column = _plain(column)
    if pa.types.is_string(column.type) and kind != pa.string():
        # An empty cell is null. Pass an array of nulls, not None: with a scalar, pyarrow 18 to 23 returns the texts
        # of other rows if the column is a slice.
        column = pc.if_else(pc.equal(column, ""), pa.nulls(len(column), column.type), column)
        if pa.types.is_timestamp(kind):  # a time without a zone is UTC, as in Parquet
            column = pc.replace_substring_regex(column, r"^(\d{4}-\d{2}-\d{2})$", r"\1T00:00:00")
            column = pc.replace_substring_regex(column, r"^([^T ]+[T ][0-9:.]+)$", r"\1Z")
    # Nanoseconds are truncated to microseconds.
    cut = pa.types.is_timestamp(kind) and pa.types.is_timestamp(column.type)
    return pc.cast(column, options=pc.CastOptions(kind, allow_time_truncate=cut))


def _plain(column: pa.Array) -> pa.Array:
    """Decode extension, dictionary and run-end encoded cells into plain values.

    Raises:
        pa.ArrowNotImplementedError: If the meaning of an extension type's bytes is not known.
    """
    if isinstance(column.type, pa.BaseExtensionType):
        name, column = column.type.extension_name, column.storage
        if name == "arrow.uuid":
            cells = column.to_pylist()
            column = pa.array([None if cell is None else str(uuid.UUID(bytes=cell)) for cell in cells], pa.string())
        elif name == "arrow.bool8":
            column = pc.cast(column, pa.bool_())
        elif _has_bytes(column.type):
            raise pa.ArrowNotImplementedError(f"bytes of the extension type {name} are not supported")
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = pc.cast(column, pa.string())
    return column


def _has_bytes(kind: pa.DataType) -> bool:
    return any(is_it(kind) for is_it in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))

"""Cells of a table as a declared type."""

import uuid

import pyarrow as pa
import pyarrow.compute as pc


def cast_cells(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cells of a table as a declared type.

    Raises:
        pa.ArrowInvalid: When one cannot be.
        pa.ArrowNotImplementedError: When none of their type can be.
    """
    column = _plain(column)
    if pa.types.is_string(column.type) and kind != pa.string():
        # An empty cell is no value. An array of nulls, not None: with a scalar, pyarrow 18 to 23 gives other
        # rows' texts where the column is a slice.
        column = pc.if_else(pc.equal(column, ""), pa.nulls(len(column), column.type), column)
        if pa.types.is_timestamp(kind):  # a time without a zone is taken as UTC, as a naive one in Parquet is
            column = pc.replace_substring_regex(column, r"^(\d{4}-\d{2}-\d{2})$", r"\1T00:00:00")
            column = pc.replace_substring_regex(column, r"^([^T ]+[T ][0-9:.]+)$", r"\1Z")
    # Nanoseconds are cut to the microseconds that are kept.
    cut = pa.types.is_timestamp(kind) and pa.types.is_timestamp(column.type)
    return pc.cast(column, options=pc.CastOptions(kind, allow_time_truncate=cut))


def _plain(column: pa.Array) -> pa.Array:
    """Cells of a type that says how a value is held, or what it means beyond that, as what a person would write.

    Raises:
        pa.ArrowNotImplementedError: When nobody knows what the bytes of an extension type mean.
    """
    if isinstance(column.type, pa.BaseExtensionType):
        name, column = column.type.extension_name, column.storage
        if name == "arrow.uuid":
            cells = column.to_pylist()
            column = pa.array([None if cell is None else str(uuid.UUID(bytes=cell)) for cell in cells], pa.string())
        elif name == "arrow.bool8":
            column = pc.cast(column, pa.bool_())
        elif _has_bytes(column.type):
            raise pa.ArrowNotImplementedError(f"nothing says what the bytes of {name} mean")
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = pc.cast(column, pa.string())
    return column


def _has_bytes(kind: pa.DataType) -> bool:
    return any(is_it(kind) for is_it in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))

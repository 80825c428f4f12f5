"""Cells of a table as a declared type."""

import pyarrow as pa
import pyarrow.compute as pc


def cast_cells(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cells of a table as a declared type.

    Raises:
        pa.ArrowInvalid: When one cannot be.
        pa.ArrowNotImplementedError: When none of their type can be.
    """
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

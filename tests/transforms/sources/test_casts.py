"""A cell is cast to its declared type without loss, or refused."""

import datetime
import uuid

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.transforms.sources.casts import cast_cells

pytestmark = pytest.mark.core

UTC = pa.timestamp("us", tz="UTC")
TYPES = (pa.bool_(), pa.date32(), pa.float64(), pa.int64(), UTC)


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)))
def test_whole_numbers_come_back_as_they_were_written(numbers: list[int | None]) -> None:
    written = pa.array(["" if number is None else str(number) for number in numbers], pa.string())
    assert cast_cells(written, pa.int64()).to_pylist() == numbers


@given(st.lists(st.none() | st.integers(0, 99), min_size=1), st.data())
def test_a_slice_of_a_column_has_its_own_rows(numbers: list[int | None], data: st.DataObject) -> None:
    written = pa.array(["" if number is None else str(number) for number in numbers], pa.string())
    first = data.draw(st.integers(0, len(numbers)))
    length = data.draw(st.integers(0, len(numbers) - first))
    assert cast_cells(written.slice(first, length), pa.int64()).to_pylist() == numbers[first : first + length]


@given(st.lists(st.floats(allow_nan=False)))
def test_numbers_with_a_fraction_come_back_as_they_were_written(numbers: list[float]) -> None:
    assert cast_cells(pa.array(map(repr, numbers), pa.string()), pa.float64()).to_pylist() == numbers


@given(st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2200, 1, 1)), st.sampled_from([" ", "T"]))  # noqa: DTZ001
def test_a_time_without_a_zone_is_utc_from_text_and_from_timestamps(time: datetime.datetime, between: str) -> None:
    expected = [time.replace(tzinfo=datetime.UTC)]
    assert cast_cells(pa.array([time.isoformat(between)]), UTC).to_pylist() == expected
    assert cast_cells(pa.array([time], pa.timestamp("us")), UTC).to_pylist() == expected


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_an_empty_cell_is_null_unless_the_type_is_text(kind: pa.DataType) -> None:
    assert cast_cells(pa.array(["", None]), kind).to_pylist() == [None, None]
    assert cast_cells(pa.array(["", None]), pa.string()).to_pylist() == ["", None]


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (pa.array(["1.5"]), pa.int64()),
        (pa.array([1.5]), pa.int64()),
        (pa.array([2**63], pa.uint64()), pa.int64()),
        (pa.array([" "]), pa.float64()),
        (pa.array(["yes"]), pa.bool_()),
        (pa.array(["2023-02-29"]), pa.date32()),
        (pa.array(["noon"]), UTC),
        (pa.array([b"\xff"]), pa.string()),
        (pa.array([[1]]), pa.int64()),
    ],
    ids=str,
)
def test_a_cast_that_loses_information_is_refused(cell: pa.Array, kind: pa.DataType) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowNotImplementedError)):
        cast_cells(cell, kind)


def test_times_are_truncated_to_microseconds() -> None:
    cell = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", tz="UTC"))
    assert cast_cells(cell, UTC).cast(pa.int64()).to_pylist() == [1_700_000_000_123_456]


def extension(name: str, storage: pa.Array) -> pa.Array:
    class Made(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(storage.type, name)

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

    return pa.ExtensionArray.from_storage(Made(), storage)


@given(st.lists(st.none() | st.uuids(), max_size=5))
def test_a_uuid_becomes_its_usual_text(ids: list[uuid.UUID | None]) -> None:
    column = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([i and i.bytes for i in ids], pa.binary(16)))
    assert cast_cells(column, pa.string()).to_pylist() == [i and str(i) for i in ids]


def test_a_uuid_whose_bytes_are_printable_is_still_a_uuid() -> None:
    column = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"abcdefghijklmnop"], pa.binary(16)))
    assert cast_cells(column, pa.string()).to_pylist() == ["61626364-6566-6768-696a-6b6c6d6e6f70"]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_all_arrow_string_types_are_read_as_text(kind: pa.DataType) -> None:
    column = (
        pa.array(["1", "", None]).cast(kind)
        if not pa.types.is_dictionary(kind)
        else pa.array(["1", "", None]).dictionary_encode()
    )
    assert cast_cells(column, pa.int64()).to_pylist() == [1, None, None]
    assert cast_cells(column, pa.string()).to_pylist() == ["1", "", None]
    time = pa.array(["2026-01-31"]).cast(pa.large_string())
    assert cast_cells(time, UTC).to_pylist() == [datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC)]


def test_extension_types_are_read_unless_their_cells_are_unknown_bytes() -> None:
    assert cast_cells(extension("shop.sku", pa.array(["a"])), pa.string()).to_pylist() == ["a"]
    assert cast_cells(extension("shop.count", pa.array([7])), pa.int64()).to_pylist() == [7]
    flags = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8()))
    assert cast_cells(flags, pa.bool_()).to_pylist() == [True, False, None]
    assert cast_cells(flags, pa.string()).to_pylist() == ["true", "false", None]
    for storage in (pa.array([b"abc"]), pa.array([b"abc"], pa.binary(3)), pa.array([b"abc"], pa.large_binary())):
        with pytest.raises(pa.ArrowNotImplementedError):
            cast_cells(extension("shop.secret", storage), pa.string())

"""Data in Thrift's compact protocol is read, and any other data is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.transforms.sources.thrift import ThriftError, read_struct


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def zigzag(value: int) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


@given(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=20), st.lists(st.integers(-9, 9), max_size=20))
def test_fields_are_found_after_any_other_fields(number: int, text: bytes, items: list[int]) -> None:
    head = bytes([len(items) << 4 | 5]) if len(items) < 15 else b"\xf5" + varint(len(items))
    data = b"\x11" + b"\x18" + varint(len(text)) + text + b"\x19" + head + b"".join(map(zigzag, items))
    data += b"\x17" + bytes(8) + b"\x1c" + b"\x16" + zigzag(number) + b"\x00"
    data += b"\x1b\x01\x85" + varint(1) + b"k" + zigzag(3)  # a map from a text to a number
    data += b"\x06" + zigzag(90) + zigzag(number) + b"\x00"
    found, end = read_struct(b"??" + data + b"rest", 2)
    assert (found[1], found[5], found[90], end) == (True, {1: number}, number, len(data) + 2)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_struct_or_refused(data: bytes) -> None:
    try:
        _, end = read_struct(data, 0)
    except ThriftError:
        return
    assert end <= len(data)


@pytest.mark.parametrize("data", [b"\x1c" * 1000, b"\x19\xfc" + b"\xff" * 9, b"\x15" + b"\xff" * 20, b"\x1d\x00", b""])
def test_deep_long_or_truncated_data_is_refused(data: bytes) -> None:
    with pytest.raises(ThriftError):
        read_struct(data, 0)

"""Reads Thrift's compact protocol, the format of Parquet's page headers and footer."""

from typing import Any

_DEPTH = 16
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _MAP, _STRUCT = 1, 2, 3, 7, 8, 11, 12
_INTEGERS = (4, 5, 6)
_LISTS = (9, 10)


class ThriftError(ValueError):
    """The bytes are not a Thrift struct."""


def read_struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Read the struct that begins at byte `at`. Return its values by field number, and where it ends.

    Raises:
        ThriftError: If the bytes are not a struct.
    """
    reader = _Reader(data, at)
    try:
        return reader.struct(_DEPTH), reader.at
    except IndexError:
        raise ThriftError("the data ends too early") from None


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def struct(self, depth: int) -> dict[int, Any]:
        if not depth:
            raise ThriftError("the nesting is too deep")
        found: dict[int, Any] = {}
        number = 0
        while kind := self._byte():
            number = number + (kind >> 4) if kind >> 4 else self._integer()
            found[number] = self._value(kind & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in {_TRUE, _FALSE}:
            return kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind in _INTEGERS:
            return self._integer()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _STRUCT:
            return self.struct(depth - 1)
        if kind in _LISTS:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return self._items([head & 15], count, depth)
        if kind == _MAP:
            count = self._varint()
            return self._items([*divmod(self._byte(), 16)], count, depth) if count else None
        raise ThriftError("a field has an unknown type")

    def _items(self, kinds: list[int], count: int, depth: int) -> list[Any]:
        """Read the items of a list, or the keys and values of a map in turn."""
        if depth < 2 or count > len(self._data) - self.at:
            raise ThriftError("a list is nested too deep or too long")
        kinds = [_BYTE if kind in {_TRUE, _FALSE} else kind for kind in kinds]
        return [self._value(kind, depth - 1) for _ in range(count) for kind in kinds]

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _bytes(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self._data):
            raise ThriftError("the data ends too early")
        return self._data[self.at - size : self.at]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ThriftError("a number is too long")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

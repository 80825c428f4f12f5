"""The text of a csv file, read in blocks and used in blocks or in lines."""

import re
from typing import IO

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


class CsvText:
    """The part of a file that has been read and not yet used.

    Args:
        file: A file at its beginning. A UTF-8 byte order mark is skipped.
        block_bytes: Bytes that are read at a time.
    """

    def __init__(self, file: IO[bytes], block_bytes: int) -> None:
        self._file = file
        self._block_bytes = block_bytes
        self._data = b""
        self._at = 0
        self.is_last = False
        """Whether the end of the file has been read."""
        self.place = 0
        """Position in the file, in bytes."""
        self.line = 1
        self.last_line = 1
        """Number of the line that was taken last."""
        self._fill(len(_BOM))
        if self._data.startswith(_BOM):
            self.skip(len(_BOM))

    def block(self) -> bytes:
        """Return the unused text, at least one block of it; b"" at the end. `skip` marks it as used."""
        self._fill(self._block_bytes)
        if self._at:
            self._data, self._at = self._data[self._at :], 0
        return self._data

    def skip(self, size: int) -> None:
        end = self._at + size
        self.line += self._data.count(b"\n", self._at, end)
        if b"\r" in self._data:
            self.line += self._data.count(b"\r", self._at, end) - self._data.count(b"\r\n", self._at, end)
        self._at = end
        self.place += size

    def skip_blank_lines(self) -> None:
        while self._fill(1) and self._data[self._at] in b"\r\n":
            self.take_line(2)

    def take_line(self, most: int) -> bytes:
        """Return the next line with its line break, at most `most` bytes of it; b"" at the end of the file."""
        self._fill(1)
        found = _LINE_END.search(self._data, self._at)
        while not self.is_last and (found is None or (found.end() == len(self._data) and found[0] == b"\r")):
            ahead = len(self._data) - self._at
            if ahead >= most:
                break
            self._fill(2 * ahead)  # doubles, so that a long line is not searched again for each block
            found = _LINE_END.search(self._data, self._at)
        end = min(found.end() if found else len(self._data), self._at + most)
        line = self._data[self._at : end]
        self._at = end
        self.place += len(line)
        self.last_line = self.line
        self.line += found is not None and end == found.end()
        return line

    def _fill(self, size: int) -> bool:
        """Read until `size` unused bytes or the end of the file. Return whether there are any."""
        while not self.is_last and len(self._data) - self._at < size:
            more = self._file.read(self._block_bytes)
            self.is_last = not more
            self._data, self._at = self._data[self._at :] + more, 0
        return self._at < len(self._data)

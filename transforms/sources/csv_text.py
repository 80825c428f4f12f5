"""The text of a csv, read block by block, used block by block or line by line."""

import re
from typing import IO

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


class CsvText:
    """What was read of a file and has not been used yet.

    Args:
        file: At its beginning; a mark of UTF-8 is passed over.
        block_bytes: What is read at a time.
    """

    def __init__(self, file: IO[bytes], block_bytes: int) -> None:
        self._file = file
        self._block_bytes = block_bytes
        self._data = b""
        self._at = 0
        self.is_last = False
        """Whether nothing follows what was read."""
        self.place = 0
        """In the file, in bytes."""
        self.line = 1
        self.last_line = 1
        """The one that was taken last."""
        self._fill(len(_BOM))
        if self._data.startswith(_BOM):
            self.skip(len(_BOM))

    def block(self) -> bytes:
        """What follows, at least a block of it; b"" at the end. It stays until it is skipped."""
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
        """The next line with its end, or its first `most` bytes if it is longer; b"" at the end of the file."""
        self._fill(1)
        found = _LINE_END.search(self._data, self._at)
        while not self.is_last and (found is None or (found.end() == len(self._data) and found[0] == b"\r")):
            ahead = len(self._data) - self._at
            if ahead >= most:
                break
            self._fill(2 * ahead)  # so that a long line is not gone through again for each block of it
            found = _LINE_END.search(self._data, self._at)
        end = min(found.end() if found else len(self._data), self._at + most)
        line = self._data[self._at : end]
        self._at = end
        self.place += len(line)
        self.last_line = self.line
        self.line += found is not None and end == found.end()
        return line

    def _fill(self, size: int) -> bool:
        """Reads until there are `size` bytes to use, or all that there are; whether there are any."""
        while not self.is_last and len(self._data) - self._at < size:
            more = self._file.read(self._block_bytes)
            self.is_last = not more
            self._data, self._at = self._data[self._at :] + more, 0
        return self._at < len(self._data)

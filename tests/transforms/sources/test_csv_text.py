"""Lines and blocks of a csv are complete for any block size."""

import io
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.transforms.sources.csv_text import CsvText

TEXTS = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r", b"\r\n"]), max_size=30).map(b"".join)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 9))
def test_lines_and_their_numbers_are_those_of_the_text(data: bytes, block_bytes: int) -> None:
    text = CsvText(io.BytesIO(data), block_bytes)
    lines = []
    while line := text.take_line(100):
        lines.append(line)
        assert text.last_line == len(lines)
    assert lines == list(re.findall(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", data))
    assert text.place == len(data)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 9), st.data())
def test_skipped_bytes_are_counted_and_the_rest_stays(data: bytes, block_bytes: int, draw: st.DataObject) -> None:
    text = CsvText(io.BytesIO(b"\xef\xbb\xbf" + data), block_bytes)
    rest = data
    while block := text.block():
        assert rest.startswith(block)
        size = draw.draw(st.integers(1, len(block)))
        if rest[:size].endswith(b"\r"):
            size = len(block)  # never skip into the middle of a line break
        text.skip(size)
        rest = rest[size:]
    assert rest == b""
    assert text.place == len(data) + 3


def test_a_long_line_is_cut_and_blank_lines_are_skipped() -> None:
    text = CsvText(io.BytesIO(b"\n\r\n\rabcdef\n"), 2)
    text.skip_blank_lines()
    assert (text.line, text.take_line(4), text.take_line(9), text.take_line(9)) == (4, b"abcd", b"ef\n", b"")

"""A csv is read as Python's `csv` reads it, for any block size, and errors name their lines."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs.errors import SourceError
from epithre_beam.transforms.sources.csv_table import CsvTable, plain_rows

from .listing import table, write

MOST = 1 << 20
PIECES = [b'"', b'""', b",", b"\n", b"\r", b"\r\n", b"a", b"b ", b" ", "é".encode(), b'x",', b',"', b'"\n', b'\n"']
PIECES += [b"\x00", b"1,2\n", b'"q",r\n', b"\xff", b"\x85", b'27" tv,', b"\xef\xbb\xbf"]


def read(data: bytes, block_bytes: int) -> tuple[list[str], list[list[str]]] | str | None:
    """Return names and cells, or the error, or None if the file is empty."""
    found = CsvTable("t.csv", MOST, block_bytes)
    try:
        names = found.names(io.BytesIO(data), set())
        if names is None or len(set(names)) < len(names):
            return None
        batches = found.batches(io.BytesIO(data), names)
        return names, [list(row) for batch in batches for row in zip(*batch.to_pydict().values(), strict=True)]
    except SourceError as error:
        return str(error)


def as_csv_says(data: bytes) -> tuple[list[str], list[list[str]]] | str | None:
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode()
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error):
        return "an error"
    if not rows or len(set(rows[0])) < len(rows[0]):
        return None
    return (rows[0], rows[1:]) if all(len(row) == len(rows[0]) for row in rows) else "an error"


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([b"", b"c,d\n", b"c\r\n"]), st.lists(st.sampled_from(PIECES), max_size=30), st.integers(1, 40))
def test_cells_equal_those_of_csv_for_any_block_size(header: bytes, pieces: list[bytes], block_bytes: int) -> None:
    data = header + b"".join(pieces)
    found, expected = read(data, block_bytes), as_csv_says(data)
    if isinstance(expected, str):
        assert found is None or str(found).startswith("t.csv line ")
    else:
        assert found == expected
    assert found == read(data, MOST)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("before_end", range(4))
def test_a_line_end_in_a_quoted_cell_stays_whole_across_a_block(line_end: str, before_end: int) -> None:
    head = f'id,t{line_end}1,"'.encode()
    block = 64
    data = head + b"y" * (block - len(head) - before_end) + f'{line_end}second"{line_end}2,z{line_end}'.encode()
    assert read(data, block) == as_csv_says(data)
    assert read(data, block) != "an error"


@pytest.mark.parametrize(
    "rows",
    [
        ['a,27" monitor'],
        ['a,27"'],
        ["a,5' 11\"", 'b,"quoted, with ""pairs"""'],
        ['a,x"y"z', "b,z"],
        ['27",a', 'b,c"'],
        [f'{i},27" number {i}' for i in range(5000)] + ['last,"a\nb"'],
    ],
)
def test_a_quote_in_an_unquoted_cell_is_a_character(tmp_path: Path, rows: list[str]) -> None:
    data = "\n".join(["id,t", *rows, ""])
    expected = as_csv_says(data.encode())
    assert isinstance(expected, tuple)
    found = table(write(tmp_path / "t.csv", data))
    assert [[row["asset_id"], row["text"]] for row in found] == expected[1]


def test_plain_rows_are_read_by_pyarrow() -> None:
    """Otherwise a table would take eight times as long."""
    for rows in (b'a,b\n"x","y\nz"\n', b'1,27" tv\n2,z\n', b'"a""b",c\r\n', b"no quotes,at all\n"):
        assert plain_rows(rows, is_last=True) == plain_rows(rows, is_last=False) == len(rows)
    assert plain_rows(b'1,2\n3,"open\n', is_last=True) == plain_rows(b'1,2\n3,"x" y\n', is_last=False) == 4


@pytest.mark.parametrize("quotes", [1, 2, 3, 4])
def test_unclosed_quotes_lose_no_row(tmp_path: Path, quotes: int) -> None:
    rows = [f'{i},"open' if i % 3 == 0 and i < 3 * quotes else f"{i},x" for i in range(20)]
    with pytest.raises(SourceError, match=r"line \d+: (this row opens a quote|text follows a closing quote)"):
        table(write(tmp_path / "t.csv", "\n".join(["id,t", *rows, ""])))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'id,t\n1,x\n2,"y\n3,z\n', "line 3: this row opens a quote and does not close it."),
        (b'id,t\n1,"x\n2,y\n3,"z\n', "line 4: text follows a closing quote of the row that begins in line 2."),
        (b'id,t\n\n1,"x" y\n', "line 3: text follows a closing quote."),
        (b"id,t\n1,x\n2\n", "line 3: the row has 1 cells, and the header has 2."),
        (b'id,t\n1,"two\nlines"\n1,2,3\n', "line 4: the row has 3 cells, and the header has 2."),
        (b"id,gr\xf6\xdfe\n1,x\n", "line 1: this is not UTF-8 (the byte 0xf6). Save the table as UTF-8."),
        (b'id,t\n1,"two\ncaf\xe9"\n', "line 3: this is not UTF-8 (the byte 0xe9)."),
    ],
)
def test_an_error_names_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = write(tmp_path / "t.csv", content)
    with pytest.raises(SourceError) as caught:
        table(path)
    assert f"sources[0].table: {path} {said}" in str(caught.value)


def test_a_long_row_is_refused_before_it_is_read_whole() -> None:
    class Endless(io.RawIOBase):
        """A quoted cell without an end, which counts the bytes that are read."""

        given = 0

        def read(self, size: int = -1) -> bytes:
            assert size > 0
            head = b'id,t\n1,"' if not self.given else b""
            self.given += size
            return head + b"x" * (size - len(head))

    file = Endless()
    with pytest.raises(SourceError, match=r"line 2: the row has more than 100000 bytes\. .* `max_row_bytes`"):
        list(CsvTable("t.csv", 100_000).batches(file, ["id", "t"]))
    assert file.given < 1_000_000
    longest = b"id,t\n1," + b"x" * 99_997 + b"\n"
    assert sum(len(batch) for batch in CsvTable("t.csv", 100_000).batches(io.BytesIO(longest), ["id", "t"])) == 1
    with pytest.raises(SourceError, match="line 2"):
        list(CsvTable("t.csv", 99_999).batches(io.BytesIO(longest), ["id", "t"]))


def test_a_csv_may_have_a_bom_and_quoted_line_breaks_commas_and_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", '\ufeffid,t\n007,"one\ntwo, ""three"""\n\n8,\n')
    assert [(r["asset_id"], r["text"]) for r in table(path)] == [("007", 'one\ntwo, "three"'), ("8", "")]

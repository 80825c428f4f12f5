"""Every row of a table becomes the same reference in every format, or an error names its place."""

import bz2
import datetime
import gzip
import hashlib
import lzma
import random
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import SourceConfig
from epithre_beam.configs.errors import ConfigError, SourceError

from .listing import Row, json_lines, listed, table, text_tables, write

CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=30)


@given(st.lists(CELL, min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_text_is_equal_in_every_format(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("tables")
    rows = [(f"{i:03d}", text) for i, text in enumerate(texts)]
    for path in text_tables(folder, rows).values():
        found = table(path)
        assert [(row["asset_id"], row["text"]) for row in found] == rows
        for row in found:
            data = row["text"].encode()
            assert row["fingerprint"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
            assert row["size_bytes"] == len(data)
            assert row["uri"] is None


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("strange", ["007", "1e5", "2024-01-31", "null", "NA", "true", " padded ", "-0", "١٢٣"])
def test_an_id_stays_unchanged_text(tmp_path: Path, name: str, strange: str) -> None:
    assert table(text_tables(tmp_path, [(strange, "x")])[name])[0]["asset_id"] == strange


def test_tables_larger_than_a_block_keep_every_row(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [(f"{i:06d}", "line\n\n,\n" * draw.randrange(40)) for i in range(30_000)]
    rows.insert(777, ("one long row", "x" * 2_000_000))
    for path in text_tables(tmp_path, rows).values():
        found = table(path)
        assert [(row["asset_id"], row["text"]) for row in found] == rows


def test_an_empty_cell_of_text_is_an_asset_without_text(tmp_path: Path) -> None:
    """It becomes a dead letter when it is prepared, so that no asset is lost."""
    pq.write_table(pa.table({"id": ["1", "2"], "t": ["", None]}), tmp_path / "t.parquet")
    paths = [tmp_path / "t.parquet", write(tmp_path / "t.csv", 'id,t\n1,\n2,""\n')]
    paths.append(json_lines(tmp_path / "t.jsonl", {"id": "1", "t": None}, {"id": "2"}, {"id": "3", "t": "x"}))
    for path in paths:
        assert [row["text"] for row in table(path)][:2] == ["", ""]


TYPED = {"b": "bool", "d": "date", "f": "double", "i": "int", "s": "string", "w": "timestamp"}


TYPED_CELLS = {
    "b": (True, "true", "perhaps"),
    "d": (datetime.date(2024, 2, 29), "2024-02-29", "2023-02-29"),
    "f": (-1.5e3, "-1500.0", "1,5"),
    "i": (-(2**62), str(-(2**62)), "1.5"),
    "s": ("007", "007", None),
    "w": (datetime.datetime(2024, 1, 31, 5, 0, 0, 250_000, tzinfo=datetime.UTC), "2024-01-31T12:00:00.25+0700", "noon"),
}


def typed_tables(folder: Path, cells: Mapping[str, str | None]) -> list[Path]:
    """Write a row with these cells, after an empty one, as csv and as JSON lines."""
    columns = sorted(cells)
    texts = ["" if cells[c] is None else str(cells[c]) for c in columns]
    first = write(folder / "m.csv", "\n".join([",".join(["id", "t", *columns]), "1,x" + "," * len(columns), ""]))
    first.write_text(first.read_text() + ",".join(["2", "y", *(f'"{t}"' for t in texts)]) + "\n")
    second = json_lines(folder / "m.jsonl", {"id": "1", "t": "x"}, {"id": "2", "t": "y"} | dict(cells))
    return [first, second]


def test_metadata_has_the_declared_types(tmp_path: Path) -> None:
    for path in typed_tables(tmp_path, {name: text for name, (_, text, _) in TYPED_CELLS.items()}):
        first, second = (row["metadata"] for row in table(path, metadata=TYPED))
        assert second == {name: value for name, (value, _, _) in TYPED_CELLS.items()}
        assert {first[name] for name in TYPED if name != "s"} == {None}
    own = {name: pa.array([value, None]) for name, (value, _, _) in TYPED_CELLS.items()}
    pq.write_table(pa.table({"id": ["1", "2"], "t": ["x", "y"]} | own), tmp_path / "m.parquet")
    first, second = (row["metadata"] for row in table(tmp_path / "m.parquet", metadata=TYPED))
    assert first == {name: value for name, (value, _, _) in TYPED_CELLS.items()}
    assert set(second.values()) == {None}


@pytest.mark.parametrize(
    ("cell", "utc"),
    [
        ("2024-01-31", "2024-01-31T00:00:00+00:00"),
        ("2024-01-31 12:00:00", "2024-01-31T12:00:00+00:00"),
        ("2024-01-31T12:00:00.123456", "2024-01-31T12:00:00.123456+00:00"),
        ("2024-01-31T12:00:00Z", "2024-01-31T12:00:00+00:00"),
        ("2024-01-31T12:00:00-05:30", "2024-01-31T17:30:00+00:00"),
    ],
)
def test_a_time_without_a_zone_is_utc(tmp_path: Path, cell: str, utc: str) -> None:
    for path in typed_tables(tmp_path, {"w": cell}):
        found = table(path, metadata={"w": "timestamp"})[1]["metadata"]["w"]
        assert found == datetime.datetime.fromisoformat(utc)


@pytest.mark.parametrize("name", [name for name, (_, _, bad) in TYPED_CELLS.items() if bad is not None])
def test_an_invalid_cell_is_reported_with_place_column_and_value(tmp_path: Path, name: str) -> None:
    bad = TYPED_CELLS[name][2]
    for path in typed_tables(tmp_path, {name: bad}):
        with pytest.raises(SourceError) as caught:
            table(path, metadata={name: TYPED[name]})
        place = {".csv": "line 3", ".jsonl": "line 2", ".parquet": "row 2"}[path.suffix]
        said = f"sources[0].metadata.{name}: {path} {place}: {bad!r} is not valid as {TYPED[name]}. Write "
        assert str(caught.value).startswith(said)


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("key", ["id", "text", "metadata.price"])
def test_a_missing_column_is_reported_with_the_existing_ones(tmp_path: Path, name: str, key: str) -> None:
    path = text_tables(tmp_path, [("1", "x"), ("2", "y")])[name]
    wrong = {"metadata": {"price": "double"}} if key == "metadata.price" else {key: "price"}
    with pytest.raises(ConfigError) as caught:
        table(path, **wrong)
    assert str(caught.value) == f"sources[0].{key}: {path} has no column 'price'. Its columns: id, t."


def test_all_missing_columns_are_reported_with_close_matches(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "sku,caption,preis\n1,x,2\n")
    with pytest.raises(ConfigError) as caught:
        table(path, id="sku", text="captions", metadata={"price": "double"})
    assert str(caught.value).splitlines() == [
        f"sources[0].text: {path} has no column 'captions'. Did you mean 'caption'? Its columns: sku, caption, preis.",
        (
            f"sources[0].metadata.price: {path} has no column 'price'. Did you mean 'preis'? "
            "Its columns: sku, caption, preis."
        ),
    ]


@pytest.mark.parametrize(("sign", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_a_header_with_another_separator_is_reported(tmp_path: Path, sign: str, word: str) -> None:
    """Once for the table, and not once for each column."""
    path = write(tmp_path / "t.csv", f"id{sign}t{sign}price\n1{sign}x{sign}2,5\n")
    with pytest.raises(ConfigError) as caught:
        table(path, metadata={"price": "double"})
    assert str(caught.value) == (
        f"sources[0].table: {path}: the header is separated by {word}: id{sign}t{sign}price. "
        "Save the table with commas and decimal points."
    )


def test_a_table_in_utf_16_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,t\n1,x\n".encode("utf-16"))
    with pytest.raises(SourceError, match=r"it is UTF-16\. Save the table as UTF-8\.$"):
        table(path)


def test_a_duplicate_column_is_refused_if_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,x,t,id,x\n1,a,b,2,c\n")
    with pytest.raises(ConfigError, match="has the column 'id' twice"):
        table(path)
    assert table(write(tmp_path / "u.csv", "id,x,t,x\n1,a,b,c\n"))[0]["text"] == "b"


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "id,t\n"])
def test_an_empty_table_is_an_error(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match=r"sources\[0\]\.table: '.*' has no rows\.$"):
        table(write(tmp_path / "t.csv", content))
    with pytest.raises(ConfigError, match=r"sources\[0\]\.table: '.*' has no rows\.$"):
        table(write(tmp_path / "t.jsonl", content.replace("id,t", "  ")))
    pq.write_table(pa.table({"id": pa.array([], pa.string()), "t": pa.array([], pa.string())}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"sources\[0\]\.table: '.*' has no rows\.$"):
        table(tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"sources\[0\]\.table: '.*' is empty\.$"):
        table(write(tmp_path / "none.parquet", b""))


def test_an_unreadable_line_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"line 5: the row has 3 cells, and the header has 2"):
        table(write(tmp_path / "t.csv", 'id,t\n\n1,"two\nlines"\n1,2,3\n'))
    with pytest.raises(SourceError, match=r"line 3, column 15: this is not valid JSON: .*\. Write one object"):
        table(write(tmp_path / "t.jsonl", '{"id": 1, "t": "x"}\n\n{"id": 2, "t": \n'))
    with pytest.raises(SourceError, match=r"line 2: this is not a JSON object \('\[1\]'\)"):
        table(write(tmp_path / "t.jsonl", "\n[1]\n"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"id,t\n1,2,3\n"),
        ("t.csv", b"id,t\n1,caf\xe9\n"),
        ("t.jsonl", b'{"id": "1", "t": "x"}\n{"id": "2", "t"\n'),
        ("t.jsonl", b'[{"id": "1", "t": "x"}]\n'),
        ("t.jsonl", b'{"id": "1", "t": "\\ud800"}\n'),
        ("t.jsonl", b'{"id": "1", "t": "caf\xe9"}\n'),
        ("t.jsonl", b'{"id": "1", "t": {"deep": 1}}\n'),
        ("t.jsonl", b'{"id": 123456789012345678901234, "t": "x"}\n'),
        ("t.parquet", b"PAR1 and no more"),
    ],
)
def test_a_broken_table_is_a_source_error_that_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(SourceError) as caught:
        table(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_unknown_suffix_requires_a_format(tmp_path: Path) -> None:
    path = write(tmp_path / "t.dat", "id,t\n1,x\n")
    with pytest.raises(ConfigError, match=r"table: the suffix of .* is not a known format\. Set `format` to"):
        table(path)
    assert table(path, format="csv")[0]["text"] == "x"


@pytest.mark.parametrize(("name", "place"), [("csv", "line 9125"), ("jsonl", "line 9124"), ("parquet", "row 9124")])
def test_an_empty_id_is_reported_with_its_place(tmp_path: Path, name: str, place: str) -> None:
    rows = [(str(i), "x") for i in range(10_000)]
    rows[9123] = ("", "x")
    path = text_tables(tmp_path, rows)[name]
    with pytest.raises(SourceError, match=rf"^sources\[0\]\.id: {path} {place}: id is empty\.$"):
        table(path)


@pytest.mark.parametrize("missing", [None, "absent"])
def test_a_null_id_is_reported_with_its_place(tmp_path: Path, missing: str | None) -> None:
    rows: list[Row] = [{"id": "1", "t": "x"}, {"t": "y"} if missing else {"id": None, "t": "y"}]
    with pytest.raises(SourceError, match="line 2: id is empty"):
        table(json_lines(tmp_path / "t.jsonl", *rows))
    pq.write_table(pa.table({"id": ["1", None], "t": ["x", "y"]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match="row 2: id is empty"):
        table(tmp_path / "t.parquet")


def test_rows_of_bytes_sort_in_the_order_of_their_table(tmp_path: Path) -> None:
    """The rows of a unit are therefore neighbours in the file and are read together."""
    count = 12_345
    pq.write_table(
        pa.table({"id": [f"{i * 7919 % count}" for i in range(count)], "b": [b""] * count}), tmp_path / "t.parquet"
    )
    rows = listed(SourceConfig(kind="image", table=f"{tmp_path}/t.parquet", id="id", bytes="b"))
    assert sorted(rows, key=lambda row: row["fingerprint"]) == rows
    assert len({row["uri"] for row in rows}) == count


HEADS = {
    "gzip": gzip.compress(b"id,t\n1,x\n"),
    "zstd": pa.Codec("zstd").compress(b"id,t\n1,x\n").to_pybytes(),
    "bzip2": bz2.compress(b"id,t\n1,x\n"),
    "xz": lzma.compress(b"id,t\n1,x\n"),
    "zip": b"PK\x03\x04 and more",
    "Excel": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "UTF-16": "id,t\n1,x\n".encode("utf-16"),
    "Parquet": b"PAR1....PAR1",
}


@pytest.mark.parametrize("what", HEADS)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_file_that_is_not_text_is_reported_with_its_format(tmp_path: Path, what: str, form: str) -> None:
    path = write(tmp_path / "t.dat", HEADS[what])
    with pytest.raises(SourceError, match=rf"^sources\[0\]\.table: {path} cannot be read as {form}: it is .*{what}"):
        table(path, format=form)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_any_bytes_are_a_table_or_an_error_with_its_name(tmp_path: Path, name: str) -> None:
    draw = random.Random(name)
    good = text_tables(tmp_path, [(str(i), f"text {i}") for i in range(30)])[name.rpartition(".")[2]].read_bytes()
    for number in range(60):
        data = bytearray(good if number % 3 else draw.randbytes(60))
        for _ in range(number % 3 * 3):
            data[draw.randrange(len(data))] = draw.choice([0, 10, 34, 44, 92, 123, 128, 255, draw.randrange(256)])
        path = write(tmp_path / name, bytes(data))
        error = None
        try:
            table(path)
        except (SourceError, ConfigError) as found:
            error = str(found)
        assert error is None or (str(path) in error and len(error) < 600), error


BIG = (2**63, 2**64 - 1, 2**63 - 1, -(2**63))


def test_a_whole_number_of_any_size_is_an_unchanged_id(tmp_path: Path) -> None:
    rows = [{"id": number, "t": "x"} for number in BIG]
    expected = list(map(str, BIG))
    assert [row["asset_id"] for row in table(json_lines(tmp_path / "t.jsonl", *rows))] == expected
    assert [row["asset_id"] for row in table(json_lines(tmp_path / "u.jsonl", {"id": "a", "t": 2**63}, *rows))][
        1:
    ] == expected
    found = table(json_lines(tmp_path / "v.jsonl", *({"id": str(n), "t": n} for n in BIG)))
    assert [row["text"] for row in found] == expected
    with pytest.raises(SourceError, match=r"metadata\.p: .* line 1: '9223372036854775808' is not valid as int\."):
        table(json_lines(tmp_path / "w.jsonl", {"id": "1", "t": "x", "p": 2**63}), metadata={"p": "int"})


@pytest.mark.parametrize("cell", [[], [1, "a"], {}, {"a": [[]]}, [[[[]]]], {"x": 2**64 - 1}])
def test_a_nested_cell_is_reported_with_its_row(tmp_path: Path, cell: object) -> None:
    for key in ("id", "t", "p"):
        path = json_lines(
            tmp_path / "t.jsonl", {"id": "1", "t": "x", "p": "y"}, {"id": "2", "t": "x", "p": "y"} | {key: cell}
        )
        with pytest.raises(SourceError, match=rf"{path} line 2: .* is not valid as string\.$"):
            table(path, metadata={"p": "string"})


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_settings_limit_rows_and_their_bytes(tmp_path: Path, form: str) -> None:
    path = text_tables(tmp_path, [(str(i), "x" * (i * 100)) for i in range(30)])[form]
    assert len(table(path, max_rows=30, max_row_bytes=4000)) == 30
    with pytest.raises(SourceError, match=r"has more than 29 rows\. .*`max_rows`"):
        table(path, max_rows=29)
    with pytest.raises(SourceError, match=rf"{path}.* (line|row) \d+.* has more than 1024 bytes.*`max_row_bytes`"):
        table(path, max_row_bytes=1024)


def test_columns_may_not_be_much_larger_than_their_file(tmp_path: Path) -> None:
    rows = 400
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * (1 << 20)]))
    ids = pa.array([str(i) for i in range(rows)])
    pq.write_table(pa.table({"id": ids, "t": cells}), tmp_path / "t.parquet", compression="zstd")
    with pytest.raises(SourceError, match=r"has more than 256000000 bytes in the columns .*`max_expansion`"):
        table(tmp_path / "t.parquet", max_expansion=1)
    assert len(table(tmp_path / "t.parquet", id="id", text="id", max_expansion=1)) == rows


def test_a_readers_error_names_the_row_it_reached(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = [(str(i), random.Random(i).randbytes(20).hex()) for i in range(2000)]
    pq.write_table(pa.table({"id": [i for i, _ in rows], "t": [t for _, t in rows]}), path, row_group_size=1000)
    begin = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[begin : begin + 3] = b"\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=rf"^sources\[0\]\.table: {path} cannot be read as parquet"):
        table(path)

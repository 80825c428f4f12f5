"""A reader returns the bytes of a reference up to the limit, or a reason."""

import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.configs import PrepareConfig, SourceConfig
from epithre_beam.index.versions.layout import Reason
from epithre_beam.transforms.sources.list_sources import list_references
from epithre_beam.transforms.sources.reading import Reader
from epithre_beam.transforms.sources.references import Reference, references_of
from epithre_beam.transforms.sources.unpreparable import Unpreparable

CAP = 100
SETTINGS = PrepareConfig(max_file_bytes=CAP)


def references(source: SourceConfig) -> list[Reference]:
    return [reference for table in list_references(source, 0, {}) for reference in references_of(table)]


def refusal(reader: Reader, reference: Reference) -> Unpreparable:
    with pytest.raises(Unpreparable) as caught:
        reader.read(reference)
    assert len(caught.value.detail) < 200
    return caught.value


def one_file(path: Path, content: bytes = b"content") -> tuple[Reader, Reference]:
    path.write_bytes(content)
    source = SourceConfig(kind="image", files=str(path))
    return Reader([source], SETTINGS), references(source)[0]


@pytest.mark.parametrize("size", [0, 1, CAP - 1, CAP])
def test_a_file_up_to_the_limit_is_read_whole(tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    reader, reference = one_file(tmp_path / "a.jpg", content)
    assert reader.read(reference) == content


def test_a_file_above_the_limit_is_refused_without_opening_it(tmp_path: Path) -> None:
    reader, reference = one_file(tmp_path / "a.jpg", bytes(CAP + 1))
    (tmp_path / "a.jpg").unlink()  # reading it would report that it is missing
    failure = refusal(reader, reference)
    assert failure.reason is Reason.FILE_TOO_LARGE
    assert "prepare.max_file_bytes allows 100 bytes, got 101" in failure.detail


def test_a_file_that_has_grown_since_it_was_listed_is_noticed(tmp_path: Path) -> None:
    reader, reference = one_file(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(bytes(CAP * 1000))
    assert refusal(reader, reference).reason is Reason.FILE_TOO_LARGE
    (tmp_path / "a.jpg").write_bytes(bytes(CAP))
    assert reader.read(reference) == bytes(CAP)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, whose /proc has files that state no size")
def test_a_file_is_read_to_its_end_whatever_size_it_states() -> None:
    path = Path("/proc/self/limits")
    assert path.stat().st_size == 0
    reader = Reader([SourceConfig(kind="image", files=str(path))], PrepareConfig())
    reference = Reference(
        asset_id="a", kind="image", uri=str(path), text=None, fingerprint="", size_bytes=None, source=0
    )
    assert reader.read(reference) == path.read_bytes() != b""


@pytest.mark.skipif(
    sys.platform != "linux", reason="needs Linux: elsewhere a sparse file of a terabyte takes its place"
)
def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    """Of a sparse file of 1 TB only as much as the limit needs is read."""
    reader, reference = one_file(tmp_path / "a.jpg")
    os.truncate(tmp_path / "a.jpg", 1 << 40)
    assert refusal(reader, reference).reason is Reason.FILE_TOO_LARGE


def test_a_deleted_file_is_missing_and_a_folder_is_unreadable(tmp_path: Path) -> None:
    reader, reference = one_file(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").unlink()
    assert refusal(reader, reference).reason is Reason.MISSING
    (tmp_path / "a.jpg").mkdir()
    failure = refusal(reader, reference)
    assert failure.reason is Reason.UNREADABLE
    assert "directory" in failure.detail.lower() or sys.platform == "win32"
    for reason in (Reason.MISSING, Reason.UNREADABLE):
        assert reason.is_transient


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_in_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    reader, reference = one_file(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").unlink()
    os.mkfifo(tmp_path / "a.jpg")
    assert refusal(reader, reference).reason is Reason.UNREADABLE


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything: run it as another user"
)
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    reader, reference = one_file(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").chmod(0)
    failure = refusal(reader, reference)
    assert failure.reason is Reason.UNREADABLE
    assert "Permission denied" in failure.detail


def test_a_broken_link_is_missing_and_a_cyclic_link_is_unreadable(tmp_path: Path) -> None:
    reader, reference = one_file(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.jpg").symlink_to(tmp_path / "nowhere")
    assert refusal(reader, reference).reason is Reason.MISSING
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.jpg").symlink_to(tmp_path / "a.jpg")
    assert refusal(reader, reference).reason is Reason.UNREADABLE


def test_a_bucket_has_the_same_reasons() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/reading/a.jpg", b"content")
    source = SourceConfig(kind="image", files="memory://reading/*.jpg")
    reader, (reference,) = Reader([source], SETTINGS), references(source)
    assert reader.read(reference) == b"content"
    fs.pipe("/reading/a.jpg", bytes(CAP + 1))
    assert refusal(reader, reference).reason is Reason.FILE_TOO_LARGE
    fs.rm("/reading/a.jpg")
    assert refusal(reader, reference).reason is Reason.MISSING


def test_a_store_that_cannot_be_reached_is_unreadable() -> None:
    source = SourceConfig(kind="image", files="nosuch://bucket/a.jpg")
    reference = Reference(
        asset_id="a", kind="image", uri="nosuch://bucket/a.jpg", text=None, fingerprint="f", size_bytes=1, source=0
    )
    assert refusal(Reader([source], SETTINGS), reference).reason is Reason.UNREADABLE


def test_a_uri_is_checked_again_when_it_is_read(tmp_path: Path) -> None:
    """A link that is created after the listing must not point outside either."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "shop/a.jpg").write_bytes(b"a")
    (tmp_path / "shop/t.csv").write_text("id,u\n1,a.jpg\n")
    source = SourceConfig(kind="image", table=f"{tmp_path}/shop/t.csv", id="id", uri="u")
    reader, (reference,) = Reader([source], SETTINGS), references(source)
    assert reader.read(reference) == b"a"
    (tmp_path / "shop/a.jpg").unlink()
    (tmp_path / "shop/a.jpg").symlink_to(tmp_path / "secret")
    assert refusal(reader, reference).reason is Reason.URI_NOT_ALLOWED


# Cells


def cells(count: int, seed: int = 0) -> list[bytes | None]:
    draw = random.Random(seed)
    return [None if i % 13 == 5 else b"%d " % i + draw.randbytes(draw.randrange(CAP - 10)) for i in range(count)]


def cell_source(path: Path | str, column: str = "b") -> SourceConfig:
    return SourceConfig(kind="image", table=str(path), id="id", bytes=column)


def write_cells(path: Path, values: list[Any], *, column: str = "b", kind: Any = None, group: int = 50) -> SourceConfig:
    names = [f"{path.stem}-{i}" for i in range(len(values))]
    table = pa.table({"id": names, column: pa.array(values, kind or pa.binary())})
    pq.write_table(table, path, row_group_size=group)
    return cell_source(path, column)


def read_cell(reader: Reader, reference: Reference) -> bytes | Reason:
    try:
        return reader.read(reference)
    except Unpreparable as failure:
        return failure.reason


def expected(values: list[bytes | None]) -> list[bytes | Reason]:
    """Return the bytes of cells, or MISSING for a cell without bytes."""
    return [Reason.MISSING if value is None else value for value in values]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
@pytest.mark.parametrize("group", [1, 7, 500])
def test_cells_are_read_in_any_order_from_any_row_group(tmp_path: Path, group: int, kind: pa.DataType) -> None:
    values = cells(300)
    source = write_cells(tmp_path / "t.parquet", values, kind=kind, group=group)
    rows = list(zip(references(source), values, strict=True))
    random.Random(1).shuffle(rows)
    reader = Reader([source], SETTINGS)
    assert [read_cell(reader, reference) for reference, _ in rows] == expected([value for _, value in rows])
    reader.close()


def test_cells_are_read_by_many_threads(tmp_path: Path) -> None:
    everything: list[tuple[Reference, bytes | None]] = []
    for part in range(8):
        values = cells(100, part)
        source = write_cells(tmp_path / f"part-{part}.parquet", values, group=30)
        everything += zip(references(source), values, strict=True)
    random.Random(2).shuffle(everything)
    reader = Reader([cell_source(tmp_path / "part-*.parquet")], SETTINGS)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda row: read_cell(reader, row[0]), everything))
    assert found == expected([value for _, value in everything])
    reader.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
def test_tables_do_not_stay_open_when_many_are_read(tmp_path: Path) -> None:
    for part in range(40):
        write_cells(tmp_path / f"part-{part}.parquet", [b"x"])
    source = cell_source(tmp_path / "part-*.parquet")
    before = open_files()
    reader = Reader([source], SETTINGS)
    assert [reader.read(reference) for reference in references(source)] == [b"x"] * 40
    assert open_files() - before < 10
    reader.close()
    assert open_files() <= before


def test_a_cell_above_the_limit_is_refused(tmp_path: Path) -> None:
    source = write_cells(tmp_path / "t.parquet", [bytes(CAP), bytes(CAP + 1), b""])
    reader, (fits, large, empty) = Reader([source], SETTINGS), references(source)
    assert reader.read(fits) == bytes(CAP)
    assert refusal(reader, large).reason is Reason.FILE_TOO_LARGE
    assert reader.read(empty) == b""


def test_a_large_row_group_is_not_kept_in_memory(tmp_path: Path) -> None:
    """A dictionary of a few kilobytes decodes to gigabytes of cells."""
    rows, size = 2000, 1 << 20
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([b"a" * size]))
    table = pa.table({"id": [str(i) for i in range(rows)], "b": cells})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd", store_schema=False)
    source = cell_source(tmp_path / "t.parquet")
    reader, listed = Reader([source], PrepareConfig()), references(source)
    before = pa.total_allocated_bytes()
    for row in (0, 1, 700, 640, 1999, 3):
        assert reader.read(listed[row]) == b"a" * size
        assert pa.total_allocated_bytes() - before < 400 << 20
    reader.close()


@pytest.mark.parametrize("column", ["a b", "b#row=0&column=c", "b&row=2", "100%", "ä", "x=y", "a.b"])
def test_a_column_may_have_any_name(tmp_path: Path, column: str) -> None:
    source = write_cells(tmp_path / "t.parquet", [b"0", b"1", b"2"], column=column, group=2)
    reader = Reader([source], SETTINGS)
    assert [reader.read(reference) for reference in references(source)] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("name", ["a#b.parquet", "100%25.parquet", "資料 [1].parquet", "a?b.parquet"])
def test_a_table_may_have_any_name(tmp_path: Path, name: str) -> None:
    source = write_cells(tmp_path / name, [b"0", b"1"])
    reader = Reader([source], SETTINGS)
    assert [reader.read(reference) for reference in references(source)] == [b"0", b"1"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps names that are no UTF-8")
def test_a_table_may_have_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    write_cells(tmp_path / "t.parquet", [b"0", b"1"])
    (tmp_path / "t.parquet").rename(tmp_path / os.fsdecode(b"t\xe9.parquet"))
    source = cell_source(tmp_path / "*.parquet")
    reader = Reader([source], SETTINGS)
    assert [reader.read(reference) for reference in references(source)] == [b"0", b"1"]


def test_cells_of_a_bucket_are_read(tmp_path: Path) -> None:
    write_cells(tmp_path / "t.parquet", values := cells(30), group=7)
    fsspec.filesystem("memory").pipe("/reading/t.parquet", (tmp_path / "t.parquet").read_bytes())
    source = cell_source("memory://reading/t.parquet")
    reader = Reader([source], SETTINGS)
    assert [read_cell(reader, reference) for reference in references(source)] == expected(values)
    reader.close()


def test_a_table_that_changed_after_the_listing_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    source = write_cells(path, [b"x"] * 20, group=3)
    last = references(source)[-1]
    write_cells(path, [b"x"] * 5, group=3)
    assert refusal(Reader([source], SETTINGS), last).reason is Reason.UNREADABLE
    write_cells(path, [b"x"] * 20, column="renamed")
    assert refusal(Reader([source], SETTINGS), last).reason is Reason.UNREADABLE
    path.write_bytes(b"no table any more")
    assert refusal(Reader([source], SETTINGS), last).reason is Reason.UNREADABLE
    path.unlink()
    assert refusal(Reader([source], SETTINGS), last).reason is Reason.MISSING


def test_a_broken_page_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    source = write_cells(path, [random.Random(i).randbytes(90) for i in range(100)])
    data = bytearray(path.read_bytes())
    draw = random.Random(0)
    listed = references(source)
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(5):
            broken[draw.randrange(4, len(broken) - 8)] = draw.randrange(256)
        path.write_bytes(broken)
        reader = Reader([source], SETTINGS)
        for reference in draw.sample(listed, 3):
            found = read_cell(reader, reference)
            assert isinstance(found, bytes) or found in {Reason.UNREADABLE, Reason.FILE_TOO_LARGE, Reason.MISSING}
        reader.close()


class _Refusing(BaseHTTPRequestHandler):
    """A handler that responds with the status in the path."""

    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.mark.parametrize(("status", "words"), [(401, "Unauthorized"), (403, "Forbidden"), (500, "Internal"), (599, "")])
def test_an_http_refusal_is_reported_with_its_status(tmp_path: Path, status: int, words: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        table = tmp_path / "t.csv"
        table.write_text(f"id,u\n1,{url}/{status}\n")
        source = SourceConfig(kind="image", table=str(table), id="id", uri="u", within=(f"{url}/",))
        failure = refusal(Reader([source], PrepareConfig()), references(source)[0])
        server.shutdown()
    assert failure.reason is Reason.UNREADABLE
    assert f"the server answered {status} {words}".strip() in failure.detail

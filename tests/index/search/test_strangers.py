"""An untrusted catalog with invalid content but correct sha256 values is refused with a clear error."""

import io
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import orjson
import pyarrow as pa
import pytest

from epithre_beam.configs.errors import CatalogError, StoreError
from epithre_beam.index import Store, open_catalog
from epithre_beam.index.export.export import FORMS, export_catalog
from epithre_beam.index.publish.prune import PruneRules, prune
from epithre_beam.index.publish.verify import verify_versions
from epithre_beam.index.versions.values import MAX_MANIFEST_BYTES

from ..forging import ASSETS, CODES, DIMENSION, TEXT_VECTORS, VECTORS, Forged

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def forged(tmp_path: Path) -> Forged:
    return Forged(tmp_path / "c")


def refused(forged: Forged, match: str) -> None:
    """Check that opening raises, with and without verification."""
    for verify in (True, False):
        with pytest.raises(CatalogError, match=match):
            open_catalog(forged.folder, verify=verify)


def set_in(*path: str | int, value: Any) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        here: Any = manifest
        for part in path[:-1]:
            here = here[part]
        here[path[-1]] = value

    return change


def set_kind(name: Any) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        manifest["indexes"][0]["kind"] = name
        manifest["counts"]["per_kind"][str(name)] = manifest["counts"]["per_kind"].pop("image")

    return change


KINDS = ["../outside", "/tmp/outside", "x (a int);\n\\! id > outside\n-- ", "Image", "", "image\0", "\x1b[31mimage", 1]
NAMES = [
    "../../../outside",
    "/etc/passwd",
    "../../dev/zero",
    "index/../../../LATEST.json",
    "index//x",
    "./x",
    "index\\..\\..\\x",
    "index/x\0y",
    "index/.hidden",
    "C:/x",
    "memory://x",
    "",
    "a" * 300,
    "index/\n",
    "index/x\n",
]
NUMBERS = [-1, 1.5, 1e30, float("nan"), float("inf"), True, "5", None, 10**30, [1]]


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_kind_is_refused_and_not_exported(forged: Forged, tmp_path: Path, kind: Any) -> None:
    forged.change(set_kind(kind))
    refused(forged, r"manifest\.json is not a valid manifest")
    before = sorted(tmp_path.iterdir())
    for form in FORMS:
        with pytest.raises(CatalogError):
            export_catalog(Store(str(forged.folder)), Store(str(tmp_path / "out")), form)
    assert sorted(tmp_path.iterdir()) == before


def test_untrusted_text_is_escaped_and_cut_in_messages(forged: Forged) -> None:
    """This includes keys of objects. No line break or escape sequence reaches the message."""
    for name in ("x\n\\! id\x1b[2J", "y" * 5000):
        forged.change(set_kind(name))
        for verify in (True, False):
            with pytest.raises(CatalogError) as caught:
                open_catalog(forged.folder, verify=verify)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", NAMES)
def test_file_names_outside_the_version_are_refused(forged: Forged, name: str) -> None:
    def everywhere(manifest: dict[str, Any]) -> None:
        (entry,) = [entry for entry in manifest["files"] if entry["name"] == ASSETS]
        entry["name"] = name
        manifest["indexes"][1]["assets"] = name

    forged.change(everywhere)
    refused(forged, r"not a valid manifest \(files\.\d+\.name: ")
    forged.change(set_in("indexes", 1, "assets", value=name))
    refused(forged, r"not a valid manifest \(indexes\.1\.assets: ")


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "path",
    [
        ("dimension",),
        ("format_version",),
        ("files", 0, "size_bytes"),
        ("counts", "assets"),
        ("counts", "per_kind", "text"),
        ("indexes", 0, "rows"),
        ("indexes", 0, "recall_k"),
        ("indexes", 0, "recall", "text->image"),
        ("indexes", 0, "search_parameters", "k_factor"),
        ("indexes", 0, "scores", "text->image", "std"),
    ],
)
def test_numbers_out_of_bounds_are_refused(forged: Forged, path: tuple[str | int, ...], number: Any) -> None:
    if number == 1.5 and path[-1] in {"k_factor", "std"}:
        return
    forged.change(set_in(*path, value=number))
    refused(forged, r"not a valid manifest|has format")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_in("metric", value="L2"), r"\(metric: "),
        (set_in("metric", value="inner_product\n"), r"\(metric: "),
        (set_in("version", value="../x"), r"\(version: must be a version name"),
        (set_in("version", value="000009-other"), r"is the manifest of version 000009-other"),
        (set_in("previous", value="../../x"), r"\(previous: must be a version name"),
        (set_in("created_at", value="yesterday"), r"\(created_at: must be an ISO time"),
        (set_in("created_at", value="0001-01-01T00:00:00"), r"\(created_at: must be an ISO time"),
        (
            set_in("metadata_types", value={"a": "int); DROP TABLE x; --"}),
            r"\(metadata_types\.a: must be one of string",
        ),
        (
            set_in("metadata_types", value={"a\x1b[2J": "int"}),
            r"names of metadata columns must have at most 1000 characters",
        ),
        (
            set_in("metadata_types", value={"a" * 1001: "int"}),
            r"names of metadata columns must have at most 1000 characters",
        ),
        (set_in("files", 0, "sha256", value="../../../etc/passwd"), r"\(files\.0\.sha256: "),
        (set_in("files", 0, "sha256", value="A" * 64), r"\(files\.0\.sha256: "),
        (set_in("config", value={"embed": []}), r"\(config: embed must be an object"),
        (set_in("config", value={"sources": {}}), r"\(config: sources must be a list"),
        (set_in("indexes", 0, "files", value=[]), r"\(indexes\.0\.files: "),
        (set_in("indexes", 0, "codes", value=[CODES]), r"\(indexes\.0: must have as many codes as files"),
        (set_in("indexes", 0, "search_parameters", value={"recall": 1}), r"search_parameters"),
        (set_in("indexes", 0, "recall", value={"a->b": 1}), r"must be one of image->image"),
        (lambda m: m["files"].append(m["files"][0]), r"contradicts itself: it lists 'index/image-.*' more than once"),
        (lambda m: m["indexes"].append(m["indexes"][0]), r"contradicts itself: it has more than one index of a kind"),
        (lambda m: m["files"].pop(0), r"contradicts itself: it does not list the file 'index/image-"),
        (set_in("indexes", 1, "rows", value=41), r"contradicts itself: the text index must have 41 rows, got 40"),
        (
            set_in("counts", "per_kind", "text", value=41),
            r"contradicts itself: the text index must have 41 rows, got 40",
        ),
        (set_in("counts", "dead", value=1), r"contradicts itself: the files of dead letters must have 1 rows, got 0"),
        (
            set_in("files", 0, "rows", value=9),
            r"contradicts itself: the codes of index/image-00000-of-00002.faiss must ",
        ),
        (set_in("indexes", 0, "files", value=[VECTORS, VECTORS]), r"contradicts itself: its indexes use "),
    ],
)
def test_invalid_texts_and_lists_are_refused(forged: Forged, change: Change, match: str) -> None:
    forged.change(change)
    refused(forged, match)


def test_deep_long_or_malformed_json_is_refused(forged: Forged) -> None:
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    forged.change(set_in("config", value={"a": deep}))
    refused(forged, r"must be at most 32 objects and lists deep")
    for data in (b"[" * 5000 + b"]" * 5000, b"[]", b"1", b"", b"\xff", b'{"format_version": 2}', b"{}"):
        forged.write(data)
        refused(forged, r"not a valid manifest")
    with forged.path("manifest.json").open("r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)  # a sparse file without data on the disk
    for verify in (True, False):
        with pytest.raises(StoreError, match=r"manifest\.json must have at most 32000000 bytes, got 32000001"):
            open_catalog(forged.folder, verify=verify)


@pytest.mark.parametrize(
    "latest",
    [
        {"version": "../../x", "manifest_sha256": "0" * 64},
        {"version": "/etc", "manifest_sha256": "0" * 64},
        {"version": "1-a", "manifest_sha256": "../x"},
        {"version": "1-a", "manifest_sha256": True},
        {"version": ["1-a"], "manifest_sha256": "0" * 64},
        {"version": "1-a\n", "manifest_sha256": "0" * 64},
        ["version", "manifest_sha256"],
        "version",
        None,
    ],
)
def test_invalid_latest_json_is_refused(forged: Forged, latest: Any) -> None:
    forged.write_latest(latest)
    refused(forged, r"LATEST\.json must have a version and a manifest_sha256")


@pytest.mark.parametrize("version", ["../..", "", "/", "a/b", "a\0b", "..", "x" * 200])
def test_requested_version_must_not_be_a_path(forged: Forged, version: str) -> None:
    with pytest.raises((CatalogError, ValueError), match=r"has no version|version must be"):
        open_catalog(forged.folder, version=version)


def test_column_names_of_spreadsheets_are_accepted(forged: Forged, tmp_path: Path) -> None:
    names = {"Price\n(IDR)": "int", "ärger ✓ 价格": "double", "": "bool", 'a"b': "string", "a.b\t'c'": "date"}
    table = pa.ipc.open_file(forged.path(ASSETS).read_bytes()).read_all()
    for name in (ASSETS, "index/image-assets.arrow"):
        table = pa.ipc.open_file(forged.path(name).read_bytes()).read_all().drop_columns(["metadata"])
        types = {
            "string": pa.string(),
            "int": pa.int64(),
            "double": pa.float64(),
            "bool": pa.bool_(),
            "date": pa.date32(),
        }
        struct = pa.struct([(column, types[kind]) for column, kind in names.items()])
        table = table.append_column("metadata", pa.array([{"Price\n(IDR)": 5}] * len(table), struct))
        forged.replace(name, arrow_bytes(table), set_in("metadata_types", value=names))
        first = forged.manifest()
        forged._manifest = forged.path("manifest.json").read_bytes()
        assert first["metadata_types"] != names or name != ASSETS
    with open_catalog(forged.folder) as catalog:
        (hits,) = catalog.search(np.ones(DIMENSION), 1, where=pa.compute.field("metadata", "Price\n(IDR)") == 5)
        assert hits[0].metadata["Price\n(IDR)"] == 5


def arrow_bytes(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema, **options) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def test_links_are_followed_within_the_catalog_only(forged: Forged, tmp_path: Path) -> None:
    path, outside = forged.path(ASSETS), tmp_path / "outside.arrow"
    shutil.move(path, outside)
    path.symlink_to(outside)
    for verify in (True, False):
        with pytest.raises(StoreError, match=r"text-assets\.arrow is a link out of the folder"):
            open_catalog(forged.folder, verify=verify)
    path.unlink()
    shutil.move(outside, forged.folder / "elsewhere")
    path.symlink_to(forged.folder / "elsewhere")
    open_catalog(forged.folder).close()
    linked = tmp_path / "linked"
    linked.symlink_to(forged.folder)
    open_catalog(linked).close()  # the folder itself may be a link: the user named it


@pytest.fixture
def near() -> Iterator[Path]:
    """A folder with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", ["LATEST.json", "manifest.json", ASSETS, TEXT_VECTORS])
@pytest.mark.parametrize("what", ["pipe", "socket", "device"])
def test_pipes_sockets_and_devices_are_not_opened(near: Path, name: str, what: str) -> None:
    """Reading a pipe would block, and a device may be endless."""
    forged = Forged(near / "c")
    path = forged.folder / name if name == "LATEST.json" else forged.path(name)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        if what == "pipe":
            os.mkfifo(path)
        elif what == "socket":
            here = Path.cwd()
            try:
                os.chdir(path.parent)
                sock.bind(path.name)
            finally:
                os.chdir(here)
        else:
            path.symlink_to("/dev/zero")
        for verify in (True, False):
            with pytest.raises((StoreError, CatalogError), match=r"got a device, pipe or socket|is a link out of the"):
                open_catalog(forged.folder, verify=verify)


def sq_bytes(index: Any) -> bytes:
    data: bytes = faiss.serialize_index(index).tobytes()
    return data


def random(rows: int, dimension: int = DIMENSION) -> Any:
    drawn = np.random.default_rng(0).standard_normal((rows, dimension)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def scalar(metric: int, sort: int, rows: int = 40, dimension: int = DIMENSION) -> bytes:
    index: Any = faiss.IndexScalarQuantizer(dimension, sort, metric)
    index.train(random(300, dimension))
    index.add(random(rows, dimension))
    return sq_bytes(index)


def flat() -> bytes:
    index: Any = faiss.IndexFlatIP(DIMENSION)
    index.add(random(40))
    return sq_bytes(index)


FP16, BITS8 = faiss.ScalarQuantizer.QT_fp16, faiss.ScalarQuantizer.QT_8bit
OTHER_VECTORS: list[tuple[Callable[[], bytes], str]] = [
    (lambda: scalar(faiss.METRIC_L2, FP16), "metric must be inner product, got L2"),
    (lambda: scalar(faiss.METRIC_INNER_PRODUCT, FP16, dimension=16), "dimension must be 24, got 16"),
    (lambda: scalar(faiss.METRIC_INNER_PRODUCT, FP16, dimension=48), "dimension must be 24, got 48"),
    (lambda: scalar(faiss.METRIC_INNER_PRODUCT, FP16, rows=39), "rows must be 40, got 39"),
    (lambda: scalar(faiss.METRIC_INNER_PRODUCT, FP16, rows=41), "rows must be 40, got 41"),
    (lambda: scalar(faiss.METRIC_INNER_PRODUCT, BITS8), "quantizer must be 4, got 0"),
    (flat, "index must be 'IxSQ', got 'IxFI'"),
    (lambda: sq_bytes(faiss.index_factory(DIMENSION, "HNSW8")), "index must be 'IxSQ', got "),
    (lambda: scalar(faiss.METRIC_INNER_PRODUCT, FP16) + b"x", "remaining bytes must be 1920, got 1921"),
    (lambda: b"", "ends too early"),
    (lambda: b"ns\x00\x00" + bytes(100), "index must be 'IxSQ', got 'ns"),
]


@pytest.mark.parametrize("number", range(len(OTHER_VECTORS)))
def test_wrong_index_file_is_refused_with_the_expected_value(forged: Forged, number: int) -> None:
    """An L2 index would return the worst hits first; another dimension would fail an assertion in FAISS."""
    make, match = OTHER_VECTORS[number]
    forged.replace(TEXT_VECTORS, make())
    refused(forged, rf"text-00000-of-00001\.faiss:? .*{match}" if "early" not in match else match)


def with_number(data: bytes, at: int, form: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


@pytest.mark.parametrize("size", [2**62, 2**40, -1, 2**31, 385, 0])
@pytest.mark.parametrize("name", [CODES, TEXT_VECTORS])
def test_wrong_array_length_allocates_no_memory(forged: Forged, name: str, size: int) -> None:
    at = 46 if name == CODES else 73
    forged.replace(name, with_number(forged.path(name).read_bytes(), at, "<q", size))
    refused(forged, r"faiss: (values of the transform|bytes of all rows|transform's input) must be |ends too early")


def test_invalid_or_duplicate_row_in_codes_is_refused(forged: Forged) -> None:
    data = forged.path(CODES).read_bytes()
    first = data.index(b"ilbl") + 44
    for row in (1050, -1, 2**62, struct.unpack_from("<q", data, first + 8)[0]):
        forged.replace(CODES, with_number(data, first, "<q", row))
        refused(forged, r"row ids must be complete and unique, got no id \d+")


def text_assets(forged: Forged) -> pa.Table:
    return pa.ipc.open_file(forged.path(ASSETS).read_bytes()).read_all()


OTHER_ASSETS: list[tuple[Callable[[pa.Table], bytes], str]] = [
    (lambda t: arrow_bytes(t.slice(1)), "it must have 40 rows, got 39"),
    (lambda t: arrow_bytes(t.drop_columns(["uri"])), "its columns must be those of the manifest"),
    (lambda t: arrow_bytes(t.drop_columns(["metadata"])), "its columns must be those of the manifest"),
    (lambda t: arrow_bytes(t.append_column("x", t.column("uri"))), "its columns must be those of the manifest"),
    (lambda t: arrow_bytes(t.set_column(0, "asset_id", pa.array([b"x"] * 40))), "its columns must be those of"),
    (lambda t: arrow_bytes(t, options=pa.ipc.IpcWriteOptions(compression="zstd")), "batch 0 is compressed"),
    (lambda t: arrow_bytes(t, options=pa.ipc.IpcWriteOptions(compression="lz4")), "batch 0 is compressed"),
    (
        lambda t: arrow_bytes(t.set_column(1, "kind", t.column("kind").dictionary_encode())),
        "it has dictionaries|its columns must be",
    ),
    (lambda _: b"ARROW1\0\0" + bytes(100), "its footer of 0 bytes is invalid"),
    (lambda _: b"", "it ends too early"),
]


@pytest.mark.parametrize("number", range(len(OTHER_ASSETS)))
def test_wrong_table_of_assets_is_refused(forged: Forged, number: int) -> None:
    make, match = OTHER_ASSETS[number]
    forged.replace(ASSETS, make(text_assets(forged)))
    refused(forged, rf"text-assets\.arrow cannot be opened as a table of assets: .*({match})")


def test_text_offsets_out_of_range_are_refused_even_unverified(forged: Forged) -> None:
    """Arrow would read other memory or crash."""
    data = forged.path(ASSETS).read_bytes()
    places = (
        np.cumsum([0, *(len(x) for x in text_assets(forged).column("asset_id").to_pylist())]).astype("<i4").tobytes()
    )
    at = data.index(places)
    for number, value in ((40, 2**30), (20, 2**30), (0, -8), (20, -1), (40, 5)):
        forged.replace(ASSETS, with_number(data, at + 4 * number, "<i", value))
        refused(forged, "texts of asset_id are outside of its bytes|Offset|offset")


def test_invalid_utf8_raises_when_the_row_is_read(forged: Forged) -> None:
    text = next(text for text in text_assets(forged).column("text").to_pylist() if text)
    data = forged.path(ASSETS).read_bytes()
    at = data.index(text.encode())
    forged.replace(ASSETS, data[:at] + b"\xff" + data[at + 1 :])
    with open_catalog(forged.folder) as catalog:
        rows = range(len(catalog.assets("text")))
        with pytest.raises(CatalogError, match=r"(?i)utf-8"):
            _ = [catalog.asset("text", row) for row in rows]


def test_prune_deletes_nothing_outside_the_catalog(forged: Forged, tmp_path: Path) -> None:
    """JSON files name outside paths, and links replace folders and files."""
    outside = tmp_path / "outside"
    outside.mkdir()
    mine = [outside / name for name in ("a.parquet", "manifest.json", "x.json", ".a.0123456789ab.partial")]
    for path in mine:
        path.write_bytes(b"{}")
        os.utime(path, (0, 0))
    for folder in ("units", "readers", "runs"):
        (forged.folder / folder).symlink_to(outside)
    with pytest.raises(StoreError, match="is a link out of the folder"):
        prune(Store(str(forged.folder)), PruneRules(units_older_than_days=0))
    for folder in ("units", "readers", "runs"):
        (forged.folder / folder).unlink()
        (forged.folder / folder).mkdir()
        (forged.folder / folder / "linked").symlink_to(outside)
        (forged.folder / folder / "a.parquet").symlink_to(outside / "a.parquet")
    (forged.folder / "versions" / "000000-20200101T000000Z-ab").symlink_to(outside)
    hold = {"version": "../../outside", "expires_at": "2020-01-01T00:00:00Z", "reader": "../../outside"}
    (forged.folder / "readers" / "x.json").write_bytes(orjson.dumps(hold))
    latest = orjson.loads((forged.folder / "LATEST.json").read_bytes())
    forged.write_latest({k: latest[k] for k in ("version", "manifest_sha256")})
    prune(Store(str(forged.folder)), PruneRules(keep=1, units_older_than_days=0))
    assert all(path.exists() for path in mine)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//x", ".", "..", "a/./x", "a\0"])
def test_store_refuses_names_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"mine")
    for store in (Store(str(tmp_path / "c")), Store("memory://c")):
        store.write("a/y", b"")
        for use in (
            store.read,
            store.size,
            store.open_read,
            store.delete,
            lambda name, store=store: store.write(name, b""),
            lambda name, store=store: store.create(name, b""),
        ):
            with pytest.raises(StoreError, match="invalid file name"):
                use(name)
    assert (tmp_path / "x").read_bytes() == b"mine"


def test_verify_reports_invalid_untrusted_files(forged: Forged) -> None:
    def without_parquet(manifest: dict[str, Any]) -> None:
        manifest["files"] = [entry for entry in manifest["files"] if not entry["name"].startswith("vectors/")]

    forged.replace(TEXT_VECTORS, scalar(faiss.METRIC_L2, FP16), without_parquet)
    store = Store(str(forged.folder))
    reported = [problem for verdict in verify_versions(store, forged.version) for problem in verdict.damage]
    assert any("metric must be inner product, got L2" in problem for problem in reported)

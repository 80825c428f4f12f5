"""Indexes built without embedding: from a catalog's vectors, and from imported vectors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.configs.errors import CatalogError, ConfigError, SourceError
from epithre_beam.index import Store, open_catalog, read_manifest
from epithre_beam.index.publish.verify import find_damage
from epithre_beam.index.versions.lease import hold
from epithre_beam.pipelines.jobs.build_index import build_index, import_vectors

_DIMENSION = 16


def unit_vectors(rows, dimension=_DIMENSION, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def column(vectors, kind=None):
    """Vectors as an Arrow column, which may contain None and lists of other lengths."""
    kind = kind or pa.list_(pa.float32())
    if pa.types.is_float16(kind.value_type):
        vectors = [None if v is None else np.asarray(v, np.float16) for v in vectors]
    return pa.array([None if v is None else list(v) for v in vectors], kind)


def write_folder(folder, vectors, of="text", name="part.parquet", *, type_=None, row_group_size=64, **columns):
    """Write a file of texts with ids `text-0`, `text-1`, … by default; a column that is None is left out."""
    rows = len(vectors)
    table = {"id": [f"{of}-{i}" for i in range(rows)], "kind": [of] * rows, "embedding": column(vectors, type_)}
    table = {key: value for key, value in {**table, **columns}.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / name, row_group_size=row_group_size)
    return folder


def stored(catalog, kind):
    """The rows of a kind, in order."""
    with open_catalog(catalog) as opened:
        version = opened.version
    files = sorted((catalog / "versions" / version / "vectors").glob(f"{kind}-*.parquet"))
    return pa.concat_tables([pq.read_table(path) for path in files])


def matrix(table):
    return np.array(table.column("embedding").to_pylist(), np.float32)


def assert_whole(catalog):
    with open_catalog(catalog) as opened:
        manifest = opened.manifest
    assert not list(find_damage(Store(str(catalog)), manifest))
    return manifest


def contents(catalog):
    """The sha256 of the current vectors and indexes."""
    with open_catalog(catalog) as opened:
        files = opened.manifest.files
    return {file.name: file.sha256 for file in files if file.name.startswith(("vectors/", "index/"))}


@pytest.fixture(scope="module")
def vectors():
    return unit_vectors(150)


@pytest.fixture
def catalog(tmp_path, vectors):
    """A catalog of 150 imported texts."""
    import_vectors(str(tmp_path / "catalog"), str(write_folder(tmp_path / "first", vectors)))
    return tmp_path / "catalog"


@pytest.mark.parametrize(
    ("type_", "ids"),
    [
        (pa.list_(pa.float32()), "integers"),
        (pa.list_(pa.float64()), "string"),
        (pa.list_(pa.float16()), "string"),
        (pa.large_list(pa.float32()), "string"),
        (pa.list_(pa.float32(), _DIMENSION), "string"),
        (pa.list_(pa.float16(), _DIMENSION), "string"),
    ],
    ids=str,
)
def test_rows_of_any_vector_column_type_keep_their_order(tmp_path, vectors, type_, ids):
    expected = vectors.astype(np.float16).astype(np.float32) if type_.value_type == pa.float16() else vectors
    options = {} if ids == "string" else {"id": list(range(100, 190))}
    write_folder(tmp_path / "old", vectors[:90], name="a.parquet", type_=type_, **options)
    options = {} if ids == "string" else {"id": list(range(60))}
    write_folder(tmp_path / "old", vectors[90:], "image", name="b.parquet", type_=type_, **options)
    report = import_vectors(str(tmp_path / "catalog"), str(tmp_path / "old"))
    manifest = assert_whole(tmp_path / "catalog")
    assert (manifest.dimension, manifest.model, manifest.counts.per_kind) == (16, "unknown", {"image": 60, "text": 90})
    assert (report["counts"]["new"], report["counts"]["reused"], report["counts"]["embedded"]) == (150, 150, 0)
    for kind, part in (("text", expected[:90]), ("image", expected[90:])):
        rows = stored(tmp_path / "catalog", kind)
        first = "text-" if kind == "text" else "image-"
        start = 0 if kind == "image" else 100
        names = [f"{first}{i}" for i in range(len(part))]
        assert rows.column("asset_id").to_pylist() == (
            names if ids == "string" else [str(start + i) for i in range(len(part))]
        )
        assert np.abs(matrix(rows) - part).max() < 1e-3
    with open_catalog(tmp_path / "catalog") as opened:
        found = [hits[0].asset_id for hits in opened.search(vectors[:90], k=1, kinds="text")]
    assert found == stored(tmp_path / "catalog", "text").column("asset_id").to_pylist()


def test_single_file_with_named_column_texts_uris_and_metadata(tmp_path, vectors):
    texts = [None, *(f"text {i}" for i in range(1, 150))]
    write_folder(
        tmp_path / "old",
        vectors,
        embedding=None,
        old_one=column(vectors),
        vector=column(-vectors),
        text=texts,
        uri=[f"https://shop.example/{i}" for i in range(150)],
        price=[str(i) for i in range(150)],
    )
    import_vectors(
        str(tmp_path / "catalog"),
        str(tmp_path / "old" / "part.parquet"),
        embedding="old_one",
        metadata=["price:double"],
        model="old-model",
    )
    assert assert_whole(tmp_path / "catalog").model == "old-model"
    rows = stored(tmp_path / "catalog", "text")
    assert np.abs(matrix(rows) - vectors).max() < 1e-6
    assert rows.column("text").to_pylist() == texts
    assert rows.column("metadata").to_pylist()[7] == {"price": 7.0}
    assert rows.column("uri")[7].as_py() == "https://shop.example/7"
    from epithre_beam.transforms.sources.references import text_fingerprint

    assert rows.column("fingerprint")[7].as_py() == text_fingerprint("text 7")
    assert len(set(rows.column("content_sha256").to_pylist())) == 150


def test_one_large_row_group_fills_several_files(tmp_path, vectors):
    kinds = ["image" if i % 3 == 0 else "text" for i in range(150)]
    write_folder(tmp_path / "old", vectors, kind=kinds, id=list(range(150)), row_group_size=150)
    import_vectors(str(tmp_path / "catalog"), str(tmp_path / "old"), ["index.rows_per_file=20"])
    manifest = assert_whole(tmp_path / "catalog")
    sizes = [file.rows for file in manifest.files if file.name.startswith("vectors/")]
    assert sizes == [25, 25, 20, 20, 20, 20, 20]
    for kind in ("image", "text"):
        wanted = [i for i in range(150) if kinds[i] == kind]
        rows = stored(tmp_path / "catalog", kind)
        assert rows.column("asset_id").to_pylist() == [str(i) for i in wanted]
        assert np.abs(matrix(rows) - vectors[wanted]).max() < 1e-6


def test_invalid_vectors_become_dead_letters_and_others_are_normalised(tmp_path, vectors):
    mixed = [v * 3 if i in {20, 21} else v for i, v in enumerate(vectors)]
    mixed[3] = [float("nan")] * _DIMENSION
    mixed[4] = [0.0] * _DIMENSION
    mixed[5] = mixed[5][:-1]
    mixed[6] = None
    mixed[7] = [*mixed[7][:-1], None]
    write_folder(tmp_path / "old", mixed)
    report = import_vectors(str(tmp_path / "catalog"), str(tmp_path / "old"))
    manifest = assert_whole(tmp_path / "catalog")
    assert manifest.counts.dead == 5
    assert manifest.counts.assets == 150 == manifest.counts.per_kind["text"] + 5
    assert report["imported"] == {"from": str(tmp_path / "old"), "rows": 145, "normalised": 2}
    (file,) = (tmp_path / "catalog" / "versions" / manifest.version / "dead_letters").iterdir()
    letters = pq.read_table(file).to_pylist()
    assert {letter["asset_id"]: letter["detail"] for letter in letters} == {
        "text-3": "part.parquet row 4: the vector must be finite, got nan as number 1 of 16",
        "text-4": "part.parquet row 5: the vector must not be zero",
        "text-5": "part.parquet row 6: the vector must have 16 dimensions, got 15",
        "text-6": "part.parquet row 7: the vector is missing",
        "text-7": "part.parquet row 8: the vector must be finite, got None as number 16 of 16",
    }
    assert {(letter["stage"], letter["reason"]) for letter in letters} == {("import", "broken_vector")}
    assert letters[0]["uri"].endswith("part.parquet#row=3")
    good = [i for i in range(150) if i not in {3, 4, 5, 6, 7}]
    assert np.abs(matrix(stored(tmp_path / "catalog", "text")) - vectors[good]).max() < 1e-6


def test_a_gate_holds_a_version_with_too_many_dead_letters(catalog, tmp_path, vectors):
    before = open_catalog(catalog).version
    mixed = [None if i >= 140 else v for i, v in enumerate(vectors)]
    write_folder(tmp_path / "next", mixed, row_group_size=10)
    report = import_vectors(str(catalog), str(tmp_path / "next"), ["index.rows_per_file=10"])
    assert "10 of 150 assets" in report["held_back"][0]
    assert open_catalog(catalog).version == before
    held = read_manifest(Store(str(catalog)), report["version"])
    assert not list(find_damage(Store(str(catalog)), held))
    report = import_vectors(str(catalog), str(tmp_path / "next"), ["gates.max_dead_share=0.1"])
    assert not report["held_back"]
    assert open_catalog(catalog).version == report["version"]


def test_a_gate_holds_a_folder_without_valid_vectors(tmp_path):
    write_folder(tmp_path / "old", np.zeros((10, 16)))
    report = import_vectors(str(tmp_path / "catalog"), str(tmp_path / "old"), ["gates.max_dead_share=1"])
    assert report["held_back"] == ["none of the 10 text assets got a vector."]


FEW = unit_vectors(4)
WRONG_FOLDER = {
    "no files": ({}, "has no Parquet files"),
    "no rows": (
        {"a": {"vectors": [], "id": pa.nulls(0, pa.string()), "kind": pa.nulls(0, pa.string())}},
        "have no rows",
    ),
    "no id": (
        {"a": {"vectors": FEW, "id": None}},
        r"a.parquet: the column id is missing \(columns: kind, embedding\).",
    ),
    "no kind": ({"a": {"vectors": FEW, "kind": None}}, "the column kind is missing"),
    "no vectors": ({"a": {"vectors": FEW, "embedding": None}}, "the column embedding or vector is missing"),
    "no metadata": ({"a": {"vectors": FEW}}, "the column price is missing"),
    "ids": (
        {"a": {"vectors": FEW, "id": [0.5, 1.5, 2.5, 3.5]}},
        "the column id must be of type string or integer, got double",
    ),
    "strings": (
        {"a": {"vectors": FEW, "embedding": ["1"] * 4}},
        "the column embedding must be lists of float, double or half",
    ),
    "other types": (
        {"a": {"vectors": FEW}, "b": {"vectors": FEW, "id": [1, 2, 3, 4]}},
        "b.parquet: the columns must be those of .*a.parquet, but id is int64 instead of string",
    ),
    "other dimensions": (
        {
            "a": {"vectors": FEW, "type_": pa.list_(pa.float32(), 16)},
            "b": {"vectors": unit_vectors(4, 8), "of": "image", "type_": pa.list_(pa.float32(), 8)},
        },
        r"b.parquet: the columns must be those of .*, but embedding is fixed_size_list<.*>\[8\] instead of .*\[16\]",
    ),
    "too few dimensions": ({"a": {"vectors": unit_vectors(4, 3)}}, "embed.dimension must be at least 8, got 3"),
}
WRONG_CONTENT = {
    "null id": (
        {"a": {"vectors": FEW, "id": ["a", None, "c", "d"]}},
        r"a.parquet row 2: id is empty \(got None\)",
    ),
    "empty id": ({"a": {"vectors": FEW, "id": ["a", "b", "", "d"]}}, r"a.parquet row 3: id is empty \(got ''\)"),
    "unknown kind": (
        {"a": {"vectors": FEW, "kind": ["text", "text", "text", "video"]}, "b": {"vectors": FEW}},
        r"a.parquet row 4: kind must be image or text, got 'video'",
    ),
    "null kind": (
        {"a": {"vectors": FEW, "kind": ["text", None, "text", "text"]}},
        r"a.parquet row 2: kind must be image or text, got None",
    ),
    "doubled": (
        {"a": {"vectors": FEW}, "b": {"vectors": FEW[:3]}},
        r"text 'text-0' occurs 2 times, in .*a.parquet row 1 and .*b.parquet row 1 \(3 duplicate ids\)",
    ),
    "no vectors": ({"a": {"vectors": [None] * 4}}, "have no vectors"),
    "metadata": (
        {"a": {"vectors": FEW, "id": list("abcd"), "price": ["1", "2", "much", "4"]}},
        r"a.parquet row 3: price must be of type double, got 'much'",
    ),
}


@pytest.mark.parametrize("case", WRONG_FOLDER)
def test_an_invalid_folder_is_reported_and_nothing_is_written(tmp_path, case):
    files, sentence = WRONG_FOLDER[case]
    (tmp_path / "old").mkdir()
    for name, options in files.items():
        write_folder(tmp_path / "old", name=f"{name}.parquet", **options)
    with pytest.raises(ConfigError, match=sentence):
        import_vectors(
            str(tmp_path / "catalog"), str(tmp_path / "old"), metadata=["price:int"] if case == "no metadata" else []
        )
    assert not (tmp_path / "catalog" / "LATEST.json").exists()


@pytest.mark.parametrize("case", WRONG_CONTENT)
def test_invalid_content_is_reported_with_file_row_and_value(tmp_path, case):
    files, sentence = WRONG_CONTENT[case]
    for name, options in files.items():
        write_folder(tmp_path / "old", name=f"{name}.parquet", row_group_size=3, **options)
    with pytest.raises(SourceError, match=sentence):
        import_vectors(
            str(tmp_path / "catalog"), str(tmp_path / "old"), metadata=["price:double"] if case == "metadata" else []
        )
    assert not (tmp_path / "catalog" / "LATEST.json").exists()


def test_invalid_or_truncated_parquet_files_are_reported(tmp_path, vectors):
    write_folder(tmp_path / "old", vectors, name="a.parquet")
    whole = (tmp_path / "old" / "a.parquet").read_bytes()
    (tmp_path / "old" / "b.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"b\.parquet: the file cannot be read as Parquet"):
        import_vectors(str(tmp_path / "catalog"), str(tmp_path / "old"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"metadata": ["price"]}, "NAME:TYPE"),
        ({"metadata": ["price:number"]}, "NAME:TYPE"),
        ({"metadata": ["pri\0ce:int"]}, "--metadata: names of metadata columns must have at most 1000 characters"),
        ({"metadata": ["price:int", "price:int"]}, "twice"),
        ({"overrides": ["sources=1"]}, "cannot change without embedding again"),
        ({"overrides": ["index.rows_per_fil=1"]}, "Did you mean 'rows_per_file'"),
        ({"overrides": ["embed.dimension=32"]}, "embed.dimension must be 16 like the vectors, got 32"),
    ],
)
def test_invalid_options_are_reported(tmp_path, arguments, sentence):
    write_folder(tmp_path / "old", FEW)
    with pytest.raises(ConfigError, match=sentence):
        import_vectors(str(tmp_path / "catalog"), str(tmp_path / "old"), **arguments)


@pytest.mark.slow
def test_same_vectors_give_same_bytes_also_with_codes(tmp_path):
    many = unit_vectors(1100)
    for kind, seed in (("text", 0), ("image", 1)):
        write_folder(tmp_path / "old", unit_vectors(1100, seed=seed), kind, name=f"{kind}.parquet")
    codes = ["index.exact_up_to_mb=0", "index.training_rows=256"]
    for name in ("one", "other"):
        import_vectors(str(tmp_path / name), str(tmp_path / "old"), codes)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    manifest = assert_whole(tmp_path / "one")
    assert sum(file.name.endswith(".codes.faiss") for file in manifest.files) == 2
    # An index built from the catalog's own vectors has the same bytes as the first build.
    build_index(str(tmp_path / "one"), ["index.exact_up_to_mb=64"])
    assert not any(name.endswith(".codes.faiss") for name in contents(tmp_path / "one"))
    report = build_index(str(tmp_path / "one"), codes)
    assert report["counts"]["unchanged"] == report["counts"]["reused"] == 2200
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    with open_catalog(tmp_path / "one") as opened:
        assert opened.search(many[5], k=1, kinds="text")[0][0].asset_id == "text-5"


def test_rows_metadata_and_dead_letters_are_reused(tmp_path, vectors):
    mixed = [None if i in {1, 2} else v for i, v in enumerate(vectors)]
    write_folder(tmp_path / "old", mixed, price=list(range(150)), text=[f"text {i}" for i in range(150)])
    catalog = tmp_path / "catalog"
    import_vectors(str(catalog), str(tmp_path / "old"), metadata=["price:int"], model="old-model")
    before, first = stored(catalog, "text"), open_catalog(catalog).manifest
    report = build_index(str(catalog), ["index.rows_per_file=40", "index.recall_k=3"])
    manifest = assert_whole(catalog)
    assert report["previous"] == first.version
    assert stored(catalog, "text").equals(before)
    assert (manifest.counts.dead, manifest.counts.unchanged, manifest.counts.embedded) == (2, 148, 0)
    assert (manifest.model, manifest.metadata_types) == ("old-model", {"price": "int"})
    assert manifest.config["index"]["recall_k"] == 3
    assert report["dead_letters"]["by_reason"] == {"broken_vector": 2}
    assert not (catalog / "runs").exists() or not any((catalog / "runs").iterdir())


def spread(rows, dimension, apart):
    """Unit vectors around one direction."""
    drawn = 1 + apart * np.random.default_rng([rows, dimension]).standard_normal((rows, dimension))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "text"),
    [
        pytest.param(None, spread(150, 64, 1e-2), id="near duplicates of one kind"),
        pytest.param(spread(1100, 32, 1e-3), spread(9, 32, 1e-3), id="in codes beside fewer than k"),
        pytest.param(unit_vectors(1500, 8), -unit_vectors(300, 8), id="kinds that face each other in few dimensions"),
        pytest.param(unit_vectors(1), unit_vectors(1), id="one row of each kind, the same"),
        pytest.param(spread(11, 16, 0), spread(10, 16, 0), id="all equal"),
    ],
)
def test_unusual_vectors_are_published_under_all_settings(tmp_path, image, text):
    """The rows themselves are also queries, and full recall is required."""
    kinds = {kind: rows for kind, rows in (("image", image), ("text", text)) if rows is not None}
    for kind, rows in kinds.items():
        write_folder(tmp_path / "vectors", rows, kind, name=f"{kind}.parquet", row_group_size=500)
    some = {kind: rows[:20] for kind, rows in kinds.items()}
    asked = [(kind, list(row)) for kind, rows in some.items() for row in rows]
    queries = pa.table({"kind": [kind for kind, _ in asked], "embedding": [row for _, row in asked]})
    pq.write_table(queries, tmp_path / "queries.parquet")
    settings = ["index.target_recall=1.0", "index.exact_up_to_mb=0", "index.training_rows=256"]
    settings.append(f"index.queries={tmp_path / 'queries.parquet'}")
    report = import_vectors(str(tmp_path / "catalog"), str(tmp_path / "vectors"), settings)
    assert report["held_back"] == []
    assert report["recall"] == {f"{query}->{kind}": 1.0 for query in kinds for kind in kinds}
    again = build_index(str(tmp_path / "catalog"), ["index.recall_k=3"])
    assert again["held_back"] == []
    assert set(again["recall"].values()) == {1.0}
    assert_whole(tmp_path / "catalog")


def test_same_settings_write_nothing_without_rebuild(catalog):
    first = open_catalog(catalog).version
    report = build_index(str(catalog), ["gates.max_dead_share=0.5"])
    assert report["unchanged"]
    assert report["version"] == first
    assert [path.name for path in (catalog / "versions").iterdir()] == [first]
    assert build_index(str(catalog), rebuild=True)["version"] > first
    assert_whole(catalog)


def test_damaged_index_is_rebuilt_and_damaged_vectors_are_reported(catalog):
    version = open_catalog(catalog).version
    index = catalog / "versions" / version / "index" / "text-00000-of-00001.faiss"
    index.write_bytes(index.read_bytes()[:-1] + b"\x01")
    assert "unchanged" not in build_index(str(catalog))
    version = assert_whole(catalog).version
    vectors = catalog / "versions" / version / "vectors" / "text-00000-of-00001.parquet"
    data = bytearray(vectors.read_bytes())
    data[len(data) // 2] ^= 1
    vectors.write_bytes(data)
    with pytest.raises(CatalogError, match=r"text-00000-of-00001\.parquet.* is damaged .*Use `run` to embed again"):
        build_index(str(catalog), rebuild=True)
    assert open_catalog(catalog).version == version


def test_float16_vectors_cannot_become_float32(catalog):
    build_index(str(catalog), ["index.vector_type=float16"])
    assert_whole(catalog)
    with pytest.raises(ConfigError, match="vectors are stored as float16"):
        build_index(str(catalog), ["index.vector_type=float32"])


def test_build_index_raises_without_a_published_version(tmp_path):
    with pytest.raises(CatalogError, match="there is no catalog here"):
        build_index(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_the_command_has_the_exit_codes_of_a_run(place, vectors):
    catalog = place.catalog
    write_folder(place.folder / "old", vectors)
    done = place.cli("index", "catalog", "--from", "old", "--json", key=None)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "published"
    assert "150 vectors from old" in json.loads(done.stdout)["message"]
    with hold(Store(str(catalog)), "run"):
        assert place.cli("index", "catalog", "--rebuild", key=None).returncode == 4
    write_folder(place.folder / "next", [None, *vectors[1:]])
    done = place.cli("index", "catalog", "--from", "next", "--set", "gates.max_dead_share=0", key=None)
    assert done.returncode == 3
    assert "held back by a gate: gates.max_dead_share allows 0.00%" in done.stderr
    done = place.cli("index", "catalog", "--set", "embed.model=other", key=None)
    assert done.returncode == 2
    assert "embed.model: this cannot change without embedding again" in done.stderr
    done = place.cli("search", "catalog", "--text", "red")
    assert done.returncode == 1
    assert "imported vectors of an unknown model" in done.stderr


@pytest.mark.slow
def test_a_killed_command_keeps_the_current_version_and_the_next_succeeds(place, vectors):
    many = unit_vectors(2000)
    write_folder(place.folder / "old", vectors)
    import_vectors(str(place.catalog), str(place.folder / "old"))
    first = open_catalog(place.catalog).version
    write_folder(place.folder / "next", many)
    process = place.start("index", "catalog", "--from", "next", "--set", "index.rows_per_file=100", key=None)
    deadline = time.monotonic() + 60
    while not list(place.catalog.glob("versions/000002-*/vectors/*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert open_catalog(place.catalog).version == first
    assert_whole(place.catalog)
    report = import_vectors(str(place.catalog), str(place.folder / "next"))
    assert assert_whole(place.catalog).version == report["version"]


def test_a_jobs_index_is_built_without_its_sources(place):
    assert place.cli("run", "job.yaml", "-q").returncode == 0
    shutil.move(place.folder / "pictures", place.folder / "hidden")
    done = place.cli("index", "catalog", "--set", "index.recall_k=5", "--json", key=None)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["counts"]
    assert (counts["embedded"], counts["unchanged"], counts["per_kind"]) == (0, 90, {"image": 40, "text": 50})
    assert_whole(place.catalog)
    found = json.loads(place.cli("search", "catalog", "--text", "text number 7", "--kind", "text", "--json").stdout)
    assert found["results"][0]["hits"][0]["text"] == "text number 7"
    shutil.move(place.folder / "hidden", place.folder / "pictures")
    report = json.loads(place.cli("run", "job.yaml", "--json").stdout)
    assert report["status"] == "published"  # a run uses its own index settings
    assert report["counts"]["unchanged"] == 90


_PEAK = """
import sys
from epithre_beam.pipelines.jobs.build_index import import_vectors
import_vectors(sys.argv[2], sys.argv[1], ["index.rows_per_file=4000"])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows_of_a_row_group(tmp_path):
    peaks = []
    for rows in (5_000, 40_000):
        values = pa.array(np.tile(unit_vectors(1000, 512), (rows // 1000, 1)).reshape(-1))
        embedding = pa.FixedSizeListArray.from_arrays(values, 512)
        table = pa.table({"id": range(rows), "kind": ["image"] * rows, "embedding": embedding})
        (tmp_path / str(rows)).mkdir()
        pq.write_table(table, tmp_path / str(rows) / "a.parquet", row_group_size=rows, use_dictionary=False)
        command = [sys.executable, "-c", _PEAK, str(tmp_path / str(rows)), str(tmp_path / f"catalog-{rows}")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ), timeout=120)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1e3)
    # The vectors alone are 72 MB more. The index, whose mapped pages count once they are read, is 36 MB more.
    assert peaks[1] < peaks[0] + 55, peaks

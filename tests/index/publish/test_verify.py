"""Verification finds whatever is wrong with any file of a version, and nothing where nothing is."""

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index import Manifest, Store
from epithre_beam.index.publish.verify import find_damage, verify_versions
from epithre_beam.index.versions.files import check_file
from epithre_beam.index.versions.layout import manifest_name


def paths(made: Any) -> list[Path]:
    """Every file of the manifest: vectors, indexes, assets and dead letters."""
    found = [made.folder / "versions" / made.manifest.version / entry.name for entry in made.manifest.files]
    assert {path.parent.name for path in found} == {"vectors", "index", "dead_letters"}
    return found


def test_a_version_as_it_was_written_has_no_damage(small: Any, own_copy: Any) -> None:
    for made in (small, own_copy):
        assert list(find_damage(made.store, made.manifest)) == []


def test_the_manifest_lists_every_file_of_its_version_but_itself(small: Any) -> None:
    folder = f"versions/{small.manifest.version}"
    listed = {f"{folder}/{entry.name}" for entry in small.manifest.files}
    assert listed | {f"{folder}/manifest.json"} == set(small.store.names(folder))


def test_one_changed_byte_in_any_file_is_found(own_copy: Any) -> None:
    rng = np.random.default_rng(0)
    for path in paths(own_copy):
        before = path.read_bytes()
        for at in (0, len(before) - 1, *rng.integers(0, len(before), 4)):
            changed = bytearray(before)
            changed[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            (problem,) = find_damage(own_copy.store, own_copy.manifest)
            assert path.name in problem
            assert "must have sha256" in problem
        path.write_bytes(before)
    assert list(find_damage(own_copy.store, own_copy.manifest)) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [("missing", "is missing"), ("shorter", "must have"), ("longer", "must have"), ("empty", "got 0: the file is")],
)
def test_a_missing_shorter_or_longer_file_is_found(own_copy: Any, change: str, sentence: str) -> None:
    for path in paths(own_copy):
        before = path.read_bytes()
        if change == "missing":
            path.unlink()
        else:
            path.write_bytes({"shorter": before[:-1], "longer": before + b"\0", "empty": b""}[change])
        (problem,) = find_damage(own_copy.store, own_copy.manifest)
        assert str(path) in problem
        assert sentence in problem
        path.write_bytes(before)


def test_two_files_that_have_changed_places_are_both_found(own_copy: Any) -> None:
    one, other = [path for path in paths(own_copy) if path.suffix == ".arrow"]
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert len(list(find_damage(own_copy.store, own_copy.manifest))) == 2


def test_all_that_is_wrong_is_told(own_copy: Any) -> None:
    for path in paths(own_copy):
        path.unlink()
    problems = list(find_damage(own_copy.store, own_copy.manifest))
    assert len(problems) == len(own_copy.manifest.files)
    assert all(problem.endswith(" is missing.") for problem in problems)


def test_an_index_of_other_rows_than_its_vectors_is_found(own_copy: Any) -> None:
    image, text = own_copy.manifest.indexes
    wrong = own_copy.manifest.model_copy(update={"indexes": (image.model_copy(update={"rows": 21}), text)})
    assert list(find_damage(own_copy.store, wrong)) == [
        "The image index has 21 rows, and its vectors are 20.",
        "The image index has 21 rows, its table of assets 20 and its file 20.",
        "The manifest counts 20 image assets, and their index has 21 rows.",
    ]


def test_an_index_without_any_vectors_is_found(own_copy: Any) -> None:
    files = tuple(entry for entry in own_copy.manifest.files if not entry.name.startswith("vectors/image-"))
    wrong = own_copy.manifest.model_copy(update={"files": files})
    assert list(find_damage(own_copy.store, wrong)) == ["The image index has 20 rows, and its vectors are 0."]


def test_an_index_that_the_manifest_does_not_list_is_found(own_copy: Any) -> None:
    files = tuple(entry for entry in own_copy.manifest.files if not entry.name.startswith("index/text"))
    wrong = own_copy.manifest.model_copy(update={"files": files})
    assert list(find_damage(own_copy.store, wrong)) == [
        f"The text index needs index/{name}, which the manifest does not list."
        for name in ("text-00000-of-00001.faiss", "text-assets.arrow")
    ]


def test_a_file_that_cannot_be_read_is_not_taken_for_a_missing_one(own_copy: Any) -> None:
    folder = own_copy.folder / "versions" / own_copy.manifest.version
    (folder / "dead_letters").rename(folder / "elsewhere")
    (folder / "dead_letters").write_bytes(b"")
    entry = next(entry for entry in own_copy.manifest.files if entry.name.startswith("dead_letters/"))
    with pytest.raises(NotADirectoryError):
        check_file(own_copy.store, own_copy.manifest.version, entry)


def test_a_remote_version_is_verified_too(own_copy: Any) -> None:
    remote = Store("memory://remote-version")
    for name in own_copy.store.names("versions"):
        remote.write(name, own_copy.store.read(name))
    assert list(find_damage(remote, own_copy.manifest)) == []
    name = f"versions/{own_copy.manifest.version}/{own_copy.manifest.files[0].name}"
    remote.write(name, remote.read(name)[::-1])
    assert len(list(find_damage(remote, own_copy.manifest))) == 1
    remote.delete("")


# ---------------------------------------------------------------------------------------------------- what agrees


def with_file(made: Any, name: str, data: bytes) -> Manifest:
    """Puts other bytes into a file of the version; the manifest that lists them as they are now."""
    made.store.write(f"versions/{made.manifest.version}/{name}", data)
    sha256 = hashlib.sha256(data).hexdigest()
    files = [
        entry.model_copy(update={"size_bytes": len(data), "sha256": sha256}) if entry.name == name else entry
        for entry in made.manifest.files
    ]
    return made.manifest.model_copy(update={"files": tuple(files)})  # type: ignore[no-any-return]


def rewritten(made: Any, name: str, change: Callable[[pa.Table], pa.Table]) -> bytes:
    """A Parquet file of vectors with its row groups changed."""
    source = pq.ParquetFile(made.folder / "versions" / made.manifest.version / name)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, source.schema_arrow) as writer:
        for group in range(source.num_row_groups):
            writer.write_table(change(source.read_row_group(group)))
    return buffer.getvalue()


VECTORS = "vectors/image-00001-of-00002.parquet"


def test_a_vector_beside_another_assets_name_is_found(own_copy: Any) -> None:
    def exchange_ids(table: pa.Table) -> pa.Table:
        ids = table.column("asset_id").to_pylist()
        return table.set_column(0, table.schema.field(0), [[ids[1], ids[0], *ids[2:]]])

    manifest = with_file(own_copy, VECTORS, rewritten(own_copy, VECTORS, exchange_ids))
    (problem,) = find_damage(own_copy.store, manifest)
    assert VECTORS in problem
    assert re.search(r"the vector of 'image \d+' stands where the table of assets has 'image \d+'\.", problem)


def test_a_vector_that_the_index_does_not_hold_is_found(own_copy: Any) -> None:
    """Names and norms agree; only the numbers are those of other rows."""

    def turn(table: pa.Table) -> pa.Table:
        vectors = np.array(table.column("embedding").to_pylist(), np.float32)[::-1]
        return with_vectors(table, vectors)

    manifest = with_file(own_copy, VECTORS, rewritten(own_copy, VECTORS, turn))
    (problem,) = find_damage(own_copy.store, manifest)
    assert VECTORS in problem
    assert problem.endswith("the index holds other vectors than these.")


@pytest.mark.parametrize(("factor", "found"), [(1.01, "1.01"), (0.0, "0"), (float("nan"), "nan")])
def test_a_vector_of_another_norm_is_found(own_copy: Any, factor: float, found: str) -> None:
    def scale_first(table: pa.Table) -> pa.Table:
        vectors = np.array(table.column("embedding").to_pylist(), np.float32)
        vectors[0] *= factor
        return with_vectors(table, vectors)

    manifest = with_file(own_copy, VECTORS, rewritten(own_copy, VECTORS, scale_first))
    problems = list(find_damage(own_copy.store, manifest))
    assert len(problems) == 2  # and the index holds other vectors
    assert re.search(rf"the vector of 'image \d+' must have the norm 1, got {found}", problems[0])


def with_vectors(table: pa.Table, vectors: Any) -> pa.Table:
    at = table.schema.get_field_index("embedding")
    values = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, type=table.schema.field(at).type)
    return table.set_column(at, table.schema.field(at), column)


def test_files_of_which_each_is_whole_but_of_another_kind_are_found(own_copy: Any) -> None:
    image, text = own_copy.manifest.indexes
    wrong = own_copy.manifest.model_copy(update={"indexes": (image.model_copy(update={"files": text.files}), text)})
    (problem,) = find_damage(own_copy.store, wrong)
    assert problem == "The image index has 20 rows, its table of assets 20 and its file 9."
    wrong = own_copy.manifest.model_copy(
        update={"indexes": (image.model_copy(update={"files": (image.assets,)}), text)}
    )
    (problem,) = find_damage(own_copy.store, wrong)
    assert "cannot be read to the end: the stored index: index must be 'IxSQ', got 'ARRO'" in problem


def test_counts_that_are_not_those_of_the_files_are_found(own_copy: Any) -> None:
    counts = own_copy.manifest.counts.model_copy(update={"dead": 5, "per_kind": {"image": 19, "text": 9}})
    wrong = own_copy.manifest.model_copy(update={"counts": counts})
    assert list(find_damage(own_copy.store, wrong)) == [
        "The manifest counts 19 image assets, and their index has 20 rows.",
        "The manifest counts 5 dead letters, and 2 are stored.",
    ]


# ---------------------------------------------------------------------------------------------------- the catalog


def damage_of(made: Any, version: str | None = None, *, every: bool = False) -> list[str]:
    return [sentence for verdict in verify_versions(made.store, version, every=every) for sentence in verdict.damage]


def test_every_changed_byte_of_the_pointer_and_of_the_published_manifest_is_found(own_copy: Any) -> None:
    rng = np.random.default_rng(0)
    assert damage_of(own_copy) == []
    for path in own_copy.files()[:2]:
        before = path.read_bytes()
        places = range(len(before)) if path.name == "LATEST.json" else rng.integers(0, len(before), 60)
        for at in places:
            changed = bytearray(before)
            changed[at] ^= int(rng.integers(1, 256))
            path.write_bytes(changed)
            problems = damage_of(own_copy)
            assert problems
            assert all(re.search(r"LATEST\.json|manifest\.json", problem) for problem in problems)
            assert damage_of(own_copy, every=True)
        path.write_bytes(before)
    assert damage_of(own_copy) == []


def test_a_pointer_with_another_space_in_it_is_found(own_copy: Any) -> None:
    latest = own_copy.files()[0]
    latest.write_bytes(latest.read_bytes().replace(b"\n", b" ", 1))
    (problem,) = damage_of(own_copy)
    assert "LATEST.json is not as it was written" in problem
    own_copy.open().close()  # nothing that it says is changed


def test_all_versions_are_verified_where_it_is_asked_and_only_what_is_asked(own_copy: Any) -> None:
    store, published = own_copy.store, own_copy.manifest.version
    other = own_copy.manifest.model_copy(update={"version": "000002-x"})
    store.write(manifest_name("000002-x"), other.to_bytes())  # and none of its files
    store.write(manifest_name("000003-y"), other.to_bytes())
    assert damage_of(own_copy) == damage_of(own_copy, published) == []
    assert len(damage_of(own_copy, "000002-x")) >= len(other.files)
    verdicts = {verdict.version: verdict for verdict in verify_versions(store, every=True)}
    assert list(verdicts) == [published, "000002-x", "000003-y"]
    assert not verdicts[published].damage
    assert verdicts[published].size_bytes == sum(entry.size_bytes for entry in own_copy.manifest.files)
    assert "manifest.json is the manifest of version 000002-x" in verdicts["000003-y"].damage[-1]
    assert damage_of(own_copy, "none") == [
        f"{store.url} has no version 'none': versions/none/manifest.json is missing."
    ]


def test_where_nothing_is_published_there_is_nothing_to_verify(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(CatalogError, match="there is no catalog here"):
        list(verify_versions(store))
    with pytest.raises(CatalogError, match="there is no catalog here"):
        list(verify_versions(store, every=True))


def test_a_float16_version_and_one_of_many_row_groups_have_no_damage(make_catalog: Any, draw_vectors: Any) -> None:
    made = make_catalog({"text": draw_vectors(300, 12, 1)}, rows_per_unit=3, rows_per_file=100)
    assert list(find_damage(made.store, made.manifest)) == []
    for name in [entry.name for entry in made.manifest.files if entry.name.startswith("vectors/")]:
        at = made.folder / "versions" / made.manifest.version / name
        table = pq.read_table(at)
        half = pa.list_(pa.field("item", pa.float16(), nullable=False), 12)
        values = table.column("embedding").combine_chunks().flatten().cast(pa.float16())
        fields = [*list(table.schema)[:-1], pa.field("embedding", half, nullable=False)]
        columns = [*table.columns[:-1], pa.FixedSizeListArray.from_arrays(values, type=half)]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)), buffer)
        made = replace(made, manifest=with_file(made, name, buffer.getvalue()))
    assert list(find_damage(made.store, made.manifest)) == []

"""A unit file returns the written rows and exists only when it is complete."""

import random
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs.errors import DamagedFileError
from epithre_beam.index import DeadLetter, Reason, Store
from epithre_beam.index.vectors.units import (
    UnitFooter,
    UnitRecord,
    dead_letter_table,
    open_vectors,
    read_unit,
    read_unit_dead_letters,
    read_unit_footer,
    write_unit,
)
from epithre_beam.index.versions.layout import DEAD_LETTER_SCHEMA, asset_fields, next_version, unit_schema

Floats = npt.NDArray[np.float32]

LETTERS = st.builds(
    DeadLetter,
    asset_id=st.text(max_size=8),
    kind=st.sampled_from(["image", "text"]),
    uri=st.none() | st.text(max_size=8),
    stage=st.sampled_from(["read", "prepare", "embed"]),
    reason=st.sampled_from(Reason),
    detail=st.text(max_size=8),
    attempts=st.integers(0, 9),
)


@pytest.mark.parametrize(("rows", "dimension"), [(0, 8), (1, 8), (7, 64), (3, 4000)])
def test_unit_returns_its_rows_unchanged(
    tmp_path: Path,
    draw_vectors: Callable[..., Floats],
    draw_assets: Callable[..., pa.Table],
    rows: int,
    dimension: int,
) -> None:
    store, vectors, assets = Store(str(tmp_path)), draw_vectors(rows, dimension), draw_assets("image", 5, rows)
    write_unit(store, "u", assets, vectors, [], deduplicated=2, reused_rows=1, embedding_config_hash="abc")
    table = read_unit(store, "u")
    assert table.schema.equals(unit_schema(dimension))
    assert table.select(assets.column_names).equals(assets)
    found = np.array(table.column("embedding").to_pylist(), np.float32).reshape(rows, dimension)
    assert found.tobytes() == vectors.tobytes()
    footer = UnitFooter(rows=rows, deduplicated=2, reused_rows=1, embedding_config_hash="abc")
    assert read_unit_footer(store, "u") == footer
    assert store.names("") == ["units/u.parquet"]


def test_unit_has_one_row_group(
    tmp_path: Path, draw_vectors: Callable[..., Floats], draw_assets: Callable[..., pa.Table]
) -> None:
    """A reader that streams units holds one unit in memory."""
    write_unit(Store(str(tmp_path)), "u", draw_assets("text", 0, 700), draw_vectors(700, 8), [], deduplicated=0)
    assert pq.read_metadata(tmp_path / "units" / "u.parquet").num_row_groups == 1


def test_unit_bytes_do_not_depend_on_array_layout(
    tmp_path: Path, draw_vectors: Callable[..., Floats], draw_assets: Callable[..., pa.Table]
) -> None:
    """Equal values give equal bytes: column-major, every second row, big-endian, double."""
    store, assets, vectors = Store(str(tmp_path)), draw_assets("text", 0, 6), draw_vectors(6, 8)
    forms = [
        np.asfortranarray(vectors),
        np.repeat(vectors, 2, axis=0)[::2],
        vectors.astype(">f4"),
        vectors.astype("f8"),
    ]
    for i, form in enumerate([vectors, *forms]):
        write_unit(store, f"u{i}", assets, form, [], deduplicated=0)
    assert len({store.read(name) for name in store.names("units")}) == 1


@settings(max_examples=40, deadline=None)
@given(letters=st.lists(LETTERS, max_size=6))
def test_dead_letters_are_returned_unchanged_and_counted(letters: list[DeadLetter]) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    write_unit(
        store, "u", pa.schema(list(unit_schema(8))[:-1]).empty_table(), np.empty((0, 8), "f4"), letters, deduplicated=0
    )
    footer = read_unit_footer(store, "u")
    assert footer is not None
    assert footer.dead == len(letters)
    assert footer.transient == sum(letter.reason.is_transient for letter in letters)
    if letters:
        assert read_unit_dead_letters(store, "u") == letters
        assert dead_letter_table(letters).schema == DEAD_LETTER_SCHEMA
    else:
        assert store.size("units/u.dead.parquet") is None
    store.delete("")


def test_unfinished_unit_has_no_footer(tmp_path: Path, draw_vectors: Callable[..., Floats]) -> None:
    """The dead letters are written first; without the vector file the unit is unfinished."""
    store = Store(str(tmp_path))
    assert read_unit_footer(store, "u") is None
    letter = DeadLetter(asset_id="a", kind="text", uri=None, stage="read", reason=Reason.MISSING, detail="")
    wrong = pa.table({"a": [1]})  # makes writing the vectors fail
    with pytest.raises((pa.ArrowInvalid, ValueError)):
        write_unit(store, "u", wrong, draw_vectors(1, 8), [letter], deduplicated=0)
    assert store.names("") == ["units/u.dead.parquet"]
    assert read_unit_footer(store, "u") is None


def test_writing_a_unit_twice_gives_equal_bytes(
    tmp_path: Path, cut_units: Callable[..., list[UnitRecord]], draw_vectors: Callable[..., Floats]
) -> None:
    stores = [Store(str(tmp_path / name)) for name in "ab"]
    for store in stores:
        cut_units(store, "image", draw_vectors(20, 8), 7, dead=3)
    first, second = ({name: store.read(name) for name in store.names("")} for store in stores)
    assert len(first) == 4
    assert first == second


@given(number=st.integers(1, 999_998))
def test_new_version_sorts_after_the_previous_one(number: int) -> None:
    previous = f"{number:06d}-99991231T235959Z-ffffff"  # from a wrong clock
    version = next_version(previous)
    assert version > previous
    assert version != next_version(previous)
    assert next_version(None).startswith("000001-")


@pytest.mark.parametrize("name", ["units/u.parquet", "units/u.dead.parquet"])
def test_damaged_unit_byte_is_detected_or_harmless(
    tmp_path: Path, draw_vectors: Callable[..., Floats], name: str
) -> None:
    """The Parquet footer has no checksum, so its content is checked in other ways."""
    store = Store(str(tmp_path))
    fixed = {"kind": "text", "fingerprint": "f", "media_type": "text/plain", "size_bytes": 6}
    rows = [{"asset_id": f"a{i}", "text": f"text {i}", "content_sha256": f"{i:064x}", **fixed} for i in range(4)]
    assets = pa.Table.from_pylist(rows, schema=pa.schema(asset_fields()))
    letter = DeadLetter(asset_id="x", kind="text", uri=None, stage="read", reason=Reason.MISSING, detail="")
    write_unit(store, "u", assets, draw_vectors(4, 8), [letter], deduplicated=1, embedding_config_hash="ab" * 32)
    files = {file: store.read(file) for file in store.names("units")}

    def read() -> object:
        footer = read_unit_footer(store, "u")
        counts = footer and replace(
            footer, embedding_config_hash=""
        )  # another embedding config hash: the unit is not reused
        return counts and (counts, read_unit(store, "u"), read_unit_dead_letters(store, "u"))

    whole = read()
    rng = random.Random(6)
    found, named = 0, set()
    for position in range(len(files[name])):
        data = bytearray(files[name])
        data[position] ^= rng.randrange(1, 256)
        (tmp_path / name).write_bytes(data)
        try:
            read_now = read()
            assert read_now in (None, whole), position
            found += read_now is None
        except DamagedFileError as error:
            named.add(error.file)
            found += 1
            for file, content in files.items():
                (tmp_path / file).write_bytes(content)
    assert found > len(files[name]) / 2
    assert named == {name}


def test_vector_file_must_match_the_manifest(own_copy: Any) -> None:
    """Checks dimension, metadata columns and rows; Arrow detects a page that is longer than its bytes."""
    manifest = own_copy.manifest
    entry = next(file for file in manifest.files if file.name.startswith("vectors/text-"))
    name = f"versions/{manifest.version}/{entry.name}"
    with own_copy.store.open_read(name) as file:
        open_vectors(file, manifest, entry)
        for other, of_file, match in (
            ({"dimension": 9}, {}, "vectors must have 9 dimensions, got 8"),
            ({"metadata_types": {}}, {}, "metadata columns are not those of the manifest"),
            ({"metadata_types": {"lang": "int", "price": "double"}}, {}, "metadata columns are not those"),
            ({}, {"rows": 3}, "must have 3 rows, got"),
        ):
            with pytest.raises(pa.ArrowInvalid, match=match):
                open_vectors(file, manifest.model_copy(update=other), entry.model_copy(update=of_file))

"""Verification finds whatever is wrong with any file of a version, and nothing where nothing is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epithre_beam.index import Store
from epithre_beam.index.verify import check_file, find_damage


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

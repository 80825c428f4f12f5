"""A manifest names the files of its version, below the version's folder and in order."""

from typing import Any


def test_a_manifest_names_its_files_below_its_folder_in_order(small: Any) -> None:
    names = [entry.name for entry in small.manifest.files]
    assert names == sorted(names)
    assert all((small.folder / "versions" / small.manifest.version / name).is_file() for name in names)

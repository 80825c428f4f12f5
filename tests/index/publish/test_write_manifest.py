"""A manifest lists the files of its version, relative to the version folder and sorted."""

from typing import Any


def test_manifest_lists_files_relative_to_its_folder_in_order(small: Any) -> None:
    names = [entry.name for entry in small.manifest.files]
    assert names == sorted(names)
    assert all((small.folder / "versions" / small.manifest.version / name).is_file() for name in names)

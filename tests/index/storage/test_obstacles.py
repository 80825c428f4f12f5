"""A file where a folder is needed is found, also above the folder."""

from pathlib import Path

from epithre_beam.index.storage.obstacles import file_in_the_way


def test_the_file_is_named_and_folders_are_not(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("x")
    link.symlink_to(tmp_path / "nowhere")
    for folder in (file, file / "catalog", file / "a" / "b"):
        assert file_in_the_way(folder) == file
    assert file_in_the_way(str(link)) == link
    for folder in (tmp_path, tmp_path / "new" / "catalog"):
        assert file_in_the_way(folder) is None

"""A folder lists its images or texts, and an id names one asset of a kind in all sources."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from epithre_beam.configs import PrepareConfig, RunConfig, SourceConfig
from epithre_beam.configs.errors import SourceError
from epithre_beam.transforms.planning.compare import Comparison
from epithre_beam.transforms.planning.plan import iterate_references
from epithre_beam.transforms.sources.files import PassedOver
from epithre_beam.transforms.sources.list_sources import IMAGE_SUFFIXES, TEXT_SUFFIXES, list_references
from epithre_beam.transforms.sources.reading import Reader
from epithre_beam.transforms.sources.references import references_of

from .listing import grow, ids, table, write


def test_a_folder_lists_all_its_images_and_a_file_itself(tmp_path: Path) -> None:
    names = [f"at{suffix}" for suffix in IMAGE_SUFFIXES] + [f"below/UP{suffix.upper()}" for suffix in IMAGE_SUFFIXES]
    grow(tmp_path, *names, "readme.txt", "page.md", "clip.mp4", "jpg")
    assert set(ids(tmp_path)) == set(ids(f"{tmp_path}/")) == set(names)
    assert set(ids(tmp_path, "text")) == {"readme.txt", "page.md"}
    assert set(TEXT_SUFFIXES) == {".txt", ".md"}
    assert ids(tmp_path / "clip.mp4") == ["clip.mp4"]  # given directly: the suffix does not matter


def test_a_glob_of_tables_is_one_source(tmp_path: Path) -> None:
    for part in range(3):
        write(tmp_path / f"part-{part}.csv", f"id,t\n{part}-a,x\n{part}-b,y\n")
    assert [row["asset_id"] for row in table(tmp_path / "part-*.csv")] == ["0-a", "0-b", "1-a", "1-b", "2-a", "2-b"]


def run(*sources: Mapping[str, Any]) -> pa.Table:
    config = RunConfig.model_validate({"catalog": "unused", "sources": sources})
    with Comparison(config.metadata_types) as comparison:
        tables = []
        for table in iterate_references(config.sources, config.metadata_types):
            comparison.add_references(table)
            tables.append(table)
        comparison.check_ids(config.sources)
    return pa.concat_tables(tables)


def test_a_duplicate_id_is_reported_with_two_places(tmp_path: Path) -> None:
    write(tmp_path / "one.csv", "id,t\n1,x\n2,x\n")
    write(tmp_path / "two.csv", "id,t\n2,y\n3,y\n")
    first = {"kind": "text", "table": f"{tmp_path}/one.csv", "id": "id", "text": "t"}
    both = first | {"table": f"{tmp_path}/*.csv"}
    one, two = f"{tmp_path}/one.csv", f"{tmp_path}/two.csv"
    cases = [
        ((both,), f"'2' occurs 2 times, in sources[0] (line 3 of {one}) and sources[0] (line 2 of {two}) (1 dup"),
        ((first, both), f"'1' occurs 2 times, in sources[0] (line 2 of {one}) and sources[1] (line 2 of {one}) (2 dup"),
    ]
    for sources, places in cases:
        with pytest.raises(SourceError) as caught:
            run(*sources)
        assert f"but text {places}" in str(caught.value)
    grow(tmp_path, "a/p.jpg", "b/p.jpg")
    with pytest.raises(SourceError) as caught:
        run({"kind": "image", "files": f"{tmp_path}/a"}, {"kind": "image", "files": f"{tmp_path}/b"})
    for word in ("image 'p.jpg'", f"sources[0] ({tmp_path}/a/p.jpg)", f"sources[1] ({tmp_path}/b/p.jpg)"):
        assert word in str(caught.value)


def test_an_image_and_its_text_may_share_an_id(tmp_path: Path) -> None:
    grow(tmp_path, "p.jpg")
    write(tmp_path / "t.csv", "id,t\np.jpg,a caption\n")
    found = run(
        {"kind": "image", "files": f"{tmp_path}/*.jpg"},
        {"kind": "text", "table": f"{tmp_path}/t.csv", "id": "id", "text": "t", "metadata": {"t": "string"}},
    )
    rows = [(row["kind"], row["asset_id"], row["source"], row["metadata"]) for row in found.to_pylist()]
    assert rows == [("image", "p.jpg", 0, None), ("text", "p.jpg", 1, {"t": "a caption"})]


def test_other_files_in_a_folder_are_counted(tmp_path: Path) -> None:
    grow(tmp_path / "photos", "a.jpg", "b.jfif", "c.JPE", "d.heic", "below/e.avif", "below/f.png", "plain", ".hidden")
    grow(tmp_path / "elsewhere", "g.jpg")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    passed = PassedOver()
    sources = [SourceConfig(kind="image", files=str(tmp_path / "photos"))]
    tables = list(iterate_references(sources, {}, passed_over=passed))
    assert pa.concat_tables(tables).column("asset_id").to_pylist() == ["a.jpg", "below/f.png"]
    linked = tmp_path / "photos" / "linked"
    assert str(passed) == f"5 files (.avif, .heic, .jfif, .jpe, no suffix), 1 linked folder ({linked})"
    named = PassedOver()
    list(iterate_references([SourceConfig(kind="image", files=f"{tmp_path}/photos/*.jpg")], {}, passed_over=named))
    assert not named.suffixes  # a pattern skips files on purpose
    grow(tmp_path / "whole", "a.jpg")
    whole = PassedOver()
    list(iterate_references([SourceConfig(kind="image", files=str(tmp_path / "whole"))], {}, passed_over=whole))
    assert not whole
    assert str(whole) == ""


@pytest.mark.parametrize("chain", ["zip://*.jpg::{archive}", "simplecache::zip://*.jpg::{archive}"])
def test_a_file_of_a_chained_url_gets_a_readable_url(tmp_path: Path, chain: str) -> None:
    archive = tmp_path / "p.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("one.jpg", "two.jpg", "readme.txt"):
            file.writestr(name, name * 3)
    source = SourceConfig(kind="image", files=chain.format(archive=archive))
    (references,) = list(list_references(source, 0, {}))
    reader = Reader([source], PrepareConfig())
    assert {r.asset_id: reader.read(r) for r in references_of(references)} == {
        "one.jpg": b"one.jpg" * 3,
        "two.jpg": b"two.jpg" * 3,
    }

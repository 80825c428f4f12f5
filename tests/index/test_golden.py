"""Catalogs of every released format can be opened and return the same hits (golden/write.py)."""

import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest

from epithre_beam.index import open_catalog

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(("name", "form", "counts"), [("v1", 1, [40, 25]), ("v2", 2, [2100, 40])])
def test_catalog_of_each_format_returns_the_same_hits(tmp_path: Path, name: str, form: int, counts: list[int]) -> None:
    """The catalog is copied to another path and every sha256 is verified."""
    shutil.copytree(GOLDEN / name, tmp_path / "c")
    queries = np.load(GOLDEN / name / "queries.npy")
    with open_catalog(tmp_path / "c") as catalog:
        assert catalog.manifest.format_version == form
        assert list(catalog.manifest.counts.per_kind.values()) == counts
        for answer in orjson.loads((GOLDEN / name / "answers.json").read_bytes()):
            found = catalog.search(queries, answer["k"], kinds=answer["kind"])
            for hits, stored in zip(found, answer["hits"], strict=True):
                assert [hit.asset_id for hit in hits] == [asset_id for asset_id, _ in stored]
                np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in stored], atol=1e-6)


def test_current_golden_catalog_has_codes_in_several_files() -> None:
    with open_catalog(GOLDEN / "v2") as catalog:
        image, text = sorted(catalog.manifest.indexes, key=lambda index: index.kind)
        assert len(image.files) == len(image.codes) == 2
        assert image.search_parameters
        assert text.codes == ()
    with open_catalog(GOLDEN / "v1") as catalog:
        assert [index.files for index in catalog.manifest.indexes] == [
            (f"index/{kind}-00000-of-00001.faiss",) for kind in ("image", "text")
        ]

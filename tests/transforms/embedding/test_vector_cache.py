"""Contents that a catalog or a folder of vectors has are not sent again, and what is new is kept there."""

import asyncio
import io
import json

import apache_beam as beam
import numpy as np
import pytest
from PIL import Image

from epithre_beam import transforms as epithre
from epithre_beam.errors import ConfigError
from epithre_beam.index import open_catalog
from epithre_beam.index.vectors.folder_mark import MARK
from epithre_beam.pipelines.jobs.build_index import import_vectors
from epithre_beam.transforms.epithre.emulator import EmulatorSettings, emulator_fingerprint
from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector
from epithre_beam.transforms.query.searcher import Searcher
from epithre_beam.transforms.versions.imports import scan_folder

from .. import test_embed_assets as steps
from ..test_embed_assets import DIMENSION, Asset, embed_assets, pipeline, png, run, texts

serve = steps.serve


def written_folder(emulator, folder, assets, **options):
    """Embed assets and write their vectors, without a cache."""
    with pipeline() as p:
        result = p | beam.Create(assets, reshuffle=False) | embed_assets(emulator, **options)
        _ = result.embedded | epithre.WriteVectors(folder, file_bytes=1)


def test_a_folder_of_vectors_is_a_cache_and_new_ones_are_kept_out_of_sight_in_it(serve, tmp_path):
    emulator = serve()
    assets = [*texts(20), *(Asset.of_image(str(i), png(i)) for i in range(5))]
    written_folder(emulator, tmp_path / "vectors", assets)
    names = sorted(path.name for path in (tmp_path / "vectors").glob("*.parquet"))
    billed = emulator.stats()["billed_items"]
    for more in (1, 0):  # the second run finds what the first one kept
        asked = [*assets, Asset.of_text("new", "another text")]
        embedded, _ = run(asked, embed_assets(emulator, cache=str(tmp_path / "vectors"), batch_items=7))
        billed += more
        assert emulator.stats()["billed_items"] == billed
        found = {(asset.kind, asset.id): asset for asset in embedded}
        assert len(found) == 26
        for i in range(5):
            expected = hash_vector("image", png(i), DIMENSION)
            np.testing.assert_allclose(found["image", str(i)].embedding, expected, atol=1e-5)
        assert found["image", "3"].width == 8
    assert sorted(path.name for path in (tmp_path / "vectors").glob("*.parquet")) == names
    assert scan_folder(str(tmp_path / "vectors")).assets == {"image": 5, "text": 20}


@pytest.mark.parametrize(
    "other",
    [{"model": "epithre-omni"}, {"dimension": 8}, {"prepare": {"max_pixels": 600}}],
)
def test_vectors_of_a_folder_made_otherwise_are_sent_again(serve, tmp_path, other):
    """Texts have no preparation, so a changed one concerns the images alone."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(file, "PNG")
    assets = [*texts(3), Asset.of_image("image", file.getvalue())]
    written_folder(serve(), tmp_path / "vectors", assets)
    again = serve(dimension=other.get("dimension", DIMENSION))
    run(assets, embed_assets(again, cache=str(tmp_path / "vectors"), **other))
    assert again.stats()["billed_items"] == (1 if "prepare" in other else 4)


def test_vectors_of_an_emulator_are_not_those_of_another_server(serve, tmp_path):
    """The folder says which server made its vectors, although nothing asked it before the first request."""
    written_folder(serve(), tmp_path / "vectors", texts(3))
    mark = json.loads((tmp_path / "vectors" / MARK).read_text())
    assert mark["made_by"] == {
        "dialect": "epithre",
        "dimension": DIMENSION,
        "model": "epithre-embed",
        "server": f"emulator-hash-1-{DIMENSION}",
    }
    mark["made_by"]["server"] = None
    (tmp_path / "vectors" / MARK).write_text(json.dumps(mark))
    again = serve()
    run(texts(3), embed_assets(again, cache=str(tmp_path / "vectors")))
    assert again.stats()["billed_items"] == 3


def test_a_damaged_file_of_a_folder_is_sent_again(serve, tmp_path):
    emulator = serve()
    written_folder(emulator, tmp_path / "vectors", texts(3))
    (file,) = (tmp_path / "vectors").glob("*.parquet")
    data = bytearray(file.read_bytes())
    place = bytes(data).index(np.float32(hash_vector("text", b"text 1", DIMENSION)[3]).tobytes())
    data[place] ^= 1
    file.write_bytes(data)
    embedded, _ = run(texts(3), embed_assets(emulator, cache=str(tmp_path / "vectors")))
    assert emulator.stats()["billed_items"] == 6
    for asset in embedded:
        expected = hash_vector("text", (asset.text or "").encode(), DIMENSION)
        np.testing.assert_allclose(asset.embedding, expected, atol=1e-5)


def test_cache_and_output_may_be_the_same_folder(serve, tmp_path):
    emulator = serve()
    written_folder(emulator, tmp_path / "vectors", texts(5), cache=str(tmp_path / "vectors"))
    assert scan_folder(str(tmp_path / "vectors")).assets == {"text": 5}
    run(texts(5), embed_assets(emulator, cache=str(tmp_path / "vectors")))
    assert emulator.stats()["billed_items"] == 5


def test_an_index_of_a_folder_knows_its_model_and_is_searched_by_text(serve, tmp_path, monkeypatch):
    """The catalog names the emulator that made the vectors, so a search starts one of its own."""
    with pipeline() as p:
        assets = p | beam.Create([Asset.of_text(word, word) for word in ("a red mug", "a blue shirt", "a green car")])
        embedded = (assets | epithre.EmbedAssets(base_url="emulator", dimension=64)).embedded
        _ = embedded | epithre.WriteVectors(tmp_path / "vectors")
    import_vectors(str(tmp_path / "catalog"), str(tmp_path / "vectors"))
    with open_catalog(tmp_path / "catalog") as catalog:
        made_by = catalog.manifest.made_by
        assert (made_by.model, made_by.dimension) == ("epithre-embed", 64)
        assert catalog.manifest.model_fingerprint == emulator_fingerprint(
            EmulatorSettings(model="attributes", dimension=64)
        )
        monkeypatch.delenv("EPITHRE_KEY", raising=False)

        async def search():
            async with Searcher.from_catalog(catalog) as searcher:
                return await searcher.search("a red mug", k=1)

        (hit,) = asyncio.run(search())
        assert (hit.asset_id, hit.score > 0.99) == ("a red mug", True)
    with pytest.raises(ConfigError, match=r"--model must be 'epithre-embed'.*got 'other'"):
        import_vectors(str(tmp_path / "catalog"), str(tmp_path / "vectors"), model="other")

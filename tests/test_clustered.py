"""The documented properties of the index benchmark's data."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest

_PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "clustered.py"


def load() -> ModuleType:
    """Load the benchmark by path, because benchmarks are programs and not a package."""
    spec = importlib.util.spec_from_file_location("clustered", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["clustered"] = module
    spec.loader.exec_module(module)
    return module


clustered = load()
SPECTRA = tuple(clustered.SPECTRA)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_vectors_are_float32_of_unit_norm(spectrum: str) -> None:
    data = clustered.Clustered(spectrum)
    for vectors in (data.rows("image", 0), data.rows("text", 3), data.queries("text", 700)):
        assert vectors.dtype == np.float32
        assert vectors.flags.c_contiguous
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert data.queries("text", 700).shape == (700, 4000)


def test_block_depends_only_on_seed_kind_and_number() -> None:
    one, other = clustered.Clustered("B", seed=5), clustered.Clustered("B", seed=5)
    for block in (2, 0, 1):  # in a different order than below
        one.rows("text", block)
    np.testing.assert_array_equal(one.rows("image", 1), other.rows("image", 1))
    blocks = [one.rows("image", 1), one.rows("text", 1), one.rows("image", 2), one.queries("image", 512)]
    blocks.append(clustered.Clustered("B", seed=6).rows("image", 1))
    for i, block in enumerate(blocks):
        for another in blocks[:i]:
            assert not np.isclose(block[0], another[0]).all()


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_kinds_have_a_modality_gap(spectrum: str) -> None:
    """On average, an image is closer to other images than to texts."""
    data = clustered.Clustered(spectrum)
    image, text = data.rows("image", 0).mean(axis=0), data.rows("text", 0).mean(axis=0)
    assert np.linalg.norm(image - text) > 0.6
    assert image @ image - image @ text > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_text_queries_for_images_are_harder_than_image_queries(spectrum: str) -> None:
    """Fewer of their true neighbours are in the cells nearest to the query."""
    found = clustered.measure_difficulty(clustered.Clustered(spectrum), 8192, 200, targets=("image",))
    shares = {difficulty.direction: difficulty.in_nearest_cells[0.08] for difficulty in found}
    assert shares["text->image"] < shares["image->image"] - 0.02


def test_folder_has_blocks_in_order_and_exact_answers(tmp_path: Path) -> None:
    command = [sys.executable, str(_PATH), str(tmp_path), "--rows", "1300", "--spectrum", "A", "--seed", "3"]
    subprocess.run(command, check=True)
    data = clustered.Clustered("A", 3)
    for kind in clustered.KINDS:
        rows = np.concatenate([data.rows(kind, block) for block in range(3)])[:1300]
        np.testing.assert_allclose(np.concatenate(list(clustered.read_blocks(tmp_path, kind))), rows, atol=1e-6)
        ids = pq.read_table(tmp_path / f"{kind}-00000.parquet").column("id").to_pylist()
        assert ids == [clustered.asset_id(kind, row) for row in range(1300)]
        assert [clustered.row_of(found) for found in ids] == list(range(1300))
        queries = data.queries("text", 20)
        scores, found = clustered.find_exactly(tmp_path, kind, queries, 10)
        every = queries @ rows.T
        np.testing.assert_array_equal(found, np.argsort(-every, axis=1)[:, :10])
        np.testing.assert_allclose(scores, -np.sort(-every, axis=1)[:, :10], atol=1e-5)

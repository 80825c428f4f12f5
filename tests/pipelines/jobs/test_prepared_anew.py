"""A new preparation sends only the images that it changes; the next run sends none."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from epithre_beam.configs import PrepareConfig, load_config
from epithre_beam.index import Store, read_latest
from epithre_beam.index.publish.publish import publish
from epithre_beam.index.versions.layout import PREPARE_RULES, manifest_name, version_folder
from epithre_beam.index.versions.manifest import FileEntry, Manifest, read_manifest
from epithre_beam.pipelines.jobs.build_index import build_index
from epithre_beam.pipelines.jobs.estimate import estimate
from epithre_beam.pipelines.jobs.run import run
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Limits
from epithre_beam.transforms.epithre.emulator.hash_model import content_digest, hash_vector
from epithre_beam.transforms.sources.prepare import prepare_image
from epithre_beam.transforms.sources.unpreparable import Unpreparable

from ...transforms.sources.drawn import rgb_profile, tiff
from ..conftest import KEY

pytestmark = pytest.mark.slow  # several runs a test

DIMENSION = 16
CHANGED = {"p3-upright.jpg", "p3-upright.png", "float.tif"}
"""Images that the older rules prepare differently."""
LOOKED_AT = {*CHANGED, "upright.jpg", "upright.png", "scan.tif"}
FIRST_SETTINGS = (
    "formats", "send_formats", "check", "max_file_bytes", "max_decode_pixels", "decode_timeout_s", "max_pixels",
    "max_image_bytes", "jpeg_quality", "max_text_chars",
)  # fmt: skip


def drawn(seed: int, side: int = 48) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((side, side // 2), Image.Resampling.BICUBIC)


def write_all(folder: Path) -> None:
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    p3 = rgb_profile("p3", 2.2)
    for number, (name, options) in enumerate(
        {
            "plain.jpg": {}, "plain.png": {}, "logo.gif": {}, "old.bmp": {}, "p3.jpg": {"icc_profile": p3},
            "upright.jpg": {"exif": exif}, "upright.png": {"exif": exif},
            "p3-upright.jpg": {"exif": exif, "icc_profile": p3}, "p3-upright.png": {"exif": exif, "icc_profile": p3},
        }.items()
    ):  # fmt: skip
        drawn(number).save(folder / name, **options)
    drawn(90, 400).save(folder / "large.jpg", quality=98)
    ramp = np.linspace(0, 1, 256).reshape(16, 16)
    (folder / "float.tif").write_bytes(tiff(16, 16, [32], 1, ramp.astype("<f4").tobytes(), tag339=("H", [3])))
    (folder / "scan.tif").write_bytes(tiff(16, 16, [16], 1, (ramp * 65_535).astype("<u2").tobytes()))
    (folder / "broken.png").write_bytes((folder / "plain.png").read_bytes()[:60])


class Nights:
    """A folder of images, and runs over it with different preparations."""

    def __init__(self, folder: Path, emulator: Emulator) -> None:
        self.folder, self.emulator = folder, emulator
        write_all(folder / "pictures")

    def job(self, prepare: Mapping[str, Any], catalog: str = "catalog") -> Path:
        path = self.folder / "job.yaml"
        embed = {"base_url": self.emulator.base_url, "dimension": DIMENSION, "unit_references": 8}
        sources = [{"kind": "image", "files": "pictures"}]
        gates = {"max_dead_share": 0.9, "max_shrinkage": 0.9}
        path.write_text(
            json.dumps(
                {"catalog": catalog, "sources": sources, "embed": embed, "gates": gates, "prepare": dict(prepare)}
            )
        )
        return path

    def run(self, prepare: Mapping[str, Any] = {}, catalog: str = "catalog") -> dict[str, Any]:
        self.emulator.reset()
        return run(load_config(self.job(prepare, catalog)))  # type: ignore[return-value]

    @property
    def billed(self) -> set[str]:
        return set(self.emulator.payments())

    def sent(self, prepare: Mapping[str, Any] = {}) -> dict[str, bytes]:
        """The prepared content of each image."""
        found = {}
        for path in sorted((self.folder / "pictures").iterdir()):
            try:
                found[path.name] = prepare_image(path.read_bytes(), PrepareConfig.model_validate(prepare)).content
            except Unpreparable:
                continue
        return found

    def rows(self, catalog: str = "catalog") -> dict[str, dict[str, Any]]:
        store = Store(str(self.folder / catalog))
        latest = read_latest(store)
        assert latest is not None
        files = sorted((self.folder / catalog / version_folder(latest.version) / "vectors").iterdir())
        return {row["asset_id"]: row for file in files for row in pq.read_table(file).to_pylist()}

    def assert_vectors_are_of(self, sent: Mapping[str, bytes]) -> None:
        rows = self.rows()
        assert rows.keys() == sent.keys()
        for name, content in sent.items():
            wanted = hash_vector("image", content, DIMENSION)
            np.testing.assert_allclose(rows[name]["embedding"], wanted, atol=1e-5, err_msg=name)

    def make_old(self) -> Manifest:
        """Rewrite the current version as one of the older rules: fewer row fields, and other vectors for images that
        the older rules prepare differently.
        """
        store = Store(str(self.folder / "catalog"))
        latest = read_latest(store)
        assert latest is not None
        manifest = read_manifest(store, latest.version)
        files = [self._make_old(store, manifest, entry) for entry in manifest.files]
        prepare = {name: manifest.config["prepare"][name] for name in FIRST_SETTINGS}
        config = {**manifest.config, "prepare": prepare}
        old = manifest.model_copy(update={"files": tuple(files), "config": config, "prepare_rules": 1})
        raw = json.loads(old.to_bytes())
        del raw["prepare_rules"]
        store.write(manifest_name(old.version), json.dumps(raw).encode())
        publish(store, read_manifest(store, old.version), latest.data)
        return old

    def _make_old(self, store: Store, manifest: Manifest, entry: FileEntry) -> FileEntry:
        if not entry.name.startswith("vectors/"):
            return entry
        name = f"{version_folder(manifest.version)}/{entry.name}"
        path = store.local_path(name)
        file = pq.ParquetFile(path)
        schema, table = file.schema_arrow, file.read()
        rows = table.to_pylist()
        for row in rows:
            steps = [step for step in (row["prepared"] or "").split(";") if step not in {"srgb", "levels", "rules 2"}]
            row["prepared"] = ";".join(step.replace(" q92", "") for step in steps) or None
            if row["asset_id"] in CHANGED:
                row["embedding"] = hash_vector("image", b"other pixels", DIMENSION).tolist()
        with store.open_write(name) as handle:
            pq.write_table(
                pa.Table.from_pylist(rows, schema=schema), pa.PythonFile(handle, "w"), write_page_checksum=True
            )
        return entry.model_copy(update={"size_bytes": path.stat().st_size, "sha256": handle.sha256})


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("EPITHRE_KEY", KEY)
    with Emulator(EmulatorSettings(dimension=DIMENSION, model="hash", api_keys=(KEY,))) as emulator:
        yield Nights(tmp_path, emulator)


def digests(contents: Mapping[str, bytes]) -> set[str]:
    return {content_digest("image", content).hex() for content in contents.values()}


def test_a_catalog_of_older_rules_sends_only_images_that_differ(nights: Nights) -> None:
    first = nights.run()
    assert (first["counts"]["embedded"], first["counts"]["dead"]) == (12, 1)
    nights.make_old()
    nights.emulator.reset()
    plan = estimate(load_config(nights.job({})))
    assert sorted(plan.prepared_anew.values()) == [1, len(LOOKED_AT)]
    assert plan.assets_to_read == len(LOOKED_AT) + 1
    assert plan.every_vector_is_new_because == []
    report = nights.run()
    sent = nights.sent()
    assert nights.billed == digests({name: sent[name] for name in CHANGED})
    assert report["counts"]["prepared_anew"] == len(LOOKED_AT)
    assert report["counts"]["unchanged"] == 12 - len(LOOKED_AT)
    nights.assert_vectors_are_of(sent)
    assert read_manifest(Store(str(nights.folder / "catalog")), report["version"]).prepare_rules == PREPARE_RULES
    assert nights.run().get("unchanged")
    assert not nights.emulator.log


def test_a_catalog_of_older_rules_without_differences_is_unchanged(nights: Nights) -> None:
    for name in (*LOOKED_AT, "broken.png"):
        (nights.folder / "pictures" / name).unlink()
    nights.run()
    nights.make_old()
    assert nights.run().get("unchanged")
    assert not nights.emulator.log


def test_a_rebuilt_index_keeps_the_rules_of_its_rows(nights: Nights) -> None:
    nights.run()
    nights.make_old()
    report = build_index(str(nights.folder / "catalog"), ["index.recall_queries=5"])
    assert read_manifest(Store(str(nights.folder / "catalog")), report["version"]).prepare_rules == 1
    nights.run()
    sent = nights.sent()
    assert nights.billed == digests({name: sent[name] for name in CHANGED})


@pytest.mark.parametrize(
    "settings",
    [
        {"jpeg_quality": 70, "check": "decode"},
        {"max_pixels": 500},
        {"send_formats": ["png"], "max_side": 100},
        {"as_is": "plain", "formats": ["jpeg", "png", "tiff"]},
        {"max_image_bytes": 3000},
    ],
    ids=str,
)
def test_a_new_setting_sends_only_images_that_differ(nights: Nights, settings: Any) -> None:
    """The result equals a catalog made with the setting; reverting the setting sends nothing."""
    nights.run()
    before = nights.sent()
    nights.assert_vectors_are_of(before)
    plan = estimate(load_config(nights.job(settings)))
    assert all(f"prepare.{name} was " in " ".join(plan.prepared_anew) for name in settings if name != "formats")
    nights.run(settings)
    sent = nights.sent(settings)
    assert nights.billed == digests(sent) - digests(before)
    nights.assert_vectors_are_of(sent)
    assert nights.run(settings).get("unchanged")
    assert not nights.emulator.log
    nights.run()
    assert not nights.emulator.payments()
    nights.assert_vectors_are_of(before)


def test_a_setting_that_changes_no_image_sends_nothing(nights: Nights) -> None:
    nights.run()
    report = nights.run({"max_pixels": 15_000_000})
    assert not report.get("unchanged")
    assert not nights.emulator.log
    assert report["counts"]["unchanged"] == 12
    assert nights.run({"max_pixels": 15_000_000}).get("unchanged")


def test_images_too_large_for_the_api_are_not_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPITHRE_KEY", KEY)
    settings = EmulatorSettings(
        dimension=DIMENSION, model="hash", api_keys=(KEY,), limits=Limits(max_body_bytes=30_000)
    )
    with Emulator(settings) as emulator:
        nights = Nights(tmp_path, emulator)
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "JPEG", quality=95)
        (tmp_path / "pictures" / "noise.jpg").write_bytes(file.getvalue())
        nights.run()
        assert nights.rows()["noise.jpg"]["prepared"] == "downscaled 100x100;smaller;jpeg q92;rules 2"
        nights.run({"max_image_bytes": 2_000_000})
        assert not emulator.payments()
        nights.run({"max_image_bytes": 2_000_000, "jpeg_quality": 80})
        assert nights.rows()["noise.jpg"]["prepared"] == "downscaled 100x100;smaller;jpeg q80;rules 2"

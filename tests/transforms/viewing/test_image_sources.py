"""Images of a catalog are read from the job's sources only, have the embedded content, and carry no metadata."""

import dataclasses
import hashlib
import io
import os
import shutil
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from epithre_beam.index.local.trust import Trust, asks, asks_for_images
from epithre_beam.index.search.hits import Asset
from epithre_beam.transforms.sources.prepare import Unpreparable
from epithre_beam.transforms.viewing.image_sources import ImageSources


def as_jpeg(side=400, seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side * 5 // 4, side)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def asset_of(uri, data, **changes):
    asset = Asset(
        asset_id="p",
        kind="image",
        row=0,
        uri=str(uri),
        text=None,
        content_sha256=hashlib.sha256(data).hexdigest(),
        media_type="image/jpeg",
        size_bytes=len(data),
        width=None,
        height=None,
    )
    return dataclasses.replace(asset, **changes)


def own_sources(config):
    """Return the image sources of a catalog that this user has allowed."""
    Trust().add(asks(config))
    return ImageSources(config, "catalog")


def sources_of(pattern, **prepare):
    return own_sources({"sources": [{"kind": "image", "files": str(pattern)}], "prepare": prepare})


def opened(data):
    return Image.open(io.BytesIO(data), formats=("JPEG",))


@pytest.mark.parametrize("pattern", ["pictures", "pictures/**/*.jpg", "pictures/a.jpg"])
def test_thumbnail_is_upright_and_has_requested_size(tmp_path, pattern):
    (tmp_path / "pictures").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "where I live"
    for side in (1000, 100):
        data = as_jpeg(side, exif=exif)
        (tmp_path / "pictures" / "a.jpg").write_bytes(data)
        asset = asset_of(tmp_path / "pictures" / "a.jpg", data)
        small = sources_of(tmp_path / pattern).thumbnail(asset, 320)
        width, height = opened(small).size
        assert width < height
        assert width * height <= 320 * 320
        assert width * height > 0.9 * min(320 * 320, side * side * 5 / 4)
        assert b"where I live" not in small
        assert not opened(small).getexif()


def test_thumbnail_of_small_image_has_no_exif(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    data = as_jpeg(60, exif=exif)
    (tmp_path / "a.jpg").write_bytes(data)
    small = sources_of(tmp_path).thumbnail(asset_of(tmp_path / "a.jpg", data), 320)
    assert b"where I live" in data
    assert b"where I live" not in small


def test_files_outside_the_sources_are_never_read(tmp_path):
    data = as_jpeg()
    inside, outside = tmp_path / "inside", tmp_path / "inside-not"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.jpg").write_bytes(data)
    (inside / "link.jpg").symlink_to(outside / "a.jpg")
    os.mkfifo(inside / "pipe.jpg")
    sources = sources_of(inside)
    assert opened(sources.thumbnail(asset_of(inside / "a.jpg", data), 320))
    started = time.monotonic()
    for uri in (
        outside / "a.jpg",
        inside / ".." / "inside-not" / "a.jpg",
        inside / "link.jpg",
        inside / "pipe.jpg",
        inside,
        f"file://{outside}/a.jpg",
        "http://127.0.0.1:9/a.jpg",
        f"zip://a.jpg::{inside}/a.zip",
        f"{inside}/a.jpg#row=0",
        "",
        "\x00",
    ):
        with pytest.raises(Unpreparable):
            sources.thumbnail(asset_of(uri, data), 320)
    with pytest.raises(Unpreparable, match="changed"):
        sources.thumbnail(asset_of(inside / "a.jpg", b"other"), 320)
    assert time.monotonic() - started < 30
    imported = ImageSources({"catalog": "c"}, "c")
    assert not imported
    with pytest.raises(Unpreparable):
        imported.thumbnail(asset_of(inside / "a.jpg", data), 320)


def test_image_in_table_column_is_read_from_its_row(tmp_path):
    images = [as_jpeg(200, seed) for seed in range(3)]
    pq.write_table(pa.table({"sku": ["a", "b", "c"], "jpeg": pa.array(images, pa.binary())}), tmp_path / "t.parquet")
    shutil.copy(tmp_path / "t.parquet", tmp_path / "other.parquet")
    source = {"kind": "image", "table": str(tmp_path / "t.parquet"), "id": "sku", "bytes": "jpeg"}
    sources = own_sources({"sources": [source]})
    asset = asset_of(f"{tmp_path}/t.parquet#row=1&column=jpeg", images[1])
    assert opened(sources.thumbnail(asset, 160)).size[0] < 250
    with pytest.raises(Unpreparable, match="changed"):
        sources.thumbnail(asset_of(f"{tmp_path}/t.parquet#row=2&column=jpeg", images[1]), 160)
    for uri in (
        f"{tmp_path}/t.parquet#row=9&column=jpeg",
        f"{tmp_path}/t.parquet#row=x",
        f"{tmp_path}/no.parquet#row=1",
    ):
        with pytest.raises(Unpreparable):
            sources.thumbnail(asset_of(uri, images[1]), 160)


def test_limits_of_the_job_apply(tmp_path):
    data = as_jpeg(900)
    (tmp_path / "a.jpg").write_bytes(data)
    asset = asset_of(tmp_path / "a.jpg", data)
    for caps in ({"max_decode_pixels": 1000}, {"max_file_bytes": 100}, {"formats": ["png"]}):
        with pytest.raises(Unpreparable):
            sources_of(tmp_path, **caps).thumbnail(asset, 320)


def test_uris_of_table_are_read_only_within_allowed_folders(tmp_path):
    data = as_jpeg()
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(data)
    table = {"kind": "image", "table": str(tmp_path / "in" / "t.csv"), "id": "i", "uri": "u"}
    for more, allowed in (({}, "in"), ({"within": [str(tmp_path / "out")]}, "out")):
        sources = own_sources({"sources": [{**table, **more}]})
        for folder in ("in", "out"):
            asset = asset_of(tmp_path / folder / "a.jpg", data)
            if folder == allowed:
                assert sources.read(asset) == data
            else:
                with pytest.raises(Unpreparable):
                    sources.read(asset)


def test_sources_that_the_user_has_not_allowed_are_not_read(tmp_path, caplog):
    data = as_jpeg()
    (tmp_path / "a.jpg").write_bytes(data)
    theirs = ImageSources({"sources": [{"kind": "image", "files": str(tmp_path)}, "no source", None]}, "catalog")
    assert not theirs
    with pytest.raises(Unpreparable, match="its URI is not within"):
        theirs.read(asset_of(tmp_path / "a.jpg", data))
    assert f'read pictures in "{tmp_path}"' in " ".join(caplog.messages)
    assert "epithre-beam trust catalog" in " ".join(caplog.messages)


def test_storage_options_in_manifest_are_ignored(tmp_path):
    """They could send requests signed with this user's credentials to another server."""
    source = {"kind": "image", "files": "s3://bucket/pictures", "storage_options": {"endpoint_url": "http://theirs"}}
    sources = own_sources({"sources": [source]})
    assert [one.storage_options for one in sources._sources] == [{}]


def test_untrusted_catalog_cannot_raise_image_limits(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (100_001, 1)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    asset = asset_of(tmp_path / "a.png", buffer.getvalue())
    source = {"kind": "image", "files": str(tmp_path / "*.png")}
    elsewhere = {"base_url": "https://elsewhere.example/v1"}  # not allowed by the user
    config = {"sources": [source], "prepare": {"max_side": 1_000_000}, "embed": elsewhere}
    Trust().add(asks_for_images(source))
    with pytest.raises(Unpreparable, match=r"prepare\.max_side allows 100000"):
        ImageSources(config, "catalog").thumbnail(asset, 320)
    assert opened(own_sources(config).thumbnail(asset, 320)).size == (65_500, 1)

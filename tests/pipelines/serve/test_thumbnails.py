"""A thumbnail is made once, from the asset's own bytes."""

from ...transforms.viewing.test_image_sources import as_jpeg, opened
from .conftest import fault


def test_a_thumbnail_is_made_once_and_then_not_modified(served):
    path, asked = "/api/thumbnails/image", {"id": "p003.jpg"}
    answer = served.client.get(path, params=asked)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert opened(answer.content).size == (48, 36)  # never larger than the image
    again = served.client.get(path, params=asked, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert served.client.get(path, params=asked).content == answer.content
    assert served.client.get(path, params={**asked, "size": 640}).headers["etag"] != answer.headers["etag"]
    assert 'epithre_beam_thumbnails_total{result="kept"}' in served.client.get("/metrics").text


def test_a_changed_or_deleted_image_is_not_shown(served, hashed):
    path = hashed.folder / "pictures" / "p007.jpg"
    kept = path.read_bytes()
    try:
        path.write_bytes(as_jpeg())
        assert fault(served.client.get("/api/thumbnails/image", params={"id": "p007.jpg"}), 404)
        path.unlink()
        sentence = fault(served.client.get("/api/thumbnails/image", params={"id": "p007.jpg"}), 404)
        assert str(hashed.folder) not in sentence
    finally:
        path.write_bytes(kept)
    assert served.client.get("/api/thumbnails/image", params={"id": "p007.jpg"}).status_code == 200

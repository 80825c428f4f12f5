"""`look` on real catalogs: sheets and maps are self-contained, show the assets and escape all text."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from epithre_beam.index import open_catalog
from epithre_beam.pipelines.jobs.look import make_map
from epithre_beam.transforms.viewing.catalog_map import align_kinds, draw_assets, project
from epithre_beam.transforms.viewing.sheet import Cell, SheetRow, draw_sheet
from epithre_beam.transforms.viewing.small_images import data_urls, shrink, small_images

from ...index.conftest import clustered_vectors, make
from ..browser import PHONE, keep_screenshot, opened
from ..conftest import Place, sentences, write_images

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
HOSTILE_ID = '"><b onmouseover=alert(3)>id</b>'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """24 images and 20 texts with metadata, some of them with scripts."""
    found = Place(tmp_path_factory.mktemp("look"))
    write_images(found.folder / "pictures", 24)
    lines = [f"t{i:03d},text number {i},{'en' if i % 3 else 'id'},{i}.5,2026-01-{i + 1:02d}" for i in range(20)]
    quoted = [f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in (HOSTILE_ID, HOSTILE, HOSTILE)]
    lines += [f"{','.join(quoted)},,"]
    (found.folder / "texts.csv").write_text("\n".join(["id,text,lang,price,day", *lines]) + "\n", "utf-8")
    types = {"lang": "string", "price": "double", "day": "date"}
    text = {"kind": "text", "table": "texts.csv", "id": "id", "text": "text", "metadata": types}
    found.write_job(sources=[{"kind": "image", "files": "pictures/**/*.jpg"}, text])
    assert found.cli("run", "job.yaml").returncode == 0
    return found


@pytest.fixture(scope="module")
def map_page(place):
    path = place.folder / "map.html"
    said = make_map(str(place.catalog), path, points=5000, is_aligned=True, seed=0)
    assert "45 of 45 assets, 24 with a thumbnail" in said
    return path


def card_of(page, sought):
    """The card of the first asset that the search box finds."""
    page.fill("#find", sought)
    page.press("#find", "Enter")
    page.locator("#card").wait_for()
    return page.locator("#card")


@pytest.mark.slow
def test_the_map_shows_image_text_and_metadata_of_each_asset(map_page):
    with opened(map_page) as page:
        page.locator("canvas[data-drawn='45']").wait_for()
        image = card_of(page, "p003.jpg")
        assert "p003.jpg image" in image.inner_text()
        assert image.locator("img").first.evaluate("image => image.complete && image.naturalWidth") > 20
        text = card_of(page, "text number 7")
        assert text.locator("b").inner_text() == "t007"
        assert text.locator("dl").inner_text().split() == ["day", "2026-01-08", "lang", "en", "price", "7.5"]
        assert page.locator("#found").inner_text() == "1 found"
        page.fill("#find", "text number 1")
        assert page.locator("#found").inner_text() == "11 found"
        keep_screenshot(page, "map")


def test_a_mark_shows_its_asset_on_hover_and_click(map_page):
    with opened(map_page) as page:
        card_of(page, "text number 7")  # now in the middle
        page.fill("#find", "")
        page.locator("#map").press("Escape")
        page.locator("#card").wait_for(state="hidden")
        box = page.locator("#map").bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        page.locator("#card").wait_for()
        assert page.locator("#card b").inner_text() == "t007"
        page.mouse.move(middle[0] - 300, box["y"] + 5)
        page.locator("#card").wait_for(state="hidden")
        page.mouse.click(*middle)
        page.mouse.move(middle[0] - 300, box["y"] + 5)
        assert page.locator("#card b").inner_text() == "t007"


def test_the_map_works_by_keyboard_alone(map_page):
    with opened(map_page) as page:
        page.locator("canvas[data-drawn='45']").wait_for()
        for _ in range(3):
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "map"
        seen = set()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
            page.keyboard.press(key)
            page.locator("#card").wait_for()
            seen.add(page.locator("#card").get_attribute("data-at"))
        assert len(seen) >= 3
        for key in ("+", "+", "+", "+", "+", "+"):
            page.keyboard.press(key)
        page.wait_for_function("Number(document.querySelector('canvas').dataset.drawn) < 45")
        page.keyboard.press("0")
        page.locator("canvas[data-drawn='45']").wait_for()
        page.keyboard.press("Escape")
        page.locator("#card").wait_for(state="hidden")


def test_colours_show_kinds_or_metadata_and_the_legend_filters(map_page):
    with opened(map_page, color_scheme="dark") as page:
        legend = page.locator("aside")
        assert legend.locator("#kinds").inner_text().split() == ["image", "24", "text", "21"]
        page.locator("#kinds button").last.click()
        page.locator("canvas[data-drawn='24']").wait_for()
        page.select_option("#colour", label="lang")
        page.locator("canvas[data-drawn='45']").wait_for()
        assert legend.locator("#legend .label").all_inner_texts()[:2] == ["en", "id"]
        page.locator("#legend button").first.click()
        page.locator("canvas[data-drawn='32']").wait_for()
        page.select_option("#colour", label="price")
        assert legend.locator(".ends").inner_text().split() == ["0.5", "19.5"]
        page.select_option("#colour", label="day")
        assert legend.locator(".ends").inner_text().split() == ["2026-01-01", "2026-01-20"]
        keep_screenshot(page, "map-dark")


def test_scripts_in_texts_are_shown_as_text(map_page):
    with opened(map_page) as page:  # an alert, an error or a request fails the test
        card = card_of(page, "alert(1)")
        assert card.locator("p").inner_text() == HOSTILE
        assert card.locator("b").inner_text() == HOSTILE_ID
        page.select_option("#colour", label="lang")
        assert HOSTILE in page.locator("#legend").inner_text()
    written = map_page.read_text("utf-8")
    assert written.count("<script") == 2
    assert "alert(1)</script>" not in written


def test_a_phone_shows_the_legend_below_the_map(map_page):
    with opened(map_page, **PHONE) as page:
        page.locator("canvas[data-drawn='45']").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        field, legend = page.locator("#field").bounding_box(), page.locator("aside").bounding_box()
        assert field["height"] > 300
        assert legend["y"] >= field["y"] + field["height"] - 1
        card_of(page, "text number 7")
        page.locator("#map").press("Escape")
        page.touchscreen.tap(field["x"] + field["width"] / 2, field["y"] + field["height"] / 2)
        page.locator("#card").wait_for()
        keep_screenshot(page, "map-phone")


def test_the_map_depends_only_on_catalog_and_seed(place, map_page, tmp_path):
    for seed, is_same in ((0, True), (1, False)):
        path = tmp_path / f"{seed}.html"
        make_map(str(place.catalog), path, points=5000, is_aligned=True, seed=seed)
        assert (path.read_bytes() == map_page.read_bytes()) is is_same


@pytest.fixture(scope="module")
def two_islands(tmp_path_factory):
    """60 images and 60 texts of the same clusters, with a gap between the kinds."""
    vectors = {kind: clustered_vectors(60, 32, seed, gap=1.5) for seed, kind in enumerate(("image", "text"))}
    return make(tmp_path_factory.mktemp("islands") / "c", vectors)


def test_the_sample_depends_on_ids_and_has_all_kinds(two_islands):
    with open_catalog(two_islands.folder) as catalog:
        some, more = draw_assets(catalog, 40), draw_assets(catalog, 80)
        chosen = [list(zip(one.kinds, one.assets.column("asset_id").to_pylist(), strict=True)) for one in (some, more)]
        assert len(set(chosen[0])) == 40
        assert chosen[1][:40] == chosen[0]
        assert {"image", "text"} == set(some.kinds)
        for i in (0, 17, 39):
            kind, name = chosen[0][i]
            expected = catalog.vectors(kind, [catalog.find_asset(kind, name)])[0]
            np.testing.assert_array_equal(some.vectors[i], expected)
        assert draw_assets(catalog, 40, seed=1).assets != some.assets


def test_alignment_closes_the_gap_between_the_kinds(two_islands):
    with open_catalog(two_islands.folder) as catalog:
        drawn = draw_assets(catalog, 120)
    names = np.array(drawn.kinds)

    def nearest_of_other_kind(vectors):
        places = project(vectors)
        assert places.min() >= 0
        assert places.max() == 1
        distances = np.linalg.norm(places[:, None] - places[None], axis=2) + 9 * np.eye(len(places))
        return (names[np.argsort(distances, axis=1)[:, :5]] != names[:, None]).mean()

    assert nearest_of_other_kind(drawn.vectors) < 0.1
    assert nearest_of_other_kind(align_kinds(drawn.vectors, drawn.kinds)) > 0.25


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("is_copied", [False, True])
def test_few_assets_and_copies_are_projected(rows, is_copied):
    vectors = clustered_vectors(1 if is_copied else rows, 16, 3)
    places = project(align_kinds(np.repeat(vectors, rows, axis=0)[:rows], ["text"] * rows))
    assert places.shape == (rows, 2)
    assert np.isfinite(places).all()


def test_a_map_without_alignment_says_so(two_islands, tmp_path):
    for is_aligned, words in ((True, "The kinds were aligned."), (False, "The kinds were not aligned.")):
        make_map(str(two_islands.folder), tmp_path / "m.html", points=20, is_aligned=is_aligned, seed=0)
        assert words in (tmp_path / "m.html").read_text("utf-8")
    assert "20 assets" in (tmp_path / "m.html").read_text("utf-8")


def test_a_map_of_imported_vectors_shows_no_local_files(two_islands, tmp_path):
    make_map(str(two_islands.folder), tmp_path / "m.html", points=120, is_aligned=True, seed=0)
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "m.html").read_text("utf-8"), re.DOTALL)[1])
    assert set(data["image"]) == {None}


def test_thumbnails_keep_their_order_up_to_the_page_limit(tmp_path):
    paths = write_images(tmp_path, 150)
    reads = [None if number % 7 == 3 else path.read_bytes for number, path in enumerate(paths)]
    reads[5] = (tmp_path / "none.jpg").read_bytes
    reads[6] = lambda: b"no picture"
    found = list(small_images(reads, 20))
    assert [image is None for image in found] == [read is None or n in {5, 6} for n, read in enumerate(reads)]
    alone = shrink(paths[100].read_bytes(), 20)
    assert max(alone.size) == 20
    assert found[100].tobytes() == alone.tobytes()
    urls = data_urls(reads, 20, 10**9)
    assert [url is None for url in urls] == [image is None for image in found]
    full = data_urls(reads, 20, sum(len(url or "") for url in urls[:70]))
    assert full == urls[:70] + [None] * 80


def test_a_sheet_is_written_as_image_or_page(place):
    queries = ["--text", "text number 3", "--image", "pictures/p005.jpg", "-k", "6"]
    for name in ("sheet.png", "sheet.html"):
        done = place.cli("look", "catalog", "--sheet", name, *queries)
        assert done.returncode == 0, done.stderr
        assert "2 queries" in done.stdout
    with Image.open(place.folder / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert 1200 < sheet.width < 1500
        assert 500 < sheet.height < 800
        # The image is its own best hit, next to the query.
        with Image.open(place.folder / "pictures" / "p005.jpg") as image:
            colour = np.asarray(image, float).mean(axis=(0, 1))
        first = np.asarray(sheet.convert("RGB").crop((24, sheet.height - 240, 224, sheet.height - 100)), float)
        assert np.abs(first[40:100, 80:120].mean(axis=(0, 1)) - colour).max() < 60
    with opened(place.folder / "sheet.html") as page:
        assert page.locator("section").count() == 2
        keep_screenshot(page, "sheet")


def test_a_sheet_draws_unusual_rows():
    long = "a very long sentence without an end " * 40
    cells = [
        Cell(asset_id="x" * 300, score=0.5, text=long),
        Cell(asset_id="\u202egpj.exe", score=-1.0, text="kata " + "ы" * 200),
        Cell(asset_id="gone.jpg", score=0.1),
        *(Cell(asset_id=f"{i}", score=0.0, image=Image.new("RGB", (i * 40 + 1, 90), "red")) for i in range(7)),
    ]
    sheet = draw_sheet([SheetRow(words=long, cells=cells), SheetRow(words="", cells=[])], "caption " * 100)
    assert sheet.width < 1800
    assert len(np.unique(np.asarray(sheet.convert("L")))) > 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param([], "look: there is nothing to write", id="nothing"),
        pytest.param(["--sheet", "a.png"], "--sheet and queries require each other", id="sheet alone"),
        pytest.param(["--text", "x", "--map", "m.html"], "--sheet and queries require each other", id="query alone"),
        pytest.param(["--text", "x", "--sheet", "a.gif"], ".png or .html", id="suffix"),
        pytest.param(["--text", "x", "--sheet", "a.png", "-k", "0"], "-k must be from 1 to 100", id="k"),
        pytest.param(["--text", "x", "--sheet", "a.png", "--kind", "video"], "--kind must be", id="kind"),
        pytest.param(["--text", "x", "--sheet", "a.png", "--merge", "sum"], "--merge must be", id="merge"),
        pytest.param(["--image", "none.jpg", "--sheet", "a.png"], "none.jpg", id="no picture"),
        pytest.param(["--map", "m.html", "--points", "0"], "--points must be from 1 to 20000", id="points"),
        pytest.param(["--map", "m.html", "--seed", "-1"], "--seed must be", id="seed"),
        pytest.param(["--map", "nowhere/m.html", "--points", "9"], "nowhere/m.html", id="no folder"),
        pytest.param(["--map", "/proc/m.html"], "--map '/proc/m.html' cannot be written (No such", id="unwritable"),
    ],
)
def test_invalid_options_are_reported(place, arguments, words, capfd, monkeypatch):
    import sys

    from epithre_beam.pipelines.commands import cli

    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(sys, "argv", ["epithre-beam", "look", "catalog", *arguments])
    monkeypatch.setattr(cli, "_reporter", cli.Reporter())
    assert cli.main() == 2
    (sentence,) = sentences(capfd.readouterr().err)
    assert words in sentence

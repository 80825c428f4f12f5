"""The page searches by text, image, asset and filter, with mouse, keyboard and touch."""

import json

import pytest

from .page_scene import keep, until, visiting

pytestmark = pytest.mark.slow  # a browser

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.mark.parametrize(
    ("sentence", "word", "count", "caption"),
    [
        ("an orange cat", "orange", 8, "cat"),
        ("sepeda merah", "red-bicycle", 4, "sepeda merah"),
        ("bintang kuning di malam hari", "yellow-star-at-night", 2, "bintang kuning"),
    ],
)
def test_a_text_finds_images_and_texts_in_both_languages(visit, sentence, word, count, caption):
    page = visit.open()
    visit.search(sentence)
    assert all(word in found for found in visit.ids()[:count])
    assert len(visit.ids()) == len(visit.ids("text")) == 12
    texts = page.locator(".hit[data-kind=text] .caption").all_inner_texts()
    assert any(caption in text for text in texts[:count])
    assert "12 images and 12 texts" in page.inner_text("#status")
    scores = [float(score) for score in page.locator(".hit[data-kind=image] .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)


def test_kinds_are_side_by_side_and_one_can_be_chosen(visit):
    page = visit.open()
    visit.search("a blue fish")
    images, texts = (page.locator(f".column[data-kind={kind}]").bounding_box() for kind in ("image", "text"))
    assert images["x"] + images["width"] <= texts["x"]
    assert abs(images["y"] - texts["y"]) < 2
    page.click("#kinds >> text=Texts")
    until(page, "document.querySelectorAll('.hit[data-kind=image]').length === 0")
    assert len(visit.ids("text")) == 12
    page.click("#kinds >> text=Both")
    visit.wait_for_hits("ids.length === 12")


def test_one_list_has_both_kinds_in_the_chosen_order_and_length(visit):
    page = visit.open()
    visit.search("an orange cat")
    page.select_option("#k", "24")
    visit.wait_for_hits("ids.length === 24")
    page.select_option("#merge", "quota")
    page.wait_for_selector("#results[data-columns=mixed] .hit")
    kinds = page.eval_on_selector_all(".hit", "hits => hits.map(hit => hit.dataset.kind)")
    assert kinds in (["image", "text"] * 12, ["text", "image"] * 12)
    page.select_option("#merge", "standardised")
    until(page, "location.hash.includes('standardised')")
    until(page, "!document.querySelector('#results[aria-busy]')")
    assert len(visit.ids()) + len(visit.ids("text")) == 24


def image_of(scene, word):
    return next(iter(sorted((scene / "pictures").glob(f"{word}*.jpg"))))


def test_a_chosen_image_finds_itself_and_similar_ones(visit, scene):
    page = visit.open()
    image = image_of(scene, "red-bicycle")
    with page.expect_response("**/api/search/image"):
        page.set_input_files("#file", image)
    visit.wait_for_hits(f"ids[0] === {image.stem!r}")
    assert all("red-bicycle" in found for found in visit.ids()[:4])
    assert page.inner_text("#chip-words") == image.name
    until(page, "document.getElementById('chip-image').naturalWidth > 0")


GIVE = """([bytes, type, name]) => {
    const carried = new DataTransfer();
    carried.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
    const event = type === "paste"
        ? new ClipboardEvent("paste", {clipboardData: carried, bubbles: true, cancelable: true})
        : new DragEvent(type, {dataTransfer: carried, bubbles: true, cancelable: true});
    document.body.dispatchEvent(event);
}"""


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_dropped_or_pasted_image_is_searched(visit, scene, way):
    page = visit.open()
    image = image_of(scene, "blue-fish")
    given = [list(image.read_bytes()), way, image.name]
    if way == "drop":
        page.evaluate(GIVE, [given[0], "dragover", image.name])
        assert page.locator("#drop").is_visible()
    page.evaluate(GIVE, given)
    visit.wait_for_hits(f"ids[0] === {image.stem!r}")
    assert page.locator("#drop").is_hidden()


def test_a_file_that_is_not_an_image_is_refused(browser, server, tmp_path):
    text = tmp_path / "notes.jpg"
    text.write_text("no picture at all")
    with visiting(browser, server, may_complain=True) as visit:  # the browser logs each 4xx
        page = visit.open()
        page.set_input_files("#file", text)
        page.wait_for_selector("#problem:not([hidden])")
        assert page.inner_text("#problem-words").endswith(".")
        assert visit.ids() == []
        page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words"})
        until(page, "document.getElementById('problem-words').textContent.includes('notes.txt')")


def test_more_like_this_omits_the_asset_and_crosses_kinds(visit):
    page = visit.open()
    visit.search("a red bicycle")
    first = visit.ids()[0]
    page.click(".hit[data-kind=image] .like >> nth=0")
    visit.wait_for_hits(f"ids[0] !== {first!r}")
    assert first not in visit.ids()
    assert all("red-bicycle" in found for found in visit.ids()[:3])
    assert page.inner_text("#chip-words") == f"like {first}"
    page.click(".hit[data-kind=text] .like >> nth=0")
    until(page, "document.getElementById('chip-words').textContent.includes('caption')")
    visit.wait_for_hits("ids.slice(0, 4).every(id => id.includes('red-bicycle'))")


def test_fields_and_json_filter_together_and_are_in_the_url(visit):
    page = visit.open()
    visit.search("an orange cat")
    page.click("#filters-button")
    page.get_by_label("lang", exact=True).fill("id")
    page.get_by_label("price to").fill("40")
    page.get_by_label("on_sale").select_option("no")
    page.get_by_label("added from").fill("2026-02-01")
    page.get_by_label("Condition as JSON").fill('{"price": {"$ne": 7.5}}')
    page.click("#filters >> text=Apply")
    until(page, "location.hash.includes('where')")
    visit.wait_for_hits("ids.length < 12")
    numbers = sorted(int(found[-2:]) for found in visit.ids())
    assert numbers == [number for number in range(56) if number % 2 and 5 + number * 2.5 <= 40 and number != 1]
    assert page.inner_text("#filters-count") == "5"
    where = page.evaluate("JSON.parse(new URLSearchParams(location.hash.slice(1)).get('where'))")
    assert where["$and"][0] == {
        "lang": "id", "price": {"$lte": 40}, "added": {"$gte": "2026-02-01"}, "on_sale": False,
    }  # fmt: skip
    page.reload()
    visit.wait_for_hits("ids.length < 12")
    page.click("#filters-button")
    assert page.get_by_label("price to").input_value() == "40"
    assert page.get_by_label("added from").input_value() == "2026-02-01"
    assert json.loads(page.get_by_label("Condition as JSON").input_value()) == {"price": {"$ne": 7.5}}
    page.click("#filters-clear")
    visit.wait_for_hits("ids.length === 12")
    assert page.get_by_label("lang", exact=True).input_value() == ""


def test_an_invalid_condition_is_reported_and_input_is_kept(browser, server):
    with visiting(browser, server, may_complain=True) as visit:
        page = visit.open()
        visit.search("an orange cat")
        page.click("#filters-button")
        page.get_by_label("Condition as JSON").fill("{price: 3}")
        page.click("#filters >> text=Apply")
        assert "JSON object" in page.inner_text("#filters-problem")
        assert len(visit.ids()) == 12
        page.get_by_label("Condition as JSON").fill('{"prize": 3}')
        page.click("#filters >> text=Apply")
        page.wait_for_selector("#problem:not([hidden])")
        assert "prize" in page.inner_text("#problem-words")
        page.get_by_label("Condition as JSON").fill('{"price": {"$lt": -1}}')
        page.click("#filters >> text=Apply")
        until(page, "document.getElementById('status').textContent.includes('Nothing matches')")
        assert page.locator("#problem").is_hidden()


def test_the_url_and_the_back_button_restore_a_search(visit):
    page = visit.open("#q=sepeda+merah&kinds=image&k=6")
    visit.wait_for_hits("ids.length === 6")
    assert page.input_value("#query") == "sepeda merah"
    assert visit.ids("text") == []
    visit.search("a blue fish")
    visit.wait_for_hits("ids[0].startsWith('blue-')")
    page.click(".like >> nth=0")
    page.wait_for_selector("#chip:not([hidden])")
    page.go_back()
    page.wait_for_selector("#chip", state="hidden")
    assert page.input_value("#query") == "a blue fish"
    page.go_back()
    visit.wait_for_hits("ids[0].includes('red-bicycle')")
    page.go_forward()
    visit.wait_for_hits("ids[0].startsWith('blue-')")


def test_the_back_button_restores_an_image_search(visit, scene):
    page = visit.open()
    image = image_of(scene, "red-bicycle")
    page.set_input_files("#file", image)
    visit.wait_for_hits(f"ids[0] === {image.stem!r}")
    visit.search("a blue fish")
    page.go_back()
    visit.wait_for_hits(f"ids[0] === {image.stem!r}")
    page.reload()
    page.wait_for_selector("#problem:not([hidden])")
    assert "Drop it again" in page.inner_text("#problem-words")


def test_the_page_works_by_keyboard_alone(visit):
    page = visit.open()
    press = page.keyboard.press
    press("/")
    page.keyboard.type("an orange cat")
    press("Enter")
    visit.wait_for_hits("ids.length === 12")
    here = "document.activeElement.closest('.hit')?.dataset.id"
    press("ArrowDown")
    assert page.evaluate(here) == visit.ids()[0]
    press("ArrowRight")
    assert page.evaluate(here) == visit.ids()[1]
    press("ArrowDown")
    assert page.evaluate(here) not in visit.ids()[:2]
    press("ArrowUp")
    assert page.evaluate(here) == visit.ids()[1]
    outline = page.evaluate("getComputedStyle(document.activeElement.closest('.hit')).outlineStyle")
    assert outline != "none"
    press("Enter")
    assert page.locator("#detail").is_visible()
    assert page.inner_text("#detail-title") == visit.ids()[1]
    until(page, "document.getElementById('detail-facts').textContent.includes('256 × 256')")
    press("ArrowRight")
    assert page.inner_text("#detail-title") == visit.ids()[2]
    press("Escape")
    assert page.locator("#detail").is_hidden()
    assert page.evaluate(here) == visit.ids()[2]
    liked = visit.ids()[2]
    press("m")
    page.wait_for_selector("#chip:not([hidden])")
    visit.wait_for_hits(f"!ids.includes({liked!r})")
    until(page, f"{here} !== undefined")
    press("Escape")
    assert page.locator("#chip").is_hidden()
    assert page.evaluate("document.activeElement.id") == "query"
    assert visit.ids() == []
    press("Tab")
    press("?")
    assert page.locator("#keys").is_visible()
    press("Escape")
    assert page.locator("#keys").is_hidden()


def test_results_are_announced_to_screen_readers(visit):
    page = visit.open()
    assert page.get_attribute("#status", "aria-live") == "polite"
    visit.search("an orange cat")
    assert page.inner_text("#status").startswith("12 images and 12 texts")
    tree = page.locator("#results").aria_snapshot()
    assert 'heading "Images 12"' in tree
    assert 'button "More like this"' in tree


@pytest.mark.parametrize("stage", ["home", "results", "filters", "detail"])
def test_a_phone_needs_no_horizontal_scrolling(browser, server, stage):
    with visiting(browser, server, **PHONE) as visit:
        page = visit.open("" if stage == "home" else "#q=an+orange+cat")
        if stage != "home":
            visit.wait_for_hits("ids.length === 12")
        if stage == "filters":
            page.click("#filters-button")
        if stage == "detail":
            page.tap(".open >> nth=0")
            page.wait_for_selector("#detail[open]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.set_viewport_size({"width": 320, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        assert page.evaluate(
            "[...document.querySelectorAll('.foot')].every(foot => foot.scrollWidth <= foot.clientWidth)"
        )
        small = page.evaluate(
            "[...document.querySelectorAll('button, select, input')].filter(element => {"
            " const box = element.getBoundingClientRect();"
            " return box.width && (box.width < 24 || box.height < 24) }).map(element => element.outerHTML)"
        )
        assert small == []


def test_a_phone_shows_one_kind_at_a_time(browser, server):
    with visiting(browser, server, **PHONE) as visit:
        page = visit.open("#q=an+orange+cat")
        visit.wait_for_hits("ids.length === 12")
        assert page.locator(".column[data-kind=image]").is_visible()
        assert page.locator(".column[data-kind=text]").is_hidden()
        page.tap("#tabs >> text=Texts")
        assert page.locator(".column[data-kind=image]").is_hidden()
        assert page.locator(".column[data-kind=text]").is_visible()
        page.tap("#tabs >> text=Images")
        visit.wait_for_images()
        keep(page, "serve-phone")


def paper(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_dark_mode_follows_the_system_and_keeps_the_choice(browser, server):
    with visiting(browser, server, color_scheme="dark") as visit:
        page = visit.open("#q=an+orange+cat")
        visit.wait_for_hits("ids.length === 12")
        dark = paper(page)
        visit.wait_for_images()
        keep(page, "serve-dark")
        page.click("#theme-button")
        light = paper(page)
        assert light != dark
        page.reload()
        assert paper(page) == light
        assert page.get_attribute("#theme-button", "aria-pressed") == "false"


def test_a_light_screenshot_is_kept(visit):
    page = visit.open()
    keep(page, "serve-home")
    visit.search("an orange cat")
    visit.wait_for_images()
    assert page.locator(".frame.loaded").count() >= 4
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    keep(page, "serve-light")
    page.click(".open >> nth=2")
    until(page, "document.querySelector('#detail-image img')?.naturalWidth > 0")
    keep(page, "serve-detail")
    page.click("#detail-close")
    page.click("#filters-button")
    keep(page, "serve-filters")

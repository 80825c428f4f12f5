"""The page with hostile data, errors, a lost server, changing catalogs; accessibility."""

import re
import time
import urllib.request

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .page_scene import (
    HOSTILE_ID,
    HOSTILE_LANG,
    HOSTILE_TEXT,
    cli,
    copy_catalog,
    keep,
    served,
    until,
    visiting,
)

pytestmark = pytest.mark.slow  # a browser

TOKEN = "a-token-for-tests"


def test_hostile_ids_texts_and_metadata_are_shown_as_text(visit):
    page = visit.open()
    visit.search("a purple crescent at sunset")
    assert HOSTILE_ID in visit.ids()[:1]
    assert HOSTILE_ID in visit.ids("text")
    card = page.locator(".hit[data-kind=text]").filter(has_text="onerror")
    assert card.locator(".caption").inner_text() == HOSTILE_TEXT
    assert HOSTILE_LANG in card.locator(".pairs").inner_text()
    card.locator(".open").click()
    page.wait_for_selector("#detail[open]")
    assert page.inner_text("#detail-title") == HOSTILE_TEXT
    page.keyboard.press("Escape")
    page.click(".hit[data-kind=image] .like >> nth=0")
    until(page, "document.getElementById('chip-words').textContent.includes('<script>')")
    assert page.locator("#chip-words > *, .caption > *, .id > *, #detail-title > *").count() == 0
    visit.open("#q=%3Cimg+src%3Dx+onerror%3Dalert(5)%3E&k=6&where=%7B%22lang%22%3A%22%3Cb%3E%22%7D")
    until(page, "document.getElementById('status').textContent.includes('Nothing matches')")
    assert page.input_value("#query") == "<img src=x onerror=alert(5)>"


def test_the_page_is_allowed_nothing_but_its_own_origin(server):
    with urllib.request.urlopen(server.url) as answer:
        policy = answer.headers["Content-Security-Policy"]
        body = answer.read().decode()
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script>|style=|\son\w+=|https?://", body)


def test_the_token_is_requested_once_and_sent_with_thumbnails(browser, scene):
    with (
        served(scene / "catalog", "--rate", 0, "--token-env", "PAGE_TOKEN", PAGE_TOKEN=TOKEN) as server,
        visiting(browser, server, may_complain=True) as visit,
    ):
        page = visit.page
        page.goto(server.url + "#q=an+orange+cat")
        page.wait_for_selector("#token[open]")
        page.fill("#token-value", "wrong")
        page.keyboard.press("Enter")
        until(page, "document.getElementById('token-title').textContent.includes('wrong')")
        page.fill("#token-value", "schlüssel ✓")  # invalid in a header
        page.keyboard.press("Enter")
        assert page.locator("#token").is_visible()
        page.fill("#token-value", f" {TOKEN} ")
        page.keyboard.press("Enter")
        visit.wait_for_hits("ids.length === 12")
        until(page, "document.querySelectorAll('.frame.loaded').length >= 3")
        assert all(
            source.startswith("blob:")
            for source in page.eval_on_selector_all(".frame.loaded img", "all => all.map(i => i.src)")
        )
        assert TOKEN not in page.url
        assert not any(TOKEN in url for url in visit.requests)
        page.reload()
        visit.wait_for_hits("ids.length === 12")
        assert page.locator("#token").is_hidden()


def test_too_many_searches_show_how_long_to_wait(browser, scene):
    with served(scene / "catalog", "--rate", 2) as server, visiting(browser, server, may_complain=True) as visit:
        page = visit.open()
        for sentence in ("a cat", "a fish", "a star", "a car", "a house"):
            visit.search(sentence)
            if page.locator("#problem").is_visible():
                break
        assert re.fullmatch(r"Try again in \d+ s", page.inner_text("#problem-again"))
        assert page.locator("#problem-again").is_disabled()
        assert page.inner_text("#problem-words").endswith(".")


def test_an_image_that_is_too_large_is_not_sent(visit):
    page = visit.open()
    page.set_input_files("#file", {"name": "big.jpg", "mimeType": "image/jpeg", "buffer": b"\xff" * 3_000_000})
    page.wait_for_selector("#problem:not([hidden])")
    assert "3.0 MB" in page.inner_text("#problem-words")
    assert not page.is_visible("#problem-again")  # a retry has the same result
    assert not any("api/search" in url for url in visit.requests)


def test_a_lost_server_is_reported_and_retried_with_one_key(browser, scene):
    with served(scene / "catalog", "--rate", 0) as server, visiting(browser, server, may_complain=True) as visit:
        page = visit.open()
        server.stop()
        page.fill("#query", "an orange cat")
        page.press("#query", "Enter")
        page.wait_for_selector("#problem:not([hidden])")
        assert "does not answer" in page.inner_text("#problem-words")
        server.start()
        page.click("#problem-again")
        visit.wait_for_hits("ids.length === 12")
        assert page.locator("#problem").is_hidden()
        page.route("**/api/catalog", lambda route: route.abort())  # the connection fails while the page loads
        page.goto("about:blank")
        page.goto(server.url)
        page.wait_for_selector("#problem:not([hidden])")
        page.unroute("**/api/catalog")
        page.fill("#query", "a blue fish")
        page.press("#query", "Enter")
        visit.wait_for_hits("ids[0].startsWith('blue-')")


def test_a_new_version_is_noticed_by_search_and_polling(browser, scene, tmp_path):
    catalog = copy_catalog(scene / "catalog", tmp_path)
    with (
        served(catalog, "--rate", 0, "--follow-every", 0.2) as server,
        visiting(browser, server) as visit,
    ):
        page = visit.page
        page.clock.install()
        visit.open()
        newer = page.inner_text("#version")
        assert "56 images and 57 texts" in page.inner_text("#title")
        visit.search("an orange cat")
        assert page.locator("#notice").is_hidden()
        cli(tmp_path, "versions", "rollback", catalog)
        wait_for_other_version(server, newer)
        visit.search("a blue fish")
        page.wait_for_selector("#notice:not([hidden])")
        older = page.inner_text("#notice-words").split("version ")[1].rstrip(".")
        assert older != newer
        until(page, f"document.getElementById('version').textContent === {older!r}")
        assert "48 texts" in page.text_content("#title")
        page.click("#notice-close")
        cli(tmp_path, "versions", "publish", catalog, newer)
        wait_for_other_version(server, older)
        page.clock.fast_forward(25_000)
        page.wait_for_selector("#notice:not([hidden])")
        assert newer in page.inner_text("#notice-words")
        with page.expect_response("**/api/search"):
            page.click("#notice-again")
        assert page.locator("#notice").is_hidden()


def wait_for_other_version(server, version):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{server.url}api/catalog") as answer:
            if version.encode() not in answer.read():
                return
        time.sleep(0.02)
    raise AssertionError(f"version {version} stayed the current one")


def test_a_catalog_without_embedding_is_searched_by_ids(browser, tmp_path):
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((30, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = pa.table({
        "id": [f"old-{i:02d}" for i in range(30)],
        "kind": ["image"] * 15 + ["text"] * 15,
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 64),
    })  # fmt: skip
    (tmp_path / "old").mkdir()
    pq.write_table(table, tmp_path / "old" / "vectors.parquet")
    cli(tmp_path, "index", "catalog", "--from", "old", "--quiet")
    with served(tmp_path / "catalog") as server, visiting(browser, server) as visit:
        page = visit.open()
        assert page.locator("#choose").is_hidden()
        assert "the id of an asset" in page.inner_text("#hint")
        page.fill("#query", "old-03")
        page.press("#query", "Enter")
        visit.wait_for_hits("ids.length === 12")
        assert "old-03" not in visit.ids()
        assert page.locator(".absent").count() == 12
        page.click(".like >> nth=1")
        until(page, "!document.getElementById('chip-words').textContent.includes('old-03')")


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgba = (colour, under) => {
        canvas.clearRect(0, 0, 1, 1);
        if (under) { canvas.fillStyle = `rgb(${under.join()})`; canvas.fillRect(0, 0, 1, 1); }
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const ground = (element) => {
        const own = rgba(getComputedStyle(element).backgroundColor);
        if (own[3] === 255) return own.slice(0, 3);
        const under = element.parentElement ? ground(element.parentElement) : [255, 255, 255];
        return rgba(getComputedStyle(element).backgroundColor, under).slice(0, 3);
    };
    const luminance = (colour) => {
        const [r, g, b] = colour.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const results = [];
    for (const element of document.querySelectorAll("body *")) {
        const says = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        const isField = element.matches("input:not([type=file]), select, textarea");
        if (!(says || isField) || !element.checkVisibility({opacityProperty: true}) || !element.offsetWidth) continue;
        if (element.closest("svg, option, :disabled")) continue;
        const under = ground(element);
        const lights = [luminance(rgba(getComputedStyle(element).color, under).slice(0, 3)), luminance(under)];
        const ratio = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
        results.push([ratio, `${element.tagName}.${element.className} ${element.textContent.slice(0, 40)}`]);
    }
    return results;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_a_contrast_of_at_least_4_5(browser, server, scheme):
    with visiting(browser, server, may_complain=True, color_scheme=scheme, reduced_motion="reduce") as visit:
        page = visit.open()
        seen = page.evaluate(CONTRAST)
        visit.search("an orange cat")
        page.click("#filters-button")
        page.fill("#condition", "nonsense")
        page.click("#filters >> text=Apply")
        seen += page.evaluate(CONTRAST)
        page.fill("#condition", '{"nonsense": 1}')
        page.click("#filters >> text=Apply")
        page.wait_for_selector("#problem:not([hidden])")
        keep(page, f"serve-problem-{scheme}")
        seen += page.evaluate(CONTRAST)
        page.click("#filters-clear")
        visit.wait_for_hits("ids.length === 12")
        page.click(".open >> nth=0")
        page.wait_for_selector("#detail[open]")
        seen += page.evaluate(CONTRAST)
        assert len(seen) > 100
        assert [what for ratio, what in seen if ratio < 4.5] == []


def test_every_control_has_a_name_and_every_image_alt_text(visit):
    page = visit.open()
    visit.search("an orange cat")
    page.click("#filters-button")
    nameless = r"^\s*- (button|textbox|combobox|link|searchbox|checkbox|dialog|group|spinbutton|img)( \[[^]]*\])*:?$"
    for is_in_full in (False, True):
        if is_in_full:
            page.click(".open >> nth=0")
            page.wait_for_selector("#detail[open]")
        tree = page.locator("body").aria_snapshot()
        assert [line for line in tree.splitlines() if re.match(nameless, line)] == []
        assert page.locator("img:not([alt])").count() == 0
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("h1").count() == 1
    duplicate = page.evaluate(
        "(ids => ids.length - new Set(ids).size)([...document.querySelectorAll('[id]')].map(e => e.id))"
    )
    assert duplicate == 0

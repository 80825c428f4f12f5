"""The page below a proxy's path prefix, and integers that a double cannot hold."""

import json
from dataclasses import dataclass

import pytest

from ...conftest import Place
from ..proxy import proxied
from .page_scene import served, until, visiting

pytestmark = pytest.mark.slow  # a browser

WIDE = (9007199254740993, 9007199254740992, -9223372036854775808, 9223372036854775807, 12)


@dataclass
class Below:
    """A server at the URL of the page."""

    url: str


@pytest.mark.parametrize("options", [("--root-path", "/tools/search"), ()], ids=["told", "not told"])
def test_the_page_works_below_a_path_prefix(browser, scene, options):
    with (
        served(scene / "catalog", "--rate", 0, *options) as server,
        proxied(server.port, "/tools/search") as url,
        visiting(browser, Below(url)) as visit,
    ):
        page = visit.open()
        visit.search("an orange cat")
        visit.wait_for_hits("ids.length === 12")
        until(page, "document.querySelectorAll('.frame.loaded').length >= 3")
        assert all("/tools/search/" in asked for asked in visit.requests)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("wide"))
    rows = "\n".join(f"t{i},text number {i},{number}" for i, number in enumerate(WIDE))
    (place.folder / "texts.csv").write_text(f"id,text,code\n{rows}\n", "utf-8")
    source = {"kind": "text", "table": "texts.csv", "id": "id", "text": "text", "metadata": {"code": "int"}}
    place.write_job(sources=[source])
    done = place.cli("run", "job.yaml", "--quiet", key=None)
    assert done.returncode == 0, done.stderr
    return place


def test_large_integers_keep_all_their_digits(browser, wide):
    with served(wide.catalog, "--rate", 0) as server, visiting(browser, server) as visit:
        page = visit.open()
        visit.search("text number 0")
        shown = page.eval_on_selector_all(
            ".hit",
            "hits => Object.fromEntries(hits.map(hit => [hit.dataset.id, hit.querySelector('.pair').textContent]))",
        )
        assert shown == {f"t{i}": f"code {number}" for i, number in enumerate(WIDE)}
        page.click(".open >> nth=0")
        assert any(str(number) in page.inner_text("#detail-facts") for number in WIDE)
        page.click("#detail-close")
        page.click("#filters-button")
        for number, found in ((WIDE[0], "t0"), (WIDE[1], "t1"), (WIDE[3], "t3"), (WIDE[2], "t2")):
            page.fill("#filter-0-least", str(number))
            page.fill("#filter-0-greatest", str(number))
            page.click("#filters button[type=submit]")
            until(
                page,
                f"document.querySelectorAll('.hit').length === 1 && !!document.querySelector('.hit[data-id={found}]')",
            )
            assert str(number) in page.evaluate("decodeURIComponent(location.hash)")
        page.reload()  # the URL has them too
        until(page, "document.querySelectorAll('.hit').length === 1 && !!document.querySelector('.hit[data-id=t2]')")
        assert page.input_value("#filter-0-least") == str(WIDE[2])
        page.click("#filters-button")
        page.click("#filters-clear")
        page.fill("#condition", json.dumps({"code": {"$in": [WIDE[0], 12]}}))
        page.click("#filters button[type=submit]")
        until(page, "document.querySelectorAll('.hit').length === 2")
        assert str(WIDE[0]) in page.input_value("#condition")

"""The report is complete for programs, and safe and readable for people."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import orjson
import pytest

from epithre_beam.transforms.reports.pages import visible
from epithre_beam.transforms.reports.report import render_report

ORDER = [
    "Published",
    "Changes since the previous version",
    "Requests",
    "Dead letters",
    "Vectors and search",
    "Files and time",
    "Config",
]
BIDI = "\u202e\u2066\u200f\x1b\x00"
HOSTILE = ("<script>alert(1)</script>", "\"><img src=x onerror='alert(2)'>", "{{ 7 * 7 }}", f"a{BIDI}gpj.exe", "$x_1$")


class Page(HTMLParser):
    """Elements, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag in {"h1", "h2"}:
            self.headings.append("")

    def handle_data(self, data):
        self.text += data
        if self.headings and not self.headings[-1]:
            self.headings[-1] = data.strip(" :\n")


def svgs(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


@pytest.fixture(scope="module")
def page(draw_report) -> str:
    return render_report(*draw_report(letters=tuple({"asset_id": f"a{i}", "reason": "empty_file"} for i in range(9))))


def test_page_has_no_external_references(page):
    read = Page(page)
    assert not {"script", "link", "iframe", "object", "img", "base", "form", "foreignobject"} & set(read.tags)
    pointing = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "style"}
    for tag, key, value in read.attributes:
        assert not key.startswith("on"), (tag, key)
        if key in pointing:
            assert "//" not in value, (tag, key, value)
            assert not key.endswith("href") or value.startswith("#"), value
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", page))
    assert "http" not in page


def test_page_is_small_and_its_sections_are_in_order(page):
    assert Page(page).headings == ORDER
    assert len(page.encode()) < 200_000


def test_plots_are_well_formed_described_and_have_unique_ids(page):
    drawings = svgs(page)
    assert len(drawings) == 11
    ids = [value for _, key, value in Page(page).attributes if key == "id"]
    assert len(ids) == len(set(ids))
    for svg in drawings:
        assert svg.get("role") == "img"
        title, description = svg.find("title"), svg.find("desc")
        assert title.text
        assert any(character.isdigit() for character in description.text)
        assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    pointed_at = re.findall(r"url\(#(.*?)\)", page) + re.findall(r'href="#(.*?)"', page)
    assert pointed_at
    assert set(pointed_at) <= set(ids)


def test_plots_use_only_colours_of_the_page(page):
    for svg in svgs(page):
        for element in svg.iter():
            for colour in re.findall(r"(?:fill|stroke|color): *([^;]+)", element.get("style", "")):
                assert re.fullmatch(r"none|currentColor|var\(--\w+\)", colour.strip()), colour
            assert not {"fill", "stroke"} & set(element.attrib)


def test_each_plot_has_a_caption_of_one_sentence(page):
    captions = re.findall(r"<figcaption><b>(.*?)</b> (.*?)</figcaption>", page)
    assert len(captions) == 11
    assert all(sentence.endswith(".") and sentence.count(". ") == 0 for _, sentence in captions)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_asset_names_cannot_change_the_page(draw_report, hostile):
    letters = (
        {"asset_id": hostile, "reason": "not_a_picture"},
        {"uri": f"s3://b/{hostile}", "reason": "not_a_picture"},
        {"detail": hostile, "reason": "refused", "kind": "text"},
    )
    text = render_report(*draw_report(letters=letters))
    read, plain = Page(text), Page(render_report(*draw_report(letters=({"asset_id": "a"},) * 3)))
    assert set(read.tags) == {*plain.tags, "div"}
    assert not [key for _, key, _ in read.attributes if key.startswith("on")]
    assert read.text.count(visible(hostile)) == 3
    assert not set(BIDI) & set(text)


def test_right_to_left_names_cannot_reorder_other_text(draw_report):
    name = "صورة קטן हिन्दी 👩\u200d🎨"
    text = render_report(*draw_report(letters=({"asset_id": name},)))
    assert f"<bdi>{name}</bdi>" in text


def test_long_names_are_shortened(draw_report):
    text = render_report(*draw_report(letters=({"asset_id": "x" * 10_000, "detail": "é" * 10_000},)))
    assert "x" * 301 not in text
    assert "x" * 300 + "…" in text


def test_gate_messages_and_config_are_escaped(draw_report):
    text = render_report(*draw_report(gate_failures=("<b>too many</b>",), config={"catalog": "<i>c</i>", "index": {}}))
    assert "&lt;b&gt;too many" in text
    assert "&lt;i&gt;c" in text
    assert Page(text).headings[0] == "Held back by a gate"


def test_unknown_count_is_shown_by_its_name(draw_report):
    report, manifest = draw_report()
    report["counts"]["brought_back"] = 4321
    text = render_report(report, manifest)
    assert "brought back" in text
    assert text.count("4,321") >= 2  # in the drawing and in the table


@pytest.mark.parametrize(
    ("limits", "reason"), [({"requests": 600.0}, "embedding took less than 60 s"), ({}, "no limit of requests")]
)
def test_page_says_why_the_share_of_the_limit_is_unknown(draw_report, limits, reason):
    report, manifest = draw_report()
    report["api"] |= {"utilisation": None, "limits": limits}
    assert f"<tr><th>share of the limit used</th><td>– ({reason})</td></tr>" in render_report(report, manifest)


def test_page_of_a_run_without_requests_and_index(draw_report):
    report, manifest = draw_report(lanes=[], indexes=(), files=(), timings_s={"embed": 0.0, "total": 1.0})
    text = render_report(report, manifest)
    for sentence in ("No requests were sent.", "None. Every asset has a vector.", "No index was built."):
        assert sentence in text
    assert {"throughput", "requests", "latency", "retries", "dead", "scores", "norms", "recall"}.isdisjoint(
        svg.get("aria-labelledby").split("-")[0] for svg in svgs(text)
    )


def test_page_of_a_version_of_an_older_release(draw_report):
    _, manifest = draw_report()
    old = [
        index.model_copy(
            update={
                "norms": None,
                "scores": {d: f.model_copy(update={"histogram": None}) for d, f in index.scores.items()},
            }
        )
        for index in manifest.indexes
    ]
    text = render_report(*draw_report(indexes=tuple(old)))
    assert "Recall by direction" in text
    assert "Similarity by direction" not in text


def test_failing_plot_does_not_fail_the_page(draw_report):
    report, manifest = draw_report()
    report["histograms"]["latency_s"] = {"edges": [0.1], "counts": [1, 2, 3]}
    text = render_report(report, manifest)
    assert "The plots are missing because they could not be drawn" in text
    assert not svgs(text)
    for figure in ("image-&gt;text", "image vectors", "0.9900", "index image", "assets listed"):
        assert figure in text


def test_page_reports_missing_matplotlib(draw_report, tmp_path):
    report, manifest = draw_report()
    (tmp_path / "report.json").write_bytes(orjson.dumps([report, manifest.model_dump()]))
    program = (
        "import sys, orjson; sys.modules['matplotlib'] = None\n"
        "from epithre_beam.index.versions.manifest import Manifest\n"
        "from epithre_beam.transforms.reports.report import render_report\n"
        "report, manifest = orjson.loads(open('report.json', 'rb').read())\n"
        "print(render_report(report, Manifest(**manifest)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "matplotlib is not installed" in done.stdout
    assert "matplotlib is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_figures_of_a_run_add_up(draw_report, run_a_lane):
    lanes = [run_a_lane(1, 100), run_a_lane(2, 700, start=1_800_000_031.0), run_a_lane(3, 1)]
    report, _ = draw_report(lanes=lanes)
    counts, api = report["series"]["counts"], report["api"]
    assert {len(values) for values in counts.values()} <= set(range(1, 601))
    assert len({len(values) for values in counts.values()}) == 1
    assert sum(counts["requests"]) == api["requests"]
    assert sum(counts["items"]) == api["items_embedded"]
    assert sum(counts["answers_429"]) == api["answers_429"] > 0
    assert sum(counts["retries"]) == sum(api["retries"].values())
    assert sum(report["histograms"]["latency_s"]["counts"]) == 801
    for histogram in (
        report["histograms"]["latency_s"],
        *report["histograms"]["scores"].values(),
        *report["histograms"]["norm_deviation"].values(),
    ):
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1
        assert histogram["edges"] == sorted(histogram["edges"])
    assert set(report["histograms"]["scores"]) == set(report["recall"])
    assert {name: part["files"] for name, part in report["sizes"].items()} == {
        "image assets": 1,
        "image index": 1,
        "image vectors": 2,
        "text assets": 1,
        "text index": 1,
        "text vectors": 2,
    }
    assert sum(part["bytes"] for part in report["sizes"].values()) == sum(report["bytes"].values())
    assert orjson.loads(orjson.dumps(report)) == report


def test_lost_lane_is_omitted_from_the_series(draw_report, run_a_lane):
    lost = {name: value for name, value in run_a_lane(1, 10).items() if name != "series"}
    report, manifest = draw_report(lanes=[lost, run_a_lane(2, 10)])
    assert report["api"]["requests"] == 2 * sum(report["series"]["counts"]["requests"])
    assert "Throughput" in render_report(report, manifest)


def with_ties(manifest, ties):
    return [index.model_copy(update={"ties": dict.fromkeys(index.recall, ties)}) for index in manifest.indexes]


@pytest.mark.parametrize(
    ("ties", "sentence"),
    [
        pytest.param(0.297, "near tie: image->image 29.7 %, text->image 29.7 %", id="some"),
        pytest.param(0.0, "No answer is right only by a near tie.", id="none"),
    ],
)
def test_page_shows_the_share_of_near_ties(draw_report, ties, sentence):
    _, manifest = draw_report()
    report, manifest = draw_report(indexes=with_ties(manifest, ties))
    assert report["ties"] == dict.fromkeys(report["recall"], ties)
    assert sentence in Page(render_report(report, manifest)).text


def test_page_of_a_version_without_ties_omits_them(draw_report):
    report, manifest = draw_report()
    assert report["ties"] == {}
    assert (
        "tie"
        not in Page(render_report(report, manifest)).text.split("Vectors and search")[1].split("Files and time")[0]
    )

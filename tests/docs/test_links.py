"""Links between the pages lead somewhere."""

from pathlib import Path
from urllib.parse import unquote

import pytest

from .pages import ALL_PAGES, TOP, anchors_of, links_of, name_of


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_relative_links_lead_to_files_of_the_repository_and_to_headings(page: Path) -> None:
    broken = []
    for link in links_of(page):
        path, _, anchor = unquote(link).partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        is_there = target.exists() and target.is_relative_to(TOP)
        if not is_there or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def test_the_readme_leads_to_every_page_below_docs() -> None:
    linked = {(TOP / link.partition("#")[0]).resolve() for link in links_of(TOP / "README.md")}
    assert [page.name for page in sorted((TOP / "docs").glob("*.md")) if page not in linked] == []


def test_the_readme_is_short() -> None:
    assert len((TOP / "README.md").read_text("utf-8").splitlines()) <= 150

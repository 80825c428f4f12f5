"""The pages that users read, as their Markdown is parsed: fenced blocks, headings, links, prose.

markdown-it-py parses (rich brings it along). The plugins for such tests (pytest-markdown-docs, mktestdocs, sybil,
pytest-codeblocks) run Python blocks, each by itself; here shell, Python and YAML blocks of a page build on each other,
and a block that is not run must say why, which none of them checks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

TOP = Path(__file__).resolve().parents[2]
USER_PAGES = (TOP / "README.md", *sorted((TOP / "docs").glob("*.md")))
"""Those whose blocks run."""
ALL_PAGES = (*sorted(TOP.glob("*.md")), *sorted((TOP / "docs").rglob("*.md")))

_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block. `reason`: why it is not run, from the comment before it; `line` is its first, from 1."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(TOP).as_posix()


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))


def blocks_of(page: Path) -> list[Block]:
    found = []
    reason = None
    for token in _tokens(page):
        if token.type == "fence":
            assert token.map is not None
            found.append(
                Block(page=page, line=token.map[0] + 1, language=token.info, text=token.content, reason=reason)
            )
        said = _NOT_RUN.fullmatch(token.content) if token.type == "html_block" else None
        reason = " ".join(said[1].split()) if said else None
    return found


def _inline(page: Path) -> Iterator[Token]:
    for token in _tokens(page):
        if token.type == "inline":
            yield token


def links_of(page: Path) -> list[str]:
    """The targets of all links and images."""
    targets = []
    for token in _inline(page):
        for child in token.children or ():
            target = child.attrGet("href") if child.type == "link_open" else child.attrGet("src")
            if target:
                targets.append(str(target))
    return targets


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    anchors: set[str] = set()
    tokens = _tokens(page)
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            words = "".join(c.content for c in inline.children or () if c.type in {"text", "code_inline"})
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            number = 0
            while (anchor := f"{slug}-{number}" if number else slug) in anchors:
                number += 1
            anchors.add(anchor)
    return anchors


def prose_of(page: Path) -> Iterator[tuple[int, str]]:
    """Line and words of each paragraph, heading and cell, without code and the targets of links."""
    for token in _inline(page):
        assert token.map is not None
        words = "".join(
            c.content if c.type == "text" else " "
            for c in token.children or ()
            if not c.type.endswith(("_open", "_close"))
        )
        yield token.map[0] + 1, words

"""Words that the pages must not use, each with the one to use instead: one word for one thing, and the field's own."""

import re
from pathlib import Path

import pytest

from .pages import ALL_PAGES, name_of, prose_of

OLD_WORDS = {
    # what things are called
    r"in force": "current (version)",
    r"take[ns]? over|took over|taking over|carried|carry": "reuse, reused",
    r"held by (?:a|the|one) gate": "held back by a gate",
    r"condemn(?:s|ed)?": "being deleted",
    r"guards?": "gates",
    r"ledgers?|budgets?": "rate limiter",
    r"pictures?": "image",
    r"recipes?": "embedding config hash",
    r"greetings?": "probe",
    r"doubled": "duplicate",
    # everyday words with an odd use
    r"mend(ed|s|ing)?": "fix",
    r"tell(s|ing)?|told": "report, log, say",
    r"prove[ds]?|proving|proofs?": "verify",
    r"judge[ds]?|judging": "check, rate",
    r"reckon(ed|s|ing)?": "compute",
    r"(?:is|are|was|were|be) asked|asked of|asks? nobody": "request, send, query",
    r"of the moment": "transient",
    r"is none|are none|is no (?:text|number|image)": "invalid",
    r"must be such": "say what is wrong",
    r"whoever|somebody|nobody": "a user, a client, no one",
    r"goes? over (?:it|to|the|those|a)": "overrides, switches",
    # how the work was planned
    r"issue \d+": "a reason",
    r"(?:was|were) missed": "a target and its reason",
}
"""A regular expression, of whole words in any case, and what is said instead."""

NOT_YET: set[str] = set()
"""Pages that still have old words; a page that leaves this list does not come back."""


@pytest.mark.parametrize("page", [page for page in ALL_PAGES if name_of(page) not in NOT_YET], ids=name_of)
def test_a_page_uses_none_of_the_old_words(page: Path) -> None:
    found = [
        f"line {line}: {match[0]!r} → {instead}: …{words[max(0, match.start() - 30) : match.end() + 20]}…"
        for line, words in prose_of(page)
        for old, instead in OLD_WORDS.items()
        for match in re.finditer(rf"\b(?:{old})\b", words, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)

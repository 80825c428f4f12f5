import re
import time

import pytest

from epithre_beam.configs.words import of_asset_count, of_change, of_count, of_moment, of_pause, unwritable


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 dead letters"), (1, "1 dead letter"), (2, "2 dead letters"), (12_345, "12,345 dead letters")],
)
def test_counts_use_singular_only_for_one(count: int, words: str) -> None:
    assert of_count(count, "dead letter") == words


def test_counts_accept_irregular_plurals() -> None:
    assert [of_count(n, "query has", "queries have") for n in (1, 3)] == ["1 query has", "3 queries have"]


def test_changes_have_the_same_words_in_the_summary_and_in_the_report() -> None:
    assert [of_change(name) for name in ("new", "changed", "deleted", "unchanged")] == [
        *("added", "changed", "removed", "unchanged")
    ]
    assert [of_asset_count(name) for name in ("new", "changed", "deleted", "touched")] == [
        *("added", "changed", "removed", "written again, unchanged")
    ]


def test_a_moment_has_its_zone_and_a_date_unless_today() -> None:
    midnight = time.mktime((*time.localtime()[:3], 0, 0, 0, 0, 0, -1))
    zone = time.strftime("%Z", time.localtime(midnight + 12 * 3600))
    assert of_moment(midnight + 12 * 3600 + 17 * 60) in {f"12:17 {zone}", f"13:17 {zone}", f"11:17 {zone}"}
    assert of_moment(midnight + 3 * 86_400 + 12 * 3600)[:10] == time.strftime(
        "%Y-%m-%d", time.localtime(midnight + 3 * 86_400 + 12 * 3600)
    )
    assert of_moment(time.time() + 30 * 365 * 86_400).startswith(str(time.localtime().tm_year + 29)[:2])


def test_a_pause_message_has_end_length_and_reason() -> None:
    sentence = of_pause(time.time() + 40 * 86_400, 3600.0, "429: daily quota, try tomorrow")
    assert re.fullmatch(
        r"paused until \d{4}-\d\d-\d\d \d\d:\d\d \S+: the server asked for 3600 s \(429: daily quota, try tomorrow\)",
        sentence,
    )


def test_unwritable_places_have_one_wording() -> None:
    error = PermissionError(13, "Permission denied", "/c/x")
    assert unwritable("catalog", "/c", error, "Go on.") == (
        "catalog '/c' cannot be written (Permission denied: /c/x). Go on."
    )
    error = PermissionError(13, "Permission denied", "/c")
    assert unwritable("--html", "/c", error, "Go on.") == "--html '/c' cannot be written (Permission denied). Go on."
    assert unwritable("output", "b://c", OSError("gone"), "Go on.") == "output 'b://c' cannot be written (gone). Go on."

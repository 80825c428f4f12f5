"""A pattern matches the same files as in a shell."""

import fnmatch
import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from epithre_beam.configs.errors import ConfigError

from .listing import TREE, grow, ids


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", {"a.jpg", "b.JPG", "x1y.jpg"}),
        ("**/*.jpg", {"a.jpg", "b.JPG", "x1y.jpg", "sub/d.jpg", "sub/deep/e.jpg"}),
        ("**/*.JPG", {"a.jpg", "b.JPG", "x1y.jpg", "sub/d.jpg", "sub/deep/e.jpg"}),
        ("?.jpg", {"a.jpg", "b.JPG"}),
        ("[ab].jpg", {"a.jpg", "b.JPG"}),
        ("[!a].jpg", {"b.JPG"}),
        ("x[0-9]y.jpg", {"x1y.jpg"}),
        ("*.{jpg,png}", {"a.jpg", "b.JPG", "x1y.jpg", "c.png"}),
        ("{a,c}.*", {"a.jpg", "c.png"}),
        ("{a,sub/{d,deep/e}}.jpg", {"a.jpg", "sub/d.jpg", "sub/deep/e.jpg"}),
        ("sub*/*", {"sub/d.jpg", "sub2/f.webp"}),
        ("*/**/e.jpg", {"sub/deep/e.jpg"}),
        ("**", set(TREE)),
        ("**/*", set(TREE)),
        ("*1*", {"IMG_1.Jpeg", "x1y.jpg"}),
        ("img_1.jpeg", set()),
        ("*/a.jpg", set()),
        ("sub?d.jpg", set()),
        ("sub[!x]d.jpg", set()),
        ("sub*d.jpg", set()),
    ],
)
def test_a_glob_matches_these_files(tmp_path: Path, pattern: str, expected: set[str]) -> None:
    grow(tmp_path, *TREE)
    if not expected:
        with pytest.raises(ConfigError, match=r"matches the pattern|does not exist"):
            ids(tmp_path / pattern)
        return
    assert ids(tmp_path / pattern) == sorted(expected, key=lambda name: name.split("/"))


@pytest.mark.parametrize("pattern", ["sub/*.jpg", "sub/**/*.jpg"])
def test_the_id_is_the_path_below_the_fixed_part_of_the_pattern(tmp_path: Path, pattern: str) -> None:
    grow(tmp_path, *TREE)
    assert ids(tmp_path / pattern)[0] == "d.jpg"


@given(
    st.lists(st.text("ab.-", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("ab.-*?[]!", min_size=1, max_size=5), min_size=1, max_size=3),
)
@settings(max_examples=400, deadline=None)
def test_plain_wildcards_match_as_in_a_shell(names: list[str], patterns: list[str]) -> None:
    from epithre_beam.transforms.sources.globs import glob_regex

    path, pattern = "/".join(names), "/".join(patterns)
    if "**" in patterns or any("[" in p.replace("[", "", 1) for p in patterns):
        assume(False)  # `**` has another meaning here, and shells differ in nested brackets
    expected = len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))
    assert (re.fullmatch(glob_regex(pattern), path, re.DOTALL) is not None) == expected

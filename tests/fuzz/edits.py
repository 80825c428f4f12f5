"""Random edits of a valid JSON file, as by an attacker or by accident."""

import copy
from typing import Any

from hypothesis import strategies as st

NASTY = [
    *("../../../x", "/etc/passwd", "../../dev/zero", "..", ".", "", "a\\..\\b", "x\0y", "\x1b[31m", "a\nb", "x" * 5000),
    *("image", "text", "index/text-assets.arrow", "index/image-00000-of-00002.faiss", "0" * 64, "2026-01-01", "L2"),
    *(
        -1,
        0,
        1,
        2,
        39,
        41,
        2**31,
        2**63,
        10**30,
        1e30,
        -1e30,
        0.5,
        1e-300,
        float("nan"),
        float("inf"),
        True,
        False,
        None,
    ),
    *([], {}, [[]], {"a": {}}, [None] * 3, ["image", "text"]),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "set", "delete", "double", "copy", "add"]),
        st.lists(st.integers(0, 10**6), min_size=1, max_size=6),
        st.lists(st.integers(0, 10**6), min_size=1, max_size=6),
        st.sampled_from(NASTY) | JSON,
    ),
    min_size=1,
    max_size=4,
)


def edited(value: Any, edits: list[Any]) -> Any:
    """Return the value with some places set, deleted, duplicated, or replaced by a copy of another place."""
    whole = {"": copy.deepcopy(value)}
    for what, place, other, new in edits:
        parent, key = _walk(whole, place)
        if what == "set":
            parent[key] = copy.deepcopy(new)
        elif what == "delete" and parent is not whole:
            del parent[key]
        elif what == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif what == "copy":
            source, name = _walk(whole, other)
            parent[key] = copy.deepcopy(source[name])
        elif what == "add" and isinstance(parent[key], dict):
            parent[key][str(new)[:50]] = copy.deepcopy(new)
    return whole[""]


def _walk(whole: Any, place: list[int]) -> tuple[Any, Any]:
    """Find a place: return its list or object, and its position or key."""
    parent, key = whole, ""
    for step in place:
        inner = parent[key]
        if not isinstance(inner, (dict, list)) or not inner:
            break
        keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
        parent, key = inner, keys[step % len(keys)]
    return parent, key

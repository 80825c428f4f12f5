"""Glob patterns."""

import fnmatch
import re


def fixed_part(path: str) -> str:
    """Return the folders before the first one with a wildcard."""
    fixed: list[str] = []
    for part in path.split("/")[:-1]:
        if re.search(r"[*?\[{]", part):
            break
        fixed.append(part)
    return "/".join(fixed)


def glob_regex(pattern: str) -> str:
    """Translate a glob to a regular expression.

    `**/` matches any number of folders, `*` and `?` match within a name; `[…]` and `{a,b}` are supported. The part
    after the last dot ignores case.
    """
    alternatives = re.search(r"\{([^{}]*)\}", pattern)
    if alternatives:
        before, after = pattern[: alternatives.start()], pattern[alternatives.end() :]
        return "|".join(f"(?:{glob_regex(before + choice + after)})" for choice in alternatives.group(1).split(","))
    *folders, name = pattern.split("/")
    text = "".join("(?:.*/)?" if folder == "**" else f"{_name_regex(_pieces(folder))}/" for folder in folders)
    if name == "**":
        return f"{text}.*"
    pieces = _pieces(name)
    dot = max((i for i, piece in enumerate(pieces) if piece == "."), default=len(pieces))
    return f"{text}{_name_regex(pieces[:dot])}(?i:{_name_regex(pieces[dot:])})"


def _pieces(name: str) -> list[str]:
    return re.findall(r"\[!?\]?[^\]]*\]|\*+|.", name, re.DOTALL)


def _name_regex(pieces: list[str]) -> str:
    parts = []
    for piece in pieces:
        if piece.startswith("*"):
            parts.append("[^/]*")
        elif piece == "?":
            parts.append("[^/]")
        elif len(piece) > 1:
            parts.append("(?!/)" + re.sub(r"^\(\?s:(.*)\)\\[Zz]$", r"\1", fnmatch.translate(piece), flags=re.DOTALL))
        else:
            parts.append(re.escape(piece))
    return "".join(parts)

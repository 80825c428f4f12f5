"""Parses YAML into plain data, within size limits, with the position of each value."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

MAX_CHARS = 1_000_000
MAX_DEPTH = 100
MAX_VALUES = 20_000
"""Counted with every alias replaced by what it refers to."""
_MAX_NUMBER = 1000
"""Characters. Parsing a base-60 number such as `1:1:1` takes time quadratic in its length."""

_LINES_NAMED = 5
"""Lines of a duplicate key in a message, besides the last."""
_TOO_MANY = f"there are more than {MAX_VALUES} values, counting aliases (`*name`) as what they refer to"


class YamlBombError(ValueError):
    """The text is too long, too deep, or has too many values; the message says which."""


class DuplicateKeyError(yaml.MarkedYAMLError):
    """A mapping has a key more than once; `problem` says where."""


class Position(NamedTuple):
    """A position in a text; line and column count from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


@dataclass(frozen=True, kw_only=True)
class Document:
    """A parsed YAML text."""

    data: Any
    _node: yaml.Node | None = field(repr=False)

    def position(self, location: Sequence[int | str], *, is_key: bool = False) -> Position | None:
        """The position of the value at `location`; if there is no such value, that of the innermost section around it.

        Args:
            location: Keys and list indexes.
            is_key: Whether to return the position of the key. For mappings and lists it always is.

        Returns:
            None for an empty document.
        """
        node, mark = self._node, None if self._node is None else self._node.start_mark
        for part in location:
            found = _below(node, part)
            if found is None:
                break
            key, node = found
            mark = (node if key is None or (isinstance(node, yaml.ScalarNode) and not is_key) else key).start_mark
        return None if mark is None else Position(mark.line + 1, mark.column + 1)


def parse_yaml(text: str) -> Any:
    """The plain data of a YAML text.

    Raises:
        As `parse_document`.
    """
    return parse_document(text).data


def parse_document(text: str) -> Document:
    """Parses a YAML text.

    Raises:
        YamlBombError: The text exceeds a limit. Raised before it costs time or memory.
        DuplicateKeyError: A mapping has a key more than once.
        yaml.YAMLError: The text is not valid YAML.
        ValueError: A date or number is invalid.
    """
    if len(text) > MAX_CHARS:
        raise YamlBombError(f"the text has {len(text)} characters; at most {MAX_CHARS} are allowed")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(data=None, _node=None)
        _values(node, {}, set())
        return Document(data=loader.construct_document(node), _node=node)
    except (IndexError, KeyError, AttributeError, TypeError) as error:  # PyYAML's own, for `!!int ''` and the like
        raise ValueError("a value does not match its tag, such as `!!int`") from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which YAML would silently use the last, and texts that exceed the limits."""

    depth = 0
    values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.values += 1
        if self.depth > MAX_DEPTH:
            raise YamlBombError(f"the nesting is deeper than {MAX_DEPTH} levels")
        if self.values > MAX_VALUES:
            raise YamlBombError(_TOO_MANY)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, list[tuple[yaml.Node, yaml.Node]]] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *defaults`, which the base class resolves
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                seen.setdefault(key, []).append((key_node, value_node))
        for key, pairs in seen.items():
            if len(pairs) > 1:
                raise _duplicate(key, pairs)
        return super().construct_mapping(node, deep)


def _duplicate(key: str, pairs: Sequence[tuple[yaml.Node, yaml.Node]]) -> DuplicateKeyError:
    *lines, last = [str(key_node.start_mark.line + 1) for key_node, _ in pairs]
    times = "twice" if len(pairs) == 2 else f"{len(pairs):,} times"
    places = f"lines {', '.join(lines[:_LINES_NAMED])} and {last}"
    remedy = "Merge them into one" if all(isinstance(v, yaml.CollectionNode) for _, v in pairs) else "Keep one of them"
    return DuplicateKeyError(
        problem=f"`{key:.80}` occurs {times} ({places}). {remedy}", problem_mark=pairs[1][0].start_mark
    )


def _below(node: yaml.Node | None, part: int | str) -> tuple[yaml.Node | None, yaml.Node] | None:
    """The key and value at `part` of a mapping, or None and the entry of a list; None if there is none."""
    if isinstance(node, yaml.SequenceNode):
        return (None, node.value[int(part)]) if str(part).isdigit() and int(part) < len(node.value) else None
    if not isinstance(node, yaml.MappingNode):
        return None
    # From the end: merged keys (`<<`) come before the mapping's own keys, which override them.
    return next((pair for pair in reversed(node.value) if pair[0].value == str(part)), None)


def _values(node: Any, counted: dict[int, int], open_nodes: set[int]) -> int:
    """The number of values of a node, counting each alias as what it refers to. `counted` caches the results."""
    if (known := counted.get(id(node))) is not None:
        return known
    if id(node) in open_nodes:
        raise YamlBombError("an alias (`*name`) contains itself")
    if (
        isinstance(node, yaml.ScalarNode)
        and not node.tag.endswith((":str", ":binary"))
        and len(node.value) > _MAX_NUMBER
    ):
        raise YamlBombError(f"a number or time has {len(node.value)} characters; at most {_MAX_NUMBER} are allowed")
    open_nodes.add(id(node))
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
    parts = list(node.value) if isinstance(node, yaml.SequenceNode) else parts
    count = 1 + sum(_values(part, counted, open_nodes) for part in parts)
    open_nodes.discard(id(node))
    if count > MAX_VALUES:
        raise YamlBombError(_TOO_MANY)
    counted[id(node)] = count
    return count

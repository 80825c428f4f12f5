"""YAML from a file or a command line as plain data, within bounds, and where each value stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

MAX_CHARS = 1_000_000
MAX_DEPTH = 100
MAX_VALUES = 20_000
"""As written out: where an alias stands, all that it names stands again."""
_MAX_NUMBER = 1000
"""Characters. `1:1:1` is a number to the base of 60, whose reading takes the square of its length."""

_TOO_MANY = f"this must have at most {MAX_VALUES} values, with its aliases (`*name`) written out"


class YamlBombError(ValueError):
    """It is larger, deeper, or by its aliases larger than what anybody writes; the message says which."""


class Position(NamedTuple):
    """A place in a text; both numbers count from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


@dataclass(frozen=True, kw_only=True)
class Document:
    """What a YAML text holds."""

    data: Any
    _node: yaml.Node | None = field(repr=False)

    def position(self, location: Sequence[int | str], *, is_key: bool = False) -> Position | None:
        """Where the value at `location` stands; where it is not there, the innermost section around it.

        Args:
            location: Keys, and numbers of list entries from 0.
            is_key: Whether the key's place is wanted; it is for mappings and lists in any case.

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
    """Plain data; a key that stands twice in a mapping is refused.

    Raises:
        As `parse_document`.
    """
    return parse_document(text).data


def parse_document(text: str) -> Document:
    """Plain data, with its positions; a key that stands twice in a mapping is refused.

    Raises:
        YamlBombError: Before it takes time or memory.
        yaml.YAMLError: When it is no YAML.
        ValueError: When a date or number in it is none.
    """
    if len(text) > MAX_CHARS:
        raise YamlBombError(f"this must have at most {MAX_CHARS} characters, got {len(text)}")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(data=None, _node=None)
        _values(node, {}, set())
        return Document(data=loader.construct_document(node), _node=node)
    except (IndexError, KeyError, AttributeError, TypeError) as error:  # PyYAML's own, for `!!int ''` and the like
        raise ValueError("a value is not what its tag, such as `!!int`, says") from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """YAML takes the last of two equal keys in silence; a config must not."""

    depth = 0
    values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.values += 1
        if self.depth > MAX_DEPTH:
            raise YamlBombError(f"this must be at most {MAX_DEPTH} levels deep")
        if self.values > MAX_VALUES:
            raise YamlBombError(_TOO_MANY)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *defaults`, which the parent resolves
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def _below(node: yaml.Node | None, part: int | str) -> tuple[yaml.Node | None, yaml.Node] | None:
    """A key and its value, or no key and the entry of a list; None where there is no such thing."""
    if isinstance(node, yaml.SequenceNode):
        return (None, node.value[int(part)]) if str(part).isdigit() and int(part) < len(node.value) else None
    if not isinstance(node, yaml.MappingNode):
        return None
    # From the end: what a merge (`<<`) brings stands before a mapping's own keys, which go over it.
    return next((pair for pair in reversed(node.value) if pair[0].value == str(part)), None)


def _values(node: Any, counted: dict[int, int], open_nodes: set[int]) -> int:
    """How many values a node stands for with its aliases written out, each node being counted once."""
    if (known := counted.get(id(node))) is not None:
        return known
    if id(node) in open_nodes:
        raise YamlBombError("an alias (`*name`) must not contain itself")
    if (
        isinstance(node, yaml.ScalarNode)
        and not node.tag.endswith((":str", ":binary"))
        and len(node.value) > _MAX_NUMBER
    ):
        raise YamlBombError(f"a number or time must have at most {_MAX_NUMBER} characters, got {len(node.value)}")
    open_nodes.add(id(node))
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
    parts = list(node.value) if isinstance(node, yaml.SequenceNode) else parts
    count = 1 + sum(_values(part, counted, open_nodes) for part in parts)
    open_nodes.discard(id(node))
    if count > MAX_VALUES:
        raise YamlBombError(_TOO_MANY)
    counted[id(node)] = count
    return count

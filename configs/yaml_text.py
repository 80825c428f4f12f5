"""YAML from a file or a command line as plain data, within bounds."""

from typing import Any

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


def parse_yaml(text: str) -> Any:
    """Plain data; a key that stands twice in a mapping is refused.

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
            return None
        _values(node, {}, set())
        return loader.construct_document(node)
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

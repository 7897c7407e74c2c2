"""YAML from outside: aliases that expand to more values than a file of settings has are refused."""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 100_000
"""Nine lists of nine aliases each are a few hundred bytes, and a billion values in a message."""


class BoundedLoader(yaml.SafeLoader):
    """A loader that counts the values of a document before it makes them."""

    def compose_document(self) -> yaml.Node | None:
        """Return the nodes of a document.

        Raises:
            yaml.YAMLError: They are too many, an alias is part of itself, or they are nested too
                deeply.
        """
        try:
            node: yaml.Node | None = super().compose_document()
            if node is not None and _num_values(node, {}) > MOST_VALUES:
                raise yaml.YAMLError(f"has more than {MOST_VALUES:,} values with its aliases")
        except RecursionError:
            raise yaml.YAMLError("is nested too deeply") from None
        return node


def load_yaml(text: str) -> Any:
    """Return the value of a YAML document.

    Raises:
        yaml.YAMLError: It is not YAML, or too large with its aliases.
    """
    return yaml.load(text, Loader=BoundedLoader)  # noqa: S506 (a SafeLoader)


def _num_values(node: yaml.Node, counted: dict[int, int | None]) -> int:
    """Return the values of a node with its aliases expanded; an alias is counted once."""
    if id(node) in counted:
        known = counted[id(node)]
        if known is None:
            raise yaml.YAMLError("has an alias that is part of itself")
        return known
    counted[id(node)] = None
    inner = []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    found = counted[id(node)] = 1 + sum(_num_values(part, counted) for part in inner)
    return found

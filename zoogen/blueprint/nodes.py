"""Blueprint values with their places: scalars, lists and mappings as they stand in the file."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoogen.blueprint.problems import Position


@dataclass(frozen=True, eq=False)
class ScalarNode:
    """A single value; ``raw`` is its text, ``plain`` means unquoted, ``broken`` that a problem is recorded already."""

    position: Position
    value: Any
    raw: str = ""
    plain: bool = True
    broken: bool = False


@dataclass(frozen=True, eq=False)
class ListNode:
    position: Position
    items: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class MapNode:
    """A mapping in the order of the file: (key, value) nodes by the key's value (see ``distinct``)."""

    position: Position
    entries: Mapping[Hashable, tuple[ScalarNode, Node]]

    def get(self, key: str) -> Node | None:
        entry = self.entries.get(key)
        return entry[1] if entry else None

    def __getitem__(self, key: str) -> Node:
        return self.entries[key][1]

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def __iter__(self) -> Iterator[tuple[ScalarNode, Node]]:
        return iter(self.entries.values())

    def with_entry(self, key: ScalarNode, value: Node) -> MapNode:
        """A copy in which ``key`` has this value; a new key comes last."""
        return MapNode(self.position, {**self.entries, distinct(key.value): (key, value)})


Node = ScalarNode | ListNode | MapNode


def distinct(value: Any) -> Hashable:
    """What tells two values apart: as Python's equality, but ``true`` is not 1; lists and mappings become tuples."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, (list, tuple)):
        return ("list", *map(distinct, value))
    if isinstance(value, Mapping):
        return ("map", frozenset((distinct(k), distinct(v)) for k, v in value.items()))
    return value


def plain(node: Node) -> Any:
    """The node as Python values."""
    if isinstance(node, ScalarNode):
        return node.value
    if isinstance(node, ListNode):
        return [plain(item) for item in node.items]
    return {key.value: plain(value) for key, value in node}


def is_broken(node: Node) -> bool:
    """Whether a value in here has a recorded problem already."""
    if isinstance(node, ScalarNode):
        return node.broken
    if isinstance(node, ListNode):
        return any(map(is_broken, node.items))
    return any(is_broken(key) or is_broken(value) for key, value in node)


def show(node: Node) -> str:
    """The value for a message."""
    if isinstance(node, ListNode):
        return "a list"
    if isinstance(node, MapNode):
        return "a mapping"
    if node.value is None:
        return "nothing"
    if isinstance(node.value, str):
        return repr(node.value if len(node.value) <= 60 else node.value[:57] + "...")
    return f"{node.raw or node.value}"

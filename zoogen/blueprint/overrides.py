"""``--set key=value``: values from the command line on top of the file, checked like the file's own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from zoogen.blueprint.nodes import ListNode, MapNode, Node, ScalarNode
from zoogen.blueprint.problems import BlueprintError, Position, Problems, Source
from zoogen.blueprint.read import read_yaml
from zoogen.blueprint.sections import SECTIONS


def apply(root: MapNode, overrides: Sequence[str], problems: Problems) -> MapNode:
    """The blueprint with every override set; a mapping replaces the whole subtree of its key."""
    for text in overrides:
        at = Position(Source(f"--set {text}"))
        path, equals, value = text.partition("=")
        path = path.strip()
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", path):
            problems.add(at, "not of the form key=value", "write --set training.epochs=3")
            continue
        try:
            node = read_yaml(value, at.source, problems, inline=True) or ScalarNode(at, None)
        except BlueprintError as error:
            for problem in error.problems:
                problems.add(at, problem.message)
            continue
        name = _overruling(root, path)
        if name:
            help = f"it would have no effect; use --set coupled.{name}=[...]"
            problems.add(at, f"{path} is set by the coupled list {name!r}", help)
            continue
        root = _with(root, path.split("."), node, at)
    return root


def _with(node: Node | None, path: list[str], value: Node, at: Position) -> MapNode:
    base = node if isinstance(node, MapNode) else MapNode(at, {})
    name, *rest = path
    if not rest:
        return base.with_entry(ScalarNode(at, name, name), value)
    entry = base.entries.get(name)
    key = entry[0] if entry else ScalarNode(at, name, name)
    return base.with_entry(key, _with(entry[1] if entry else None, rest, value, at))


def _overruling(root: MapNode, path: str) -> str:
    """The coupled list whose entries would replace the value at ``path``; empty where there is none."""
    coupled = root.get("coupled")
    if not isinstance(coupled, MapNode) or path in SECTIONS or path.split(".")[0] == "coupled":
        return ""
    for key, entries in coupled:
        for entry in entries.items if isinstance(entries, ListNode) else ():
            node: Node | None = entry
            seen = ""
            for name in path.split("."):
                node = node.get(name) if isinstance(node, MapNode) else None
                seen = f"{seen}.{name}".lstrip(".")
                if node is None:
                    break
                if seen not in SECTIONS:
                    return str(key.value)
    return ""

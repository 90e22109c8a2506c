"""One value against one field: typed by pydantic, or a problem in the words of the blueprint.

Strict but for what YAML cannot say: a whole number is a fine ``float``, a list a fine ``tuple``. Text is never read as
a number, and true or false are no numbers.
"""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic import ValidationError

from zoogen.blueprint.fields import FieldSpec
from zoogen.blueprint.nodes import ListNode, MapNode, Node, ScalarNode, is_broken, plain, show
from zoogen.blueprint.problems import Problems
from zoogen.core.errors import suggest

INVALID: Any = type("Invalid", (), {"__repr__": lambda self: "INVALID", "__bool__": lambda self: False})()


class Checker:
    """Checks every (field, node) pair once."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self._done: dict[tuple[FieldSpec, int], tuple[Node, Any]] = {}
        self._told: set[tuple[int, str]] = set()

    def typed(self, spec: FieldSpec, node: Node, owner: str = "") -> Any:
        """The typed value, or ``INVALID`` after recording why; ``owner`` says whose field (`` of optimizer 'sgd'``)."""
        key = (spec, id(node))
        if key not in self._done:
            self._done[key] = (node, self._typed(spec, node, owner))
        return self._done[key][1]

    def _typed(self, spec: FieldSpec, node: Node, owner: str) -> Any:
        if is_broken(node):
            return INVALID
        try:
            return spec.adapter.validate_json(json.dumps(plain(node)), strict=True)
        except ValidationError as error:
            # Several optimizers have an lr of one type: the first of them to complain is enough.
            if (id(node), spec.words) not in self._told:
                self._told.add((id(node), spec.words))
                self._explain(spec, node, owner, error)
            return INVALID

    def _explain(self, spec: FieldSpec, node: Node, owner: str, error: ValidationError) -> None:
        place = _deepest(node, error)
        if isinstance(node, MapNode) and spec.adapter.json_schema().get("type") != "object":
            keys = [key.raw for key, _ in node]
            help = "a value form is {grid: [...]}, {draw: {kind: [...]}} or {by: key, cases: {...}}"
            close = [word for word in map(_near_form, keys) if word]
            self.problems.add(
                node.position,
                f"{spec.name}{owner} must be {spec.words}, got a mapping",
                help + (f". Did you mean {close[0]!r}?" if close else ""),
            )
        elif spec.options and isinstance(node, ScalarNode) and isinstance(node.value, str):
            help = suggest(node.value, map(str, spec.options))
            self.problems.add(node.position, f"unknown {spec.name} {show(node)}{owner}", help)
        elif place is not node:
            message = f"{spec.name}{owner} must be {spec.words}, but this item is {show(place)}"
            self.problems.add(place.position, message, hint(place))
        else:
            expected = spec.words
            if isinstance(node, ListNode) and expected.startswith("a list"):
                expected += f" ({error.errors()[0]['msg'].lower()})"
                self.problems.add(node.position, f"{spec.name}{owner} must be {expected}")
                return
            help = hint(node, whole="whole number" in expected)
            if not help and isinstance(node, ListNode):
                help = f"for several values write {{grid: [{', '.join(show(item) for item in node.items[:3])}, ...]}}"
            self.problems.add(node.position, f"{spec.name}{owner} must be {expected}, got {show(node)}", help)


def _deepest(node: Node, error: ValidationError) -> Node:
    """The inner value that pydantic complains of; union branches in its path are no places."""
    for step in error.errors()[0]["loc"]:
        if isinstance(node, ListNode) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
        elif isinstance(node, MapNode) and isinstance(step, str) and step in node:
            node = node.get(step) or node
    return node


def hint(node: Node, *, whole: bool = True) -> str:
    """How to write what was probably meant, for the traps of YAML 1.1; ``whole``: a whole number would do."""
    if not isinstance(node, ScalarNode):
        return ""
    if isinstance(node.value, bool) and node.raw.lower() not in ("true", "false"):
        return f'YAML 1.1 reads {node.raw} as {str(node.value).lower()}; for text quote it: "{node.raw}"'
    if isinstance(node.value, str):
        number = yaml_number(node.value)
        if number and node.plain:
            return f"YAML 1.1 reads {node.value} as text; write {number}"
        if number:
            return f"quoted, it is text; write {number}"
    if whole and isinstance(node.value, float) and node.value.is_integer():
        return f"write {int(node.value)} for a whole number"
    if node.value is None:
        return "give a value, or remove the key"
    return ""


def yaml_number(text: str | float) -> str:
    """``1e-3`` -> ``1.0e-3``: the same number as YAML 1.1 wants it; empty where the text is none."""
    text = str(text)
    try:
        value = float(text)
    except ValueError:
        return ""
    if not math.isfinite(value):
        return ""
    mantissa, e, exponent = text.strip().lower().partition("e")
    if not e:
        return text.strip()
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    return f"{mantissa}e{exponent if exponent[0] in '+-' else '+' + exponent}"


def _near_form(word: str) -> str:
    import difflib

    close = difflib.get_close_matches(word, ("grid", "draw", "by"), n=1, cutoff=0.5)
    return close[0] if close else ""

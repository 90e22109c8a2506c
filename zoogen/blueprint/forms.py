"""The ways to write a value: plain, ``{grid: [...]}``, ``{draw: ...}``, ``{by: key, cases: {...}, otherwise: ...}``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from zoogen.blueprint.nodes import ListNode, MapNode, Node, ScalarNode, distinct, is_broken, plain, show
from zoogen.blueprint.problems import Problems
from zoogen.core.errors import suggest

FORMS = ("grid", "draw", "by")
DrawKind = Literal["uniform", "log_uniform", "integers", "choice"]


@dataclass(frozen=True, eq=False)
class Plain:
    node: Node


@dataclass(frozen=True, eq=False)
class Grid:
    node: MapNode
    items: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Drawn:
    node: MapNode
    kind: DrawKind
    bounds: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class By:
    """Values by the value of another key; ``cases`` pairs what it is compared with and the form it selects."""

    node: MapNode
    key: ScalarNode
    cases: tuple[tuple[ScalarNode, Form], ...]
    otherwise: Form | None


Form = Plain | Grid | Drawn | By


def is_form(node: Node | None) -> bool:
    """Whether a mapping is a value form and not a plain mapping."""
    return isinstance(node, MapNode) and any(name in node for name in FORMS)


def depends_on(form: Form) -> Iterator[ScalarNode]:
    """The keys that a form's value depends on, however deep they are nested."""
    if isinstance(form, By):
        yield form.key
        for _, case in form.cases:
            yield from depends_on(case)
        if form.otherwise:
            yield from depends_on(form.otherwise)


class FormReader:
    """Reads each node once, so that strata and variants share their forms."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._done: dict[int, tuple[Node, Form]] = {}

    def read(self, node: Node) -> Form:
        """The form of a value; where it is malformed, a plain broken one (the problem is recorded)."""
        if id(node) not in self._done:
            form = self._read(node) or Plain(ScalarNode(node.position, None, broken=True))
            self._done[id(node)] = (node, form)
        return self._done[id(node)][1]

    def _read(self, node: Node) -> Form | None:
        if not isinstance(node, MapNode) or not is_form(node):
            return Plain(node)
        if "grid" in node:
            return self._grid(node)
        return self._draw(node) if "draw" in node else self._by(node)

    def _only(self, node: MapNode, known: tuple[str, ...], what: str) -> None:
        for key, _ in node:
            if key.value not in known:
                self._problems.add(key.position, f"unknown key {key.raw!r} in a {what}", suggest(key.raw, known))

    def _grid(self, node: MapNode) -> Form | None:
        self._only(node, ("grid",), "grid")
        items = node["grid"]
        if not isinstance(items, ListNode):
            self._problems.add(
                items.position, f"a grid needs a list of values, got {show(items)}", "write {grid: [1, 2]}"
            )
            return None
        if not items.items:
            self._problems.add(items.position, "the grid is empty", "list at least one value, or remove the key")
            return None
        return Grid(node, items.items) if self._values(items, "grid") else None

    def _draw(self, node: MapNode) -> Form | None:
        self._only(node, ("draw",), "draw")
        inner = node["draw"]
        kinds = get_args(DrawKind)
        if not isinstance(inner, MapNode) or len(inner.entries) != 1:
            help = "write {draw: {log_uniform: [1.0e-4, 1.0e-1]}}; kinds: " + ", ".join(kinds)
            self._problems.add(inner.position, "a draw needs one kind with its bounds", help)
            return None
        ((kind, bounds),) = inner
        if kind.value not in kinds:
            self._problems.add(kind.position, f"unknown kind of draw {kind.raw!r}", suggest(kind.raw, kinds))
            return None
        if not isinstance(bounds, ListNode):
            self._problems.add(bounds.position, f"{kind.value} needs a list, got {show(bounds)}")
            return None
        if kind.value == "choice":
            if not bounds.items:
                self._problems.add(bounds.position, "the choice is empty", "list at least one value")
                return None
        elif len(bounds.items) != 2:
            self._problems.add(bounds.position, f"{kind.value} needs two bounds, [low, high]")
            return None
        fine = self._values(bounds, kind.value, twice=kind.value != "choice")
        return Drawn(node, kind.value, bounds.items) if fine else None

    def _values(self, items: ListNode, what: str, twice: bool = False) -> bool:
        """Whether every item is a plain value and none comes twice, unless ``twice`` says that it may."""
        seen: set = set()
        fine = True
        for item in items.items:
            if is_form(item):
                help = "write the values out, or set keys together with 'coupled'"
                self._problems.add(item.position, f"a {what} lists plain values, not another form", help)
                fine = False
            elif is_broken(item):
                fine = False
            elif not twice and distinct(plain(item)) in seen:
                message = f"{show(item)} stands twice in this {what}"
                self._problems.add(item.position, message, "equal cells would be one model; remove it")
                fine = False
            else:
                seen.add(distinct(plain(item)))
        return fine

    def _by(self, node: MapNode) -> Form | None:
        self._only(node, ("by", "cases", "otherwise"), "'by'")
        key, cases = node["by"], node.get("cases")
        if not isinstance(key, ScalarNode) or not isinstance(key.value, str):
            self._problems.add(key.position, f"'by' needs the name of a key, got {show(key)}")
            return None
        if not isinstance(cases, MapNode) or not cases.entries:
            help = f"write {{by: {key.value}, cases: {{value: ..., other: ...}}}}"
            self._problems.add((cases or node).position, "'by' needs cases", help)
            return None
        otherwise = node.get("otherwise")
        read = tuple((case, self.read(value)) for case, value in cases)
        return By(node, key, read, self.read(otherwise) if otherwise else None)

"""From keys to strata: names, coupled lists and keys that others depend on are multiplied out; the rest are factors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from zoogen.blueprint.forms import By, Drawn, Form, Grid, Plain, depends_on
from zoogen.blueprint.nodes import ListNode, MapNode, Node, ScalarNode, distinct, is_broken, plain, show
from zoogen.blueprint.problems import Problems
from zoogen.blueprint.sections import SECTIONS, SEED_POLICY, Leaf
from zoogen.core.errors import suggest

MAX_STRATA = 20_000
_COUPLED_KEYS = ("task", "architecture", "training", "seeds", "checkpoints", "resources")
_STRUCTURAL = ("task", "architecture", "training")


@dataclass(frozen=True, eq=False)
class Variant:
    """The blueprint with one entry of every coupled list merged in; ``choice`` has the entries' positions."""

    choice: Mapping[str, int]
    root: MapNode


@dataclass(frozen=True, eq=False)
class Chosen:
    """One stratum before it is checked: a plain value, grid or draw for every key that is present."""

    choice: Mapping[str, Any]  # a coupled list's name -> position; a structural grid's key -> node of its value
    leaves: Mapping[str, Leaf]


@dataclass
class CaseUse:
    """What the cases of a ``by`` were compared with, to find those that nothing matches."""

    met: dict[int, tuple[By, dict[str, None]]] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)

    def report(self, problems: Problems) -> None:
        for form, values in self.met.values():
            for case, _ in form.cases:
                if id(case) not in self.used:
                    problems.add(
                        case.position,
                        f"the case {show(case)} matches no value of {form.key.value}",
                        suggest(case.raw, values),
                    )


def variants(root: MapNode, problems: Problems) -> Iterator[Variant]:
    """One blueprint per combination of entries of the coupled lists, in order; just one where there are none."""
    node = root.get("coupled")
    if node is None:
        yield Variant({}, root)
        return
    lists = _coupled_lists(node, problems)
    if lists is None:
        return
    total = math.prod(map(len, lists.values()))
    if total > MAX_STRATA:
        product = " x ".join(f"{name} ({len(entries)})" for name, entries in lists.items())
        problems.add(node.position, f"{product} = {total:,} coupled settings; at most {MAX_STRATA:,}")
        return
    for positions in itertools.product(*(range(len(entries)) for entries in lists.values())):
        choice = dict(zip(lists, positions, strict=True))
        merged = root
        for name, position in choice.items():
            merged = _merge(merged, lists[name][position], "")
        yield Variant(choice, merged)


def coupled_entries(root: MapNode) -> list[MapNode]:
    """Every entry of every coupled list."""
    coupled = root.get("coupled")
    lists = [entries for _, entries in coupled] if isinstance(coupled, MapNode) else []
    items = [item for entries in lists if isinstance(entries, ListNode) for item in entries.items]
    return [item for item in items if isinstance(item, MapNode)]


def _coupled_lists(node: Node, problems: Problems) -> dict[str, tuple[MapNode, ...]] | None:
    example = "write coupled: {name: [{training: {...}}, {training: {...}}]}"
    if not isinstance(node, MapNode):
        problems.add(node.position, f"coupled must be a mapping of lists, got {show(node)}", example)
        return None
    lists: dict[str, tuple[MapNode, ...]] = {}
    fine = True
    for key, entries in node:
        if not isinstance(key.value, str) or "." in key.value:
            problems.add(key.position, "the name of a coupled list must be text without dots")
            fine = False
        if not isinstance(entries, ListNode) or not entries.items:
            message = f"the coupled list {key.raw!r} needs a list of partial blueprints"
            problems.add(entries.position, message, example)
            fine = False
            continue
        for entry in entries.items:
            fine &= _check_entry(entry, problems)
        lists[str(key.value)] = tuple(entry for entry in entries.items if isinstance(entry, MapNode))
    return lists if fine else None


def _check_entry(entry: Node, problems: Problems) -> bool:
    if not isinstance(entry, MapNode) or not entry.entries:
        help = "write {training: {optimizer: {name: sgd}}}"
        problems.add(entry.position, f"a coupled entry is a partial blueprint, got {show(entry)}", help)
        return False
    fine = True
    for key, value in entry:
        if key.value not in _COUPLED_KEYS:
            problems.add(key.position, f"unknown key {key.raw!r} in a coupled entry", suggest(key.raw, _COUPLED_KEYS))
            fine = False
        if key.value == "seeds" and isinstance(value, MapNode):
            for inner, _ in value:
                if inner.value in SEED_POLICY:
                    message = f"seeds.{inner.value} is the same for the whole zoo"
                    problems.add(inner.position, message, "move it out of the coupled entry")
                    fine = False
    return fine


def _merge(base: MapNode, patch: MapNode, path: str) -> MapNode:
    """``patch`` over ``base``: sections are merged, values and whole value forms replaced."""
    for key, value in patch:
        inner = f"{path}.{key.value}".lstrip(".")
        old = base.get(key.value) if isinstance(key.value, str) else None
        if inner in SECTIONS and isinstance(old, MapNode) and isinstance(value, MapNode):
            value = _merge(old, value, inner)
        base = base.with_entry(key, value)
    return base


def strata(variant: Variant, leaves: Mapping[str, Leaf], use: CaseUse, problems: Problems) -> Iterator[Chosen]:
    """Multiply out the structural keys of a variant; the first of the file varies slowest, after the coupled lists.

    A key that depends on something impossible is handed on broken, so that the rest can still be checked.
    """
    leaves = _without_unknown(leaves, problems)
    order, circle = _structural_order(leaves, problems)
    leaves = {path: _broken(leaf) if path in circle else leaf for path, leaf in leaves.items()}

    def expand(rest: list[str], fixed: dict[str, Node | None], choice: dict[str, Any]) -> Iterator[Chosen]:
        if not rest:
            yield Chosen(choice, _settle(leaves, fixed, use))
            return
        key, *others = rest
        form = _select(leaves[key].form, fixed, use)
        if isinstance(form, Drawn):
            users = [leaf.path for leaf in leaves.values() if any(d.value == key for d in depends_on(leaf.form))]
            why = f"{users[0]} depends on it" if users else "a name decides which keys there are"
            problems.add(form.node.position, f"{key} cannot be drawn: {why}", "use a grid")
            form = _broken(leaves[key]).form
        if isinstance(form, Grid):
            for item in form.items:
                yield from expand(others, {**fixed, key: item}, {**choice, key: item})
        else:
            yield from expand(others, {**fixed, key: form.node if isinstance(form, Plain) else None}, choice)

    yield from expand(order, {}, dict(variant.choice))


def _broken(leaf: Leaf) -> Leaf:
    form = Plain(ScalarNode(leaf.form.node.position, None, broken=True))
    return Leaf(leaf.section, leaf.name, leaf.key, form)


def _settle(leaves: Mapping[str, Leaf], fixed: Mapping[str, Node | None], use: CaseUse) -> dict[str, Leaf]:
    settled = {}
    for path, leaf in leaves.items():
        form: Form | None
        if path in fixed:
            node = fixed[path]
            form = Plain(node) if node is not None else None
        else:
            form = _select(leaf.form, fixed, use)
        if form is leaf.form:
            settled[path] = leaf
        elif form is not None:
            settled[path] = Leaf(leaf.section, leaf.name, leaf.key, form)
    return settled


def _select(form: Form | None, fixed: Mapping[str, Node | None], use: CaseUse) -> Form | None:
    """Follow every ``by`` to the form it selects; None where no case matches and there is no ``otherwise``."""
    while isinstance(form, By):
        node = fixed[form.key.value]
        _, values = use.met.setdefault(id(form), (form, {}))
        chosen = form.otherwise
        if node is not None and is_broken(node):
            return Plain(node)
        if node is not None:
            values[node.raw if isinstance(node, ScalarNode) else show(node)] = None
            value = distinct(plain(node))
            for case, inner in form.cases:
                if distinct(case.value) == value:
                    use.used.add(id(case))
                    chosen = inner
        form = chosen
    return form


def _without_unknown(leaves: Mapping[str, Leaf], problems: Problems) -> dict[str, Leaf]:
    """The leaves, broken where they depend on a key that is not set or that nothing may depend on."""
    usable = [path for path in leaves if path.split(".")[0] in _STRUCTURAL]
    found = {}
    for path, leaf in leaves.items():
        wrong = [key for key in depends_on(leaf.form) if key.value not in usable]
        for key in wrong:
            what = "which nothing can depend on" if key.value in leaves else "which is not set here"
            problems.add(key.position, f"{path} depends on {key.value!r}, {what}", suggest(key.value, usable))
        found[path] = _broken(leaf) if wrong else leaf
    return found


def _structural_order(leaves: Mapping[str, Leaf], problems: Problems) -> tuple[list[str], set[str]]:
    """Structural keys, each after those it depends on, else as in the file; and the keys of circles."""
    needs = {path: list(depends_on(leaf.form)) for path, leaf in leaves.items()}
    wanted = {key.value for keys in needs.values() for key in keys}
    wanted |= {p for p, leaf in leaves.items() if leaf.name == "name" and not isinstance(leaf.form, Plain)}
    order: list[str] = []
    circular: set[str] = set()

    def visit(path: str, trail: tuple[str, ...]) -> None:
        if path in order or path in circular:
            return
        trail = (*trail, path)
        for key in needs[path]:
            if key.value in trail:
                circle = trail[trail.index(key.value) :]
                message = f"values depend on each other in a circle: {' -> '.join((*circle, key.value))}"
                problems.add(key.position, message, "give one of them a plain value or a grid")
                circular.update(circle)
            else:
                visit(key.value, trail)
        order.append(path)

    for path in leaves:
        if path in wanted:
            visit(path, ())
    return order, circular

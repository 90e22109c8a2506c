"""One stratum checked: its dataclasses are made through their types, every factor value is tried in its place."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoogen.blueprint.check import INVALID, Checker, hint
from zoogen.blueprint.expand import Chosen
from zoogen.blueprint.fields import FieldSpec, fields_of
from zoogen.blueprint.forms import Drawn, Grid, Plain
from zoogen.blueprint.nodes import MapNode, Node, ScalarNode, distinct, is_broken, show
from zoogen.blueprint.problems import Position
from zoogen.blueprint.records import CheckpointPolicy, Draw, Factor
from zoogen.blueprint.sections import SECTIONS, Leaf, home
from zoogen.core.errors import UserError, suggest
from zoogen.core.records import Resources
from zoogen.core.registry import Registry


@dataclass(frozen=True)
class Part:
    """A section of a stratum: values of its keys (factors at their first value), and its factors by key."""

    values: Mapping[str, Any]
    factors: Mapping[str, Factor]
    instance: Any = None


class Builder:
    """Builds parts; equal parts of different strata are built once. ``rivals`` are the names each registry's section
    takes anywhere in the blueprint, for the hint at keys that one of them ignores."""

    def __init__(self, checker: Checker, rivals: Mapping[str, tuple[str, ...]]) -> None:
        self._check = checker
        self._problems = checker.problems
        self._rivals = rivals
        self._parts: dict[tuple[Any, ...], tuple[Any, Part | None]] = {}

    def part(self, path: str, chosen: Chosen, root: MapNode) -> Part | None:
        """A section's part, or None after recording what is wrong with it."""
        leaves = {leaf.name: leaf for leaf in chosen.leaves.values() if leaf.section == path}
        at = _position(root, path)
        signature = (path, at, *((name, id(_identity(leaf))) for name, leaf in leaves.items()))
        if signature not in self._parts:
            section = SECTIONS[path]
            make = self._named if section.registry else self._fixed
            self._parts[signature] = (leaves, make(path, leaves, at))
        return self._parts[signature][1]

    def _fixed(self, path: str, leaves: Mapping[str, Leaf], at: Position) -> Part | None:
        specs, owner = SECTIONS[path].specs(), f" in {path}"
        missing = [spec for spec in specs.values() if spec.required and spec.name not in leaves]
        for spec in missing:
            self._problems.add(at, f"missing key {spec.name!r}{owner}", f"it is {spec.words}")
        part = self._fields(path, specs, leaves, owner)
        return None if missing else part

    def _named(self, path: str, leaves: Mapping[str, Leaf], at: Position) -> Part | None:
        registry = SECTIONS[path].registry
        assert registry is not None
        if "name" not in leaves and path == "training.schedule" and not leaves:
            return Part({}, {}, registry.get("constant")())
        cls = self._class(path, registry, leaves.get("name"), at)
        if cls is None:
            return None
        name = cls.registered_name
        owner = f" for {registry.kind} {name!r}"
        given = {n: leaf for n, leaf in leaves.items() if n != "name"}
        specs = fields_of(cls)
        fine = True
        for unknown in [leaf for n, leaf in given.items() if n not in specs]:
            self._ignored(path, registry, name, unknown, specs)
            fine = False
        for spec in specs.values():
            if spec.required and spec.name not in given:
                self._problems.add(at, f"missing key {spec.name!r}{owner}", f"it is {spec.words}")
                fine = False
        part = self._fields(path, specs, {n: leaf for n, leaf in given.items() if n in specs}, owner)
        if part is None or not fine:
            return None
        return self._instance(cls, part, leaves["name"], given)

    def _class(self, path: str, registry: Registry, leaf: Leaf | None, at: Position) -> Any:
        if leaf is None:
            self._problems.add(at, f"missing key 'name' in {path}", suggest("", registry.names()))
            return None
        node = leaf.form.node if isinstance(leaf.form, Plain) else None
        if not isinstance(node, ScalarNode) or not isinstance(node.value, str):
            if node is not None and not is_broken(node):
                self._problems.add(
                    node.position, f"the {registry.kind}'s name must be text, got {show(node)}", hint(node)
                )
            return None
        try:
            return registry.get(node.value)
        except UserError as error:
            message, _, help = str(error).partition("\n")
            self._problems.add(node.position, message, help)
            return None

    def _ignored(self, path: str, registry: Registry, name: str, leaf: Leaf, specs: Mapping[str, FieldSpec]) -> None:
        """A key that this name does not take: wrong altogether, or right for another name of the blueprint."""
        what = f"{registry.kind} {name!r}"
        knowing = [r for r in self._rivals.get(path, ()) if r != name and leaf.name in fields_of(registry.get(r))]
        if knowing:
            value = show(leaf.form.node) if isinstance(leaf.form, Plain) else "..."
            cases = ", ".join(f"{rival}: {value}" for rival in knowing)
            self._problems.add(
                leaf.key.position,
                f"{what} ignores {leaf.name!r}",
                f"write {leaf.name}: {{by: {path}.name, cases: {{{cases}}}}} to set it where it has a meaning",
            )
            return
        help = suggest(leaf.name, specs)
        if isinstance(leaf.form, Plain):
            self._problems.add(leaf.key.position, f"unknown key {leaf.name!r} for {what}", help)
        else:
            message = f"{what} has no {leaf.name!r}: a factor that the {registry.kind} ignores"
            self._problems.add(leaf.key.position, message, help)

    def _fields(self, path: str, specs: Mapping[str, FieldSpec], leaves: Mapping[str, Leaf], owner: str) -> Part | None:
        values: dict[str, Any] = {}
        factors: dict[str, Factor] = {}
        for name, leaf in leaves.items():
            spec = specs[name]
            if isinstance(leaf.form, Plain):
                values[name] = self._check.typed(spec, leaf.form.node, owner)
                continue
            if not SECTIONS[path].factors:
                message = f"{path}.{name} cannot vary like this: it is no factor of the models"
                help = "give a plain value, or {by: key, cases: {...}}"
                self._problems.add(leaf.form.node.position, message, help)
                values[name] = INVALID
                continue
            factor = self._factor(leaf, spec, owner)
            values[name] = INVALID if factor is None else (factor.draw.bounds if factor.draw else factor.values)[0]
            if factor is not None:
                factors[leaf.path] = factor
        return None if INVALID in values.values() else Part(values, factors)

    def _factor(self, leaf: Leaf, spec: FieldSpec, owner: str) -> Factor | None:
        if isinstance(leaf.form, Drawn):
            draw = self._draw(leaf.form, spec, owner)
            return None if draw is None else Factor(leaf.path, draw=draw)
        assert isinstance(leaf.form, Grid)
        values = self._distinct(leaf.form.items, spec, owner, "grid")
        return None if values is None else Factor(leaf.path, values)

    def _distinct(self, items: tuple[Node, ...], spec: FieldSpec, owner: str, what: str) -> tuple[Any, ...] | None:
        values = [self._check.typed(spec, item, owner) for item in items]
        if INVALID in values:
            return None
        seen: set[Any] = set()
        for item, value in zip(items, values, strict=True):
            if distinct(value) in seen:
                message = f"{show(item)} stands twice in this {what}"
                self._problems.add(item.position, message, "equal cells would be one model; remove it")
                return None
            seen.add(distinct(value))
        return tuple(values)

    def _draw(self, form: Drawn, spec: FieldSpec, owner: str) -> Draw | None:
        if form.kind == "choice":
            options = self._distinct(form.bounds, spec, owner, "choice")
            return None if options is None else Draw("choice", options)
        number = FieldSpec(spec.name, int if form.kind == "integers" else float)
        bounds = tuple(self._check.typed(number, node, f" as a bound of {form.kind}") for node in form.bounds)
        if INVALID in bounds:
            return None
        low, high = bounds
        at = form.bounds[0].position
        if not low < high:
            self._problems.add(at, f"{form.kind} needs low < high, got [{low}, {high}]")
            return None
        if form.kind == "log_uniform" and low <= 0:
            self._problems.add(at, f"log_uniform needs bounds above 0, got [{low}, {high}]")
            return None
        return self._in_range(form, spec, (low, high), owner)

    def _in_range(self, form: Drawn, spec: FieldSpec, bounds: tuple[Any, Any], owner: str) -> Draw | None:
        """Both ends must be values of the field; integers exclude the upper one."""
        low, high = bounds
        ends = (low, high - 1 if form.kind == "integers" else high)
        between = low if form.kind == "integers" else low + (high - low) * 0.6180339887
        tried = zip((*ends, between), (*form.bounds, form.node), strict=True)
        wrong = next(((value, node) for value, node in tried if not _accepts(spec, value)), None)
        if wrong is None:
            return Draw(form.kind, bounds)
        value, node = wrong
        if not self._problems.stands_at(node.position):  # two optimizers would complain alike of one range
            message = f"{spec.name}{owner} must be {spec.words}, but may be drawn as {value:g}"
            help = "for whole numbers write {draw: {integers: [low, high]}}" if value == between else ""
            self._problems.add(node.position, message, help)
        return None

    def _instance(self, cls: Any, part: Part, name: Leaf, given: Mapping[str, Leaf]) -> Part | None:
        """Make the dataclass, then once more with every other value of every factor: its own checks judge them all."""
        try:
            instance = cls(**part.values)
        except (ValueError, UserError) as error:
            message, _, help = str(error).partition("\n")
            self._problems.add(_blamed(message, name, given).form.node.position, message, help)
            return None
        fine = True
        for leaf in given.values():
            factor = part.factors.get(leaf.path)
            if factor is None:
                continue
            nodes = leaf.form.items if isinstance(leaf.form, Grid) else leaf.form.bounds  # type: ignore[union-attr]
            for value, node in list(zip(_tried(factor), nodes, strict=True))[1:]:
                try:
                    dataclasses.replace(instance, **{leaf.name: value})
                except (ValueError, UserError) as error:
                    message, _, help = str(error).partition("\n")
                    self._problems.add(node.position, message, help)
                    fine = False
        return Part(part.values, part.factors, instance) if fine else None


def _blamed(message: str, name: Leaf, given: Mapping[str, Leaf]) -> Leaf:
    """The key that a dataclass's own complaint names first; its ``name`` where it names none that is given."""
    places = {found.start(): leaf for n, leaf in given.items() if (found := re.search(rf"\b{re.escape(n)}\b", message))}
    return places[min(places)] if places else name


def _tried(factor: Factor) -> tuple[Any, ...]:
    if factor.draw is None:
        return factor.values
    low, *rest = factor.draw.bounds
    return (low, rest[0] - 1) if factor.draw.kind == "integers" else factor.draw.bounds


def _accepts(spec: FieldSpec, value: Any) -> bool:
    try:
        spec.adapter.validate_python(value, strict=True)
    except ValueError:
        return False
    return True


def _identity(leaf: Leaf) -> Any:
    """What makes two settled leaves the same: a plain form is made anew for every stratum, its node is not."""
    return leaf.form.node


def _position(root: MapNode, path: str) -> Position:
    """Where to point at for something missing: the section's key, or the nearest one above it."""
    parts = path.split(".")
    for depth in range(len(parts), 0, -1):
        parent = home(root, ".".join(parts[: depth - 1])) if depth > 1 else root
        if isinstance(parent, MapNode) and parts[depth - 1] in parent:
            return parent.entries[parts[depth - 1]][0].position
    return root.position


def checkpoint_policy(values: Mapping[str, Any]) -> CheckpointPolicy:
    """The policy with the defaults that hang together: listing epochs, or the last n, means no others."""
    epochs = tuple(values.get("epochs", ()))
    initial = values.get("initial")
    if initial and epochs:
        epochs = (0, *epochs)
    evaluate = values.get("evaluate_train", 0)
    return CheckpointPolicy(
        initial=not epochs if initial is None else initial,
        every=values["every"] if "every" in values else (None if epochs or values.get("last") else 1),
        epochs=tuple(sorted(set(epochs))),
        last=values.get("last", 0),
        optimizer=values.get("optimizer", "last"),
        test_predictions=values.get("test_predictions", False),
        evaluate_train=-1 if evaluate == "all" else evaluate,
    )


def resources(values: Mapping[str, Any]) -> tuple[Resources, int | None]:
    """Resources and the largest cohort."""
    own = {name: value for name, value in values.items() if name != "cohort"}
    return Resources(**own), values.get("cohort")

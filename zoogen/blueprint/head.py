"""The parts of a blueprint that are the same for all its models: name, draws, seed policy, model split, axes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from zoogen.blueprint.check import INVALID, Checker
from zoogen.blueprint.fields import fields_of
from zoogen.blueprint.nodes import MapNode, Node, distinct, plain, show
from zoogen.blueprint.problems import Position, Problems
from zoogen.blueprint.records import ModelSplit, SeedPolicy
from zoogen.blueprint.sections import (
    PLAIN_SECTIONS,
    REQUIRED,
    SEED_POLICY,
    TOP_KEYS,
    AxesKeys,
    Head,
    SeedKeys,
    SplitKeys,
)
from zoogen.core.errors import suggest

VARIANT_REQUIRED = ("task", "architecture", "training")  # may also come from every entry of a coupled list


def read_head(root: MapNode, checker: Checker) -> dict[str, Any]:
    """Values of ``zoo``, ``version``, ``description`` and ``draws`` where given; checks the top-level keys."""
    problems = checker.problems
    for key, _ in root:
        if key.value not in TOP_KEYS:
            problems.add(key.position, f"unknown key {key.raw!r}", suggest(key.raw, TOP_KEYS))
    for name in REQUIRED:
        if name not in root and name not in VARIANT_REQUIRED:
            problems.add(root.position, *missing_key(name))
    return {name: value for name, value in _typed(root, Head, checker, "").items() if value is not INVALID}


def missing_key(name: str) -> tuple[str, str]:
    """Message and help for a top-level key that is not there."""
    return f"missing key {name!r}", f"a blueprint needs {', '.join(REQUIRED)}"


def _typed(node: MapNode, keys: type, checker: Checker, owner: str) -> dict[str, Any]:
    """The values of those keys of a dataclass that are given."""
    return {
        name: checker.typed(spec, value, owner) for name, spec in fields_of(keys).items() if (value := node.get(name))
    }


def _plain_section(root: MapNode, name: str, checker: Checker) -> tuple[MapNode | None, dict[str, Any]]:
    node = root.get(name)
    keys = PLAIN_SECTIONS[name]
    if node is None:
        return None, {}
    if not isinstance(node, MapNode):
        checker.problems.add(node.position, f"{name} must be a mapping, got {show(node)}")
        return None, {}
    for key, _ in node:
        if key.value not in fields_of(keys):
            checker.problems.add(key.position, f"unknown key {key.raw!r} in {name}", suggest(key.raw, fields_of(keys)))
    return node, _typed(node, keys, checker, f" in {name}")


def read_split(root: MapNode, checker: Checker) -> ModelSplit:
    node, given = _plain_section(root, "model_split", checker)
    if node is None or INVALID in given.values():
        return ModelSplit()
    split = SplitKeys(**given)
    total = split.train + split.val + split.test
    if abs(total - 1) > 1e-9:
        shares = " + ".join(f"{getattr(split, n)}" for n in fields_of(SplitKeys))
        at = root.entries["model_split"][0].position
        checker.problems.add(at, f"the shares of models do not sum to 1: {shares} = {total:.6g}", _defaults(given))
    return ModelSplit(split.train, split.val, split.test)


def _defaults(given: dict[str, Any]) -> str:
    left_out = [f"{n} {spec.default}" for n, spec in fields_of(SplitKeys).items() if n not in given]
    return f"not given: {', '.join(left_out)} by default" if left_out else ""


def read_axes(root: MapNode, factors: Collection[str], checker: Checker) -> dict[str, str]:
    """Axis -> key; every key must be one of ``factors``."""
    node, given = _plain_section(root, "axes", checker)
    if node is None:
        return {}
    given = {name: key for name, key in given.items() if key is not INVALID and key is not None}
    for name, key in given.items():
        if key not in factors:
            message = f"the {name} axis {key!r} is no factor of this blueprint"
            at = (node.get(name) or node).position
            checker.problems.add(at, message, "a factor is a key with a grid or draw; " + suggest(key, factors))
    assert set(given) <= set(fields_of(AxesKeys))
    return given


def read_seeds(root: MapNode, checker: Checker) -> SeedPolicy | None:
    """The seed policy without streams set apart; None after recording a problem."""
    node = root.get("seeds")
    if not isinstance(node, MapNode):
        return None  # recorded with the sections
    given = _typed(node, SeedKeys, checker, " in seeds")
    if INVALID in given.values():
        return None
    problems, at = checker.problems, root.entries["seeds"][0].position
    policies = [name for name in SEED_POLICY if name != "below" and given.get(name) is not None]
    if len(policies) != 1:
        what = "needs" if not policies else f"has {' and '.join(policies)}; it needs exactly"
        help = "write {range: [0, 3]}, {list: [3, 5]} or {draw: 10, below: 1000000}"
        problems.add(at, f"seeds {what} one of range, list, draw", help)
        return None
    if (policies[0] == "draw") != (given.get("below") is not None):
        problems.add(at, "draw and below belong together", "write {draw: 10, below: 1000000}")
        return None
    value = node.get(policies[0])
    assert value is not None
    return _policy(policies[0], given, value, problems)


def _policy(kind: str, given: dict[str, Any], node: Node, problems: Problems) -> SeedPolicy | None:
    at: Position = node.position
    if kind == "draw":
        if given["draw"] > given["below"]:
            message = f"cannot draw {given['draw']:,} different seeds below {given['below']:,}"
            problems.add(at, message, "raise below or lower draw")
            return None
        return SeedPolicy(draw=given["draw"], below=given["below"])
    if kind == "range":
        first, end = given["range"]
        if first >= end:
            help = f"the second number is excluded: [0, 3] gives 0, 1, 2; write [{first}, {first + 1}] for one seed"
            problems.add(at, f"the range [{first}, {end}] of seeds is empty", help)
            return None
        return SeedPolicy(values=range(first, end))
    if not given["list"]:
        problems.add(at, "the list of seeds is empty", "list at least one seed")
        return None
    if len(set(map(distinct, plain(node)))) < len(given["list"]):
        twice = next(s for s in given["list"] if given["list"].count(s) > 1)
        problems.add(at, f"the seed {twice} stands twice in the list", "equal cells would be one model; remove it")
        return None
    return SeedPolicy(values=given["list"])

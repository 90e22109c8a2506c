"""Counting before expanding: factors, cells, draws and epochs of strata that are settled, but not yet multiplied."""

from __future__ import annotations

import math
from collections.abc import Sequence

from zoogen.blueprint.expand import Chosen
from zoogen.blueprint.forms import Drawn, Form, Grid, Plain
from zoogen.blueprint.nodes import ListNode, MapNode, Node, ScalarNode, is_broken, plain, show
from zoogen.blueprint.problems import Problems
from zoogen.blueprint.sections import SECTIONS, Leaf

MAX_CELLS = 20_000_000


def _varying(chosen: Chosen) -> list[Leaf]:
    return [
        leaf
        for leaf in chosen.leaves.values()
        if SECTIONS[leaf.section].factors and isinstance(leaf.form, Grid | Drawn)
    ]


def factor_keys(strata: Sequence[Chosen]) -> list[str]:
    """Every key that varies somewhere, structural ones and coupled lists included."""
    found = {leaf.path for one in strata for leaf in _varying(one)}
    return sorted(found | {key for one in strata for key in one.choice})


def check_cells(strata: Sequence[Chosen], seeds: int, draws: int, root: MapNode, problems: Problems) -> None:
    """Record a blueprint of too many models, with the product that makes them."""
    counts = [_cells(one, seeds, draws) for one in strata]
    if sum(counts) <= MAX_CELLS:
        return
    largest = strata[counts.index(max(counts))]
    terms = [f"{leaf.path} ({size:,})" for leaf in _varying(largest) if (size := _size(leaf)) > 1]
    if any(isinstance(leaf.form, Drawn) for leaf in _varying(largest)):
        terms.append(f"draws ({draws:,})")
    terms.append(f"seeds ({seeds:,})")
    message = f"{' x '.join(terms)} = {max(counts):,} cells; at most {MAX_CELLS:,}"
    if len(strata) > 1:
        where = ", ".join(f"{key}={show(v) if isinstance(v, Node) else v}" for key, v in largest.choice.items())
        message += f" ({len(strata)} structural combinations, {sum(counts):,} cells in all; the largest: {where})"
    longest = max(_varying(largest), key=_size, default=None)
    at = longest.key if longest and _size(longest) > seeds else root.entries["seeds"][0]
    problems.add(at.position, message, "shorten grids or seeds, or draw at random: {draw: ...}")


def _size(leaf: Leaf) -> int:
    return len(leaf.form.items) if isinstance(leaf.form, Grid) else 1


def _cells(chosen: Chosen, seeds: int, draws: int) -> int:
    varying = _varying(chosen)
    return math.prod(map(_size, varying)) * (draws if any(isinstance(v.form, Drawn) for v in varying) else 1) * seeds


def check_draws(strata: Sequence[Chosen], root: MapNode, draws: int, problems: Problems) -> None:
    """``draws`` is needed exactly where something is drawn, and enough different draws must exist."""
    drawn = [[leaf for leaf in _varying(one) if isinstance(leaf.form, Drawn)] for one in strata]
    key = root.entries.get("draws")
    first = next((leaves[0] for leaves in drawn if leaves), None)
    if first is not None and key is None:
        message = f"{first.path} is drawn, but 'draws' does not say how often"
        problems.add(first.key.position, message, "add the key draws: 20 (draws per grid point)")
    broken = any(
        isinstance(leaf.form, Plain) and is_broken(leaf.form.node) for one in strata for leaf in one.leaves.values()
    )
    if first is None and key is not None and strata and not broken:
        help = "remove it, or write a value as {draw: {uniform: [0.0, 0.5]}}"
        problems.add(key[0].position, "'draws' is given, but no value is drawn", help)
    for leaves in drawn:
        options = math.prod(_options(leaf) for leaf in leaves)
        if leaves and key is not None and options < draws:
            terms = " x ".join(f"{leaf.path} ({_options(leaf):g})" for leaf in leaves)
            message = f"{draws} different draws are wanted, but there are only {options:g}: {terms}"
            problems.add(key[0].position, message, "lower draws, or use a grid")


def check_epochs(strata: Sequence[Chosen], problems: Problems) -> None:
    """Record listed checkpoint epochs that no training of the stratum reaches."""
    for one in strata:
        leaf, training = one.leaves.get("checkpoints.epochs"), one.leaves.get("training.epochs")
        if leaf is None or training is None or not isinstance(leaf.form, Plain):
            continue
        longest = max(_whole(_values(training.form)), default=None)
        if longest is None or not isinstance(leaf.form.node, ListNode):
            continue
        for item in leaf.form.node.items:
            if any(epoch > longest for epoch in _whole([item])):
                message = f"checkpoint epoch {plain(item)} lies beyond the training's {longest} epochs"
                problems.add(item.position, message, "lower it, or raise training.epochs")


def _values(form: Form) -> Sequence[Node]:
    if isinstance(form, Grid):
        return form.items
    return form.bounds if isinstance(form, Drawn) else [form.node]


def _whole(nodes: Sequence[Node]) -> list[int]:
    """The whole numbers among them; anything else is recorded where its type is checked."""
    return [n.value for n in nodes if isinstance(n, ScalarNode) and type(n.value) is int]


def _options(leaf: Leaf) -> float:
    """How many values a draw can give."""
    assert isinstance(leaf.form, Drawn)
    if leaf.form.kind == "choice":
        return len(leaf.form.bounds)
    if leaf.form.kind != "integers":
        return math.inf
    low, high = (plain(node) if isinstance(node, ScalarNode) else None for node in leaf.form.bounds)
    # Bounds that are no whole numbers are recorded when the value is checked.
    return high - low if isinstance(low, int) and isinstance(high, int) else math.inf

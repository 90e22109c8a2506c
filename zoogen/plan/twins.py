"""A recipe and the plan of a zoo -> the plan of its twins: one cell per chosen parent and method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zoogen.blueprint.records import Blueprint, SeedPolicy
from zoogen.blueprint.twins import TwinRecipe
from zoogen.core.errors import UserError
from zoogen.core.layout import Layout
from zoogen.core.recipe import Training
from zoogen.core.records import Parent, Recording
from zoogen.core.registry import SCHEDULES
from zoogen.plan.cells import Group, Varying
from zoogen.plan.identity import identity, model_id
from zoogen.plan.plan import Plan

NOISY = frozenset({"Linear", "Conv1d", "Conv2d"})
"""Modules whose weights variational dropout can give noise."""


@dataclass(frozen=True)
class ChosenParents:
    """Parents of twins.

    Attributes:
        cells: Cell numbers in the parent's plan, ascending, int64 [parents].
        epochs: The checkpoint each starts from, int64 [parents].
    """

    cells: np.ndarray
    epochs: np.ndarray


def plan_twins(recipe: TwinRecipe, parent: Plan, chosen: ChosenParents) -> Plan:
    """Every twin of the recipe, with ids that follow from parent, checkpoint and method.

    Raises:
        UserError: an architecture has no weights that could be removed.
    """
    groups, layouts = [], []
    for number, (group, layout) in enumerate(zip(parent.groups, parent.layouts, strict=True)):
        low, high = np.searchsorted(chosen.cells, parent.starts[number : number + 2])
        if high > low:
            _check_prunable(group, layout, recipe)
            cells = chosen.cells[low:high] - parent.starts[number]
            for methods in _by_kind(recipe.methods):
                groups.append(_twins(group, cells, chosen.epochs[low:high], methods, recipe))
                layouts.append(layout)
    return Plan(_blueprint(recipe, parent.blueprint), tuple(groups), tuple(layouts))


def _check_prunable(group: Group, layout: Layout, recipe: TwinRecipe) -> None:
    method, name = recipe.methods[0], group.architecture.registered_name
    able = [e for e in layout.prunable if method.masked or e.module in NOISY]
    if not able:
        raise UserError(
            f"architecture {name!r} has no weights of convolutions or linear layers that "
            f"{method.registered_name} could remove\nchoose other models with --where"
        )
    if len({e.order for e in able}) < 2 and any(m.masked and m.scope == "channels" for m in recipe.methods):
        raise UserError(
            f"architecture {name!r} has one layer, whose channels are the outputs; none of those is removed\n"
            "take another scope (method.scope: global), or choose other models with --where"
        )


def _by_kind(methods: Sequence[Any]) -> list[list[Any]]:
    """Methods apart that cannot train in one cohort."""
    found: dict[Any, list[Any]] = {}
    for method in methods:
        told = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.name not in method.per_model}
        found.setdefault(tuple(told.items()), []).append(method)
    return list(found.values())


def _twins(group: Group, cells: np.ndarray, epochs: np.ndarray, methods: Sequence[Any], recipe: TwinRecipe) -> Group:
    """Twins of some cells of one group of the parent; the methods of one parent follow each other."""
    own = np.repeat(cells, len(methods))
    which = np.tile(np.arange(len(methods), dtype=np.int32), len(cells))
    varying = [
        Varying(v.key, tuple(_scaled(v.key, value, recipe) for value in v.values), v.codes[own])
        for v in group.varying
        if recipe.schedule == "parent" or not v.key.startswith("training.schedule.")
    ]
    varying += _method_factors(methods, which)
    ids = group.ids[cells]
    parents = tuple(_parents(ids[i].decode(), int(epochs[i]), method) for i in range(len(cells)) for method in methods)
    found = Group(
        group.architecture,
        group.task,
        _training(group.training, methods[0], recipe),
        _recording(recipe),
        recipe.resources or group.resources,
        recipe.cohort_size or group.cohort_size,
        tuple(varying),
        group.seeds[own],
        group.apart,
        np.zeros(len(own), dtype="S32"),
        parents,
        None if group.sides is None else group.sides[own],
    )
    jobs = (found.job(cell) for cell in range(len(found)))
    digests = [model_id(identity(j.architecture, j.task, j.training, j.seeds, j.parents)) for j in jobs]
    return replace(found, ids=np.array(digests, dtype="S32"))


def _scaled(key: str, value: Any, recipe: TwinRecipe) -> Any:
    return value * recipe.lr_scale if key == "training.optimizer.lr" else value


def _training(training: Training, method: Any, recipe: TwinRecipe) -> Training:
    optimizer = replace(training.optimizer, lr=training.optimizer.lr * recipe.lr_scale)
    schedule = training.schedule if recipe.schedule == "parent" else SCHEDULES.get("constant")()
    return replace(training, epochs=recipe.epochs, optimizer=optimizer, schedule=schedule, sparsify=method)


def _method_factors(methods: Sequence[Any], which: np.ndarray) -> list[Varying]:
    found = []
    for field in dataclasses.fields(methods[0]):
        column = [getattr(method, field.name) for method in methods]
        values = tuple(dict.fromkeys(column))
        if len(values) > 1:
            codes = np.array([values.index(value) for value in column], dtype=np.int32)
            found.append(Varying(f"training.sparsify.{field.name}", values, codes[which]))
    return found


def _parents(parent_id: str, epoch: int, method: Any) -> tuple[Parent, ...]:
    origin = Parent(parent_id, epoch, "origin")
    return (origin,) if method.rewind is None else (origin, Parent(parent_id, method.rewind, "rewind"))


def _recording(recipe: TwinRecipe) -> Recording:
    return replace(recipe.checkpoints.recording(recipe.epochs), log_alpha=recipe.log_alpha)


def _blueprint(recipe: TwinRecipe, parent: Blueprint) -> Blueprint:
    """What the rest of a build asks of a blueprint."""
    name = recipe.name or f"{parent.name}-{recipe.methods[0].registered_name}"
    return Blueprint(
        name=name,
        version=recipe.version or parent.version,
        text=recipe.text,
        overrides=recipe.overrides,
        strata=(),
        draws=1,
        seeds=SeedPolicy(),
        model_split=parent.model_split,
        axes={},
        description=recipe.description or f"Sparse twins of zoo {parent.name} version {parent.version}.",
    )


def parents_of(plan: Plan) -> Mapping[str, set[int]]:
    """Parent id -> epochs of it that the plan's twins need."""
    found: dict[str, set[int]] = {}
    for group in plan.groups:
        for parents in group.parents:
            for parent in parents:
                found.setdefault(parent.model_id, set()).add(parent.epoch)
    return found

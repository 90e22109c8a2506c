"""From a blueprint to a plan: cells, their groups and layouts, and what training and storing them takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.blueprint.records import Blueprint
from zoogen.core.errors import UserError
from zoogen.core.layout import Layout
from zoogen.core.modules import describe
from zoogen.core.records import Cohort, Job
from zoogen.plan.cells import Group, groups
from zoogen.plan.cohorts import (
    bytes_per_epoch,
    cohort_size,
    kept_optimizer_states,
    make_cohorts,
    make_segments,
    optimizer_bytes,
    state_bytes,
)
from zoogen.plan.table import cell_table, settings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Plan:
    """Every model a blueprint describes, before anything is trained; needs no data at hand."""

    blueprint: Blueprint
    groups: tuple[Group, ...]
    layouts: tuple[Layout, ...]  # one per group

    @cached_property
    def starts(self) -> np.ndarray:
        """First cell number of each group, and the number of cells at the end (int64 [groups + 1])."""
        return np.concatenate([[0], np.cumsum([len(g) for g in self.groups])])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def ids(self) -> np.ndarray:
        """Model ids of all cells, dtype S32 [cells]."""
        return np.concatenate([g.ids for g in self.groups])

    @cached_property
    def order(self) -> np.ndarray:
        """Cell numbers sorted by model id."""
        return np.argsort(self.ids, kind="stable")

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per cell: id, model split, group, seed and every setting by dotted key."""
        return cell_table(self.groups, self.blueprint.model_split)

    @cached_property
    def factors(self) -> Mapping[str, int]:
        """Dotted keys that differ between cells (the seed apart) with their number of values, in blueprint order."""
        values: dict[str, set[str]] = {}
        for group in self.groups:
            varying = {v.key: v.values for v in group.varying}
            for key, value in settings(group).items():
                values.setdefault(key, set()).update(map(repr, varying.get(key, (value,))))
            for key in varying.keys() - values.keys():
                values[key] = set(map(repr, varying[key]))
        return {key: len(seen) for key, seen in values.items() if len(seen) > 1}

    def place(self, cell: int) -> tuple[int, int]:
        """(group number, cell number within the group) of a cell number of the plan."""
        group = int(np.searchsorted(self.starts, cell, side="right")) - 1
        return group, int(cell - self.starts[group])

    def job(self, cell: int) -> Job:
        group, own = self.place(cell)
        return self.groups[group].job(own)

    def cohorts(self, cells: np.ndarray) -> list[Cohort]:
        """Cohorts of these cells (ascending cell numbers), group by group."""
        found: list[Cohort] = []
        for number, (group, layout) in enumerate(zip(self.groups, self.layouts, strict=True)):
            low, high = np.searchsorted(cells, self.starts[number : number + 2])
            if high > low:
                found += make_cohorts(group, cells[low:high] - self.starts[number], layout)
        return found

    @cached_property
    def summary(self) -> Summary:
        return summarise(self)


@dataclass(frozen=True)
class Summary:
    """What a plan takes. Bytes are raw sizes on disk without container overhead (below 5 %)."""

    name: str
    version: int
    models: int
    states: int
    cohorts: int
    shards: int
    optimizer_steps: int
    weight_bytes: int
    optimizer_bytes: int
    prediction_bytes: int
    factors: Mapping[str, int]
    kinds: tuple[Mapping[str, Any], ...]

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.optimizer_bytes + self.prediction_bytes

    def to_json(self) -> dict[str, Any]:
        from dataclasses import asdict

        return {**asdict(self), "kinds": [dict(k) for k in self.kinds], "total_bytes": self.total_bytes}


def make_plan(blueprint: Blueprint) -> Plan:
    """Enumerate a blueprint's cells, hash their ids and describe their layouts.

    Raises:
        UserError: two cells are the same model, or an architecture does not fit its task.
    """
    found = tuple(groups(blueprint))
    layouts = tuple(describe(g.architecture, g.task.input_shape, g.task.outputs) for g in found)
    plan = Plan(blueprint, found, layouts)
    _refuse_twice(plan)
    return plan


def _refuse_twice(plan: Plan) -> None:
    order = plan.order
    same = np.flatnonzero(plan.ids[order][1:] == plan.ids[order][:-1])
    if not len(same):
        return
    first, second = (int(c) for c in order[same[0] : same[0] + 2])
    rows = plan.table.iloc[[first, second]]
    shown = ", ".join(f"{key}={rows[key].iloc[0]}" for key in plan.factors) or "no factor"
    raise UserError(
        f"{len(same)} cells are the same model as another: cells {first} and {second} ({shown}, "
        f"seed {rows['seed'].iloc[0]}) have id {plan.ids[first].decode()}\n"
        "remove the repeated entry from `coupled`, `grid` or `seeds`"
    )


def summarise(plan: Plan) -> Summary:
    """Counts and bytes, summed over groups; no object per cell or cohort."""
    totals = dict.fromkeys(("states", "cohorts", "shards", "steps", "weights", "optimizer", "predictions"), 0)
    kinds: dict[tuple[Any, ...], dict[str, Any]] = {}
    for group, layout in zip(plan.groups, plan.layouts, strict=True):
        models = len(group)
        recording = group.recording
        states = models * len(recording.epochs)
        size = cohort_size(group, layout)
        full, rest = divmod(models, size)
        sizes = [(size, full)] + ([(rest, 1)] if rest else [])
        steps = models * group.training.epochs * group.training.steps_per_epoch(group.task.sizes[0])
        weights = states * state_bytes(layout)
        optimizer = models * kept_optimizer_states(recording) * optimizer_bytes(group, layout)
        totals["states"] += states
        totals["cohorts"] += sum(n for _, n in sizes)
        totals["shards"] += sum(n * _segments(group, layout, s) for s, n in sizes)
        totals["steps"] += steps
        totals["weights"] += weights
        totals["optimizer"] += optimizer
        totals["predictions"] += states * group.task.sizes[2] if recording.test_predictions else 0
        key = (
            group.architecture.registered_name,
            group.task.registered_name,
            layout.parameters,
            group.training.batch_size,
            group.training.epochs,
        )
        kind = kinds.setdefault(
            key,
            {
                **dict(zip(("architecture", "task", "parameters", "batch_size", "epochs"), key, strict=True)),
                "models": 0,
                "states": 0,
                "optimizer_steps": 0,
                "weight_bytes": 0,
            },
        )
        for name, value in (("models", models), ("states", states), ("optimizer_steps", steps)):
            kind[name] += value
        kind["weight_bytes"] += weights
    counts = dict(plan.factors)
    counts["seed"] = int(np.unique(np.concatenate([np.unique(g.seeds) for g in plan.groups])).size)
    return Summary(
        plan.blueprint.name,
        plan.blueprint.version,
        len(plan),
        totals["states"],
        totals["cohorts"],
        totals["shards"],
        totals["steps"],
        totals["weights"],
        totals["optimizer"],
        totals["predictions"],
        counts,
        tuple(kinds.values()),
    )


def _segments(group: Group, layout: Layout, models: int) -> int:
    return len(make_segments("", group.recording.epochs, bytes_per_epoch(group, layout, models)))

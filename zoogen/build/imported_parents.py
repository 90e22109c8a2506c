"""The plan of an imported zoo, from its tables: what its models were trained with, as far as their records say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

import pandas as pd

from zoogen.blueprint.records import Blueprint, ModelSplit, SeedPolicy
from zoogen.core.errors import UserError
from zoogen.core.modules import describe
from zoogen.core.recipe import Training
from zoogen.core.registry import OPTIMIZERS, SCHEDULES
from zoogen.dataset import Zoo
from zoogen.dataset.modules import restore_architecture
from zoogen.dataset.task import restore_task
from zoogen.importers.records.settings import UNKNOWN_SEED
from zoogen.plan import Plan
from zoogen.plan.given import Given, groups_of

_OPTIMIZER = "training.optimizer."


class _Unsaid(Exception):
    """A record leaves something open that training on needs."""


def plan_of_import(zoo: Zoo) -> tuple[Plan, Mapping[str, str]]:
    """A plan of the models that can be trained on; and of the others, by id, what is missing.

    Raises:
        UserError: the zoo was imported without its task.
        IntegrityError: its manifest is damaged.
    """
    if not zoo.manifest["tasks"]:
        raise UserError(
            f"{zoo.path} does not say what its models were trained on\n"
            "import it again, into another folder, with --task"
        )
    tasks = {task_id: restore_task(zoo, task_id) for task_id in zoo.manifest["tasks"]}
    given, unusable = [], {}
    for row in zoo.tables.models.to_dict("records"):
        try:
            given.append(_given(zoo, {str(k): v for k, v in row.items()}, tasks))
        except _Unsaid as error:
            unusable[row["model_id"]] = str(error)
    groups = groups_of(given)
    layouts = tuple(describe(g.architecture, g.task.input_shape, g.task.outputs) for g in groups)
    return Plan(_blueprint(zoo), groups, layouts), unusable


def _given(zoo: Zoo, row: Mapping[str, Any], tasks: Mapping[str, Any]) -> Given:
    described = zoo.architecture(row["architecture_id"])
    if not described.get("input_shape"):
        raise _Unsaid("its network is none of ours, so there is no code to train it with")
    architecture = restore_architecture(described, row)
    parts = (architecture, tasks[row["task_id"]], _training(row))
    # Every model needs streams of its own; where no seed is recorded, its id gives one.
    seed = int(row["seed"]) if row["seed"] != UNKNOWN_SEED else int(row["model_id"][:8], 16)
    return Given(row["model_id"], parts, seed, str(row["split"]))


def _training(row: Mapping[str, Any]) -> Training:
    name, batch_size = _said(row, f"{_OPTIMIZER}name"), _said(row, "training.batch_size")
    if name is None or batch_size is None:
        raise _Unsaid(f"its record names no {'optimizer' if name is None else 'batch size'}")
    optimizer = _entry(OPTIMIZERS, str(name), row, _OPTIMIZER)
    schedule = _entry(SCHEDULES, str(_said(row, "training.schedule.name") or "constant"), row, "training.schedule.")
    epochs = int(_said(row, "training.epochs") or 1)
    return Training(max(1, epochs), int(batch_size), optimizer, schedule)


def _entry(registry: Any, name: str, row: Mapping[str, Any], prefix: str) -> Any:
    """A registered optimizer or schedule with the arguments that are recorded, of those it has."""
    if name not in registry.names():
        raise _Unsaid(f"its {registry.kind} {name!r} is unknown here")
    cls = registry.get(name)
    kinds = get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(cls):
        value = _said(row, prefix + field.name)
        if value is not None:
            arguments[field.name] = float(value) if kinds[field.name] is float else value
        elif field.default is dataclasses.MISSING:
            raise _Unsaid(f"its record names no {field.name}")
    return registry.make(name, arguments)


def _said(row: Mapping[str, Any], name: str) -> Any:
    """A setting as a plain value; None where the record has none."""
    value = row.get(name)
    if value is None or pd.isna(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    # A column with gaps holds whole numbers as floats.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _blueprint(zoo: Zoo) -> Blueprint:
    """What a plan of twins asks of their parents' blueprint."""
    return Blueprint(
        name=zoo.name,
        version=zoo.version,
        text="",
        overrides=(),
        strata=(),
        draws=1,
        seeds=SeedPolicy(),
        model_split=ModelSplit(),
        axes={},
    )

"""The plan of an imported zoo, from its tables: what its models were trained with, as far as their records say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from zoogen.blueprint.fields import FieldSpec, fields_of
from zoogen.blueprint.records import Blueprint, ModelSplit, SeedPolicy
from zoogen.core.errors import UserError
from zoogen.core.modules import describe
from zoogen.core.recipe import Training
from zoogen.core.registry import OPTIMIZERS, SCHEDULES, Registry
from zoogen.dataset import Zoo
from zoogen.dataset.modules import restore_architecture
from zoogen.dataset.task import restore_task
from zoogen.plan import Plan
from zoogen.plan.given import Given, groups_of

_WANTED = {"batch size": "training.batch_size", "optimizer": "training.optimizer.name"}
"""What only a record or a blueprint can say, and its key."""


@dataclass(frozen=True)
class Untrainable:
    """Why a model cannot be trained on, and what helps."""

    reason: str
    remedy: str


class _Unsaid(Exception):
    """A record leaves something open that training on needs: why, and what helps."""

    def __init__(self, reason: str, remedy: str = "correct its record in the source, and import again") -> None:
        super().__init__(reason)
        self.found = Untrainable(reason, remedy)


def plan_of_import(zoo: Zoo) -> tuple[Plan, Mapping[str, Untrainable]]:
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
            unusable[row["model_id"]] = error.found
    groups = groups_of(given)
    layouts = tuple(describe(g.architecture, g.task.input_shape, g.task.outputs) for g in groups)
    return Plan(_blueprint(zoo), groups, layouts), unusable


def _given(zoo: Zoo, row: Mapping[str, Any], tasks: Mapping[str, Any]) -> Given:
    described = zoo.architecture(row["architecture_id"])
    if not described.get("input_shape"):
        raise _Unsaid(
            "its network is none of ours, so there is no code to train it with",
            "import again with architecture.* in its records, where the network is one of ours",
        )
    architecture = restore_architecture(described, row)
    parts = (architecture, tasks[row["task_id"]], _training(row))
    # Every model needs streams of its own; where no seed is recorded, its id gives one.
    seed = int(row["seed"]) if row["seed"] >= 0 else int(row["model_id"][:8], 16)
    return Given(row["model_id"], parts, seed, str(row["split"]))


def _training(row: Mapping[str, Any]) -> Training:
    if absent := [word for word, key in _WANTED.items() if _said(row, key) is None]:
        keys = " and ".join(_WANTED[word].removesuffix(".name") for word in absent)
        raise _Unsaid(
            f"its record names no {' and no '.join(absent)}", f"import again with --task BLUEPRINT.yaml that has {keys}"
        )
    said = _recorded(Training, row, "training.")
    optimizer = _entry(OPTIMIZERS, row, "training.optimizer.", "")
    schedule = _entry(SCHEDULES, row, "training.schedule.", "constant")
    # Twins train for their own epochs; a schedule is sized by those.
    return Training(**{"epochs": 1, **said, "optimizer": optimizer, "schedule": schedule})


def _entry(registry: Registry, row: Mapping[str, Any], prefix: str, default: str) -> Any:
    """A registered optimizer or schedule with the arguments that are recorded, of those it has."""
    name = _said(row, f"{prefix}name") or default
    if name not in registry.names():
        raise _Unsaid(f"its {registry.kind} {str(name)!r:.60} is unknown here")
    cls = registry.get(name)
    said = _recorded(cls, row, prefix)
    if absent := [spec.name for spec in fields_of(cls).values() if spec.required and spec.name not in said]:
        keys = " and ".join(f"{prefix}{argument}" for argument in absent)
        raise _Unsaid(f"its record names no {absent[0]}", f"import again with {keys} in its records")
    try:
        return registry.make(name, said)
    except (UserError, TypeError, ValueError) as error:
        raise _Unsaid(f"its {registry.kind} cannot be made: {str(error).partition(chr(10))[0]}") from None


def _recorded(cls: type, row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The fields of ``cls`` that the record has, of the types and within the limits of a blueprint's."""
    found = {}
    for spec in fields_of(cls).values():
        value = _said(row, prefix + spec.name)
        if value is not None:
            found[spec.name] = _checked(spec, value)
    return found


def _checked(spec: FieldSpec, value: Any) -> Any:
    # Lists are JSON text in tables, and so are numbers in a column where some other model has a word.
    for text in (json.dumps(value), value):
        try:
            if isinstance(text, str):
                return spec.adapter.validate_json(text, strict=True)
        except ValueError:
            continue
    raise _Unsaid(f"its {spec.name.replace('_', ' ')} is {value!r:.60}, not {spec.words}")


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

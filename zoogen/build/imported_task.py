"""What the models of a published zoo were trained on, as whoever imports it says; held against what is recorded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.blueprint import load
from zoogen.blueprint.fields import fields_of
from zoogen.build.manifest import describe_stored_task, task_id
from zoogen.core.errors import EnvironmentFault, UserError
from zoogen.core.recipe import Training
from zoogen.core.registry import TASKS
from zoogen.core.words import counted
from zoogen.importers.records.plausible import plausible
from zoogen.importers.records.settings import plain
from zoogen.importers.source import Network, Source, SourceModel, State, Stored, Unusable
from zoogen.tasks.places import cache_root, data_root
from zoogen.twins.trainer import ACCURACY_WITHIN

if TYPE_CHECKING:
    from zoogen.core.contracts import TaskData

_CHECKED = 8
"""Models whose accuracies are computed again."""

_BLUEPRINTS = (".yaml", ".yml")


@dataclass(frozen=True)
class Trained:
    """What models were trained on.

    Attributes:
        task: The registered entry.
        data: Loaded, or None where the files are not at hand.
        settings: ``training.*`` that a blueprint says of all its models; they stand in where a record says nothing.
        missing: What of the data is not at hand, and where it was looked for.
    """

    task: Any
    data: TaskData | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""

    @property
    def task_id(self) -> str:
        return task_id(self.task)

    def described(self) -> dict[str, Any]:
        """Its entry in ``zoo.json``; the fingerprint is that of data that were at hand."""
        found = describe_stored_task(self.task)
        return found if self.data is None else found | {"fingerprint": self.data.fingerprint}


@dataclass(frozen=True)
class Check:
    """Accuracies computed again: of how many models and states, and how far off the worst was; or why of none."""

    models: int = 0
    states: int = 0
    difference: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        if not self.models:
            return f"no test accuracy was computed again, so nothing says that this is their task: {self.reason}"
        of = f"{counted(self.states, 'state')} of {counted(self.models, 'model')}"
        return f"test accuracy of {of} computed again: as recorded, within {self.difference:.4f}"


def find_task(named: str, data: Path | None, download: bool) -> Trained:
    """The task called ``named``, with its defaults, or that of the blueprint in a file of that name.

    Raises:
        UserError: there is no such task; or the blueprint has several.
        BlueprintError: the blueprint is wrong.
        EnvironmentFault: data that are to be downloaded, or that a folder was named for, are not there.
        IntegrityError: data files are damaged.
    """
    task, settings = _of_blueprint(Path(named)) if named.endswith(_BLUEPRINTS) else (_by_name(named), {})
    try:
        return Trained(task, task.load(data_root(data), cache_root(), download=download), settings)
    except EnvironmentFault as error:
        if download or data is not None:
            raise
        return Trained(task, None, settings, str(error).splitlines()[0])


def with_settings(model: SourceModel, trained: Trained) -> SourceModel:
    """The model with what its record leaves open; arguments of optimizer and schedule only where it names none."""
    named = tuple(
        f"training.{part}." for part in ("optimizer", "schedule") if f"training.{part}.name" in model.settings
    )
    open_ones = {k: v for k, v in trained.settings.items() if k not in model.settings and not k.startswith(named)}
    return replace(model, settings={**model.settings, **open_ones, "task.name": trained.task.registered_name})


def check_accuracies(trained: Trained, source: Source, models: Sequence[SourceModel]) -> Check:
    """Compute the test accuracy of some models again, and hold it against their records.

    Up to eight models, evenly spread over those whose network is known, two states of each: the last one with a test
    accuracy, and the one where it changes most, which tells whether the records belong to these epochs.

    Raises:
        UserError: the networks take other inputs or give other classes than the task, or do not score on it as
            recorded: it is not what they were trained on, or not with this transform.
    """
    for model in models:
        if model.network is not None:
            _check_fits(trained.task, model, model.network)
    if trained.data is None:
        return Check(reason=f"the data are not at hand ({trained.missing})")
    if not trained.data.size("test"):
        return Check(reason="the task has no test samples")
    found: list[tuple[float, str, int, float]] = []
    checked = 0
    for model, network, told in _recorded(source, models):
        if checked == _CHECKED:
            break
        own = []
        for stored in (s for s in model.checkpoints if s.epoch in told):
            if (state := _finite(source, model, stored)) is not None:
                off = abs(_accuracy(network, state, trained.data) - told[stored.epoch])
                own.append((off, model.key, stored.epoch, told[stored.epoch]))
        found += own
        checked += bool(own)
    if not found:
        return Check(reason="no model of a known network has a test accuracy between 0 and 1 on record")
    difference, key, epoch, told_then = max(found)
    if difference > ACCURACY_WITHIN:
        off = len({key for difference, key, *_ in found if difference > ACCURACY_WITHIN})
        raise UserError(
            f"{off} of {checked} models do not score on task {trained.task.registered_name!r} what their records "
            f"say: {key} has a recorded test accuracy of {told_then:.4f} at epoch {epoch}, here it is off by "
            f"{difference:.4f}\n"
            "name the task, with the transform, that they were trained on: --task BLUEPRINT.yaml takes one with its "
            "arguments; or leave --task out"
        )
    return Check(checked, len(found), difference)


def _by_name(name: str) -> Any:
    if needed := [spec.name for spec in fields_of(TASKS.get(name)).values() if spec.required]:
        raise UserError(f"task {name!r} needs {', '.join(needed)}\nname a blueprint that has it: --task BLUEPRINT.yaml")
    return TASKS.make(name, {})


def _of_blueprint(path: Path) -> tuple[Any, dict[str, Any]]:
    """Its task, and the settings of training that are the same for all its models."""
    blueprint = load(path)
    varies = {factor.key for stratum in blueprint.strata for factor in stratum.factors}
    tasks = {stratum.task for stratum in blueprint.strata}
    if len(tasks) != 1 or any(key.startswith("task.") for key in varies):
        raise UserError(
            f"{path} has several tasks, and the models of an import were trained on one\n"
            "copy the blueprint, and leave one of them in it"
        )
    each = [_training_settings(stratum.training) for stratum in blueprint.strata]
    same = {k: v for k, v in each[0].items() if all(one.get(k) == v for one in each) and v is not None}
    if "training.optimizer.name" in varies or "training.optimizer.name" not in same:
        same = {k: v for k, v in same.items() if not k.startswith("training.optimizer.")}
    return tasks.pop(), {k: v for k, v in same.items() if k not in varies}


def _training_settings(training: Training) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in fields_of(Training).values():
        value = getattr(training, one.name)
        if not hasattr(value, "registered_name"):
            found[f"training.{one.name}"] = value
            continue
        found[f"training.{one.name}.name"] = value.registered_name
        found |= {f"training.{one.name}.{f.name}": plain(getattr(value, f.name)) for f in fields(value)}
    return found


def _check_fits(task: Any, model: SourceModel, network: Network) -> None:
    given, taken = (tuple(task.input_shape), task.outputs), (tuple(network.input_shape), network.outputs)
    if given != taken:
        raise UserError(
            f"{model.key} takes inputs {list(taken[0])} and has {taken[1]} outputs, task {task.registered_name!r} "
            f"gives {list(given[0])} and {given[1]} classes\nname the task with the transform they were trained on: "
            "--task BLUEPRINT.yaml takes one with its arguments (size, grey, ...)"
        )


def _recorded(source: Source, models: Sequence[SourceModel]) -> Iterator[tuple[SourceModel, Network, dict[int, float]]]:
    """Models that can be built and have test accuracies, well spread ones first; and one or two of these, by epoch."""
    for model in _spread([m for m in models if m.network is not None]):
        told = plausible(source.measured(model)).by_epoch
        accuracies = {s.epoch: told.get(s.epoch, {}).get("test_acc", math.nan) for s in model.checkpoints}
        known = {epoch: value for epoch, value in accuracies.items() if value == value}
        if known:
            jumps = {later: abs(known[later] - known[before]) for before, later in pairwise(sorted(known))}
            chosen = {max(known), max(jumps, key=lambda e: jumps[e], default=max(known))}
            yield model, model.network, {epoch: known[epoch] for epoch in chosen}  # type: ignore[misc]


def _finite(source: Source, model: SourceModel, stored: Stored) -> State | None:
    """A state that can be read; None also where it is not finite: the model diverged."""
    try:
        state = source.state(model, stored)
    except Unusable:
        return None
    return state if all(bool(tensor.isfinite().all()) for tensor in state.tensors.values()) else None


def _spread(models: Sequence[SourceModel]) -> Iterable[SourceModel]:
    """All of them: first eight from the first to the last, evenly, then the others."""
    first = dict.fromkeys(round(i) for i in np.linspace(0, len(models) - 1, min(_CHECKED, len(models))).tolist())
    return (models[i] for i in (*first, *(i for i in range(len(models)) if i not in first)))


def _accuracy(network: Network, state: State, data: TaskData) -> float:
    import torch

    module = network.architecture.build(network.input_shape, network.outputs)
    module.load_state_dict(dict(state.tensors), strict=True)
    module.eval()
    inputs, targets = data.tensors("test", "cpu")
    hits = 0
    with torch.no_grad():
        for inputs_B, targets_B in zip(inputs.split(500), targets.split(500), strict=True):
            hits += int((module(data.prepare(inputs_B)).argmax(1) == targets_B).sum())
    return hits / len(targets)

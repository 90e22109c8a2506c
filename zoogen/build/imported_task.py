"""What the models of a published zoo were trained on, as whoever imports it says; held against what is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoogen.blueprint import load
from zoogen.build.manifest import describe_stored_task, task_id
from zoogen.core.errors import EnvironmentFault, UserError
from zoogen.core.registry import TASKS
from zoogen.importers.source import Network, Source, SourceModel, State, Unusable
from zoogen.tasks.places import cache_root, data_root
from zoogen.twins.trainer import ACCURACY_WITHIN

if TYPE_CHECKING:
    from zoogen.core.contracts import TaskData

_CHECKED = 8
"""Models whose accuracy is computed again."""

_BLUEPRINTS = (".yaml", ".yml")


@dataclass(frozen=True)
class Trained:
    """A task that models were trained on.

    Attributes:
        task: The registered entry.
        data: Loaded, or None where the files are not at hand.
    """

    task: Any
    data: TaskData | None

    @property
    def task_id(self) -> str:
        return task_id(self.task)

    def described(self) -> dict[str, Any]:
        """Its entry in ``zoo.json``; the fingerprint is that of data that were at hand."""
        found = describe_stored_task(self.task)
        return found if self.data is None else found | {"fingerprint": self.data.fingerprint}


@dataclass(frozen=True)
class Check:
    """Accuracies computed again: of how many models, and how far off the worst was."""

    models: int
    difference: float


def find_task(named: str, data: Path | None, download: bool) -> Trained:
    """The task called ``named``, with its defaults, or that of the blueprint in a file of that name.

    Raises:
        UserError: there is no such task; or the blueprint has several.
        BlueprintError: the blueprint is wrong.
        EnvironmentFault: data are to be downloaded and cannot be.
        IntegrityError: data files are damaged.
    """
    task = _of_blueprint(Path(named)) if named.endswith(_BLUEPRINTS) else TASKS.make(named, {})
    try:
        return Trained(task, task.load(data_root(data), cache_root(), download=download))
    except EnvironmentFault:
        if download:
            raise
        return Trained(task, None)


def check_accuracies(trained: Trained, source: Source, models: Sequence[SourceModel]) -> Check | None:
    """Compute the test accuracy of some models again, and hold it against their records; None: nothing to hold.

    Up to eight models, evenly spread over those whose network is known and whose last checkpoint has a test accuracy.

    Raises:
        UserError: the networks take other inputs or give other classes than the task, or do not score on it as
            recorded: it is not what they were trained on, or not with this transform.
    """
    for model in models:
        if model.network is not None:
            _check_fits(trained.task, model, model.network)
    if trained.data is None or not trained.data.size("test"):
        return None
    found = [
        (abs(_accuracy(network, state, trained.data) - told), model.key, told)
        for model, network, state, told in islice(_recorded(source, models), _CHECKED)
    ]
    if not found:
        return None
    difference, key, told = max(found)
    if difference > ACCURACY_WITHIN:
        off = sum(d > ACCURACY_WITHIN for d, *_ in found)
        raise UserError(
            f"{off} of {len(found)} models do not score on task {trained.task.registered_name!r} what their records "
            f"say: {key} has a recorded test accuracy of {told:.4f}, here it is off by {difference:.4f}\n"
            "name the task, with the transform, that they were trained on: --task BLUEPRINT.yaml takes one with its "
            "arguments; or leave --task out"
        )
    return Check(len(found), difference)


def _of_blueprint(path: Path) -> Any:
    strata = load(path).strata
    varies = any(factor.key.startswith("task.") for stratum in strata for factor in stratum.factors)
    tasks = {stratum.task for stratum in strata}
    if varies or len(tasks) != 1:
        raise UserError(
            f"{path} has several tasks, and the models of an import were trained on one\n"
            "copy the blueprint, and leave one of them in it"
        )
    return tasks.pop()


def _check_fits(task: Any, model: SourceModel, network: Network) -> None:
    given, taken = (tuple(task.input_shape), task.outputs), (tuple(network.input_shape), network.outputs)
    if given != taken:
        raise UserError(
            f"{model.key} takes inputs {list(taken[0])} and has {taken[1]} outputs, task {task.registered_name!r} "
            f"gives {list(given[0])} and {given[1]} classes\nname the task with the transform they were trained on: "
            "--task BLUEPRINT.yaml takes one with its arguments (size, grey, ...)"
        )


def _recorded(source: Source, models: Sequence[SourceModel]) -> Iterator[tuple[SourceModel, Network, State, float]]:
    """Models whose last checkpoint can be evaluated and has a test accuracy, well spread ones first."""
    for model in _spread([m for m in models if m.network is not None]):
        last = model.checkpoints[-1]
        told = source.measured(model).by_epoch.get(last.epoch, {}).get("test_acc")
        if told is None or not 0 <= told <= 1:
            continue
        try:
            yield model, model.network, source.state(model, last), told  # type: ignore[misc]
        except Unusable:
            continue


def _spread(models: Sequence[SourceModel]) -> Iterable[SourceModel]:
    """All of them: first eight that lie evenly, then the eight after these, and so on."""
    step = max(1, len(models) // _CHECKED)
    return (models[i] for first in range(step) for i in range(first, len(models), step))


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

"""Scores of many networks at once on the data their zoo was trained on: stored states, or any weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoogen.core.contracts import PartName
from zoogen.core.errors import UserError
from zoogen.core.layout import Layout
from zoogen.dataset import functional
from zoogen.dataset.devices import usable_device
from zoogen.dataset.functional import Functional, Stacked

if TYPE_CHECKING:
    import pandas as pd

    from zoogen.dataset.selection import Selection
    from zoogen.dataset.task import ZooTask
    from zoogen.dataset.zoo import Zoo

# Input elements of one batch of samples, as in training's evaluation; and of all networks computed together.
_BATCH = {"cpu": 2**19, "cuda": 2**20}
_TOGETHER = {"cpu": 2**22, "cuda": 2**23}
_WEIGHTS = 2**24  # float32 elements of the states that are held at once

_HALF = ("bfloat16", "float16")


class Scores(NamedTuple):
    """Attributes:
    loss: float64 [n], mean in nats; NaN without samples.
    acc: float64 [n], share of samples classified correctly; NaN without samples.
    predictions: int64 [n, N], the class with the largest output.
    """

    loss: np.ndarray
    acc: np.ndarray
    predictions: np.ndarray


@dataclass(frozen=True)
class Scorer:
    """Evaluates networks of one kind on one part of a task.

    Attributes:
        network: What they compute.
        layout: Of their tensors.
        task, part: The samples.
        device: torch device.
        precision: Of the training (``training.precision``), so that scores are those of the training's evaluation.
    """

    network: Functional
    layout: Layout
    task: ZooTask
    part: PartName
    device: torch.device
    precision: str

    @property
    def batch(self) -> int:
        """Samples computed at once."""
        samples = max(1, self.task.size(self.part))
        return min(samples, max(1, _BATCH.get(self.device.type, _BATCH["cpu"]) // prod(self.task.task.input_shape)))

    @property
    def held(self) -> int:
        """States whose weights are held at once."""
        return max(1, _WEIGHTS // max(1, self.layout.parameters))

    @property
    def together(self) -> int:
        """Networks computed at once."""
        # In 16 bits vmap rounds a linear layer once more, before its bias is added, than training's evaluation does.
        if self.precision in _HALF:
            return 1
        # Grouped convolutions, which vmap makes of them, take a CPU about twice the time of one after another.
        if self.device.type == "cpu" and any(e.module.startswith("Conv") for e in self.layout.entries):
            return 1
        elements = self.batch * prod(self.task.task.input_shape)
        return max(1, min(self.held, _TOGETHER.get(self.device.type, _TOGETHER["cpu"]) // elements))

    # Not inference_mode: what a task caches while it prepares a batch may be used for training later.
    @torch.no_grad()
    def __call__(self, states: Stacked, count: int) -> Scores:
        """Scores of ``count`` networks with these tensors, [count, *shape] each."""
        with _arithmetic(self.precision, self.device):
            parts = [self._score(_rows(states, start, self.together)) for start in range(0, count, self.together)]
        return Scores(*map(np.concatenate, zip(*parts, strict=True)))

    def _score(self, states: Stacked) -> Scores:
        inputs, targets = self.task.data.tensors(self.part, self.device)
        if not len(inputs):
            never = np.full(_count(states), np.nan)
            return Scores(never, never, np.empty((len(never), 0), np.int64))
        losses, classes = [], []
        for inputs_B, targets_B in zip(inputs.split(self.batch), targets.split(self.batch), strict=True):
            outputs_MBC = self._outputs(states, self.task.prepare(inputs_B))
            models = len(outputs_MBC)
            losses.append(self.task.data.loss(outputs_MBC.flatten(0, 1), targets_B.repeat(models)).view(models, -1))
            classes.append(outputs_MBC.argmax(2))
        losses_MN, classes_MN = torch.cat(losses, 1), torch.cat(classes, 1)
        hits_MN = (classes_MN == targets).double()
        found = (losses_MN.double().mean(1), hits_MN.mean(1), classes_MN)
        return Scores(*(tensor.cpu().numpy() for tensor in found))

    def _outputs(self, states: Stacked, inputs_B: Tensor) -> Tensor:
        """Outputs [M, B, C] of M networks for the same inputs."""
        function, count = self.network.function, _count(states)
        if count > 1:
            try:
                return torch.func.vmap(function, in_dims=(0, 0, None))(states.params, states.buffers, inputs_B)
            except RuntimeError:
                # Control flow on values, say, or a GPU without room; what is wrong besides, the loop raises again.
                pass
        rows = (_rows(states, i, 1) for i in range(count))
        return torch.stack([function(_first(row.params), _first(row.buffers), inputs_B) for row in rows])


def evaluate(
    zoo: Zoo,
    selection: Selection,
    part: PartName,
    *,
    predictions: bool,
    task: ZooTask | None,
    device: str,
    allow: Sequence[str],
) -> pd.DataFrame:
    """See ``Zoo.evaluate``."""
    import pandas as pd

    if selection.zoo is not zoo:
        raise UserError(f"the selection is of zoo {selection.zoo.name!r} at {selection.zoo.path}, evaluate it there")
    place = usable_device(device)
    about = selection.joined("architecture_id", "task_id", *_precision_column(zoo))
    table = about[["model_id", "epoch"]].assign(loss=np.nan, acc=np.nan)
    classes: list[Any] = [None] * len(table)
    kinds = about[["architecture_id", "task_id"]].assign(precision=about.get("training.precision", "float32"))
    for _, group in kinds.groupby(list(kinds), sort=False, dropna=False, observed=True):
        places = group.index.to_numpy()
        scorer = _scorer(zoo, about["model_id"][places[0]], part, place, task, allow)
        for start in range(0, len(places), scorer.held):
            some = places[start : start + scorer.held]
            found = _score_stored(scorer, zoo, selection, some, allow)
            table.loc[some, ["loss", "acc"]] = np.stack([found.loss, found.acc], axis=1)
            for row, chosen in zip(some.tolist(), _small(found.predictions, scorer), strict=True):
                classes[row] = chosen if predictions else None
    return table.assign(predictions=pd.Series(classes, dtype=object)) if predictions else table


def evaluate_weights(
    zoo: Zoo,
    weights: np.ndarray | Tensor,
    like: str | None,
    part: PartName,
    *,
    predictions: bool,
    task: ZooTask | None,
    device: str,
    allow: Sequence[str],
) -> pd.DataFrame:
    """See ``Zoo.evaluate_weights``."""
    import pandas as pd

    scorer = _scorer(zoo, functional.model_like(zoo, like), part, usable_device(device), task, allow)
    matrix = torch.as_tensor(weights)
    width = scorer.layout.parameters
    if matrix.ndim != 2 or matrix.shape[1] != width or not matrix.is_floating_point():
        raise UserError(
            f"weights are {str(matrix.dtype).removeprefix('torch.')} {list(matrix.shape)}, this architecture takes "
            f"floating point [n, {width}]: one row per network, as Selection.weights() gives them"
        )
    parts = [Scores(np.empty(0), np.empty(0), np.empty((0, scorer.task.size(part)), np.int64))]
    for rows in matrix.detach().split(scorer.held) if len(matrix) else ():
        # Side tensors (counters, indices) and buffers that no state holds are those of the template.
        states = functional.stack_rows(scorer.layout, {"float32": rows.to(scorer.device, torch.float32)})
        parts.append(scorer(states, len(rows)))
    found = Scores(*map(np.concatenate, zip(*parts, strict=True)))
    # Of outputs that are no numbers the largest is the first class: no accuracy of anything.
    table = pd.DataFrame({"loss": found.loss, "acc": np.where(np.isfinite(found.loss), found.acc, np.nan)})
    return table.assign(predictions=list(_small(found.predictions, scorer))) if predictions else table


def _score_stored(scorer: Scorer, zoo: Zoo, selection: Selection, places: np.ndarray, allow: Sequence[str]) -> Scores:
    some = type(selection)(zoo, selection.rows[places])
    states = functional.stack_states(some, scorer.device)
    if names := functional.unstored(scorer.network.template):
        ids = some.checkpoints["model_id"].tolist()
        own = functional.stack_unstored(zoo, ids, names, allow)
        states.buffers.update({name: tensor.to(scorer.device) for name, tensor in own.items()})
    return scorer(states, len(some))


def _scorer(
    zoo: Zoo,
    model_id: str,
    part: PartName,
    device: torch.device,
    task: ZooTask | None,
    allow: Sequence[str],
) -> Scorer:
    """For networks like this model, on its task, in the precision of its training."""
    (row,) = zoo.tables.models.take(np.flatnonzero(zoo.tables.ids == model_id)).to_dict("records")
    entry = zoo.architecture(row["architecture_id"])
    task = _own_task(zoo, row["task_id"]) if task is None else task
    task.size(part)  # a wrong name of a part is told before anything is built
    if (list(entry["input_shape"]), entry["outputs"]) != (list(task.task.input_shape), task.task.outputs):
        raise UserError(
            f"model {model_id} takes {entry['input_shape']} and has {entry['outputs']} outputs, task "
            f"{task.task.registered_name!r} has samples {list(task.task.input_shape)} of {task.task.outputs} classes"
        )
    network = functional.functional_of(zoo.module(model_id, allow=allow).to(device))
    layout = zoo.layout(entry["layout"])
    return Scorer(network, layout, task, part, device, str(row.get("training.precision", "float32")))


def _own_task(zoo: Zoo, task_id: Any) -> ZooTask:
    if not isinstance(task_id, str):
        raise UserError(
            f"zoo {zoo.name!r} does not record what these models were trained on\n"
            "give the data: evaluate(..., task=ZooTask(...)), see zoogen.dataset.task"
        )
    return zoo.task(task_id)


def _precision_column(zoo: Zoo) -> list[str]:
    return ["training.precision"] if "training.precision" in zoo.tables.models else []


def _small(predictions: np.ndarray, scorer: Scorer) -> np.ndarray:
    """The smallest unsigned type that counts the classes, as the store keeps predictions."""
    return predictions.astype(np.min_scalar_type(max(0, scorer.task.task.outputs - 1)))


@contextmanager
def _arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """The arithmetic of a training's evaluation: TF32 for ``tf32`` only (torch's own default has it in convolutions),
    autocast for 16-bit ones; restored at the end.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, dtype=getattr(torch, precision)) if precision in _HALF else nullcontext():
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _rows(states: Stacked, start: int, count: int) -> Stacked:
    return Stacked(*({name: tensor[start : start + count] for name, tensor in part.items()} for part in states))


def _first(tensors: functional.Tensors) -> functional.Tensors:
    return {name: tensor[0] for name, tensor in tensors.items()}


def _count(states: Stacked) -> int:
    return len(next(iter({**states.params, **states.buffers}.values())))

"""What trains a block of models at once: rows of weights in, rows of weights out, nothing kept in between.

Shape suffixes of this folder: M models, P parameters of a row, S steps, B samples of a batch, N samples of a part,
C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from zoogen.core.contracts import PartName
from zoogen.core.records import Job


class Unsupported(Exception):
    """An engine cannot train these models; the message says which layer or setting is why."""


class NothingToCompileWith(Unsupported):
    """The machine lacks a compiler: the same models would be trained faster where there is one."""


@dataclass(frozen=True)
class Rows:
    """Models at the end of an epoch, stacked; row m of every tensor is model m.

    Attributes:
        weights: [M, P], flat in the order of the layout; float32, or float64 where an engine is tested.
        side: Tensors of other dtypes by dtype name, [M, K].
        optimizer: State by torch's names as ``optimizer_state.flat_state`` has it, [M, P_trainable], and ``step``
            [M, tensors]; empty before the first step.
        kept: bool [M, W], which prunable weights are left, for models that are pruned: an engine changes none of the
            others, which are 0, and counts their gradient as 0. It does not change itself while an epoch trains.
    """

    weights: Tensor
    side: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, models: Sequence[int]) -> Rows:
        """Copies of some rows."""
        index = torch.tensor(models, dtype=torch.int64, device=self.weights.device)
        return Rows(
            self.weights[index],
            {name: rows[index] for name, rows in self.side.items()},
            {name: rows[index] for name, rows in self.optimizer.items()},
            None if self.kept is None else self.kept[index],
        )

    def put(self, models: Sequence[int], new: Rows) -> Rows:
        """These rows with some replaced; optimizer state that appears for the first time is 0 elsewhere; masks stay."""
        index = torch.tensor(models, dtype=torch.int64, device=self.weights.device)

        def merge(old: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
            blank = {name: rows.new_zeros(len(self), *rows.shape[1:]) for name, rows in own.items() if name not in old}
            merged = {**old, **blank}
            return {n: rows.index_copy(0, index, own[n]) if n in own else rows for n, rows in merged.items()}

        weights = self.weights.index_copy(0, index, new.weights)
        return Rows(weights, merge(self.side, new.side), merge(self.optimizer, new.optimizer), self.kept)


@dataclass(frozen=True)
class Scores:
    """An evaluation in eval mode: ``losses`` float32 [M, N] in nats, ``predictions`` int64 [M, N]."""

    losses: Tensor
    predictions: Tensor


class Engine(Protocol):
    """Made for one kind of models (all that a cohort holds) on one device; calls are independent of each other.

    What happens to a model depends on its own row, job and epoch only, never on its neighbours.
    """

    name: ClassVar[str]

    def train_epoch(
        self, jobs: Sequence[Job], rows: Rows, epoch: int, should_stop: Callable[[], bool]
    ) -> tuple[Rows, Mapping[str, Tensor]]:
        """One epoch after ``epoch`` completed ones.

        Returns:
            The rows after it, and ``TRAINING_METRICS``, float64 [M] on the CPU.

        Raises:
            Incomplete: ``should_stop()`` said so between two steps.
            torch.OutOfMemoryError: fewer models at once may fit.
        """
        ...

    def evaluate(
        self, jobs: Sequence[Job], rows: Rows, part: PartName, first: int, label_smoothing: Sequence[float]
    ) -> Scores:
        """Evaluate on the ``first`` samples of a part (-1: all), in their order.

        Args:
            label_smoothing: Of the reported loss, one per model.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What was chosen inside, JSON-able: variants of layers, vector width."""
        ...

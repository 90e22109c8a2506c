"""Stored states as a ``torch.utils.data.Dataset``: for training on a zoo with torch's samplers and data loaders."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from zoogen.core.errors import UserError
from zoogen.dataset.reading import Reading
from zoogen.dataset.shards import Shards, States
from zoogen.dataset.targets import Targets, make_targets

if TYPE_CHECKING:
    from zoogen.dataset.selection import Selection

Sample = tuple[Tensor, Any]


class StatesDataset(Dataset[Sample]):
    """Weights and what belongs to them, read on access; made by ``Selection.dataset``.

    Each process opens its own files, so a data loader may use workers. Batches are read shard by shard.

    Attributes:
        parameters: P, the length of a weights row.
        classes: Values that int64 targets count, or empty where targets are numbers or metadata.
    """

    def __init__(self, shards: Shards, states: States, how: Reading, targets: Targets) -> None:
        self.parameters = how.width
        self.classes = targets.classes
        self._shards = shards
        self._states = states
        self._how = how
        self._targets = targets

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, index: int) -> Sample:
        """(weights [P], target), or (weights, {"model_id": ..., "epoch": ..., factors})."""
        try:
            index = operator.index(index)
        except TypeError:
            raise UserError(
                f"a state is taken by its number, got {index!r}\n"
                "several: torch.utils.data.Subset(dataset, range(0, 3)), or selection.weights()"
            ) from None
        if not -len(self) <= index < len(self):
            raise IndexError(f"the dataset has {len(self)} states, asked for number {index}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several states at once, as a data loader asks for them."""
        places = np.asarray(indices, dtype=np.int64)
        weights = self._how.tensor(self._shards, self._states.take(places))
        return [(row, self._targets.one(place)) for row, place in zip(weights, places.tolist(), strict=True)]


def make_dataset(selection: Selection, target: str | None, how: Reading) -> StatesDataset:
    """See ``Selection.dataset``."""
    return StatesDataset(Shards(selection.zoo.path), selection.states(), how, make_targets(selection, target))

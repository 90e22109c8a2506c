"""Stored states as a ``torch.utils.data.Dataset``: for training on a zoo with torch's data loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoogen.core.errors import UserError
from zoogen.dataset import filters
from zoogen.dataset.shards import Shards, States

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

    def __init__(
        self,
        shards: Shards,
        states: States,
        columns: np.ndarray | None,
        parameters: int,
        targets: Tensor | None,
        metadata: Mapping[str, np.ndarray],
        classes: tuple[Any, ...] = (),
    ) -> None:
        self.parameters = parameters
        self.classes = classes
        self._shards = shards
        self._states = states
        self._columns = columns
        self._targets = targets
        self._metadata = metadata

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, index: int) -> Sample:
        """(weights float32 [P], target), or (weights, {"model_id": ..., "epoch": ..., factors})."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"the dataset has {len(self)} states, asked for number {index}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several states at once, as a data loader asks for them."""
        places = np.asarray(indices, dtype=np.int64)
        weights = torch.from_numpy(self._shards.weights(self._states.take(places), self._columns, self.parameters))
        return [(row, self._about(place)) for row, place in zip(weights, places.tolist(), strict=True)]

    def _about(self, place: int) -> Any:
        if self._targets is not None:
            return self._targets[place]
        return {name: _plain(values[place]) for name, values in self._metadata.items()}


def make_dataset(selection: Selection, target: str | None, columns: np.ndarray | None) -> StatesDataset:
    """See ``Selection.dataset``."""
    zoo = selection.zoo
    parameters = selection.layout.parameters if columns is None else len(columns)
    parts = (Shards(zoo.path), selection.states(), columns, parameters)
    if target is None:
        table = selection.joined()
        names = ["model_id", "epoch", *zoo.factors, "seed", "split"]
        return StatesDataset(*parts, None, {name: table[name].to_numpy(object) for name in names})
    known = [c for c in zoo.tables.checkpoints.columns if c not in ("shard_id", "row")]
    models = [f"{filters.FINAL}{c}" if c in known else c for c in zoo.tables.models.columns]
    name = filters.resolve(target, [*known, *models])
    column = filters.state_columns(zoo.tables, [name], selection.rows)[name]
    if column.isna().any():
        raise UserError(
            f"{name} is missing for {int(column.isna().sum())} of {len(column)} states\n"
            f'leave them out: .select("`{name}` != null")'
        )
    if column.dtype.kind in "iuf":
        return StatesDataset(*parts, torch.tensor(column.to_numpy(np.float32)), {})
    values = column.to_numpy(object)
    try:
        classes = tuple(sorted(set(values.tolist())))
    except TypeError:
        raise UserError(f"{name} holds several numbers per state, a target is one value") from None
    codes = {value: code for code, value in enumerate(classes)}
    return StatesDataset(*parts, torch.tensor([codes[v] for v in values.tolist()]), {}, classes)


def _plain(value: Any) -> Any:
    """What torch's ``default_collate`` takes: text, or a number (NaN: the model has no such setting)."""
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    return float("nan")

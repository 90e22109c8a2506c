"""Stored states as a ``torch.utils.data.IterableDataset`` of batches, read in large sequential pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from zoogen.core.errors import UserError
from zoogen.dataset.reading import Reading
from zoogen.dataset.resumable import Resumable
from zoogen.dataset.shards import Shards
from zoogen.dataset.targets import Targets, make_targets
from zoogen.dataset.windows import Order

if TYPE_CHECKING:
    import numpy as np

    from zoogen.dataset.selection import Selection


class StateStream(Resumable):
    """Batches (weights [batch, P], target); made by ``Selection.stream``. ``len`` is the number of batches per epoch.

    One window of states (see ``Selection.stream``) is in memory at a time. Each process opens its own files; with
    workers and shuffling every worker reads every window, so one worker is as good as several.

    Attributes:
        parameters: P, the length of a weights row.
        layout_id: Of the states.
        classes: Values that int64 targets count, or empty where targets are numbers or metadata.
    """

    def __init__(self, shards: Shards, how: Reading, targets: Targets, order: Order, device: torch.device) -> None:
        super().__init__()
        self.parameters = how.width
        self.layout_id = order.states.layout_id
        self.classes = targets.classes
        self.targets = targets
        self._shards = shards
        self._how = how
        self._order = order
        self._device = device
        self._window: tuple[tuple[int, int], Tensor, np.ndarray, list[np.ndarray]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_window": None}

    def __len__(self) -> int:
        return self._order.batches

    def fingerprint(self) -> str:
        return self._order.fingerprint()

    def batch(self, epoch: int, number: int) -> tuple[Tensor, Any]:
        """Batch ``number`` of an epoch: a function of these two, whatever was read before.

        Raises:
            IntegrityError: a shard is damaged; the message names it.
            UserError: another device than the CPU in a worker of a data loader.
        """
        if self._device.type != "cpu" and get_worker_info() is not None:
            raise UserError(
                f"workers make batches on the CPU, not on {self._device}\n"
                "take num_workers=0, or move the batches that the data loader gives"
            )
        per_window = self._order.batches_per_window
        wanted = (epoch, number // per_window)
        if self._window is None or self._window[0] != wanted:
            self._window = None  # gone before the next one comes: one window at a time
            places, batches = self._order.window(*wanted)
            weights = self._how.tensor(self._shards, self._order.states.take(places))
            self._window = wanted, weights, places, batches
        _, weights, places, batches = self._window
        chosen = batches[number % per_window]
        # In order, a batch is a part of its window: a slice of it is no copy.
        picked = torch.from_numpy(chosen) if self._order.shuffle else slice(int(chosen[0]), int(chosen[-1]) + 1)
        return weights[picked].to(self._device), _moved(self.targets.batch(places[chosen]), self._device)


def make_stream(selection: Selection, target: str | None, how: Reading, order: Order, device: Any) -> StateStream:
    """See ``Selection.stream``."""
    targets = make_targets(selection, target)
    return StateStream(Shards(selection.zoo.path), how, targets, order, torch.device(device))


def _moved(target: Any, device: torch.device) -> Any:
    if isinstance(target, Tensor):
        return target.to(device)
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in target.items()}

"""Stored states as a ``torch.utils.data.IterableDataset`` of batches, read in large sequential pieces."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from zoogen.core.errors import UserError
from zoogen.dataset.devices import usable_device
from zoogen.dataset.reading import Reading, Weights
from zoogen.dataset.resumable import Resumable
from zoogen.dataset.shards import Shards
from zoogen.dataset.targets import Targets, make_targets
from zoogen.dataset.window_reader import WindowReader
from zoogen.dataset.windows import Order

if TYPE_CHECKING:
    import numpy as np

    from zoogen.dataset.selection import Selection


class StateStream(Resumable):
    """Batches (weights [batch, P], target); made by ``Selection.stream``. ``len`` is the number of batches per epoch.

    Two windows of states (see ``Selection.stream``) are in memory: the one that batches are taken from, and the next,
    which a thread reads meanwhile. Each process opens its own files; with workers and shuffling every worker reads
    every window, so one worker is as good as several.

    Attributes:
        parameters: P, the length of a weights row.
        layout_id: Of the states.
        classes: Values that int64 targets count, or empty where targets are numbers or metadata.
        selection: Its states; None in a copy, which is often one in another process.
    """

    def __init__(
        self, selection: Selection, how: Reading, targets: Targets, order: Order, device: torch.device
    ) -> None:
        super().__init__()
        self.selection: Selection | None = selection
        self.parameters = how.width
        self.layout_id = order.states.layout_id
        self.classes = targets.classes
        self.targets = targets
        self._windows = WindowReader(Shards(selection.zoo.path), how, order)
        self._order = order
        self._device = device

    def __getstate__(self) -> dict[str, Any]:
        # Of its own also where the copy stays in this process: a thread of this stream may be reading.
        # And without tables, which would go to every worker that is spawned.
        return {**self.__dict__, "_windows": copy(self._windows), "selection": None}

    def __len__(self) -> int:
        return self._order.batches

    def fingerprint(self) -> str:
        return self._order.fingerprint()

    @property
    def held(self) -> int:
        """Bytes of weights in memory."""
        return self._windows.held

    def release(self) -> None:
        """Give that memory back; the next batch reads its window again."""
        self._windows.release()

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
        length = self._order.batches_per_window
        window = self._windows.get((epoch, number // length), self._following(epoch, number))
        chosen = self._windows.batches[number % length]
        if self._order.shuffle:
            weights = _taken(window.rows, chosen)
        else:  # a batch is a part of its window: a slice of it is no copy
            weights = torch.as_tensor(window.rows[int(chosen[0]) : int(chosen[-1]) + 1])
        return weights.to(self._device), _moved(self.targets.batch(window.places[chosen]), self._device)

    def _following(self, epoch: int, number: int) -> tuple[int, int] | None:
        """The window that this process will want after that of batch ``number``; None: the epoch ends before."""
        worker, length = get_worker_info(), self._order.batches_per_window
        step = worker.num_workers if worker else 1
        left = length - number % length
        after = number + step * -(-left // step)
        return (epoch, after // length) if after < len(self) else None


def make_stream(selection: Selection, target: str | None, how: Reading, order: Order, device: Any) -> StateStream:
    """See ``Selection.stream``."""
    targets = make_targets(selection, target)
    return StateStream(selection, how, targets, order, usable_device(device))


def _taken(rows: Weights, places: np.ndarray) -> Tensor:
    """These rows, copied by NumPy: it needs one core, and torch's indexing is no faster on several."""
    bits = rows.view(torch.int16).numpy() if isinstance(rows, Tensor) else rows  # bfloat16
    taken = torch.from_numpy(bits.take(places, axis=0))
    return taken.view(rows.dtype) if isinstance(rows, Tensor) else taken


def _moved(target: Any, device: torch.device) -> Any:
    if isinstance(target, Tensor):
        return target.to(device)
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in target.items()}

"""Iteration over batches that can stop anywhere and go on: in the same epoch, with any number of workers, any often."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from zoogen.core.errors import UserError


class Resumable(IterableDataset[Any]):
    """Epochs of ``len`` batches each, every one a function of (epoch, number) alone.

    With workers, worker w of W makes batches w, w + W, ...: a data loader (``batch_size=None``) gives the same batches
    in the same order as without.
    """

    def __init__(self) -> None:
        self._epoch = 0
        self._done = 0
        self._start = 0

    def __len__(self) -> int:
        """Batches per epoch."""
        raise NotImplementedError

    def batch(self, epoch: int, number: int) -> Any:
        """Batch ``number`` of an epoch."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Digest of what is iterated over and how."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        """The batches of one epoch, or what is left of it after ``load_state_dict``; then those of the next epoch.

        An epoch that was left early begins anew.
        """
        start, self._start = self._start, 0
        self._done = start
        return self._batches(start)

    def _batches(self, start: int) -> Iterator[Any]:
        epoch, worker = self._epoch, get_worker_info()
        own, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(start + own, len(self), workers):
            made = self.batch(epoch, number)
            self._done = number + 1
            yield made
        self._epoch, self._done = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch, counted from 0, that the next iteration gives: from its start, or from where ``load_state_dict``
        says, if it was called since the last iteration and names this epoch.

        Without workers epochs go on by themselves. A data loader with workers copies the dataset for every epoch
        (unless its workers are persistent), so there call this before each.
        """
        if epoch < 0:
            raise UserError(f"epochs count from 0, got {epoch}")
        if epoch != self._epoch or not self._start:
            self._epoch, self._done, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands, as plain numbers and text: ``epoch``, ``batch`` (batches given), ``of``.

        With workers the batches are made in other processes, so set ``batch`` to the number that the data loader gave.
        """
        return {"epoch": self._epoch, "batch": self._done, "of": self.fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken: the next iteration gives the rest of that epoch.

        Raises:
            UserError: it is of other states or other settings, so the batches would differ.
        """
        numbers = [state.get("epoch"), state.get("batch")]
        if not all(type(n) is int and n >= 0 for n in numbers) or numbers[1] > len(self):  # type: ignore[operator]
            raise UserError(f"this is no state of an iteration of {len(self)} batches: {dict(state)}")
        if state.get("of") != self.fingerprint():
            raise UserError(
                "this state is of another iteration: the selection, its order in the zoo, the batch size, the seed or "
                "the buffer differ\nmake the stream as it was made then; of a zoo that grew, select the models it had"
            )
        self._epoch, self._done = state["epoch"], state["batch"]
        self._start = self._done

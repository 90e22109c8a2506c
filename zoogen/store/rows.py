"""Rows from many checkpoints, in the order in which a shard stores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from zoogen.core.records import Checkpoint, Cohort, Segment
from zoogen.store.shard_info import DISK_DTYPES
from zoogen.store.stacks import Stack


class Rows:
    """Rows of checkpoints, ordered epoch by epoch and by the cohort's models within.

    Args:
        cohort: Gives the order of the models.
        checkpoints: Each with the rows of some models at one epoch.
        wanted: (model_id, epoch) -> whether the row is taken; all of them by default.

    Raises:
        ValueError: a model is not of the cohort, or has two rows of one epoch.
    """

    def __init__(
        self, cohort: Cohort, checkpoints: Sequence[Checkpoint], wanted: Callable[[str, int], bool] | None = None
    ) -> None:
        position = {m: i for i, m in enumerate(cohort.model_ids)}
        self._cohort = cohort
        self._wanted = wanted or (lambda model_id, epoch: True)
        self.checkpoints = [c for c in checkpoints if any(self._wanted(m, c.epoch) for m in c.model_ids)]
        try:
            self._order = sorted(
                (c.epoch, position[m], which, row)
                for which, c in enumerate(self.checkpoints)
                for row, m in enumerate(c.model_ids)
                if self._wanted(m, c.epoch)
            )
        except KeyError as error:
            raise ValueError(f"model {error} is not of cohort {cohort.cohort_id}") from None
        self._places = [(epoch, model) for epoch, model, _, _ in self._order]
        if len(set(self._places)) < len(self._places):
            raise ValueError(f"cohort {cohort.cohort_id}: a model has two rows of one epoch")

    def of(self, checkpoints: Sequence[Checkpoint]) -> Rows:
        """The rows of some of these checkpoints."""
        return Rows(self._cohort, checkpoints, self._wanted)

    def __len__(self) -> int:
        return len(self._order)

    def epochs(self) -> tuple[int, ...]:
        return tuple(sorted({epoch for epoch, _ in self._places}))

    def per_epoch(self) -> list[int]:
        return [len(list(same)) for _, same in groupby(self._places, key=lambda place: place[0])]

    def check_complete(self, segment: Segment, last_finite: Mapping[str, int]) -> None:
        """Raise ValueError unless these are the rows of the segment."""
        planned = [e for e in self._cohort.recording.epochs if segment.first <= e <= segment.last]
        found = set(self._places)
        for model, model_id in enumerate(self._cohort.model_ids):
            end = last_finite.get(model_id)
            needed = {(e, model) for e in planned if end is None or e <= end}
            # The last finite state may be older than the segment in which the divergence shows.
            allowed = needed | {(end, model)} if end is not None else needed
            mine = {place for place in found if place[1] == model}
            if not needed <= mine <= allowed:
                wrong = sorted(e for e, _ in needed ^ mine)
                raise ValueError(
                    f"shard {segment.shard_id}: model {model_id} should have rows of epochs "
                    f"{sorted(e for e, _ in needed)}; missing or too many: {wrong}"
                )

    def stack(
        self, get: Callable[[Checkpoint], np.ndarray | None], dtype: str, columns: int, *, deflate: bool = False
    ) -> Stack:
        """A dataset of one array of every checkpoint, [states, columns]."""
        disk = DISK_DTYPES.get(dtype)
        if disk is None:
            raise ValueError(f"tensors of dtype {dtype} cannot be stored; known: {', '.join(sorted(DISK_DTYPES))}")
        return Stack(disk, (columns,), self._parts(get, disk), deflate)

    def keys(self, width: int) -> dict[str, Stack]:
        ids = np.array(self.model_ids(), dtype=f"S{width}")
        epochs = np.array([epoch for epoch, _ in self._places], dtype="<i4")
        return {"model_id": Stack(ids.dtype, (), [ids]), "epoch": Stack(epochs.dtype, (), [epochs])}

    def model_ids(self) -> list[str]:
        ids = self._cohort.model_ids
        return [ids[model] for _, model in self._places]

    def column(self, name: str) -> np.ndarray:
        """One metric of every row; NaN where a checkpoint lacks it."""
        shape = next(c.metrics[name].shape[1:] for c in self.checkpoints if name in c.metrics)
        column = np.full((len(self), *shape), np.nan)
        for i, (_, _, which, row) in enumerate(self._order):
            values = self.checkpoints[which].metrics.get(name)
            if values is not None:
                column[i] = values[row]
        return column

    def epoch_column(self) -> list[int]:
        return [epoch for epoch, _ in self._places]

    def _parts(self, get: Callable[[Checkpoint], np.ndarray | None], disk: np.dtype) -> Iterator[np.ndarray]:
        for which, same in groupby(self._order, key=lambda item: item[2]):
            rows = [row for *_, row in same]
            array = get(self.checkpoints[which])
            if array is None:
                raise ValueError(f"epoch {self.checkpoints[which].epoch} lacks an array that other epochs have")
            whole = rows == list(range(len(array)))
            part = array if whole else array[rows]
            if part.dtype.itemsize != disk.itemsize or (part.dtype.kind != disk.kind and part.dtype.kind != "b"):
                raise ValueError(f"an array of dtype {part.dtype} stands where {disk} is stored")
            yield part.view(disk) if part.dtype.kind == "b" else part

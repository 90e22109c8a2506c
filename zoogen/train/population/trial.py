"""Parts of a cohort and of its data, for a trial of a trainer that takes a moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from zoogen.core.contracts import PartName, TaskData
from zoogen.core.layout import Layout, describe_module
from zoogen.core.records import Cohort, Job, Recording
from zoogen.train.network import build_network


class FewSamples:
    """Implements :class:`zoogen.core.contracts.TaskData`: the first samples of each part of a task.

    Args:
        data: The whole.
        sizes: Samples of each part, at most; parts not named stay whole.
    """

    def __init__(self, data: TaskData, sizes: Mapping[PartName, int]) -> None:
        self._data = data
        self._sizes = dict(sizes)
        self.fingerprint = data.fingerprint
        self.outputs = data.outputs
        self.prepare = data.prepare
        self.augment = data.augment
        self.loss = data.loss

    def size(self, part: PartName) -> int:
        whole = self._data.size(part)
        return min(whole, self._sizes.get(part, whole))

    def split(self) -> dict[PartName, np.ndarray]:
        return {part: indices[: self.size(part)] for part, indices in self._data.split().items()}

    def tensors(self, part: PartName, device: torch.device | str) -> tuple[Tensor, Tensor]:
        inputs, targets = self._data.tensors(part, device)
        return inputs[: self.size(part)], targets[: self.size(part)]


def training_samples(data: TaskData, batch_size: int, steps: int) -> int:
    """How many training samples make about ``steps`` steps, the last of which is as small as that of the whole part."""
    whole = data.size("train")
    return min(whole, (steps - 1) * batch_size + (whole % batch_size or batch_size))


def trial_cohort(cohort: Cohort, jobs: Sequence[Job], epochs: int) -> Cohort:
    """These models, to be trained for at least ``epochs`` epochs whatever their recipe says, storing nothing."""
    longer = tuple(
        replace(job, training=replace(job.training, epochs=max(epochs, job.training.epochs))) for job in jobs
    )
    return replace(cohort, jobs=longer, epochs=epochs, recording=Recording((), "none"), segments=(), stored_through=-1)


def layout_of(job: Job) -> Layout:
    """Of its network."""
    return describe_module(build_network(job, seed=0))


def never() -> bool:
    """No wish to stop."""
    return False

"""The task's loss of many models at once, label smoothing their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoogen.core.contracts import TaskData


class StackedLoss:
    """Per-sample losses by ``data.loss`` itself, which takes one smoothing: models of equal smoothing go together."""

    def __init__(self, data: TaskData, label_smoothing: Sequence[float], device: torch.device) -> None:
        self._data = data
        groups: dict[float, list[int]] = {}
        for m, smoothing in enumerate(label_smoothing):
            groups.setdefault(smoothing, []).append(m)
        # Index tensors made here: a copy from the host could not be part of a CUDA graph.
        self._groups = {s: torch.tensor(models, device=device) for s, models in groups.items()}
        back = torch.cat(list(self._groups.values())).argsort()
        self._back = back if len(groups) > 1 else None

    def __call__(self, outputs_MBC: Tensor, targets_MB: Tensor) -> Tensor:
        """Losses [M, B] in nats."""
        if self._back is None:
            (smoothing,) = self._groups
            return self._of(outputs_MBC, targets_MB, smoothing)
        parts = [
            self._of(outputs_MBC.index_select(0, models), targets_MB.index_select(0, models), smoothing)
            for smoothing, models in self._groups.items()
        ]
        return torch.cat(parts).index_select(0, self._back)

    def _of(self, outputs_MBC: Tensor, targets_MB: Tensor, smoothing: float) -> Tensor:
        losses = self._data.loss(outputs_MBC.flatten(0, 1), targets_MB.flatten(0, 1), smoothing)
        return losses.view(targets_MB.shape)

"""Noise of many models at once: that of ``zoogen.train.sparsify.noise``, each with its model's own keys."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from zoogen.train.population.stacked.crossing import on_stack
from zoogen.train.sparsify.noise import normal


class StackedNoise:
    """The noise of one variational layer within an optimizer step, in the place of the layer's own."""

    def __init__(self) -> None:
        self._keys_M1 = torch.empty(0, 1, dtype=torch.int64)
        self._position = 0

    def start_step(self, keys_M1: Tensor) -> None:
        """Begin a step.

        Args:
            keys_M1: int64, each model's subkey of (step, layer).
        """
        self._keys_M1 = keys_M1
        self._position = 0

    def draw(self, like: Tensor) -> Tensor:
        """One model's next numbers, of the shape, dtype and device of ``like``; to be called under ``vmap``."""
        first = self._position
        # Micro-batches, and further uses of the layer, go on counting.
        self._position += like.numel()
        return on_stack(partial(_drawn, self._keys_M1, first), like)


def _drawn(keys_M1: Tensor, first: int, like: Tensor) -> Tensor:
    return normal(keys_M1, first, like[0].numel(), like.dtype, like.device).view(len(keys_M1), *like.shape[1:])

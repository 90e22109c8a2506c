"""Dropout masks of many models at once: those of ``zoogen.train.dropout``, each with its model's own key and rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from zoogen.core import streams
from zoogen.train.population.stacked.crossing import on_stack


class Draws(NamedTuple):
    """What decides a layer's masks in one step; one row per model.

    Attributes:
        keys: int64 [M, 1], the subkey of (step, layer).
        thresholds: int64 [M, 1]: of the signed 32-bit draws, those below drop.
        scales: float64 [M, 1], 1 / (1 - rate).
    """

    keys: Tensor
    thresholds: Tensor
    scales: Tensor


def thresholds_and_scales(rates_M: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Of models with these rates of one layer; a model with rate 0 keeps everything as it is."""
    # As in dropout.keep_mask: of the 2**32 values, which as signed integers start at -2**31, the lowest share drops.
    thresholds = torch.tensor([[round(p * 2**32) - 2**31] for p in rates_M], dtype=torch.int64)
    scales = torch.tensor([[1 / (1 - p) if p < 1 else 0.0] for p in rates_M], dtype=torch.float64)
    return thresholds, scales


class Masks:
    """The masks of a network's dropout layers within one optimizer step."""

    def __init__(self) -> None:
        self._draws: Mapping[int, Draws] = {}
        self._positions: dict[int, int] = {}

    def start_step(self, draws: Mapping[int, Draws]) -> None:
        """Begin a step; layers that are not named drop nothing in any model."""
        self._draws = draws
        self._positions = dict.fromkeys(draws, 0)

    def __call__(self, layer: int, inputs: Tensor) -> Tensor:
        """One model's ``inputs`` under the next mask of a layer; to be called under ``vmap``."""
        if layer not in self._draws or inputs.numel() == 0:
            return inputs
        first = self._positions[layer]
        # Micro-batches, and further uses of the layer, go on counting.
        self._positions[layer] += inputs.numel()
        return on_stack(partial(_masked, self._draws[layer], first), inputs)


def _masked(draws: Draws, first: int, inputs: Tensor) -> Tensor:
    kept = keep_masks(draws.keys, first, inputs[0].numel(), draws.thresholds)
    mask = kept.to(inputs.dtype) * draws.scales.to(inputs.dtype)
    return inputs * mask.view(len(mask), *inputs.shape[1:])


def keep_masks(keys_M1: Tensor, first: int, count: int, thresholds_M1: Tensor) -> Tensor:
    """Which of ``count`` elements, from position ``first`` on, survive: bool [M, count]."""
    skipped = first % 2
    counters = torch.arange(first // 2, (first + count + 1) // 2, dtype=torch.int64, device=keys_M1.device)
    halves = streams.bits(keys_M1, counters).view(torch.int32)
    return halves[:, skipped : skipped + count] >= thresholds_M1

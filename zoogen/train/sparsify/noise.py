"""Gaussian noise from counters: a draw depends on (noise stream, step, layer, position) only, as dropout masks do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoogen.core import streams

TURN = 2 * math.pi * 2.0**-32
SMALLEST = 2.0**-33


def normal(key: Tensor | int, first: int, count: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """``count`` standard normal numbers, from position ``first`` on.

    Box and Muller's transform of the two 32-bit halves of a 64-bit draw gives the numbers at two positions, the cosine
    at the even one. As signed integers, the low half h gives the uniform number h / 2**32 + 1/2 of the radius, the high
    half the angle 2 pi h / 2**32.

    Args:
        key: Subkey of one (step, layer), or int64 [M, 1] for M models: the result is then [M, count].
    """
    counters = torch.arange(first // 2, (first + count + 1) // 2, dtype=torch.int64, device=device)
    # Rounded to 8 bits, as many numbers would be 0 as otherwise lie in the last 2**-9: far out in the tail.
    wide = torch.promote_types(dtype, torch.float32)
    halves = streams.bits(key, counters).view(torch.int32).to(wide)
    uniform = (halves[..., 0::2] * 2.0**-32 + 0.5).clamp(min=SMALLEST)
    radius, angle = torch.sqrt(-2 * torch.log(uniform)), halves[..., 1::2] * TURN
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1).flatten(-2)
    skipped = first % 2
    return pairs[..., skipped : skipped + count].to(dtype)


class Noise:
    """The noise of one layer over a run of steps."""

    def __init__(self) -> None:
        self._keys = [1]
        self._step = 0
        self._position = 0

    def prepare(self, keys: list[int]) -> None:
        """Take the subkeys of the coming steps."""
        self._keys = keys
        self.start_step(0)

    def start_step(self, step: int) -> None:
        """Begin one of the prepared steps, counted from 0."""
        self._step = step
        self._position = 0

    def draw(self, like: Tensor) -> Tensor:
        """The next numbers, of the shape, dtype and device of ``like``."""
        first, self._position = self._position, self._position + like.numel()
        return normal(self._keys[self._step], first, like.numel(), like.dtype, like.device).view(like.shape)


class NoiseStream:
    """Feeds one model's noisy layers with the keys of each step; layers are numbered in module order."""

    def __init__(self, seed: int, layers: list[Noise]) -> None:
        self._key = streams.stream_key(seed, "noise")
        self._layers = layers
        self._first = 0

    def prepare(self, first_step: int, steps: int) -> None:
        """Compute the subkeys of a run of steps."""
        self._first = first_step
        numbers = torch.arange(first_step, first_step + steps, dtype=torch.int64)
        for number, layer in enumerate(self._layers):
            keys = streams.subkey(self._key, numbers, number) if steps else numbers
            # A key of one stream with tensor steps comes back as a tensor.
            assert isinstance(keys, torch.Tensor)
            layer.prepare(keys.tolist())

    def start_step(self, step: int) -> None:
        """Begin one of the prepared steps."""
        for layer in self._layers:
            layer.start_step(step - self._first)

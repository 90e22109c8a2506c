"""Dropout from counters: a mask depends on (dropout stream, step, layer, position) only, never on generator state.

Layers are numbered in the order of ``module.named_modules()``, positions count a layer's elements within one optimizer
step (micro-batches go on counting). Every other random operation of a network draws from torch's generator, which
is seeded anew before each step, from the same stream: equally resumable, but not the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoogen.core import streams
from zoogen.train.generators import seed_generators

GENERATOR_LAYER = 0xFFFF
"""The layer number whose subkeys seed torch's generator."""


def keep_mask(key: Tensor | int, first: int, count: int, p: float, device: torch.device | str) -> Tensor:
    """Which of ``count`` elements, from position ``first`` on, survive dropout with rate ``p``: bool [count].

    Each 64-bit draw decides two elements with 32 bits each, so the rate is ``p`` to 2**-32.

    Args:
        key: Subkey of one (step, layer), or int64 [M, 1] for M models: the mask is then [M, count].
        p: In (0, 1).
    """
    skipped = first % 2
    counters = torch.arange(first // 2, (first + count + 1) // 2, dtype=torch.int64, device=device)
    halves = streams.bits(key, counters).view(torch.int32)
    # As signed integers the 2**32 values start at -2**31; the lowest share p of them drops.
    threshold = round(p * 2**32) - 2**31
    return halves[..., skipped : skipped + count] >= threshold


class CounterDropout(nn.Module):
    """``nn.Dropout`` whose masks come from counters; the trainer sets ``key`` before each step."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.key: int = 1
        self.position = 0

    def start_step(self, key: int) -> None:
        """Begin the mask of one optimizer step with the subkey of this (step, layer)."""
        self.key = key
        self.position = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return inputs
        if self.p >= 1:
            return inputs * 0
        return inputs * self.draw(inputs)

    def draw(self, inputs: Tensor) -> Tensor:
        """The next mask for ``inputs``, scaled by 1 / (1 - p), of its shape and dtype."""
        kept = keep_mask(self.key, self.position, inputs.numel(), self.p, inputs.device)
        self.position += inputs.numel()
        return kept.view(inputs.shape).to(inputs.dtype).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def replace_dropout(module: nn.Module) -> list[CounterDropout]:
    """Put a ``CounterDropout`` in the place of each ``nn.Dropout`` below ``module``; state-dict names stay.

    Returns:
        The new layers in module order; one that stood in several places stands in all of them again.
    """
    replaced: dict[nn.Module, CounterDropout] = {}
    for parent in list(module.modules()):
        # Not named_children, which skips the second name of a shared child.
        for name, child in list(parent._modules.items()):
            if type(child) is nn.Dropout:  # exactly this class: subclasses may mean something else
                parent._modules[name] = replaced.setdefault(child, CounterDropout(child.p))
    return [layer for layer in module.modules() if isinstance(layer, CounterDropout)]


class DropoutStream:
    """Feeds one model's dropout layers, and torch's generator, with the keys of each step."""

    def __init__(self, seed: int, layers: list[CounterDropout], device: torch.device) -> None:
        self._key = streams.stream_key(seed, "dropout")
        self._layers = layers
        self._device = device
        self._first = 0
        self._subkeys: list[list[int]] = []

    def prepare(self, first_step: int, steps: int) -> None:
        """Compute the subkeys of a run of steps in one go: one at a time they would take 5 % of a small step."""
        layers = torch.tensor([*range(len(self._layers)), GENERATOR_LAYER], dtype=torch.int64)
        numbers = torch.arange(first_step, first_step + steps, dtype=torch.int64)
        places = (numbers[:, None] << 16) + layers
        self._first = first_step
        self._subkeys = (streams.bits(self._key, places) & 0x7FFFFFFFFFFFFFFF | 1).tolist()

    def start_step(self, step: int) -> None:
        """Set every layer and torch's generator for one of the prepared steps; the caller restores the generator."""
        *keys, seed = self._subkeys[step - self._first]
        for layer, key in zip(self._layers, keys, strict=True):
            layer.start_step(key)
        seed_generators(seed, self._device)

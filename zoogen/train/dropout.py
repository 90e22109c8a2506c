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

# Elements drawn at once: enough to hide the cost of the calls, few enough for the cache.
_AHEAD = {"cpu": 2**14, "cuda": 2**20}


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


class Masks:
    """The masks of one layer over a run of steps.

    Masks of small layers are drawn for several steps at once: one draw costs 90 us of calls however small it is.
    """

    def __init__(self, p: float) -> None:
        self._p = p
        self._keys = torch.ones(1, dtype=torch.int64)
        self._step = 0
        self._position = 0
        self._block = torch.empty(0, 0)
        self._block_start = 0

    def prepare(self, keys: Tensor) -> None:
        """Take the subkeys of the coming steps, int64 [steps], on the device of the layer's inputs."""
        self._keys = keys
        self._block = torch.empty(0, 0)
        self.start_step(0)

    def start_step(self, step: int) -> None:
        """Begin one of the prepared steps, counted from 0."""
        self._step = step
        self._position = 0

    def draw(self, inputs: Tensor) -> Tensor:
        """The next mask, of the shape and dtype of ``inputs``: 0 for a dropped element, else 1 / (1 - p)."""
        n = inputs.numel()
        if self._position == 0:
            mask = self._first_mask(n, inputs)
        else:  # a further micro-batch, or a layer that is used twice
            mask = self._scaled(self._keys[self._step : self._step + 1], self._position, n, inputs)[0]
        self._position += n
        return mask.view(inputs.shape)

    def _first_mask(self, n: int, like: Tensor) -> Tensor:
        block, row = self._block, self._step - self._block_start
        if not (0 <= row < len(block) and block.shape[1] == n and block.dtype == like.dtype):
            ahead = max(1, _AHEAD.get(like.device.type, _AHEAD["cpu"]) // n)
            self._block = block = self._scaled(self._keys[self._step : self._step + ahead], 0, n, like)
            self._block_start, row = self._step, 0
        return block[row]

    def _scaled(self, keys: Tensor, first: int, n: int, like: Tensor) -> Tensor:
        kept = keep_mask(keys[:, None], first, n, self._p, like.device)
        return kept.to(like.dtype).mul_(1 / (1 - self._p))


class CounterDropout(nn.Module):
    """``nn.Dropout`` whose masks come from counters; the trainer prepares ``masks`` and starts each step."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.masks = Masks(p)

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or self.p == 0 or inputs.numel() == 0:
            return inputs
        if self.p >= 1:
            return inputs * 0
        return inputs * self.masks.draw(inputs)

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
        self._masks = [layer.masks for layer in layers]
        self._device = device
        self._first = 0
        self._seeds: list[int] = []

    def prepare(self, first_step: int, steps: int) -> None:
        """Compute the subkeys of a run of steps in one go: one at a time they would take 5 % of a small step."""
        layers = torch.tensor([*range(len(self._masks)), GENERATOR_LAYER], dtype=torch.int64)
        numbers = torch.arange(first_step, first_step + steps, dtype=torch.int64)
        subkeys = streams.bits(self._key, (numbers << 16) + layers[:, None]) & 0x7FFFFFFFFFFFFFFF | 1
        *keys, seeds = subkeys
        self._first = first_step
        self._seeds = seeds.tolist()
        for masks, keys_S in zip(self._masks, keys, strict=True):
            masks.prepare(keys_S.to(self._device))

    def start_step(self, step: int) -> None:
        """Set every layer and torch's generator for one of the prepared steps; the caller restores the generator."""
        row = step - self._first
        for masks in self._masks:
            masks.start_step(row)
        seed_generators(self._seeds[row], self._device)

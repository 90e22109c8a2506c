"""A task's samples as the generated program reads them: bytes and a table of what each byte becomes, or numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from zoogen.core.contracts import PartName, TaskData
from zoogen.train.population.engine import Unsupported


@dataclass(frozen=True)
class Part:
    """``inputs`` uint8 or real [N, features], targets int64 [N]."""

    inputs: Tensor
    targets: Tensor


class Samples:
    """Prepares parts of a task once and keeps them.

    Where preparation maps each byte of a channel to one number (as scaling and normalisation do), samples stay bytes
    and the program looks the numbers up: a quarter of the memory to read, and workers share the mapped file.
    """

    def __init__(self, data: TaskData, shape: tuple[int, ...]) -> None:
        self._data = data
        self._shape = shape
        self._features = prod(shape)
        self._table = _byte_table(data, shape)
        self._parts: dict[tuple[PartName, torch.dtype], Part] = {}

    def table(self, dtype: torch.dtype) -> Tensor | None:
        """[channels, 256], or None where samples are numbers."""
        return None if self._table is None else self._table.to(dtype)

    def part(self, part: PartName, dtype: torch.dtype) -> Part:
        """All samples of a part, for a program that computes in ``dtype``."""
        key = (part, torch.uint8 if self._table is not None else dtype)
        if key not in self._parts:
            inputs, targets = self._data.tensors(part, "cpu")
            self._parts[key] = Part(self.ready(inputs, dtype), targets.contiguous())
        return self._parts[key]

    def ready(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Raw inputs [..., *shape] as the program reads them, [-1, features]."""
        if self._table is None:
            inputs = torch.cat([self._data.prepare(some) for some in inputs.split(4096)]) if len(inputs) else inputs
            inputs = inputs.to(dtype)
        return inputs.reshape(-1, self._features).contiguous()


def _byte_table(data: TaskData, shape: tuple[int, ...]) -> Tensor | None:
    """What each byte of a channel becomes, float32 [channels, 256]; None where that does not describe preparation."""
    inputs, _ = data.tensors("train", "cpu")
    if inputs.dtype != torch.uint8:
        return None
    channels = shape[0] if len(shape) > 1 else 1
    levels = torch.arange(256, dtype=torch.uint8).view(256, *[1] * len(shape)).expand(256, *shape)
    table = data.prepare(levels.contiguous()).reshape(256, channels, -1)[:, :, 0].T.contiguous()
    some = inputs[:: max(1, len(inputs) // 16)][:16]
    looked_up = torch.stack([table[c][some.reshape(len(some), channels, -1)[:, c].long()] for c in range(channels)], 1)
    return table if torch.equal(looked_up, data.prepare(some).reshape(looked_up.shape)) else None


def check_cross_entropy(data: TaskData) -> None:
    """The program computes cross-entropy; refuse a task with another loss.

    Raises:
        Unsupported: ``data.loss`` differs from ``torch.nn.functional.cross_entropy`` on random outputs.
    """
    outputs = torch.randn(32, data.outputs, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(32) % data.outputs
    for smoothing in (0.0, 0.1):
        expected = nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing)
        if not torch.equal(data.loss(outputs, targets, smoothing), expected):
            raise Unsupported("the task's loss is not cross-entropy")


def augments(data: TaskData) -> bool:
    """Whether the train transform changes anything: without one, ``augment`` returns its input itself."""
    inputs, _ = data.tensors("train", "cpu")
    some, zeros = inputs[None, :1], torch.zeros(1, dtype=torch.int64)
    return data.augment(some, zeros + 1, zeros) is not some

"""Max-pooling in two ways: torch's, and as maxima of shifted slices, which vectorise where torch's loop does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zoogen.train.population.stacked.memory import merged
from zoogen.train.population.stacked.windows import Pair, windows

VARIANTS = ("native", "slices")


@dataclass(frozen=True)
class MaxPool:
    """A two-dimensional max-pooling; pairs are (vertical, horizontal)."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool

    def __call__(self, variant: str, x_MBCHW: Tensor) -> Tensor:
        """[M, B, C, H, W] -> [M, B, C, H', W']; each plane is pooled for itself."""
        planes_NHW, unmerge = merged(x_MBCHW, 3)
        size = self._size(*planes_NHW.shape[1:])
        if variant == "native" or 0 in size:  # torch has the message for an image that is too small
            return unmerge(self._torch(planes_NHW))
        return unmerge(_Slices.apply(self, self._padded(planes_NHW, size), size))

    def _torch(self, planes_NHW: Tensor) -> Tensor:
        return functional.max_pool2d(
            planes_NHW[:, None], self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode
        )[:, 0]

    def _size(self, *image: int) -> Pair:
        found = []
        for n, k, step, pad, d in zip(image, self.kernel, self.stride, self.padding, self.dilation, strict=True):
            free = n + 2 * pad - d * (k - 1) - 1
            size = max(0, free // step + 1)
            # One more where a rest is left, unless its window would start in the border on the far side.
            if self.ceil_mode and free % step and size * step < n + pad:
                size += 1
            found.append(size)
        return found[0], found[1]

    def _padded(self, planes_NHW: Tensor, size: Pair) -> Tensor:
        """With a border of -inf as wide as the windows reach."""
        ends = [
            max(0, (m - 1) * step + d * (k - 1) + 1 - n - pad)
            for m, step, d, k, n, pad in zip(
                size, self.stride, self.dilation, self.kernel, planes_NHW.shape[1:], self.padding, strict=True
            )
        ]
        border = (self.padding[1], ends[1], self.padding[0], ends[0])
        return functional.pad(planes_NHW, border, value=-torch.inf) if any(border) else planes_NHW

    @property
    def apart(self) -> bool:
        """No pixel is in two windows."""
        return self.dilation == (1, 1) and all(s >= k for s, k in zip(self.stride, self.kernel, strict=True))

    def windows(self, size: Pair) -> Iterator[tuple[Pair, tuple[slice, slice]]]:
        """In the order in which torch looks at them."""
        return windows(self.kernel, self.stride, self.dilation, size)


class _Slices(torch.autograd.Function):
    """Planes [N, H, W], border included; the gradient goes to the first of equal values, as torch's does."""

    @staticmethod
    def forward(ctx: Any, pool: MaxPool, planes_NHW: Tensor, size: Pair) -> Tensor:
        (_, (rows, columns)), *others = pool.windows(size)
        y = planes_NHW[:, rows, columns].clone()
        wanted = ctx.needs_input_grad[1]
        chosen = torch.zeros_like(y, dtype=torch.int16 if len(others) > 127 else torch.int8) if wanted else None
        for number, (_, (rows, columns)) in enumerate(others, start=1):
            part = planes_NHW[:, rows, columns]
            if chosen is not None:
                chosen.masked_fill_(part > y, number)
            torch.maximum(y, part, out=y)
        ctx.pool, ctx.size, ctx.shape = pool, size, planes_NHW.shape
        if chosen is not None:
            ctx.save_for_backward(chosen)  # not y, which may change in place
        return y

    @staticmethod
    def backward(ctx: Any, gradient_NHW: Tensor) -> Any:
        (chosen,) = ctx.saved_tensors
        of_x = gradient_NHW.new_zeros(ctx.shape)
        for number, (_, (rows, columns)) in enumerate(ctx.pool.windows(ctx.size)):
            if ctx.pool.apart:
                torch.mul(gradient_NHW, chosen == number, out=of_x[:, rows, columns])
            else:
                of_x[:, rows, columns] += gradient_NHW * (chosen == number)
        return None, of_x, None

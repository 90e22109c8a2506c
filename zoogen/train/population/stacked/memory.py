"""Merging leading axes in the order in which they lie in memory, so that no copy is made."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def merged(stacked: Tensor, axes: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The first ``axes`` axes as one, without a copy where they can be in any order; and the way back.

    The function returned takes a tensor with the same first axis (others may have changed) back to the axes in their
    old order.
    """
    strides = stacked.stride()
    order = sorted(range(axes), key=lambda axis: (-strides[axis], axis))
    rest = range(axes, stacked.ndim)
    sizes = [stacked.shape[axis] for axis in order]
    back = [order.index(axis) for axis in range(axes)]

    def unmerge(result: Tensor) -> Tensor:
        parts = result.unflatten(0, sizes)
        return parts.permute(*back, *range(axes, parts.ndim))

    return stacked.permute(*order, *rest).flatten(0, axes - 1), unmerge

"""From inside ``vmap`` to the stacked tensors and back.

A network's forward pass is written for one model. Under ``vmap`` a layer sees its model's tensors; what is faster on
all models at once (a batched matrix product, one batch norm over the channels of all models) leaves ``vmap`` here. Its
operations are recorded by autograd like any others, beneath ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def on_stack(function: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """``function`` of the stacked tensors, seen by each model as its own part of the result.

    Args:
        function: Of one tensor [M, ...] per argument (None where that is None); gives one or several tensors
            [M, ...]. A tensor that is the same for all models (shared inputs of an evaluation) comes as [1, ...].
        tensors: As one model sees them.
    """
    return _OnStack.apply(function, *tensors)


class _OnStack(torch.autograd.Function):
    """Used for its ``vmap`` alone, whose operations autograd records; it has no derivative of its own."""

    @staticmethod
    def forward(function: Callable[..., Any], *tensors: Tensor | None) -> Any:
        """All tensors are the same for all models: a stack of one."""
        results = function(*(None if t is None else t[None] for t in tensors))
        parts = results if isinstance(results, tuple) else (results,)
        if any(len(part) > 1 for part in parts):
            raise RuntimeError("a layer that differs between models acts on a tensor that is the same for all of them")
        return tuple(part[0] for part in parts) if isinstance(results, tuple) else results[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, function: Callable[..., Any], *tensors: Tensor | None) -> Any:
        stacked = [
            None if t is None else t[None] if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, in_dims[1:], strict=True)
        ]
        results = function(*stacked)
        return results, (0,) * len(results) if isinstance(results, tuple) else 0

"""Fast equivalents of layers, put into the place of their ``forward``: parameters, names and attributes stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoogen.train.population.stacked import convolution, pooling
from zoogen.train.population.stacked.convolution import Convolution
from zoogen.train.population.stacked.crossing import on_stack
from zoogen.train.population.stacked.normalisation import batch_norm
from zoogen.train.population.stacked.pooling import MaxPool
from zoogen.train.population.stacked.windows import Pair
from zoogen.train.sparsify.variational import VariationalConv1d, VariationalConv2d


@dataclass(frozen=True)
class Shapes:
    """What a layer has seen: the axes of its tensors behind models and samples, and if its input needs a gradient."""

    inputs: tuple[int, ...]
    tensors: tuple[tuple[int, ...] | None, ...]
    gradient: bool


class Tuned:
    """A layer that can be computed in several ways.

    Attributes:
        name: Of the layer in its network.
        kind: ``conv1d``, ``conv2d`` or ``max_pool``.
        variants: The ways, by name.
        variant: The one in use.
        in_order: Lay the values of a sample side by side in memory, as torch's layers do; needed where the network
            calls ``view`` on them, otherwise a copy for nothing.
        seen: Shapes of its last use.
    """

    kind: str
    variants: ClassVar[tuple[str, ...]]

    def __init__(self, name: str, layer: nn.Module, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.variant = self.variants[0]
        self.in_order = False
        self.seen: Shapes | None = None
        self._layer: Any = layer
        self._axes = 3 if kind == "conv1d" or type(layer) is nn.MaxPool1d else 4

    def __call__(self, inputs: Tensor) -> Tensor:
        """``forward``, under ``vmap``."""
        return self.product(inputs, *self._tensors())

    def product(self, inputs: Tensor, *tensors: Tensor | None) -> Tensor:
        """``forward`` with these in the place of the layer's parameters, under ``vmap``."""
        if inputs.ndim != self._axes:  # one sample without a batch axis
            return self._sample(inputs, *tensors)
        return on_stack(self._stacked, inputs, *tensors)

    def _stacked(self, inputs: Tensor, *tensors: Tensor | None) -> Tensor:
        shapes = tuple(None if t is None else tuple(t.shape[1:]) for t in tensors)
        self.seen = Shapes(tuple(inputs.shape[2:]), shapes, inputs.requires_grad)
        return self.compute(self.variant, inputs, *tensors)

    def compute(self, variant: str, inputs: Tensor, *tensors: Tensor | None) -> Tensor:
        """The layer's outputs [M, B, ...] of stacked inputs and parameters."""
        if self._axes == 4:
            outputs = self._images(variant, inputs, *tensors)
        else:  # one axis is two, the first of length 1
            taller = [None if t is None else t.unsqueeze(-2) if t.ndim == 4 else t for t in tensors]
            outputs = self._images(variant, inputs.unsqueeze(-2), *taller).squeeze(-2)
        return outputs.contiguous() if self.in_order else outputs

    def _tensors(self) -> tuple[Tensor | None, ...]:
        raise NotImplementedError

    def _sample(self, inputs: Tensor, *tensors: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _images(self, variant: str, inputs: Tensor, *tensors: Tensor | None) -> Tensor:
        raise NotImplementedError

    def __str__(self) -> str:
        raise NotImplementedError


class TunedConvolution(Tuned):
    """Of ``nn.Conv1d`` and ``nn.Conv2d``, with noise or without."""

    variants = tuple(convolution.VARIANTS)

    def __init__(self, name: str, layer: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(name, layer, "conv1d" if isinstance(layer, nn.Conv1d) else "conv2d")
        axes = self._axes - 2
        dilation, kernel = _pair(layer.dilation, axes, 1), _pair(layer.kernel_size, axes, 1)
        left, right, top, bottom = 0, 0, 0, 0
        if layer.padding == "same":
            # Torch puts the odd one behind.
            rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
            left, right, top, bottom = columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
        elif layer.padding != "valid":
            top, left = _pair(layer.padding, axes, 0)
            bottom, right = top, left
        self._convolution = Convolution(
            _pair(layer.stride, axes, 1), (left, right, top, bottom), layer.padding_mode, dilation, layer.groups
        )

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self._layer.weight, self._layer.bias

    def _sample(self, inputs: Tensor, *tensors: Tensor | None) -> Tensor:
        return self._layer._conv_forward(inputs, *tensors)

    def _images(self, variant: str, inputs: Tensor, *tensors: Tensor | None) -> Tensor:
        kernels, bias = tensors
        assert kernels is not None
        return self._convolution(variant, inputs, kernels, bias)

    def __str__(self) -> str:
        return str(self._convolution)


class TunedMaxPool(Tuned):
    """Of ``nn.MaxPool1d`` and ``nn.MaxPool2d``."""

    variants = pooling.VARIANTS

    def __init__(self, name: str, layer: nn.MaxPool1d | nn.MaxPool2d) -> None:
        super().__init__(name, layer, "max_pool")
        axes = self._axes - 2
        kernel, stride, dilation = (_pair(v, axes, 1) for v in (layer.kernel_size, layer.stride, layer.dilation))
        self._pool = MaxPool(kernel, stride, _pair(layer.padding, axes, 0), dilation, layer.ceil_mode)

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return ()

    def _sample(self, inputs: Tensor, *tensors: Tensor | None) -> Tensor:
        return type(self._layer).forward(self._layer, inputs)

    def _images(self, variant: str, inputs: Tensor, *tensors: Tensor | None) -> Tensor:
        return self._pool(variant, inputs)

    def __str__(self) -> str:
        return str(self._pool)


def _pair(value: Any, axes: int, absent: int) -> Pair:
    """(vertical, horizontal) of a layer's setting; with one axis, ``absent`` is the vertical one."""
    first, *rest = (value,) * axes if isinstance(value, int) else value
    return (absent, first) if axes == 1 else (first, *rest)


def _embedding(layer: nn.Embedding, indices: Tensor) -> Tensor:
    """Vmap forgets that the padding entry has no gradient."""
    found = nn.functional.embedding(indices, layer.weight)
    if layer.padding_idx is None:
        return found
    return torch.where((indices == layer.padding_idx)[..., None], found.detach(), found)


_TUNED: Mapping[type[nn.Module], Callable[[str, Any], Tuned]] = {
    nn.Conv1d: TunedConvolution,
    nn.Conv2d: TunedConvolution,
    VariationalConv1d: TunedConvolution,
    VariationalConv2d: TunedConvolution,
    nn.MaxPool1d: TunedMaxPool,
    nn.MaxPool2d: TunedMaxPool,
}
_NOISY = (VariationalConv1d, VariationalConv2d)
_FIXED: Mapping[type[nn.Module], Callable[..., Tensor]] = {
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.Embedding: _embedding,
}


def swap(module: nn.Module) -> list[Tuned]:
    """Replace what has a fast equivalent, in place; returns the layers that have several."""
    tuned = []
    layer: Any
    for name, layer in module.named_modules():
        if type(layer) in _TUNED:
            fast = _TUNED[type(layer)](name, layer)
            tuned.append(fast)
            if type(layer) in _NOISY:
                layer.product = fast.product  # which their forward calls twice, with tensors made of their parameters
            else:
                layer.forward = fast
        elif type(layer) in _FIXED:
            layer.forward = partial(_FIXED[type(layer)], layer)
    return tuned

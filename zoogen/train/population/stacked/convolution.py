"""Convolution of each model's images with its own kernels, in ways that compute the same and cost differently.

``unfold`` copies out the patches and multiplies matrices, one product per model over all its samples; ``grouped`` is
one convolution over the channels of all models side by side; ``shifted`` multiplies one product per kernel position,
without the copy of all patches; ``loop`` convolves model by model.

Shape suffixes: M models, B samples, C channels in, O channels out, H, W image, h, w kernel, G groups, K values of a
patch within a group, N output pixels of all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zoogen.train.population.stacked.windows import Pair, windows

Padding = tuple[int, int, int, int]
"""Left, right, top, bottom."""


@dataclass(frozen=True)
class Convolution:
    """What a two-dimensional convolution layer is, apart from its weights; pairs are (vertical, horizontal)."""

    stride: Pair
    padding: Padding
    padding_mode: str
    dilation: Pair
    groups: int

    def __call__(self, variant: str, x_MBCHW: Tensor, kernels_MOChw: Tensor, bias_MO: Tensor | None) -> Tensor:
        """Convolved images [M, B, O, H', W']; ``x_MBCHW`` may be [1, ...]: the same for all models."""
        models = len(kernels_MOChw)
        if models > 1 and len(x_MBCHW) == 1:
            if self.groups == 1:
                return self._shared(x_MBCHW[0], kernels_MOChw, bias_MO)
            x_MBCHW = x_MBCHW.expand(models, *x_MBCHW.shape[1:])
        return VARIANTS[variant](self, x_MBCHW, kernels_MOChw, bias_MO)

    def _shared(self, x_BCHW: Tensor, kernels_MOChw: Tensor, bias_MO: Tensor | None) -> Tensor:
        """Of the same images: one convolution with the kernels of all models."""
        bias = None if bias_MO is None else bias_MO.flatten()
        y = self.torch_convolution(x_BCHW, kernels_MOChw.flatten(0, 1), bias, 1)
        return y.unflatten(1, kernels_MOChw.shape[:2]).transpose(0, 1)

    def torch_convolution(self, x_BCHW: Tensor, kernels: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        left, right, top, bottom = self.padding
        if self.padding_mode == "zeros" and (left, top) == (right, bottom):
            return functional.conv2d(x_BCHW, kernels, bias, self.stride, (top, left), self.dilation, groups)
        return functional.conv2d(self._padded(x_BCHW), kernels, bias, self.stride, 0, self.dilation, groups)

    def padded(self, x_MBCHW: Tensor) -> Tensor:
        """With the border written out."""
        if not any(self.padding):
            return x_MBCHW
        if self.padding_mode == "zeros":
            return self._padded(x_MBCHW)
        return self._padded(x_MBCHW.flatten(0, 1)).unflatten(0, x_MBCHW.shape[:2])

    def _padded(self, x: Tensor) -> Tensor:
        return functional.pad(x, self.padding, "constant" if self.padding_mode == "zeros" else self.padding_mode)

    def output_size(self, kernel: Pair, height: int, width: int) -> Pair:
        """Of an image that has its border already."""
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, kernel, strict=True)]
        sizes = [(n - s) // step + 1 for n, s, step in zip((height, width), spans, self.stride, strict=True)]
        return sizes[0], sizes[1]

    def windows(self, kernel: Sequence[int], size: Pair) -> Iterator[tuple[Pair, tuple[slice, slice]]]:
        return windows((kernel[0], kernel[1]), self.stride, self.dilation, size)


def _grouped(conv: Convolution, x_MBCHW: Tensor, kernels_MOChw: Tensor, bias_MO: Tensor | None) -> Tensor:
    x = x_MBCHW.transpose(0, 1).flatten(1, 2)
    bias = None if bias_MO is None else bias_MO.flatten()
    models = len(kernels_MOChw)
    y = conv.torch_convolution(x, kernels_MOChw.flatten(0, 1), bias, models * conv.groups)
    return y.unflatten(1, (models, -1)).transpose(0, 1)


def _loop(conv: Convolution, x_MBCHW: Tensor, kernels_MOChw: Tensor, bias_MO: Tensor | None) -> Tensor:
    biases: Any = [None] * len(kernels_MOChw) if bias_MO is None else bias_MO.unbind()
    each = zip(x_MBCHW.unbind(), kernels_MOChw.unbind(), biases, strict=True)
    return torch.stack([conv.torch_convolution(x, kernels, bias, conv.groups) for x, kernels, bias in each])


def _unfold(conv: Convolution, x_MBCHW: Tensor, kernels_MOChw: Tensor, bias_MO: Tensor | None) -> Tensor:
    return _as_product(_Unfolded, conv, x_MBCHW, kernels_MOChw, bias_MO)


def _shifted(conv: Convolution, x_MBCHW: Tensor, kernels_MOChw: Tensor, bias_MO: Tensor | None) -> Tensor:
    return _as_product(_Shifted, conv, x_MBCHW, kernels_MOChw, bias_MO)


VARIANTS: dict[str, Callable[[Convolution, Tensor, Tensor, Tensor | None], Tensor]] = {
    "unfold": _unfold,
    "grouped": _grouped,
    "shifted": _shifted,
    "loop": _loop,
}


def _mixed(*tensors: Tensor | None) -> list[Tensor | None]:
    """In the dtype that autocast gives to matrix products: inside a function with its own derivative it must be set."""
    kind = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    return [None if t is None else t.to(dtype) for t in tensors]


def _as_product(
    function: Any, conv: Convolution, x_MBCHW: Tensor, kernels_MOChw: Tensor, bias_MO: Tensor | None
) -> Tensor:
    """By a function that gives [M, G, O / G, N]; seen as images here, since what is a view cannot change in place."""
    x, kernels, bias = _mixed(conv.padded(x_MBCHW), kernels_MOChw, bias_MO)
    assert x is not None
    size = conv.output_size((kernels_MOChw.shape[3], kernels_MOChw.shape[4]), *x.shape[3:])
    return _to_images(function.apply(conv, size, x, kernels, bias), size)


def _by_pixel(y_MBOHW: Tensor, groups: int) -> Tensor:
    """[M, B, O, H', W'] -> [M, G, O / G, N]; no copy where it lies as ``_to_images`` left it."""
    models, _, channels = y_MBOHW.shape[:3]
    return y_MBOHW.transpose(1, 2).reshape(models, groups, channels // groups, -1)


def _to_images(y_MGON: Tensor, size: Pair) -> Tensor:
    """[M, G, O / G, N] -> [M, B, O, H', W'], a view."""
    return y_MGON.flatten(1, 2).unflatten(2, (-1, *size)).transpose(1, 2)


def _zero_images(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros [M, B, C, H, W] that lie in memory as [M, C, B, H, W], like all images here."""
    models, samples, channels, height, width = shape
    return like.new_zeros(models, channels, samples, height, width).transpose(1, 2)


def _by_group(kernels_MOChw: Tensor, groups: int) -> Tensor:
    """[M, O, C / G, h, w] -> [M, G, O / G, C / G, h, w]"""
    return kernels_MOChw.unflatten(1, (groups, -1))


class _Unfolded(torch.autograd.Function):
    """Kernels [M, G, O / G, K] times patches [M, G, K, N]."""

    @staticmethod
    def forward(
        ctx: Any, conv: Convolution, size: Pair, x_MBCHW: Tensor, kernels_MOChw: Tensor, bias_MO: Tensor | None
    ) -> Tensor:
        kernels_MGOK = _by_group(kernels_MOChw, conv.groups).flatten(3)
        patches_MGKN = _patches(conv, x_MBCHW, kernels_MOChw.shape[3:], size)
        y_MGON = kernels_MGOK @ patches_MGKN
        if bias_MO is not None:
            y_MGON += bias_MO.unflatten(1, (conv.groups, -1))[..., None]
        ctx.conv, ctx.size, ctx.x_shape = conv, size, x_MBCHW.shape
        ctx.save_for_backward(patches_MGKN, kernels_MOChw)
        return y_MGON

    @staticmethod
    def backward(ctx: Any, gradient_MGON: Tensor) -> Any:
        patches_MGKN, kernels_MOChw = ctx.saved_tensors
        models, samples, channels = ctx.x_shape[:3]
        kernel = kernels_MOChw.shape[3:]
        of_x = of_kernels = of_bias = None
        if ctx.needs_input_grad[2]:
            kernels_MGOK = _by_group(kernels_MOChw, ctx.conv.groups).flatten(3)
            of_patches = (kernels_MGOK.mT @ gradient_MGON).view(models, channels, *kernel, samples, *ctx.size)
            of_x = _zero_images(gradient_MGON, ctx.x_shape)
            for (i, j), (rows, columns) in ctx.conv.windows(kernel, ctx.size):
                of_x[..., rows, columns] += of_patches[:, :, i, j].transpose(1, 2)
        if ctx.needs_input_grad[3]:
            of_kernels = (gradient_MGON @ patches_MGKN.mT).view_as(kernels_MOChw)
        if ctx.needs_input_grad[4]:
            of_bias = gradient_MGON.sum(3).flatten(1)
        return None, None, of_x, of_kernels, of_bias


def _patches(conv: Convolution, x_MBCHW: Tensor, kernel: Sequence[int], size: Pair) -> Tensor:
    """What each kernel position meets, copied: [M, G, K, N]."""
    of_m, of_b, of_c, of_h, of_w = x_MBCHW.stride()
    (down, right), (step_down, step_right) = conv.dilation, conv.stride
    models, samples, channels = x_MBCHW.shape[:3]
    windows_MChwBHW = x_MBCHW.as_strided(
        (models, channels, *kernel, samples, *size),
        (of_m, of_c, of_h * down, of_w * right, of_b, of_h * step_down, of_w * step_right),
    )
    values = channels // conv.groups * kernel[0] * kernel[1]
    return windows_MChwBHW.reshape(models, conv.groups, values, -1)


class _Shifted(torch.autograd.Function):
    """For each kernel position, [M, G, O / G, C / G] times the pixels that it meets [M, G, C / G, N], summed up."""

    @staticmethod
    def forward(
        ctx: Any, conv: Convolution, size: Pair, x_MBCHW: Tensor, kernels_MOChw: Tensor, bias_MO: Tensor | None
    ) -> Tensor:
        ctx.conv, ctx.size = conv, size
        ctx.save_for_backward(x_MBCHW, kernels_MOChw)
        kernels = _by_group(kernels_MOChw, conv.groups)
        models, groups, out_channels = kernels.shape[:3]
        y_MGON = x_MBCHW.new_zeros(models, groups, out_channels, x_MBCHW.shape[1] * size[0] * size[1])
        if bias_MO is not None:
            y_MGON += bias_MO.unflatten(1, (groups, -1))[..., None]
        for (i, j), (rows, columns) in conv.windows(kernels_MOChw.shape[3:], size):
            met = _by_pixel(x_MBCHW[..., rows, columns], groups)
            y_MGON.flatten(0, 1).baddbmm_(kernels[..., i, j].flatten(0, 1), met.flatten(0, 1))
        return y_MGON

    @staticmethod
    def backward(ctx: Any, gradient_MGON: Tensor) -> Any:
        x_MBCHW, kernels_MOChw = ctx.saved_tensors
        kernels = _by_group(kernels_MOChw, ctx.conv.groups)
        of_x = _zero_images(x_MBCHW, x_MBCHW.shape) if ctx.needs_input_grad[2] else None
        of_kernels = torch.empty_like(kernels) if ctx.needs_input_grad[3] else None
        for (i, j), (rows, columns) in ctx.conv.windows(kernels_MOChw.shape[3:], ctx.size):
            if of_kernels is not None:
                met = _by_pixel(x_MBCHW[..., rows, columns], ctx.conv.groups)
                of_kernels[..., i, j] = gradient_MGON @ met.mT
            if of_x is not None:
                of_x[..., rows, columns] += _to_images(kernels[..., i, j].mT @ gradient_MGON, ctx.size)
        of_bias = gradient_MGON.sum(3).flatten(1) if ctx.needs_input_grad[4] else None
        return None, None, of_x, None if of_kernels is None else of_kernels.view_as(kernels_MOChw), of_bias

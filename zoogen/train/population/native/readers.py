"""What the code of a layer depends on, read from the layer; a setting that no code was written for is `Unsupported`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from zoogen.train.dropout import CounterDropout
from zoogen.train.population.engine import Unsupported
from zoogen.train.sparsify.variational import VariationalConv1d, VariationalConv2d, VariationalLinear


def activation(layer: nn.Module, told: str) -> dict[str, Any]:
    if isinstance(layer, nn.GELU) and layer.approximate != "none":
        raise Unsupported(f"{told} with the tanh approximation has no generated code")
    return {"slope": float(layer.negative_slope)} if isinstance(layer, nn.LeakyReLU) else {}


def _two(value: Any) -> tuple[int, int]:
    """A layer's setting for height and width; one-dimensional layers have height 1."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _plane(value: Any, ndim: int, neutral: int) -> tuple[int, int]:
    if ndim == 2:
        return _two(value)
    return (neutral, int(value if isinstance(value, int) else value[0]))


def _conv(layer: Any, told: str, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    ndim = 2 if isinstance(layer, nn.Conv2d) else 1
    if layer.padding_mode != "zeros" and any(layer._reversed_padding_repeated_twice):
        raise Unsupported(f"{told} with padding_mode {layer.padding_mode!r} has no generated code")
    padding = layer.padding
    if isinstance(padding, str):
        twice = layer._reversed_padding_repeated_twice  # last dimension first: left, right, top, bottom
        if any(a != b for a, b in zip(twice[::2], twice[1::2], strict=True)):
            raise Unsupported(f"{told} pads one side more than the other")
        padding = tuple(reversed(twice[::2]))
    return "conv", {
        "kernel": _plane(layer.kernel_size, ndim, 1),
        "stride": _plane(layer.stride, ndim, 1),
        "padding": _plane(padding, ndim, 0),
        "dilation": _plane(layer.dilation, ndim, 1),
        "groups": layer.groups,
    }


def _linear(layer: nn.Linear, told: str, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    return "linear", {"inputs": layer.in_features, "outputs": layer.out_features}


def _pool(layer: Any, told: str, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    ndim = 2 if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)) else 1
    is_max = isinstance(layer, (nn.MaxPool1d, nn.MaxPool2d))
    if layer.ceil_mode:
        raise Unsupported(f"{told} with ceil_mode has no generated code")
    settings = {
        "kernel": _plane(layer.kernel_size, ndim, 1),
        "stride": _plane(layer.stride if layer.stride is not None else layer.kernel_size, ndim, 1),
        "padding": _plane(layer.padding, ndim, 0),
    }
    if is_max:
        if layer.return_indices or _plane(layer.dilation, ndim, 1) != (1, 1):
            raise Unsupported(f"{told} with dilation or return_indices has no generated code")
        return "max_pool", settings
    if getattr(layer, "divisor_override", None) is not None or (
        not layer.count_include_pad and settings["padding"] != (0, 0)
    ):
        raise Unsupported(f"{told} with another divisor than its window has no generated code")
    return "avg_pool", settings


def _adaptive(layer: Any, told: str, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    ndim = 2 if isinstance(layer, nn.AdaptiveAvgPool2d) else 1
    sides = shape[1:] if ndim == 2 else (1, *shape[1:])
    out = _plane(layer.output_size, ndim, 1)
    if any(side % o for side, o in zip(sides, out, strict=True)):
        raise Unsupported(f"{told}: {sides} is no multiple of {out}")
    kernel = tuple(side // o for side, o in zip(sides, out, strict=True))
    return "avg_pool", {"kernel": kernel, "stride": kernel, "padding": (0, 0)}


def _batch_norm(layer: Any, told: str, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    if not layer.track_running_stats or layer.momentum is None:
        raise Unsupported(f"{told} without running statistics, or with their plain average, has no generated code")
    return "batch_norm", {"eps": float(layer.eps), "momentum": float(layer.momentum)}


LAYERS: dict[type[nn.Module], Callable[..., tuple[str, dict[str, Any]]]] = {
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    VariationalConv1d: _conv,
    VariationalConv2d: _conv,
    VariationalLinear: _linear,
    nn.MaxPool1d: _pool,
    nn.MaxPool2d: _pool,
    nn.AvgPool1d: _pool,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool1d: _adaptive,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    CounterDropout: lambda *_: ("dropout", {}),
}

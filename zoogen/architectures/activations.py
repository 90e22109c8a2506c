"""Activation functions by name, with torch's default arguments (leaky_relu: slope 0.01; gelu: the exact form)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

Activation = Literal["tanh", "relu", "sigmoid", "gelu", "leaky_relu", "silu"]


def activation_module(name: Activation) -> nn.Module:
    """A new module that applies the activation elementwise."""
    from torch import nn

    modules: dict[Activation, type[nn.Module]] = {
        "tanh": nn.Tanh,
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "gelu": nn.GELU,
        "leaky_relu": nn.LeakyReLU,
        "silu": nn.SiLU,
    }
    return modules[name]()

"""Initial weights by name, as the published zoos have them (Schürholt et al. 2022, arXiv:2209.14764).

Weights of Conv2d and Linear are drawn, their biases are all 0.01; norm layers keep scale 1 and shift 0.

    uniform           U(0, 1), so every weight is positive
    normal            N(0, 1)
    kaiming_uniform   U(-b, b), b = sqrt(6 / fan_in)              He et al. 2015, arXiv:1502.01852
    kaiming_normal    N(0, 2 / fan_in)
    xavier_uniform    U(-b, b), b = sqrt(6 / (fan_in + fan_out))  Glorot & Bengio 2010
    xavier_normal     N(0, 2 / (fan_in + fan_out))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Initialisation = Literal["uniform", "normal", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"]

BIAS = 0.01


def initialise(module: nn.Module, init: Initialisation) -> None:
    """Draw the weights of every Conv2d and Linear in ``module``, in registration order, from torch's generator."""
    from torch import nn

    draws: dict[Initialisation, Callable[..., Any]] = {
        "uniform": nn.init.uniform_,
        "normal": nn.init.normal_,
        "kaiming_uniform": nn.init.kaiming_uniform_,
        "kaiming_normal": nn.init.kaiming_normal_,
        "xavier_uniform": nn.init.xavier_uniform_,
        "xavier_normal": nn.init.xavier_normal_,
    }
    for layer in module.modules():
        # A meta tensor has no values; drawing them would only make torch import its compiler, which takes seconds.
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not layer.weight.is_meta:
            draws[init](layer.weight)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, BIAS)

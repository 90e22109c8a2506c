"""The steps of ``torch.optim`` on stacked rows, every model with settings of its own.

Weights, gradients and state are [M, T], settings are columns [M, 1] of float64. What torch computes from numbers before
it touches a tensor (bias corrections, step sizes) is computed in float64 here too, then rounded once. State that is
zero before the first step gives the same first step as torch's missing state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoogen.train.optimizers import SGD, Adam, AdamW, RMSprop
from zoogen.train.population.engine import Unsupported

_Tensors = Mapping[str, Tensor]

_ALWAYS = ("beta1", "beta2", "eps", "alpha")
_SOMETIMES = ("weight_decay", "momentum")


def columns(entries: Sequence[Any]) -> dict[str, Tensor]:
    """Settings [M, 1] by name, of optimizers of one kind; weight decay and momentum only where a model has any."""
    found = {}
    for name in (*_ALWAYS, *_SOMETIMES):
        if hasattr(entries[0], name):
            column = torch.tensor([[getattr(entry, name)] for entry in entries], dtype=torch.float64)
            if name in _ALWAYS or column.any():
                found[name] = column
    return found


def check_optimizer(entry: Any) -> None:
    """Refuse an optimizer without a stacked form.

    Raises:
        Unsupported: naming it.
    """
    if type(entry) not in _STEPS:
        raise Unsupported(f"optimizer {entry.registered_name!r} has no stacked form")


def state_names(kind: type, momentum: bool) -> tuple[str, ...]:
    """The tensors [M, T] that torch keeps between steps, for models of which one has momentum or none has."""
    if kind in (Adam, AdamW):
        return ("exp_avg", "exp_avg_sq")
    return (("square_avg",) if kind is RMSprop else ()) + (("momentum_buffer",) if momentum else ())


def counts_steps(kind: type) -> bool:
    """Whether torch keeps ``step``."""
    return kind is not SGD


def step(
    kind: type,
    nesterov: bool,
    weights: Tensor,
    gradients: Tensor,
    state: Mapping[str, Tensor],
    settings: Mapping[str, Tensor],
    scratch: Tensor,
) -> None:
    """One step of all models; ``weights`` and ``state`` move in place, ``gradients`` and ``scratch`` are spoilt.

    Nothing of the rows' size is allocated: on a CPU the first touch of new memory costs more than the arithmetic.

    Args:
        settings: ``lr`` and the columns of :func:`columns`, as they are at this step, [M, 1].
    """
    if "step" in state:
        state["step"].add_(1)
    if "weight_decay" in settings and kind is not AdamW:
        gradients.addcmul_(weights, settings["weight_decay"].to(weights.dtype))
    _STEPS[kind](weights, gradients, state, settings, scratch, **({"nesterov": nesterov} if kind is SGD else {}))


def _sgd(
    weights: Tensor, gradients: Tensor, state: _Tensors, settings: _Tensors, scratch: Tensor, *, nesterov: bool
) -> None:
    direction = gradients
    if "momentum_buffer" in state:
        direction = _with_momentum(gradients, state, settings)
        if nesterov:
            direction = gradients.addcmul_(direction, settings["momentum"].to(weights.dtype))
    weights.addcmul_(direction, -settings["lr"].to(weights.dtype))
    _forget(state, settings)


def _adam(weights: Tensor, gradients: Tensor, state: _Tensors, settings: _Tensors, scratch: Tensor) -> None:
    dtype = weights.dtype
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    beta1, beta2, lr = settings["beta1"], settings["beta2"], settings["lr"]
    mean.lerp_(gradients, (1 - beta1).to(dtype))
    _average_squares(square, gradients, beta2, scratch)
    steps = state["step"][:, :1].double()
    size = lr / (1 - beta1**steps)
    root = (1 - beta2**steps).sqrt()
    scale = torch.sqrt(square, out=scratch).div_(root.to(dtype)).add_(settings["eps"].to(dtype))
    weights.addcdiv_(torch.mul(mean, -size.to(dtype), out=gradients), scale)


def _adamw(weights: Tensor, gradients: Tensor, state: _Tensors, settings: _Tensors, scratch: Tensor) -> None:
    if "weight_decay" in settings:
        weights.mul_((1 - settings["lr"] * settings["weight_decay"]).to(weights.dtype))
    _adam(weights, gradients, state, settings, scratch)


def _rmsprop(weights: Tensor, gradients: Tensor, state: _Tensors, settings: _Tensors, scratch: Tensor) -> None:
    dtype = weights.dtype
    square = state["square_avg"]
    _average_squares(square, gradients, settings["alpha"], scratch)
    direction = gradients.div_(torch.sqrt(square, out=scratch).add_(settings["eps"].to(dtype)))
    if "momentum_buffer" in state:
        direction = _with_momentum(direction, state, settings)
    weights.addcmul_(direction, -settings["lr"].to(dtype))
    _forget(state, settings)


_STEPS: dict[type, Callable[..., None]] = {SGD: _sgd, Adam: _adam, AdamW: _adamw, RMSprop: _rmsprop}


def _average_squares(square: Tensor, gradients: Tensor, decay: Tensor, scratch: Tensor) -> None:
    square.lerp_(torch.mul(gradients, gradients, out=scratch), (1 - decay).to(square.dtype))


def _with_momentum(direction: Tensor, state: _Tensors, settings: _Tensors) -> Tensor:
    return state["momentum_buffer"].mul_(settings["momentum"].to(direction.dtype)).add_(direction)


def _forget(state: _Tensors, settings: _Tensors) -> None:
    """A model without momentum has no buffer in torch; beside models that have one, its row stays zero."""
    if "momentum_buffer" in state:
        state["momentum_buffer"].mul_(settings["momentum"] != 0)

"""The state of a ``torch.optim`` optimizer as flat rows, and back: what a row holds does not depend on torch's format.

Per-element state (``exp_avg``, ``momentum_buffer``, ...) lies like the trainable part of a weight row. ``step`` has one
entry per trainable tensor, because torch counts only the steps at which a tensor had a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer


def flat_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """Rows by name, copied: float32 [P_trainable], or [tensors] for ``step``; empty before the first step.

    A tensor that never had a gradient has no state in torch and zeros here.
    """
    parameters = _parameters(optimizer)
    names = sorted({name for p in parameters for name, v in optimizer.state[p].items() if v is not None})
    return {name: torch.cat([_part(optimizer.state[p].get(name), name, p) for p in parameters]) for name in names}


def load_flat_state(optimizer: Optimizer, rows: Mapping[str, Tensor]) -> None:
    """Put ``flat_state`` rows back; the optimizer then goes on as if it had never stopped."""
    parameters = _parameters(optimizer)
    sizes = [p.numel() for p in parameters]
    parts = {name: row.split(1 if name == "step" else sizes) for name, row in rows.items()}
    state: dict[int, dict[str, Tensor]] = {}
    for i, p in enumerate(parameters):
        if "step" in parts and not parts["step"][i]:
            continue  # never had a gradient
        state[i] = {
            name: part[i].reshape(()).clone() if name == "step" else torch.empty_like(p).copy_(part[i].view(p.shape))
            for name, part in parts.items()
        }
    # Through torch's own door, which knows where each optimizer wants its step counter.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _part(value: Tensor | None, name: str, parameter: Tensor) -> Tensor:
    if value is None:
        return parameter.new_zeros(1 if name == "step" else parameter.numel())
    return value.detach().to(parameter.device).reshape(-1)

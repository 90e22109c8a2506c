"""Where tensors are computed and handed out: devices by name, refused before anything is read."""

from __future__ import annotations

from typing import Any

import torch

from zoogen.core.errors import EnvironmentFault, UserError


def usable_device(name: Any) -> torch.device:
    """The device of that name, as torch knows it.

    Raises:
        UserError: torch knows no such device.
        EnvironmentFault: this machine has no such GPU.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"unknown device {name!r}; known: cpu, cuda, cuda:0, cuda:1, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("there is no GPU that torch can use here; take device='cpu'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentFault(f"torch finds {torch.cuda.device_count()} GPUs here, so there is no {device}")
    return device

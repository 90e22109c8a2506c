"""The arithmetic of a training: TF32 flags, automatic mixed precision and the loss scale of float16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from zoogen.core.errors import UserError


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what ``device`` cannot do.

    Raises:
        UserError: float16 or tf32 away from a GPU.
    """
    if precision in ("float16", "tf32") and device.type != "cuda":
        raise UserError(
            f"training.precision {precision!r} needs a GPU, this cohort trains on {device.type!r}\n"
            "use float32 or bfloat16 here, or give the cohort a GPU (resources.gpus)"
        )


@contextmanager
def matrix_arithmetic(precision: str) -> Iterator[None]:
    """Allow TF32 for matrix products and convolutions if, and only if, ``precision`` is tf32; restored at the end.

    torch's own default computes convolutions in TF32 even where float32 was asked for.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def mixed(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The context of forward passes: autocast for bfloat16 and float16, nothing otherwise. Enter it anew each time."""
    if precision in ("bfloat16", "float16"):
        return torch.autocast(device.type, dtype=getattr(torch, precision))
    return nullcontext()


def loss_scale(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """The scale of float16 losses, against gradients too small for it; passes everything through otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")

"""Sparse twins by variational dropout as they were published: weights with a noise each -> weights with a mask.

The rule is that of their evaluation (Molchanov et al. 2017, arXiv:1701.05369): a weight whose
log alpha = log sigma^2 - 2 log |w| is 3 or more is 0. log alpha is clamped to [-8, 8] in convolutions and to [-10, 10]
in linear layers; biases of convolutions carry noise too and are zeroed alike, those of linear layers never are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zoogen.importers.source import Unusable

if TYPE_CHECKING:
    from torch import Tensor

_NOISE = ".log_sigma2"
_OF_BIAS = ".log_sigma2_bias"
_THRESHOLD = 3.0
_SMALL = 1e-15  # as their code adds before it takes the logarithm


def is_noisy(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a network with variational dropout."""
    return any(name.endswith(_NOISE) for name in tensors)


def hard_zeroed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights that evaluation uses, without their noises, and which elements of noisy weights are left (bool).

    Where a noise is not a number, so is the weight: the state is then as little of use as the network was.

    Raises:
        Unusable: a noise belongs to no weight of its shape.
    """
    import torch

    plain = {n: t for n, t in tensors.items() if not n.endswith((_NOISE, _OF_BIAS))}
    kept = {}
    for name in tensors:
        if not name.endswith(_NOISE):
            continue
        layer = name.removesuffix(_NOISE)
        weight = plain.get(f"{layer}.weight")
        convolution = weight is not None and weight.ndim > 2
        pairs = [(f"{layer}.weight", name)]
        if convolution and f"{layer}{_OF_BIAS}" in tensors and f"{layer}.bias" in plain:
            pairs.append((f"{layer}.bias", f"{layer}{_OF_BIAS}"))
        for own, noise in pairs:
            if own not in plain or plain[own].shape != tensors[noise].shape:
                raise Unusable(f"has {noise} without a weight of its shape")
            value = plain[own]
            bound = 8.0 if convolution else 10.0
            log_alpha = (tensors[noise] - 2 * torch.log(value.abs() + _SMALL)).clamp(-bound, bound)
            left = log_alpha < _THRESHOLD
            plain[own] = torch.where(log_alpha.isnan(), log_alpha, torch.where(left, value, torch.zeros_like(value)))
            if own.endswith(".weight"):
                kept[own] = left
    return plain, kept

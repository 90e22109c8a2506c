"""Named per-channel means and standard deviations of pixel values in [0, 1]."""

from __future__ import annotations

from typing import Literal

Normalisation = Literal["none", "half", "mnist", "cifar10", "cifar100", "svhn", "imagenet"]

# One number serves any number of channels.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def statistics(name: Normalisation, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, both of length ``channels``.

    Raises:
        ValueError: the statistics are of another number of channels.
    """
    mean, std = _STATISTICS[name]
    if len(mean) == 1:
        return mean * channels, std * channels
    if len(mean) != channels:
        raise ValueError(f"normalise: {name} is for {len(mean)} channels, the images have {channels}")
    return mean, std

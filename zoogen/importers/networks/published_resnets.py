"""The residual networks of the 2022 and the phase zoos (arXiv:2209.14764, arXiv:2504.18072): torchvision's names, a
stem of one 3x3 convolution, always ReLU and never dropout, whatever else a record says.

That leaves open how large the images are, which the task says, and what the tensors tell: depth, width and classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoogen.core.registry import ARCHITECTURES
from zoogen.importers.networks.published_cnns import INITS
from zoogen.importers.source import Network

if TYPE_CHECKING:
    from torch import Tensor

_STEM, _CLASSES = "conv1.weight", "fc.bias"


def is_resnet(record: Mapping[str, Any]) -> bool:
    """Whether the record's type names a residual network."""
    return "resnet" in str(record.get("model::type")).lower()


def resnet_of(
    record: Mapping[str, Any], tensors: Mapping[str, Tensor], input_shape: tuple[int, ...] | None
) -> Network | None:
    """The network that record and tensors describe, or None where they describe none of ours, or leave something open.

    Args:
        record: ``params.json``.
        tensors: A state by torchvision's names.
        input_shape: Of the images of the task; None: not known, so that nothing is recognised.
    """
    init = record.get("model::init_type")
    if not is_resnet(record) or input_shape is None or init not in INITS:
        return None
    if not {_STEM, _CLASSES} <= tensors.keys() or tensors[_STEM].ndim != 4:
        return None
    width, channels = tensors[_STEM].shape[:2]
    if len(input_shape) != 3 or channels != input_shape[0]:
        return None
    # Blocks of two convolutions or of three; how many there are is compared with everything else.
    name = "resnet50" if "layer1.0.conv3.weight" in tensors else "resnet18"
    return Network(ARCHITECTURES.make(name, {"width": int(width), "init": init}), input_shape, len(tensors[_CLASSES]))

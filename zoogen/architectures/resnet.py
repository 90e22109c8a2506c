"""Residual networks for small images with a width of choice (He et al. 2016, arXiv:1512.03385), as in the phase zoos.

The stem is one 3x3 convolution with stride 1 and without max-pooling; the four stages have w, 2w, 4w and 8w channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge

from zoogen.architectures.images import image_shape
from zoogen.architectures.initialisation import Initialisation, initialise
from zoogen.core.registry import ARCHITECTURES

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class _ResNet:
    width: Annotated[int, Ge(1)] = 64
    init: Initialisation = "kaiming_uniform"

    per_model: ClassVar[frozenset[str]] = frozenset({"init"})
    runs_code: ClassVar[bool] = False
    registered_name: ClassVar[str]
    blocks: ClassVar[tuple[int, int, int, int]]
    bottleneck: ClassVar[bool]

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The network, (B, channels, height, width) -> (B, outputs).

        Raises:
            UserError: the input is no image.
        """
        from zoogen.architectures.residual import BasicBlock, Bottleneck, ResNet

        channels, _, _ = image_shape(self.registered_name, input_shape)
        network = ResNet(Bottleneck if self.bottleneck else BasicBlock, self.blocks, self.width, channels, outputs)
        initialise(network, self.init)
        return network


@ARCHITECTURES.register("resnet18")
@dataclass(frozen=True)
class ResNet18(_ResNet):
    """ResNet-18: stages of 2, 2, 2, 2 basic blocks; 11,173,962 parameters at width 64 for 10 classes.

    Attributes:
        width: Channels of the first stage.
        init: Distribution of the initial weights (``zoogen.architectures.initialisation``).
    """

    blocks: ClassVar[tuple[int, int, int, int]] = (2, 2, 2, 2)
    bottleneck: ClassVar[bool] = False


@ARCHITECTURES.register("resnet50")
@dataclass(frozen=True)
class ResNet50(_ResNet):
    """ResNet-50: stages of 3, 4, 6, 3 bottleneck blocks; 23,520,842 parameters at width 64 for 10 classes.

    Attributes:
        width: Channels within the blocks of the first stage; the blocks' outputs have four times as many.
        init: Distribution of the initial weights (``zoogen.architectures.initialisation``).
    """

    blocks: ClassVar[tuple[int, int, int, int]] = (3, 4, 6, 3)
    bottleneck: ClassVar[bool] = True

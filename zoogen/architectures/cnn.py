"""The small CNNs of the 2022 model zoos (Schürholt et al., arXiv:2209.14764): cnn-s for 28x28, cnn-l for 32x32 images.

Stride 1, no padding; each convolution is followed by max-pooling, *then* the activation, then dropout. The modules are
there whatever the rate of dropout is, and each has a name, so a parameter is called the same in every model.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge, Lt

from zoogen.architectures.activations import Activation, activation_module
from zoogen.architectures.images import image_shape
from zoogen.architectures.initialisation import Initialisation, initialise
from zoogen.core.registry import ARCHITECTURES

if TYPE_CHECKING:
    from torch import nn

_UNITS = 20  # of the hidden linear layer


@dataclass(frozen=True)
class _Conv:
    channels: int
    kernel: int
    pool: int = 2
    dropout: bool = True


@dataclass(frozen=True)
class _SmallCNN:
    activation: Activation = "tanh"
    init: Initialisation = "kaiming_uniform"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0

    per_model: ClassVar[frozenset[str]] = frozenset({"init", "dropout"})
    runs_code: ClassVar[bool] = False
    registered_name: ClassVar[str]
    convs: ClassVar[tuple[_Conv, ...]]

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
        """The network, (B, channels, height, width) -> (B, outputs).

        Raises:
            UserError: the input is no image, or too small for the convolutions.
        """
        from torch import nn

        channels, *sides = image_shape(self.registered_name, input_shape, _least_side(self.convs))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, conv in enumerate(self.convs, start=1):
            layers[f"conv{i}"] = nn.Conv2d(channels, conv.channels, conv.kernel)
            if conv.pool > 1:
                layers[f"pool{i}"] = nn.MaxPool2d(conv.pool)
            layers[f"act{i}"] = activation_module(self.activation)
            if conv.dropout:
                layers[f"dropout{i}"] = nn.Dropout(self.dropout)
            channels = conv.channels
            sides = [(side - conv.kernel + 1) // conv.pool for side in sides]
        n = len(self.convs) + 1
        layers["flatten"] = nn.Flatten()
        layers["fc1"] = nn.Linear(channels * sides[0] * sides[1], _UNITS)
        layers[f"act{n}"] = activation_module(self.activation)
        layers[f"dropout{n}"] = nn.Dropout(self.dropout)
        layers["fc2"] = nn.Linear(_UNITS, outputs)
        network = nn.Sequential(layers)
        initialise(network, self.init)
        return network


def _least_side(convs: tuple[_Conv, ...]) -> int:
    side = 1
    for conv in reversed(convs):
        side = side * conv.pool + conv.kernel - 1
    return side


@ARCHITECTURES.register("cnn-s")
@dataclass(frozen=True)
class CNNSmall(_SmallCNN):
    """Convolutions 5x5 to 8, 5x5 to 6 and 2x2 to 4 channels (the last neither pooled nor dropped), linear to 20 units
    and to the outputs: 2,464 parameters for 1x28x28 images and 10 classes, 2,864 for 3x28x28.

    Attributes:
        activation: After each hidden layer.
        init: Distribution of the initial weights (``zoogen.architectures.initialisation``).
        dropout: Probability to drop a value after a hidden layer.
    """

    convs: ClassVar[tuple[_Conv, ...]] = (_Conv(8, 5), _Conv(6, 5), _Conv(4, 2, pool=1, dropout=False))


@ARCHITECTURES.register("cnn-l")
@dataclass(frozen=True)
class CNNLarge(_SmallCNN):
    """Convolutions 3x3 to 16, 32 and 15 channels, linear to 20 units and to the outputs: 10,853 parameters for 3x32x32
    images and 10 classes, 10,565 for 1x32x32.

    Attributes:
        activation: After each hidden layer.
        init: Distribution of the initial weights (``zoogen.architectures.initialisation``).
        dropout: Probability to drop a value after a hidden layer.
    """

    convs: ClassVar[tuple[_Conv, ...]] = (_Conv(16, 3), _Conv(32, 3), _Conv(15, 3))

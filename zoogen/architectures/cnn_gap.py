"""The CNN of the Small CNN Zoo (Unterthiner et al. 2020, arXiv:2002.11448): three strided convolutions and a mean.

As its authors' training script builds it (google-research, ``dnn_predict_accuracy/train_network.py``): kernels of 3x3
that move by 2, no padding, each followed by the activation and dropout; the mean over all places; one linear layer.
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

_CONVOLUTIONS, _CHANNELS, _KERNEL, _STRIDE = 3, 16, 3, 2
_LEAST_SIDE = 15  # three times: 15 -> 7 -> 3 -> 1


@ARCHITECTURES.register("cnn-gap")
@dataclass(frozen=True)
class CNNGap:
    """Three convolutions 3x3 to 16 channels with stride 2, the mean of each channel, linear to the outputs: 4,970
    parameters for grey images of any size and 10 classes.

    Attributes:
        activation: After each convolution.
        init: Distribution of the initial weights (``zoogen.architectures.initialisation``).
        dropout: Probability to drop a value after an activation.
    """

    activation: Activation = "relu"
    init: Initialisation = "kaiming_uniform"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0

    per_model: ClassVar[frozenset[str]] = frozenset({"init", "dropout"})
    runs_code: ClassVar[bool] = False
    registered_name: ClassVar[str]

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
        """The network, (B, channels, height, width) -> (B, outputs).

        Raises:
            UserError: the input is no image, or too small for the convolutions.
        """
        from torch import nn

        channels, _, _ = image_shape(self.registered_name, input_shape, _LEAST_SIDE)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(1, _CONVOLUTIONS + 1):
            layers[f"conv{i}"] = nn.Conv2d(channels, _CHANNELS, _KERNEL, _STRIDE)
            layers[f"act{i}"] = activation_module(self.activation)
            layers[f"dropout{i}"] = nn.Dropout(self.dropout)
            channels = _CHANNELS
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(_CHANNELS, outputs)
        network = nn.Sequential(layers)
        initialise(network, self.init)
        return network

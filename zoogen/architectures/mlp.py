"""Multi-layer perceptrons for input of any shape."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Lt

from zoogen.architectures.activations import Activation, activation_module
from zoogen.architectures.initialisation import Initialisation, initialise
from zoogen.core.registry import ARCHITECTURES

if TYPE_CHECKING:
    from torch import nn


@ARCHITECTURES.register("mlp")
@dataclass(frozen=True)
class MLP:
    """Linear layers, each but the last followed by the activation and dropout; no hidden layer gives a linear model.

    Attributes:
        hidden: Units of each hidden layer.
        activation: After each hidden layer.
        init: ``torch`` keeps torch's own (weights and biases U(-b, b), b = 1 / sqrt(fan_in)); the others are those of
            ``zoogen.architectures.initialisation``, with biases 0.01.
        dropout: Probability to drop a value after a hidden layer.
    """

    hidden: tuple[Annotated[int, Ge(1)], ...] = (64, 64)
    activation: Activation = "relu"
    init: Literal["torch"] | Initialisation = "torch"
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0

    per_model: ClassVar[frozenset[str]] = frozenset({"init", "dropout"})
    runs_code: ClassVar[bool] = False

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
        """The network, (B, *input_shape) -> (B, outputs)."""
        from torch import nn

        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, (n_in, n_out) in enumerate(pairwise([prod(input_shape), *self.hidden]), start=1):
            layers[f"fc{i}"] = nn.Linear(n_in, n_out)
            layers[f"act{i}"] = activation_module(self.activation)
            layers[f"dropout{i}"] = nn.Dropout(self.dropout)
        n_last = self.hidden[-1] if self.hidden else prod(input_shape)
        layers[f"fc{len(self.hidden) + 1}"] = nn.Linear(n_last, outputs)
        network = nn.Sequential(layers)
        if self.init != "torch":
            initialise(network, self.init)
        return network

"""Any network of torchvision by its name, from scratch: published weights are never loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from zoogen.architectures.fit import check_fit
from zoogen.core.errors import UserError, suggest
from zoogen.core.frozen import FrozenDict, freeze, thaw
from zoogen.core.registry import ARCHITECTURES

if TYPE_CHECKING:
    from torch import nn

# Their builders would also fetch weights for their backbone.
_NO_CLASSIFIERS = tuple(f"torchvision.models.{kind}." for kind in ("detection", "segmentation", "optical_flow"))

# What torchvision would load, and what the task decides.
_REFUSED = {
    "weights": "weights are never loaded; every model starts from its seed",
    "pretrained": "weights are never loaded; every model starts from its seed",
    "num_classes": "the task sets the number of outputs",
}


@ARCHITECTURES.register("torchvision")
@dataclass(frozen=True)
class TorchvisionModel:
    """A network of torchvision that gives one score per class, with torchvision's own initialisation.

    Attributes:
        model: A name of ``torchvision.models.list_models()``, e.g. ``mobilenet_v3_small``.
        arguments: Keyword arguments of its constructor, e.g. ``{image_size: 32}`` for a vision transformer.
    """

    model: str
    arguments: Mapping[str, Any] = field(default_factory=FrozenDict)

    per_model: ClassVar[frozenset[str]] = frozenset()
    runs_code: ClassVar[bool] = False
    registered_name: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", freeze(self.arguments, "arguments"))

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The network, (B, *input_shape) -> (B, outputs).

        Raises:
            UserError: torchvision has no such network, it does not take these arguments or this input, or gives
                something else than class scores.
        """
        from torchvision.models import get_model, get_model_builder, list_models

        if self.model not in list_models():
            raise UserError(f"torchvision has no model {self.model!r}\n{suggest(self.model, list_models())}")
        if get_model_builder(self.model).__module__.startswith(_NO_CLASSIFIERS):
            raise UserError(f"torchvision model {self.model!r} is no classifier: it gives no scores per sample")
        for name in self.arguments:
            if name in _REFUSED:
                raise UserError(f"argument {name!r} of architecture 'torchvision': {_REFUSED[name]}; leave it out")
        try:
            network = get_model(self.model, weights=None, num_classes=outputs, **thaw(self.arguments))
        except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
            raise UserError(
                f"torchvision model {self.model!r} does not take {thaw(self.arguments)}: {error!r}"
            ) from error
        check_fit(network, input_shape, outputs, f"torchvision model {self.model!r}")
        return network

"""The CNNs of the 2022 zoos as their records and state dicts name them (Schürholt et al. 2022, arXiv:2209.14764).

What is one of ours is said by the record (type, channels, activation, dropout, initialisation); the tensors only have
to fit. Numbers of modules shift where dropout modules stand between them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from zoogen.core.errors import UserError
from zoogen.core.modules import describe
from zoogen.core.registry import ARCHITECTURES
from zoogen.importers.source import Network
from zoogen.importers.tensors.views import Views

if TYPE_CHECKING:
    from torch import Tensor

# Their type -> our name and the side of the images it is made for.
_TYPES = {"CNN": ("cnn-s", 28), "CNN3": ("cnn-l", 32)}
_ACTIVATIONS = {"tanh": "tanh", "relu": "relu", "sigmoid": "sigmoid", "gelu": "gelu", "silu": "silu"}
_ACTIVATIONS |= {"leakyrelu": "leaky_relu"}
INITS = ("uniform", "normal", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal")
_LAYERS = ("conv1", "conv2", "conv3", "fc1", "fc2")
# Without and with dropout modules.
_PLACES = {"cnn-s": ((0, 3, 6, 9, 11), (0, 4, 8, 11, 14)), "cnn-l": ((0, 4, 8, 13, 16),)}
_PREFIXES = ("module.", "model.")
T = TypeVar("T")


def network_of(record: Mapping[str, Any], tensors: Mapping[str, Tensor], *, twin: bool = False) -> Network | None:
    """The network that a record describes, or None where it describes none of ours, or leaves something open.

    Args:
        record: ``params.json``.
        tensors: A state by our names; they say how many classes there are, which the records do not.
        twin: A sparse twin, whose type may carry the method behind the type of its parent (``CNN_...``).
    """
    kind = str(record.get("model::type"))
    known = _TYPES.get(kind.partition("_")[0] if twin else kind)
    activation = _ACTIVATIONS.get(str(record.get("model::nlin")).lower())
    channels, dropout = record.get("model::channels_in"), record.get("model::dropout")
    init = record.get("model::init_type")
    if known is None or activation is None or init not in INITS or "fc2.bias" not in tensors:
        return None
    if type(channels) is not int or type(dropout) not in (int, float) or not 0 <= dropout < 1:  # type: ignore[operator]
        return None
    name, side = known
    arguments = {"activation": activation, "init": init, "dropout": float(dropout)}  # type: ignore[arg-type]
    network = Network(ARCHITECTURES.make(name, arguments), (channels, side, side), len(tensors["fc2.bias"]))
    try:
        describe(network.architecture, network.input_shape, network.outputs)
    except (UserError, RuntimeError, ValueError):  # no channels, no classes
        return None
    return network


def our_names(record: Mapping[str, Any], tensors: Mapping[str, Tensor], *, twin: bool = False) -> Mapping[str, Tensor]:
    """A state dict by our names where it is that of the record's CNN; else as it is."""
    kind = str(record.get("model::type"))
    known = _TYPES.get(kind.partition("_")[0] if twin else kind)
    if known is None:
        return tensors
    pairs = _renamed(known[0], tuple(tensors))
    return tensors.renamed(pairs) if isinstance(tensors, Views) else {new: tensors[old] for new, old in pairs}


@lru_cache(maxsize=8)
def _renamed(network: str, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Pairs of our name and theirs, the same for all checkpoints of a network."""
    bare = without_prefix({name: name for name in names})
    matches = {name: re.fullmatch(r"module_list\.(\d{1,3})\.(\w+)", name) for name in bare}
    if not all(matches.values()):
        return tuple(bare.items())
    parts = {name: (int(match[1]), match[2]) for name, match in matches.items() if match}
    places = tuple(sorted({place for place, _ in parts.values()}))
    if places not in _PLACES[network]:
        return tuple((name, name) for name in names)
    layer = dict(zip(places, _LAYERS, strict=True))
    return tuple((f"{layer[place]}.{leaf}", bare[name]) for name, (place, leaf) in parts.items())


def without_prefix(tensors: Mapping[str, T]) -> dict[str, T]:
    """As ``DataParallel`` and the zoos' own wrapper put it before every name."""
    found = dict(tensors)
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in found)), None):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found

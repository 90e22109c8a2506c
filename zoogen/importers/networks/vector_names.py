"""Which numbers of a flat vector are which tensor: vectors of the published zoos carry no names.

They hold layer after layer, its weights and then its biases. What the layers are is said by a state dict that was kept
beside the vectors, by ``index_dict.json``, or, for the CNNs of the 2022 zoos, by the length alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from typing import Any

from zoogen.core.modules import describe
from zoogen.core.registry import ARCHITECTURES
from zoogen.importers.source import Unusable

Slices = Mapping[str, tuple[int, ...]]
"""Shapes by name, in the order of the vector."""

_MOST_LAYERS = 1000
_MOST = 1 << 40
# Length -> type and channels of images, as ``params.json`` calls them. All have 10 classes.
_CNNS = {2464: ("CNN", 1), 2864: ("CNN", 3), 10565: ("CNN3", 1), 10853: ("CNN3", 3)}
_OURS = {"CNN": ("cnn-s", 28), "CNN3": ("cnn-l", 32)}


def published_cnn(numbers: int) -> dict[str, Any]:
    """Type and channels of the CNN with so many parameters, as records have them; empty: there is none."""
    kind, channels = _CNNS.get(numbers, (None, None))
    return {"model::type": kind, "model::channels_in": channels} if kind else {}


@cache
def slices_of_cnn(kind: str, channels: int) -> Slices:
    """The tensors of a CNN of the 2022 zoos by our names; activation and the like change nothing about them."""
    name, side = _OURS[kind]
    return {e.name: e.shape for e in describe(ARCHITECTURES.make(name, {}), (channels, side, side), 10).entries}


def slices_of_layers(shapes: Slices, layers: Any, biases: bool) -> Slices | None:
    """The tensors that the published loaders put into a vector, or None where that cannot be told.

    Args:
        shapes: Of a state dict, by name.
        layers: ``layer_lst``: pairs of a module's number and its type.
        biases: ``use_bias``.
    """
    if not isinstance(layers, list) or not all(type(layer) is tuple and layer for layer in layers):
        return None
    leaves = ("weight", "bias") if biases else ("weight",)
    names = [f"module_list.{layer[0]}.{leaf}" for layer in layers[:_MOST_LAYERS] for leaf in leaves]
    return {name: shapes[name] for name in names if name in shapes}


def slices_of_index(text: bytes, numbers: int) -> Slices:
    """The tensors of a vector of so many numbers that an ``index_dict.json`` describes.

    Raises:
        Unusable: it is none, it contradicts itself, or it describes other vectors.
    """
    try:
        told = json.loads(text)
        columns = [told[name] for name in ("layer", "idx_start", "kernel_no", "channels_in", "kernel_size")]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise Unusable(f"is no index of layers ({type(error).__name__})") from error
    if not all(isinstance(c, list) for c in columns) or len({len(c) for c in columns}) != 1:
        raise Unusable("has lists of different lengths")
    found: dict[str, tuple[int, ...]] = {}
    place = 0
    for (layer, start, outs, ins, size), end in zip(
        zip(*columns, strict=True), [*columns[1][1:], numbers], strict=True
    ):
        weight = _weight(layer, outs, ins, size)
        if start != place:
            raise Unusable(f"has a layer that does not begin where the one before it ends, at {place:,}")
        found[f"module_list.{layer[0]}.weight"] = weight
        place += prod(weight)
        if end == place + outs:
            found[f"module_list.{layer[0]}.bias"] = (outs,)
            place += outs
    if place != numbers:
        raise Unusable(f"describes vectors of {place:,} numbers; these have {numbers:,}")
    return found


def _weight(layer: Any, outs: Any, ins: Any, size: Any) -> tuple[int, ...]:
    named = isinstance(layer, list) and len(layer) == 2 and type(layer[0]) is int
    if not named or not all(type(n) is int and 0 < n < _MOST for n in (outs, ins, size)):
        raise Unusable("has something else than layers and counts in its lists")
    side = math.isqrt(size)
    if layer[1] == "conv2d" and side * side == size:
        return (outs, ins, side, side)
    if layer[1] == "fc":
        return (outs, ins * size)
    raise Unusable("has a layer that is neither fc nor conv2d with a square kernel")


def first_fitting(candidates: Sequence[Slices | None], numbers: int) -> Slices:
    """The first that is a vector of so many numbers, or one tensor ``weights`` of all."""
    fitting = (s for s in candidates if s and sum(prod(shape) for shape in s.values()) == numbers)
    return next(fitting, {"weights": (numbers,)})

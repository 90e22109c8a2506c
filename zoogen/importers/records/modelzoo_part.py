"""The dataset objects of a preprocessed zoo (train, validation and test models): which state is whose, and of when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from zoogen.importers.source import METRICS, Unusable
from zoogen.importers.tensors.inert import Placed
from zoogen.importers.tensors.pickle_data import Inert, Ordered

_LABEL = re.compile(r"(?P<path>.+?)#_#epoch_(?P<epoch>\d{1,9})(?:#_#.*)?", re.DOTALL)
_NEXT = re.compile(
    r"(?: epoch |#_#epoch_)(\d{1,9})(?: layer |#_#|\Z)"
)  # behind the path, in the label of a second state
_SPLITS = {"trainset": "train", "valset": "val", "testset": "test"}
_MOST_TENSORS = 10_000
_LONGEST_NAME = 512
_LONGEST_PATH = 4096
_MOST_TEXTS = 16 << 20  # beyond the size of the file
_SCALARS = (bool, int, float, str, type(None))
_ITERATION = "training_iteration"
_MEASURED = (*METRICS, "ggap", _ITERATION)
_SETTING = "::"  # stands in names of settings
_PAIRS = "sequence_prediction"


@dataclass(frozen=True)
class Part:
    """The models of one split.

    Attributes:
        name: As errors call it (``trainset``).
        split: ``train``, ``val`` or ``test``; None: the file does not say.
        paths, epochs: The model and the epoch of every state.
        properties: What is known of every state but the last ``len(seconds)`` ones, by name: numbers, texts, booleans
            or None.
        told: How the dataset was made, as far as that is numbers and texts.
        layers, biases: What of a state dict went into a vector.
        base: A state dict that was kept beside vectors; empty: none was.
        data: The states but the last ones.
        seconds: The last ones: of pairs, the second states of epochs that are the first of no pair.
        pairs: Whether the states are the first ones of pairs (a state, and that of the next epoch).
    """

    name: str
    split: str | None
    paths: list[str]
    epochs: list[int]
    properties: Mapping[str, list[Any]]
    told: Mapping[str, Any]
    layers: Any
    biases: bool
    base: Mapping[str, Placed]
    data: Any
    seconds: list[Any]
    pairs: bool

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def models(self) -> dict[str, list[int]]:
        """The places of every model's states, by path."""
        found: dict[str, list[int]] = {}
        for place, path in enumerate(self.paths):
            found.setdefault(path, []).append(place)
        return found

    def vector(self, place: int) -> Placed | None:
        """A state that is a vector; None: it is a state dict.

        Raises:
            Unusable: it is neither.
        """
        if self.is_described(place) and type(self.data) is Placed:
            length, step = self.data.shape[1], self.data.stride[0]
            return Placed(self.data.storage, self.data.offset + place * step, (length,), self.data.stride[1:])
        one, where = self._one(place)
        if type(one) is Placed:
            if len(one.shape) != 1:
                raise Unusable(f"has {where} of {len(one.shape)} dimensions, expected a vector")
            return one
        return None

    def state_dict(self, place: int) -> Mapping[str, Placed]:
        """A state that is one.

        Raises:
            Unusable: it is none.
        """
        return _state_dict(*self._one(place))

    def _one(self, place: int) -> tuple[Any, str]:
        """A state of several objects, and where it lies."""
        described = len(self) - len(self.seconds)
        if place < described:
            return self.data[place], f"{self.name}.data_in[{place}]"
        return self.seconds[place - described], f"{self.name}.data_out (of epoch {self.epochs[place]})"

    def is_described(self, place: int) -> bool:
        """Whether there are properties of a state: of second ones there are none."""
        return place < len(self) - len(self.seconds)

    def size(self, place: int) -> int:
        """Bytes of a state."""
        vector = self.vector(place)
        tensors = [vector] if vector is not None else list(self.state_dict(place).values())
        return sum(prod(t.shape) * t.storage.width for t in tensors)

    def known(self, place: int) -> dict[str, Any]:
        """The properties of a state."""
        return {name: values[place] for name, values in self.properties.items()}

    def is_of_its_epoch(self, place: int) -> bool:
        """Whether what was measured belongs to the state: the published loaders looked for it by counting lines."""
        iteration = self.properties.get(_ITERATION)
        return iteration is None or iteration[place] == self.epochs[place]


def parts_of(objects: Any) -> tuple[Part, ...]:
    """The datasets of a file.

    Raises:
        Unusable: it holds none, or what one says contradicts itself.
    """
    if type(objects) is Inert:
        split = objects.fields.get("train_val_test")
        return (_part("dataset", split if split in _SPLITS.values() else None, objects),)
    if type(objects) not in (dict, Ordered):
        raise Unusable("holds no trainset, valset or testset")
    found = {name: objects[name] for name in _SPLITS if objects.get(name) is not None}
    for name, one in found.items():
        if type(one) is not Inert:
            raise Unusable(f"holds {name}, which is no dataset of models")
    if not found:
        raise Unusable("holds no trainset, valset or testset")
    return tuple(_part(name, _SPLITS[name], one) for name, one in found.items())


def check_parts(parts: tuple[Part, ...], size: int) -> None:
    """Check what parts say together.

    Raises:
        Unusable: a model is in two of them, or there are more numbers than a file of that size has.
    """
    seen: dict[str, str] = {}
    for part in parts:
        for path in dict.fromkeys(part.paths):
            if seen.setdefault(path, part.name) != part.name:
                raise Unusable(f"has {path:.200} both in {seen[path]} and in {part.name}")
    told = sum(part.size(place) for part in parts for place in range(len(part)))
    if told > size:  # the same few numbers again and again
        raise Unusable(f"tells of {told:,} bytes of states, and has {size:,}")
    texts = sum(map(_texts, parts))
    if texts > size + _MOST_TEXTS:  # the same texts again and again
        raise Unusable(f"tells of {texts:,} characters of properties, and has {size:,} bytes")


def _texts(part: Part) -> int:
    """Characters of all that a part says of its states and, anew for each of its models, of itself."""
    own = sum(len(name) + (len(value) if type(value) is str else 0) for name, value in part.told.items())
    columns = part.properties.values()
    values = sum(len(value) for column in columns for value in column if type(value) is str)
    return own * len(set(part.paths)) + sum(map(len, part.properties)) * len(part) + values


def measured_names(parts: tuple[Part, ...]) -> frozenset[str]:
    """Properties that are metrics: known ones, and what differs between states of one model."""
    found = {name for part in parts for name in part.properties if name in _MEASURED}
    for part in parts:
        models = list(part.models.values())
        for name, values in part.properties.items():
            own = ({repr(values[p]) for p in places if part.is_described(p)} for places in models)
            if _SETTING not in name and any(len(found_values) > 1 for found_values in own):
                found.add(name)
    return frozenset(found)


def _part(name: str, split: str | None, found: Inert) -> Part:
    fields = found.fields
    data = fields.get("data_in")
    if type(data) is Placed:
        if len(data.shape) != 2:
            raise Unusable(f"has {name}.data_in of {len(data.shape)} dimensions, expected states x parameters")
        if data.stride[0] < data.shape[1]:
            raise Unusable(f"has {name}.data_in whose states overlap")
        count = data.shape[0]
    elif type(data) is list:
        count = len(data)
    else:
        raise Unusable(f"has no states: {name}.data_in is neither a list nor a tensor")
    paths, epochs = _places(name, fields, count)
    pairs = fields.get("task") == _PAIRS
    seconds = _seconds(fields, paths, epochs) if pairs else {}
    base = fields.get("checkpoint_base")
    return Part(
        name=name,
        split=split,
        paths=[*paths, *(path for path, _ in seconds)],
        epochs=[*epochs, *(epoch for _, epoch in seconds)],
        properties=_properties(name, fields.get("properties"), count),
        told={key: value for key, value in fields.items() if type(value) in _SCALARS},
        layers=fields.get("layer_lst"),
        biases=fields.get("use_bias") is True,
        base=_state_dict(base, f"{name}.checkpoint_base") if type(base) in (dict, Ordered) else {},
        data=data,
        seconds=list(seconds.values()),
        pairs=pairs,
    )


def _seconds(fields: Mapping[str, Any], paths: list[str], epochs: list[int]) -> dict[tuple[str, int], Any]:
    """By path and epoch, the second states that are the first of no pair: a model's last one, and what was filtered.

    Their labels name the epoch; where one of them does not, there are none.
    """
    data, labels = fields.get("data_out"), fields.get("labels_out")
    if type(data) is not list or type(labels) is not list or not len(data) == len(labels) == len(paths):
        return {}
    first = set(zip(paths, epochs, strict=True))
    found: dict[tuple[str, int], Any] = {}
    for path, label, one in zip(paths, labels, data, strict=True):
        match = _NEXT.match(label, len(path)) if type(label) is str and label.startswith(path) else None
        if match is None:
            return {}
        own = path, int(match[1])
        if own not in first:
            found.setdefault(own, one)
    return found


def _places(name: str, fields: Mapping[str, Any], count: int) -> tuple[list[str], list[int]]:
    """Path and epoch of every state; from their labels where a file has no lists of them."""
    paths, epochs = fields.get("paths"), fields.get("epochs")
    if paths is None or epochs is None:
        labels = _listed(name, "labels_in", fields.get("labels_in"), count)
        matches = [_LABEL.fullmatch(label) if type(label) is str else None for label in labels]
        paths = [match and match["path"] for match in matches]
        epochs = [match and int(match["epoch"]) for match in matches]
    paths, epochs = _listed(name, "paths", paths, count), _listed(name, "epochs", epochs, count)
    for place, (path, epoch) in enumerate(zip(paths, epochs, strict=True)):
        if type(path) is not str or not path.isprintable() or not 0 < len(path) <= _LONGEST_PATH:
            raise Unusable(f"has {name}.paths[{place}], which is no path")
        if type(epoch) is not int or not 0 <= epoch < 1 << 31:
            raise Unusable(f"has {name}.epochs[{place}], which is no whole number from 0")
    return paths, epochs


def _properties(name: str, told: Any, count: int) -> dict[str, list[Any]]:
    if told is None:
        return {}
    if type(told) not in (dict, Ordered):
        raise Unusable(f"has {name}.properties, which is no mapping")
    found = {}
    for key, values in told.items():
        if type(key) is not str or not key.isprintable():
            raise Unusable(f"has {name}.properties under something else than names")
        values = _listed(name, f"properties[{key!r:.60}]", values, count)
        found[key] = [value if type(value) in _SCALARS else None for value in values]
    return found


def _listed(name: str, field: str, values: Any, count: int) -> list[Any]:
    if type(values) is not list:
        raise Unusable(f"has no list {name}.{field}")
    if len(values) != count:
        raise Unusable(f"has {name}.{field} of {len(values):,} entries for {count:,} states")
    return values


def _state_dict(found: Any, where: str) -> Mapping[str, Placed]:
    if type(found) not in (dict, Ordered) or not 0 < len(found) <= _MOST_TENSORS:
        raise Unusable(f"has {where}, which is neither a state dict nor a vector")
    for name, value in found.items():
        if type(name) is not str or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
            raise Unusable(f"has a tensor without a proper name in {where}")
        if type(value) is not Placed:
            raise Unusable(f"has {where}, in which {name} is no tensor")
    return found

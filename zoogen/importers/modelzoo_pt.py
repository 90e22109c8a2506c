"""Preprocessed zoos (``dataset*.pt``) of 2021 and 2022: pickled dataset objects, read without their classes.

<file>              dict of ``trainset``, ``valset``, ``testset``; each an object with, of every state,
  data_in           its state dict or vector (or all vectors as one tensor)
  data_out          the same again, or the next state, of which those are read that ``data_in`` lacks
  paths, epochs     the trial's folder, which is the model, and the epoch (or both in ``labels_in``)
  properties        what was measured, and settings: lists by name
index_dict.json     beside it, perhaps: where in a vector which layer is
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from zoogen.core.errors import IntegrityError
from zoogen.core.layout import Layout
from zoogen.core.modules import describe
from zoogen.importers.containers.files import Files
from zoogen.importers.networks.published_cnns import network_of, our_names
from zoogen.importers.networks.vector_names import (
    Slices,
    first_fitting,
    published_cnn,
    slices_of_cnn,
    slices_of_index,
    slices_of_layers,
)
from zoogen.importers.ray_tune import RayTune
from zoogen.importers.records.modelzoo_part import Part, check_parts, measured_names, parts_of
from zoogen.importers.records.numbers import one_each
from zoogen.importers.records.published_settings import published_settings
from zoogen.importers.records.settings import CONFIG, RESULT, column, plain
from zoogen.importers.source import METRICS, SOURCES, Measured, Network, Skipped, SourceModel, State, Stored, Unusable
from zoogen.importers.tensors.inert import MARK
from zoogen.importers.tensors.state_dicts import layout_of_tensors, misfit
from zoogen.importers.tensors.torch_file import TorchFile

if TYPE_CHECKING:
    from torch import Tensor

_STATES = (".pt", ".pth")
_INDEX = "index_dict.json"
_MOST_INDEX = 1 << 20
_MOST_FILES = 64
_START = 4096
_MOST_NUMBER = 1e300
_MOST_RECORD = 4 << 20


@dataclass(frozen=True)
class _File:
    """A dataset file, its parts, and what becomes of the names of its properties."""

    name: str
    content: TorchFile
    parts: tuple[Part, ...]
    measured: frozenset[str]


@dataclass(frozen=True)
class _Model:
    """Where a model's states lie, and how they are called."""

    file: _File
    part: Part
    places: Mapping[int, int]  # by epoch
    slices: Slices
    record: Mapping[str, Any]


@SOURCES.register("modelzoo-pt")
@dataclass(frozen=True)
class ModelzooPt:
    """Every path of a dataset file is a model; train, validation and test models stay what they were."""

    files: Files
    registered_name: ClassVar[str]
    _models: dict[str, _Model] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def recognises(files: Files) -> bool:
        named = _dataset_files(files)
        if RayTune.recognises(files):  # the trials, of which a dataset beside them was made
            return False
        return len(named) <= _MOST_FILES and any(_is_marked(files, name) for name in named)

    def models(self) -> Iterator[SourceModel | Skipped]:
        for file in self._opened:
            yield from self._of_file(file)
        known = {file.name for file in self._opened}
        for name in _dataset_files(self.files):
            if name not in known:
                yield Skipped(name, None, "holds no dataset of models", what="file")

    def measured(self, model: SourceModel) -> Measured:
        own = self._models[model.key]
        by_epoch: dict[int, dict[str, float]] = {}
        notes: list[str] = []
        for epoch, place in own.places.items():
            if not own.part.is_described(place):
                continue
            if own.part.is_of_its_epoch(place):
                by_epoch[epoch] = _metrics(own.part.known(place), own.file.measured, notes)
            else:
                notes.append(f"has properties of another epoch for epoch {epoch}; they are left out")
        return Measured(by_epoch, tuple(notes))

    def state(self, model: SourceModel, stored: Stored) -> State:
        own = self._models[model.key]
        place = own.places[stored.epoch]
        content, vector = own.file.content, own.part.vector(place)
        if vector is not None:
            tensors = _cut(content.tensor(vector), own.slices)
        else:
            tensors = {name: content.tensor(t) for name, t in own.part.state_dict(place).items()}
        tensors = dict(our_names(own.record, tensors))
        if not own.part.is_described(place):  # beside vectors, second states are whole state dicts
            tensors = {e.name: tensors[e.name] for e in model.layout.entries if e.name in tensors} or tensors
        if reason := misfit(model.layout, tensors):
            raise Unusable(f"does not fit its model: {reason}")
        return State(tensors)

    def _of_file(self, file: _File) -> Iterator[SourceModel | Skipped]:
        above = f"{posixpath.splitext(file.name)[0]}/" if len(self._opened) > 1 else ""
        common = _common({path for part in file.parts for path in part.paths})
        for part in file.parts:
            if part.pairs:
                yield Skipped(f"{file.name}: {part.name}", None, _of_pairs(part), what="part")
            for path, places in part.models.items():
                key = above + (path.removeprefix(common) or path)
                yield self._model(key, path, file, part, places)

    def _model(self, key: str, path: str, file: _File, part: Part, found: list[int]) -> SourceModel | Skipped:
        places: dict[int, int] = {}
        notes = []
        for place in found:
            if places.setdefault(part.epochs[place], place) != place:
                notes.append(f"has two states of epoch {part.epochs[place]}; the second is left out")
        places = dict(sorted(places.items()))
        described = {epoch: place for epoch, place in places.items() if part.is_described(place)}
        first = next(iter(described.values()))
        constant = self._constant(file, part, described, notes)
        try:
            slices, tensors = self._tensors(file, part, first)
        except Unusable as error:
            return Skipped(key, None, str(error))
        record, named, network = _described(constant, tensors)
        if network is None:
            notes.append("is imported without code: its properties and tensors are not all that a network here needs")
        self._models[key] = _Model(file, part, places, slices, record)
        settings = published_settings(record if network else constant, network, notes)
        if part.split is not None:
            settings[f"{CONFIG}split"] = part.split
        stored = [Stored(e, f"{file.name}: {part.name}[{p}]", part.size(p)) for e, p in places.items()]
        return SourceModel(
            key=key,
            settings=dict(sorted(settings.items())),
            original=_original(path, part, described, notes),
            layout=_layout(network, named),
            checkpoints=tuple(stored),
            network=network,
            split=part.split,
            notes=tuple(notes),
        )

    def _constant(self, file: _File, part: Part, places: Mapping[int, int], notes: list[str]) -> dict[str, Any]:
        """The properties of a model that are settings."""
        found = {}
        for name, values in part.properties.items():
            own = {repr(values[place]) for place in places.values()}
            if len(own) == 1 and name not in file.measured:
                found[name] = values[next(iter(places.values()))]
            elif name not in file.measured:
                notes.append(f"has different values of {name}, which is left out")
        return found

    def _tensors(self, file: _File, part: Part, place: int) -> tuple[Slices, dict[str, Tensor]]:
        """Shapes by name of a state, as tensors without numbers; and how a vector is cut into them."""
        import torch

        vector = part.vector(place)
        if vector is None:
            found = part.state_dict(place)
            kinds = {name: (t.shape, t.storage.dtype) for name, t in found.items()}
            slices: Slices = {}
        else:
            numbers = vector.shape[0]
            cnn = published_cnn(numbers)
            kept = slices_of_layers({n: t.shape for n, t in part.base.items()}, part.layers, part.biases)
            known = slices_of_cnn(cnn["model::type"], cnn["model::channels_in"]) if cnn else None
            slices = first_fitting((kept, self._indexed(file.name, numbers), known), numbers)
            kinds = {name: (shape, vector.storage.dtype) for name, shape in slices.items()}
        return slices, {n: torch.empty(s, dtype=getattr(torch, d), device="meta") for n, (s, d) in kinds.items()}

    def _indexed(self, file: str, numbers: int) -> Slices | None:
        """What ``index_dict.json`` beside a file says; None where it is not there, or of other vectors."""
        name = posixpath.join(posixpath.dirname(file), _INDEX)
        if name not in self.files.sizes:
            return None
        try:
            return slices_of_index(self.files.read(name, _MOST_INDEX), numbers)
        except Unusable:
            return None

    @cached_property
    def _opened(self) -> tuple[_File, ...]:
        """Every dataset file: those that look like one, or all where none does, to tell why they are not."""
        named = _dataset_files(self.files)
        marked = [name for name in named if _is_marked(self.files, name)]
        return tuple(self._open(name) for name in marked or named)

    def _open(self, name: str) -> _File:
        try:
            content = TorchFile(self.files, name)
            parts = parts_of(content.objects)
            check_parts(parts, self.files.sizes[name])
        except Unusable as error:
            place = name if name == self.files.name else f"{self.files.name}: {name}"
            raise IntegrityError(f"{place} {error}\nnothing of it is imported") from error
        content.objects = None  # parts hold what is needed of it
        return _File(name, content, parts, measured_names(parts))


def _of_pairs(part: Part) -> str:
    """What becomes of a part that holds pairs of states."""
    if not part.seconds:
        return "holds pairs of states; the second ones are not read, they have no labels that name other epochs"
    return (
        "holds pairs of states; a second one is read where it is the first of no pair, and nothing was measured of it "
        f"({len(part.seconds):,} states)"
    )


def _dataset_files(files: Files) -> list[str]:
    return sorted(name for name in files.sizes if name.endswith(_STATES))


def _is_marked(files: Files, name: str) -> bool:
    try:
        return MARK in files.read_range(name, 0, min(_START, files.sizes[name]))
    except IntegrityError:
        return False


def _common(paths: set[str]) -> str:
    """The folder above all trials, left out of their names; with its slash."""
    above = {posixpath.dirname(path) for path in paths}
    try:
        shared = posixpath.commonpath(above)
    except ValueError:  # some are relative, some not
        return ""
    return f"{shared.rstrip('/')}/" if all(path.startswith(f"{shared.rstrip('/')}/") for path in paths) else ""


def _metrics(known: Mapping[str, Any], names: frozenset[str], notes: list[str]) -> dict[str, float]:
    numbers = (
        (name if name in METRICS else RESULT + column(name), float(value))
        for name, value in known.items()
        if name in names and type(value) in (int, float) and abs(value) < _MOST_NUMBER
    )
    return one_each(numbers, notes)


def _described(
    constant: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor], Network | None]:
    """The record of a model with what its tensors tell, its tensors by our names, and its network where that is known.

    Type and channels stand in no property, and the tensors of the CNNs of these zoos are like those of nothing else;
    activation, dropout and initialisation cannot be seen in tensors.
    """
    cnn = published_cnn(sum(tensor.numel() for tensor in tensors.values()))
    if cnn:
        record = {**cnn, **constant}
        named = dict(our_names(record, tensors))
        if {n: tuple(t.shape) for n, t in named.items()} == slices_of_cnn(
            cnn["model::type"], cnn["model::channels_in"]
        ):
            network = network_of(record, named)
            fits = network is not None and misfit(_layout(network, named), named) is None
            return record, named, network if fits else None
    return dict(constant), dict(our_names(constant, tensors)), None


def _layout(network: Network | None, tensors: Mapping[str, Tensor]) -> Layout:
    if network is None:
        return layout_of_tensors(tensors)
    return describe(network.architecture, network.input_shape, network.outputs)


def _cut(vector: Tensor, slices: Slices) -> dict[str, Tensor]:
    """A vector as tensors.

    Raises:
        Unusable: it has another length.
    """
    lengths = [prod(shape) for shape in slices.values()]
    if sum(lengths) != len(vector):
        raise Unusable(f"has {len(vector):,} numbers, and the first state of its model {sum(lengths):,}")
    return {n: part.reshape(shape) for (n, shape), part in zip(slices.items(), vector.split(lengths), strict=True)}


def _original(path: str, part: Part, places: Mapping[int, int], notes: list[str]) -> str:
    """What the file says of a model, as JSON; once, what it says of all its states alike."""
    told = {name: plain(value) for name, value in part.told.items()}
    same: dict[str, Any] = {}
    states: dict[int, dict[str, Any]] = {epoch: {} for epoch in places}
    room = _MOST_RECORD
    for name, values in part.properties.items():
        own = {epoch: plain(values[place]) for epoch, place in places.items()}
        first = next(iter(own.values()))
        alike = len({repr(value) for value in own.values()}) == 1
        room -= sum(len(name) + len(str(value)) for value in ([first] if alike else own.values()))
        if room < 0:
            notes.append(f"has a record of more than {_MOST_RECORD:,} characters; it is kept without {name:.60} and on")
            break
        if alike:
            same[name] = first
        else:
            for epoch, value in own.items():
                states[epoch][name] = value
    return json.dumps({"path": path, "dataset": told, "properties": same, "states": states})

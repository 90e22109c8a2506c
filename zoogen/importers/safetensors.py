"""Safetensors: mirrors of Hugging Face repositories, the hub's cache, lists of repositories, folders of one's own.

Listing reads headers, ``config.json`` and model cards, never tensors. No network is built but those that a record
calls by our names, and these without memory for their weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import IntegrityError
from zoogen.core.layout import Layout
from zoogen.importers.containers.files import Files
from zoogen.importers.containers.repository_list import ListedFiles, revision_of, select
from zoogen.importers.networks.recorded_networks import NAME, recorded_network
from zoogen.importers.records.json_records import read_json
from zoogen.importers.records.model_card import metrics_of, read_card
from zoogen.importers.records.model_record import bases, settings_of_record, told_of
from zoogen.importers.records.repositories import CHECKPOINTS, INDEX, SUFFIX, Weights, by_model, weights_of
from zoogen.importers.records.trainer_state import by_step
from zoogen.importers.relatives import Kin, Prints, kin_of
from zoogen.importers.source import SOURCES, Measured, Skipped, SourceModel, State, Stored, Unusable
from zoogen.importers.tensors.safetensors_data import read_tensors, tensor_digests
from zoogen.importers.tensors.safetensors_header import Header, read_header
from zoogen.importers.tensors.state_dicts import layout_of_tensors, misfit

if TYPE_CHECKING:
    from torch import Tensor

_MOST_RECORD, _MOST_CARD, _MOST_INDEX, _MOST_LOG = 4 << 20, 4 << 20, 64 << 20, 64 << 20


@SOURCES.register("safetensors")
@dataclass(frozen=True)
class SafeTensors:
    """Every safetensors file, or set of parts with an index, is a checkpoint; most models have one."""

    files: Files
    registered_name: ClassVar[str]
    _cards: dict[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False)
    _layouts: dict[str, Layout] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def recognises(files: Files) -> bool:
        return isinstance(files, ListedFiles) or any(name.endswith(SUFFIX) for name in _places(files))

    def models(self) -> Iterator[SourceModel | Skipped]:
        for key, found in self._found.items():
            yield self._model(key, found)
        for part in self._lonely:
            yield Skipped(part, None, f"is one part of several, whose index (*{INDEX}) is not there", what="file")
        yield from self._of_the_list

    def measured(self, model: SourceModel) -> Measured:
        last = self._found[model.key][-1]
        found: dict[int, dict[str, float]] = {model.checkpoints[-1].epoch: {}}
        notes: list[str] = []
        if last.epoch is not None and (path := self._beside(last, "trainer_state.json")):
            try:
                told = by_step(self._json(path, _MOST_LOG), last.epoch, notes)
                found |= {s.epoch: told[s.epoch] for s in model.checkpoints if s.epoch in told}
            except Unusable as error:
                notes.append(f"{path} {error}")
        if metrics := metrics_of(self._cards[model.key], notes):
            if self._is_of_its_card(model.key):
                found[model.checkpoints[-1].epoch] |= metrics
            else:
                notes.append("shares its README.md with other models; whose results it tells is not said")
        return Measured(found, tuple(notes))

    def state(self, model: SourceModel, stored: Stored) -> State:
        tensors: dict[str, Any] = {}
        for file, header in self._parts(stored.file):
            tensors |= read_tensors(self.files, file, header)
        if reason := misfit(model.layout, tensors):
            raise Unusable(f"does not fit its model: {reason}")
        return State(tensors)

    def kin(self, models: Sequence[SourceModel]) -> Mapping[str, Kin]:
        """Copies and relatives, by digests of tensors, base models and repositories."""
        prints = {model.key: self._prints(model) for model in models}
        lineage = [(m.key, self._found[m.key][0].repository.name) for m in models]
        lineage += [(m.key, base) for m in models for base in bases(self._cards[m.key])]
        return kin_of(prints, lineage)

    def _prints(self, model: SourceModel) -> Prints | None:
        tensors: dict[str, int] = {}
        last: Prints | None = None
        for stored in model.checkpoints:
            try:
                parts = self._parts(stored.file)
                digests = {n: d for file, header in parts for n, d in tensor_digests(self.files, file, header).items()}
            except Unusable:
                continue
            sizes = {name: placed.size for _, header in parts for name, placed in header.tensors.items()}
            tensors |= {own: sizes[name] for name, own in digests.items()}
            last = Prints(digest(canonical_json(digests)), sum(sizes.values()), tensors)
        return last

    def _model(self, key: str, found: list[Weights]) -> SourceModel | Skipped:
        notes: list[str] = []
        reasons: list[str] = []
        shapes: dict[str, Any] = {}
        layout, metadata, stored = None, {}, []
        for one in _distinct(found, notes):
            try:
                parts = self._parts(one.path)
                own = _shapes(parts)
            except Unusable as error:
                reasons.append(f"{one.path} {error}")
                continue
            if layout is None:
                shapes, layout = own, layout_of_tensors(own)
                metadata = {name: text for _, header in parts for name, text in header.metadata.items()}
            stored.append(Stored(one.epoch or 0, one.path, sum(self.files.sizes[file] for file, _ in parts)))
        if layout is None:
            return Skipped(key, None, f"has no usable checkpoint: {'; '.join(reasons[:3])}")
        notes += [f"{reason}; it is left out" for reason in reasons]
        config = self._config(found[-1], notes)
        card = self._cards[key] = self._card(found[-1], notes)
        revision = revision_of(found[-1], self.files)
        told = told_of(config, card, metadata)
        built = recorded_network(told, shapes, notes) if NAME in told else None
        layout = built[1] if built else layout
        return SourceModel(
            key=key,
            settings=settings_of_record(config, told, revision, notes),
            original=json.dumps({"config": config, "card": card, "metadata": metadata, "revision": revision}),
            layout=self._layouts.setdefault(layout.layout_id, layout),  # one in memory for all that have it
            checkpoints=tuple(stored),
            network=built[0] if built else None,
            parent=self._parent(key, card),
            notes=tuple(notes),
        )

    def _parts(self, path: str) -> list[tuple[str, Header]]:
        """The files of a checkpoint, by names that can be read, with their headers."""
        if not path.endswith(INDEX):
            return [(self._places[path], read_header(self.files, self._places[path]))]
        folder = path.rpartition("/")[0]
        of = self._index(path)
        parts = []
        for name in sorted(set(of.values())):
            place = self._places.get(f"{folder}/{name}" if folder else name)
            if place is None:
                raise Unusable(f"names the part {name}, which is not there")
            header = read_header(self.files, place)
            if header.tensors.keys() != {label for label, file in of.items() if file == name}:
                raise Unusable(f"names other tensors for the part {name} than it has")
            parts.append((place, header))
        return parts

    def _index(self, path: str) -> dict[str, str]:
        """Tensor -> part, of a file ``*.safetensors.index.json``."""
        found = self._json(path, _MOST_INDEX)
        of = found.get("weight_map")
        if not isinstance(of, dict) or not of or not all(isinstance(name, str) for name in of.values()):
            raise Unusable("is an index without a weight_map of names")
        for name in of.values():
            if not re.fullmatch(r"[\w.-]+\.safetensors", name) or name.startswith("."):
                raise Unusable(f"names the part {name!r:.100}, which is no safetensors file of its folder")
        return of

    def _json(self, path: str, at_most: int) -> dict[str, Any]:
        try:
            found = read_json(self.files.read(self._places[path], at_most))
        except (IntegrityError, ValueError) as error:
            raise Unusable(f"is not readable as JSON ({str(error)[:200]})") from error
        if not isinstance(found, dict):
            raise Unusable("is no mapping")
        return found

    def _beside(self, weights: Weights, name: str) -> str | None:
        """The nearest file of that name: in the checkpoint's folder, the model's, or at the root of its repository."""
        own = weights.path.rpartition("/")[0]
        for folder in (own and f"{own}/", weights.folder, weights.repository.root):
            if folder is not None and f"{folder}{name}" in self._places:
                return f"{folder}{name}"
        return None

    def _config(self, weights: Weights, notes: list[str]) -> dict[str, Any]:
        path = self._beside(weights, "config.json")
        try:
            return {} if path is None else self._json(path, _MOST_RECORD)
        except Unusable as error:
            notes.append(f"config.json {error}")
            return {}

    def _card(self, weights: Weights, notes: list[str]) -> dict[str, Any]:
        path = self._beside(weights, "README.md")
        try:
            return {} if path is None else read_card(self.files.read(self._places[path], _MOST_CARD))
        except (IntegrityError, ValueError) as error:
            notes.append(f"README.md is left out ({error})")
            return {}

    def _is_of_its_card(self, key: str) -> bool:
        """Whether a model's card is about it alone, but for its own checkpoints."""
        path = self._beside(self._found[key][-1], "README.md")
        return path is not None and self._described.get(path) == [key]

    def _parent(self, key: str, card: Mapping[str, Any]) -> str | None:
        known = (self._by_name.get(base) for base in bases(card))
        return next((other for other in known if other not in (None, key)), None)

    @cached_property
    def _places(self) -> dict[str, str]:
        return _places(self.files)

    @cached_property
    def _all(self) -> tuple[list[Weights], list[str], list[Skipped]]:
        found, lonely = weights_of(self._places, self.files.name)
        if not isinstance(self.files, ListedFiles):
            return found, lonely, []
        chosen: dict[str, Weights] = {}
        notes = []
        for one in self.files.listed:
            own, said = select(one, found, self.files)
            chosen |= {w.path: w for w in own}
            if not own:
                notes.append(Skipped(str(one), None, f"{said}; fetch it: {one.fetch}"))
            elif said:
                notes.append(Skipped(str(one), None, said))
        return list(chosen.values()), lonely, notes

    @cached_property
    def _found(self) -> dict[str, list[Weights]]:
        return by_model(self._all[0])

    @property
    def _lonely(self) -> list[str]:
        return self._all[1]

    @property
    def _of_the_list(self) -> list[Skipped]:
        return self._all[2]

    @cached_property
    def _by_name(self) -> dict[str, str]:
        """The first model of every repository."""
        found: dict[str, str] = {}
        for key, weights in self._found.items():
            found.setdefault(weights[0].repository.name, key)
        return found

    @cached_property
    def _described(self) -> dict[str, list[str]]:
        """Models by the file of their card."""
        found: dict[str, list[str]] = {}
        for key, weights in self._found.items():
            path = self._beside(weights[-1], "README.md")
            if path is not None and not key.endswith(CHECKPOINTS):
                found.setdefault(path, []).append(key)
        return found


def _places(files: Files) -> dict[str, str]:
    """Every path, and the file it is read from: links that stay in their folder lead to one."""
    links: Mapping[str, str] = getattr(files, "links", {})
    return {n: n for n in files.sizes} | {n: target for n, target in links.items() if target in files.sizes}


def _shapes(parts: Sequence[tuple[str, Header]]) -> dict[str, Tensor]:
    """Tensors without numbers; modules in the order of their names, numbers as numbers."""
    import torch

    placed = {name: tensor for _, header in parts for name, tensor in header.tensors.items()}
    for name, tensor in placed.items():
        if tensor.dtype is None:
            raise Unusable(f"holds {name}, which is {tensor.kind}; such tensors are not stored")
    return {
        name: torch.empty(placed[name].shape, dtype=getattr(torch, placed[name].dtype or ""), device="meta")
        for name in sorted(placed, key=_natural)
    }


def _natural(name: str) -> list[tuple[int, str]]:
    """``blocks.2`` before ``blocks.10``."""
    return [(len(part), part) if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", name)]


def _distinct(found: Sequence[Weights], notes: list[str]) -> list[Weights]:
    """Each epoch once; a whole file goes before one in parts."""
    first: dict[int | None, Weights] = {}
    for one in sorted(found, key=lambda w: (w.epoch or 0, w.path.endswith(INDEX), w.path)):
        if first.setdefault(one.epoch, one) is not one:
            notes.append(f"has two files for one checkpoint; {one.path} is left out")
    return list(first.values())

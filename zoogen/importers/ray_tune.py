"""Trial directories as Ray Tune writes them: the model zoos of 2022, their twins, the ViT and the phase zoos.

<trial>/params.json                      settings (config.json in some)
<trial>/result.json, progress.csv        what was measured, a line per epoch
<trial>/checkpoint_000007/checkpoints    state dict of epoch 7; ``optimizer`` beside it is left out
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from zoogen.core.errors import IntegrityError
from zoogen.core.layout import Layout
from zoogen.core.modules import describe
from zoogen.importers.containers.files import Files
from zoogen.importers.networks.published_cnns import network_of, our_names, without_prefix
from zoogen.importers.networks.published_resnets import is_resnet, resnet_of
from zoogen.importers.records.json_records import check_values, read_json
from zoogen.importers.records.lineage import pretrained_of, trial_of
from zoogen.importers.records.published_settings import published_settings
from zoogen.importers.records.ray_checkpoints import by_checkpoint
from zoogen.importers.records.ray_results import lines_of, results_of
from zoogen.importers.source import SOURCES, Measured, Network, Skipped, SourceModel, State, Stored, Unusable
from zoogen.importers.tensors.state_dicts import content_of, layout_of_tensors, load_tensors, misfit
from zoogen.importers.tensors.templates import Templates
from zoogen.importers.tensors.variational import hard_zeroed, is_noisy

if TYPE_CHECKING:
    from torch import Tensor

_CHECKPOINT = re.compile(r"(?:(.*)/)?checkpoint_(\d{1,9})/checkpoints")
_RECORDS = ("params.json", "config.json")
_RESULTS = ("result.json", "progress.csv")
_MOST_RECORD, _MOST_RESULTS = 1 << 20, 64 << 20
_MOST_VALUES = 10_000  # of a record; the records of all trials are in memory together


@SOURCES.register("ray-tune")
@dataclass(frozen=True)
class RayTune:
    """Every folder with a checkpoint, results or ``params.json`` is a trial, and a trial is a model.

    Attributes:
        input_shape: Of the task's samples, which says what residual networks were made for; None: not known.
    """

    files: Files
    input_shape: tuple[int, ...] | None = None
    registered_name: ClassVar[str]
    _records: dict[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False)
    _templates: Templates = field(default_factory=Templates, repr=False, compare=False)

    @staticmethod
    def recognises(files: Files) -> bool:
        return any(_CHECKPOINT.fullmatch(name) for name in files.sizes)

    def models(self) -> Iterator[SourceModel | Skipped]:
        # All records, then all checkpoints: a compressed tar, which is read forwards only, begins anew but once.
        notes: dict[str, list[str]] = {folder: [] for folder in self._trials}
        records = {folder: self._record(folder and f"{folder}/", notes[folder]) for folder in self._trials}
        for folder in self._trials:
            yield self._model(folder, records[folder], notes[folder])

    def measured(self, model: SourceModel) -> Measured:
        place = self._folder(model.key)
        notes: list[str] = []
        for name in _RESULTS:
            if f"{place}{name}" in self.files.sizes:
                try:
                    data = self.files.read(f"{place}{name}", _MOST_RESULTS)
                    results = results_of(name, data, notes)
                except (IntegrityError, Unusable) as error:
                    notes.append(str(error))
                    continue
                if any(result is not None for result in results):
                    by_epoch, others = by_checkpoint(results, {s.epoch for s in model.checkpoints}, notes)
                    return Measured(by_epoch, tuple(notes), tuple(others))
        return Measured({}, (*notes, "has no results, so nothing is known of its losses and accuracies"))

    def state(self, model: SourceModel, stored: Stored) -> State:
        state = self._read(self._records[model.key], stored)
        if reason := misfit(model.layout, state.tensors):
            raise Unusable(f"does not fit its model: {reason}")
        return state

    def _read(self, record: Mapping[str, Any], stored: Stored) -> State:
        try:
            tensors = load_tensors(self.files.read(stored.file), self._templates)
        except IntegrityError as error:
            raise Unusable(str(error)) from error
        twin = is_noisy(tensors)
        named = without_prefix(tensors) if is_resnet(record) else our_names(record, tensors, twin=twin)
        return State(*hard_zeroed(named)) if twin else State(named)

    def _model(self, folder: str, record: Mapping[str, Any], notes: list[str]) -> SourceModel | Skipped:
        key = self._key(folder)
        listed, twice = _distinct(self._checkpoints.get(folder, []))
        notes += twice
        if not listed:
            return Skipped(key, None, "has no checkpoints")
        reasons: list[str] = []
        found = self._first_readable(record, listed, reasons)
        if found is None:
            return Skipped(key, None, f"has no usable checkpoint: {'; '.join(reasons[:3])}")
        state, network, layout = found
        if network is None and "model::type" in record:
            notes.append(f"is imported without code: {self._unknown(record)}")
        self._records[key] = record
        return SourceModel(
            key=key,
            settings=published_settings(record, network, notes),
            original=json.dumps(record),
            layout=layout,
            checkpoints=tuple(listed),
            network=network,
            sparse=state.kept is not None,
            parent=self._parent(folder, record),
            known_as=folder.rpartition("/")[2] or self.files.name.partition(".")[0],
            notes=tuple(notes),
            content=content_of(state.tensors),
        )

    def _first_readable(
        self, record: Mapping[str, Any], listed: list[Stored], reasons: list[str]
    ) -> tuple[State, Network | None, Layout] | None:
        """A checkpoint that tells the layout: the first, or the last where only that is of the record's network."""
        other: State | None = None
        for stored in dict.fromkeys((listed[0], listed[-1], *listed)):
            if other is not None and stored not in (listed[0], listed[-1]):
                break
            try:
                state = self._read(record, stored)
            except Unusable as error:
                reasons.append(f"epoch {stored.epoch} {error}")
                continue
            network = self._network(record, state)
            if network is not None:
                layout = describe(network.architecture, network.input_shape, network.outputs)
                if misfit(layout, state.tensors) is None:
                    return state, network, layout
            other = other or state
        if other is None:
            return None
        return other, None, layout_of_tensors(other.tensors, other.kept and _weights(other))

    def _network(self, record: Mapping[str, Any], state: State) -> Network | None:
        if is_resnet(record):
            return resnet_of(record, state.tensors, self.input_shape)
        return network_of(record, state.tensors, twin=state.kept is not None)

    def _record(self, place: str, notes: list[str]) -> Mapping[str, Any]:
        """``params.json``, or what else has the settings; empty where nothing does."""
        for name in _RECORDS:
            if f"{place}{name}" in self.files.sizes:
                try:
                    found = read_json(self.files.read(f"{place}{name}", _MOST_RECORD), _MOST_VALUES)
                    if isinstance(found, dict):
                        return found
                    notes.append(f"{name} is no mapping")
                except (IntegrityError, ValueError) as error:
                    notes.append(f"{name} is damaged ({error})")
        if f"{place}result.json" in self.files.sizes:
            try:
                for line in lines_of(self.files.read(f"{place}result.json", _MOST_RESULTS), []):
                    if line is not None and isinstance(line.get("config"), dict):
                        check_values(json.dumps(line["config"]), _MOST_VALUES)
                        return line["config"]
            except (IntegrityError, Unusable) as error:
                notes.append(str(error))
            except ValueError as error:
                notes.append(f"the settings in result.json are left out ({error})")
        notes.append("has no settings (params.json)")
        return {}

    def _unknown(self, record: Mapping[str, Any]) -> str:
        if is_resnet(record) and self.input_shape is None:
            return "the size of its images is not recorded; name what it was trained on (--task)"
        kind = json.dumps(record["model::type"])[:100]
        return f"its record and tensors are those of no network here (type {kind})"

    @cached_property
    def _checkpoints(self) -> dict[str, list[Stored]]:
        found: dict[str, list[Stored]] = {}
        for name, size in self.files.sizes.items():
            if match := _CHECKPOINT.fullmatch(name):
                found.setdefault(match[1] or "", []).append(Stored(int(match[2]), name, size))
        return found

    @cached_property
    def _trials(self) -> list[str]:
        """Folders, in the order in which their first file comes."""
        found: dict[str, None] = {}
        for name in self.files.sizes:
            folder, _, leaf = name.rpartition("/")
            if leaf in ("params.json", *_RESULTS):
                found.setdefault(folder)
            elif match := _CHECKPOINT.fullmatch(name):
                found.setdefault(match[1] or "")
        return list(found)

    @cached_property
    def _common(self) -> str:
        """What is before every trial's name, left out so that a zip and its unpacked folder give the same ids."""
        above = {folder.rpartition("/")[0] for folder in self._trials}
        if "" in above:
            return ""
        shared = os.path.commonpath(above)
        return f"{shared}/" if shared else ""

    def _key(self, folder: str) -> str:
        return folder.removeprefix(self._common) or "."

    def _folder(self, key: str) -> str:
        return "" if key == "." else f"{self._common}{key}/"

    def _parent(self, folder: str, record: Mapping[str, Any]) -> str | None:
        """What a trial was made of: where its record says it began, or by its place in the ViT zoo."""
        began = record.get("training::init_checkpoint_path")
        if isinstance(began, str) and (name := trial_of(began)):
            same = [other for other in self._trials if other.rpartition("/")[2] == name and other != folder]
            return self._key(same[0]) if len(same) == 1 else name
        pretrained = pretrained_of(f"{self.files.place}/{folder}".rstrip("/"))
        if pretrained is None:
            return None
        same = [other for other in self._trials if f"/{other}".endswith(f"/pretraining/{pretrained}")]
        return self._key(same[0]) if len(same) == 1 else pretrained


def _distinct(stored: list[Stored]) -> tuple[list[Stored], list[str]]:
    """Ascending, each epoch once (``checkpoint_5`` and ``checkpoint_000005`` may both be there)."""
    found: dict[int, Stored] = {}
    notes = []
    for one in sorted(stored, key=lambda s: (s.epoch, s.file)):
        if found.setdefault(one.epoch, one) is not one:
            notes.append(f"has two checkpoints of epoch {one.epoch}; {one.file} is left out")
    return list(found.values()), notes


def _weights(state: State) -> dict[str, Tensor]:
    return {name: state.tensors[name] for name in state.kept or ()}

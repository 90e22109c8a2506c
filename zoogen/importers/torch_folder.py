"""A folder of state dicts (``.pt``, ``.pth``) with one table that says what they are: CSV, JSON or Parquet.

The table has a row per file: column ``file`` (path below the table's folder), perhaps ``model`` (files with the same
value are one model), ``epoch`` and ``split``; the rest are settings, the same in all rows of a model, or metrics. A
registered architecture is built where ``architecture.name``, its arguments (``architecture.activation``, ...),
``input_shape`` (``1x28x28`` or a list) and ``outputs`` are columns.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from zoogen.core.errors import IntegrityError, UserError
from zoogen.importers.containers.files import Files
from zoogen.importers.networks.recorded_networks import OF_THE_INPUT, recorded_network
from zoogen.importers.records.file_tables import first_row, read_table
from zoogen.importers.records.numbers import number, one_each
from zoogen.importers.records.settings import RESULT, SHORT_NAMES, column, own_arguments, settings_of
from zoogen.importers.source import METRICS, SOURCES, Measured, Skipped, SourceModel, State, Stored, Unusable
from zoogen.importers.tensors.state_dicts import content_of, layout_of_tensors, load_tensors, misfit
from zoogen.importers.tensors.templates import Templates

_STATES = (".pt", ".pth")
_TABLES = (".csv", ".json", ".parquet")
_OTHER = "index_dict.json"  # lies beside preprocessed zoos, and is no table of files
_LONGEST_KEY = 4096
_FEWEST_ROWS, _ROWS_PER_STATE = 1_000, 10
_MOST_TABLES = 16
_FILE = "file"
_PLACE = (_FILE, "model", "epoch")
_SPLIT, _SPLITS = "split", ("train", "val", "test")

Row = Mapping[str, Any]


@SOURCES.register("torch")
@dataclass(frozen=True)
class TorchFolder:
    """State dicts and the table that describes them."""

    files: Files
    registered_name: ClassVar[str]
    _templates: Templates = field(default_factory=Templates, repr=False, compare=False)

    @staticmethod
    def recognises(files: Files) -> bool:
        tables = _tables(files) if any(n.endswith(_STATES) for n in files.sizes) else []
        return len(tables) == 1 and _FILE in first_row(files, tables[0])

    def models(self) -> Iterator[SourceModel | Skipped]:
        described = {place for rows in self._rows.values() for place, _ in rows}
        for key, rows in self._rows.items():
            yield self._model(key, rows)
        for name in self.files.sizes:
            if name.endswith(_STATES) and name not in described:
                yield Skipped(name, None, "stands in no row of the table", what="file")

    def measured(self, model: SourceModel) -> Measured:
        notes: list[str] = []
        by_epoch = {_epoch(row): self._metrics_of(row, notes) for _, row in self._rows[model.key]}
        return Measured(by_epoch, tuple(notes))

    def state(self, model: SourceModel, stored: Stored) -> State:
        state = self._read(stored)
        if reason := misfit(model.layout, state.tensors):
            raise Unusable(f"does not fit its model: {reason}")
        return state

    def _read(self, stored: Stored) -> State:
        try:
            tensors = load_tensors(self.files.read(stored.file), self._templates)
        except IntegrityError as error:
            raise Unusable(str(error)) from error
        if all(name.startswith("module.") for name in tensors):  # as DataParallel saves them
            tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        return State(tensors)

    def _model(self, key: str, rows: list[tuple[str, Row]]) -> SourceModel | Skipped:
        stored = [Stored(_epoch(row), place, self.files.sizes.get(place, -1)) for place, row in rows]
        listed = sorted((s for s in stored if s.size >= 0), key=lambda s: s.epoch)
        notes = [f"{s.file} is not there" for s in stored if s.size < 0]
        if len({s.epoch for s in listed}) < len(listed):
            return Skipped(key, None, "has two files of one epoch; give the table a column epoch")
        reasons = list(notes)
        constant = {n: v for n, v in rows[0][1].items() if n not in self._metrics and _constant(rows, n)}
        for one in listed:
            try:
                state = self._read(one)
            except Unusable as error:
                reasons.append(f"{one.file} {error}")
                continue
            told = {n: v for n, v in constant.items() if n not in OF_THE_INPUT}
            settings = own_arguments(settings_of(told, SHORT_NAMES, notes))
            of_the_input = {n: v for n, v in constant.items() if n in OF_THE_INPUT}
            built = recorded_network({**settings, **of_the_input}, state.tensors, notes)
            return SourceModel(
                key=key,
                settings=settings,
                original=json.dumps([dict(row) for _, row in rows]),
                layout=built[1] if built else layout_of_tensors(state.tensors),
                checkpoints=tuple(listed),
                network=built[0] if built else None,
                split=_split(rows, notes),
                notes=tuple(notes),
                content=content_of(state.tensors),
            )
        return Skipped(key, None, f"has no usable checkpoint: {'; '.join(reasons[:3])}")

    def _metrics_of(self, row: Row, notes: list[str]) -> dict[str, float]:
        numbers = (
            (name if name in METRICS else RESULT + column(name), number(row.get(name)))
            for name in self._metrics
            if name not in _PLACE
        )
        return one_each(((name, value) for name, value in numbers if value is not None), notes)

    @cached_property
    def _metrics(self) -> tuple[str, ...]:
        """Columns that are no settings: known metrics, and what differs between rows of one model."""
        names = dict.fromkeys(name for rows in self._rows.values() for _, row in rows for name in row)
        differing = [n for n in names if any(not _constant(rows, n) for rows in self._rows.values())]
        return tuple(dict.fromkeys([*_PLACE, *(n for n in names if n in METRICS), *differing]))

    @cached_property
    def _rows(self) -> dict[str, list[tuple[str, Row]]]:
        """Path and row of every file, by model."""
        tables = _tables(self.files)
        if len(tables) != 1:
            raise UserError(
                f"{self.files.name}: expected one table (.csv, .json or .parquet) beside the state dicts, "
                f"found {', '.join(tables[:5]) or 'none'}"
            )
        folder = posixpath.dirname(tables[0])
        found: dict[str, list[tuple[str, Row]]] = {}
        states = sum(name.endswith(_STATES) for name in self.files.sizes)
        # Some of a zoo's files may be elsewhere.
        at_most = max(_FEWEST_ROWS, _ROWS_PER_STATE * states)
        for line, row in enumerate(read_table(self.files, tables[0], at_most), start=1):
            file = row.get(_FILE)
            if not isinstance(file, str) or not file.isprintable() or not 0 < len(file) <= _LONGEST_KEY:
                told = f"no file, but {file!r:.60}" if file else "no file"
                raise UserError(f"{self.files.name}: row {line} of {tables[0]} has {told}\nname it in column 'file'")
            place = posixpath.normpath(posixpath.join(folder, file))
            model = row.get("model")
            key = file if model is None else str(model)
            if not key.isprintable() or not 0 < len(key) <= _LONGEST_KEY:
                raise UserError(f"{self.files.name}: row {line} of {tables[0]} is of model {key!r:.60}, no name")
            found.setdefault(key, []).append((place, row))
        return found


def _split(rows: list[tuple[str, Row]], notes: list[str]) -> str | None:
    """The column ``split``, where every row of a model has the same of ``train``, ``val`` and ``test``."""
    found = list(dict.fromkeys(str(row.get(_SPLIT)) for _, row in rows if row.get(_SPLIT) is not None))
    if not found:
        return None
    if len(found) == 1 and found[0] in _SPLITS and _constant(rows, _SPLIT):
        return found[0]
    told = f"{found[0]:.60}" if len(found) == 1 else "different ones"
    notes.append(f"has no split train, val or test in all its rows ({told}); its name decides on which side it is")
    return None


def _epoch(row: Row) -> int:
    """The column ``epoch``; without it the length of the training where that is known, else 0."""
    value = row.get("epoch", row.get("training.epochs", row.get("epochs")))
    try:
        found = int(value or 0)
    except (TypeError, ValueError, OverflowError):
        found = -1
    if not 0 <= found < 1 << 31 or found != float(value or 0):
        raise UserError(f"epoch {value!r:.60} of file {row['file']!r:.200} is no whole number from 0")
    return found


def _constant(rows: list[tuple[str, Row]], name: str) -> bool:
    return all(row.get(name) == rows[0][1].get(name) for _, row in rows)


def _tables(files: Files) -> list[str]:
    """What may be the table: of several, those with a column ``file``."""
    named = [n for n in files.sizes if n.endswith(_TABLES) and posixpath.basename(n) != _OTHER]
    if not 1 < len(named) <= _MOST_TABLES:
        return named
    return [n for n in named if _FILE in first_row(files, n)] or named

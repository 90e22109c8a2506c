"""The Small CNN Zoo (Unterthiner et al. 2020, arXiv:2002.11448): all checkpoints of all models as rows of one matrix.

weights.npy                   [checkpoints, parameters], in TensorFlow's order of axes
metrics.csv, metrics.csv.gz   a row per row of the matrix: the model (modeldir), the epoch (step), settings (config.*)
                              and what was measured
layout.csv                    which columns of the matrix are which variable
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.layout import Layout
from zoogen.core.modules import describe
from zoogen.core.registry import ARCHITECTURES
from zoogen.importers.containers.files import Files
from zoogen.importers.networks.tensorflow_names import Variable, layout_of, read_variables
from zoogen.importers.records.model_rows import Table, read_rows, value_of, whole_number
from zoogen.importers.records.numbers import one_each
from zoogen.importers.records.settings import CONFIG, RESULT, column, plain, settings_of
from zoogen.importers.source import SOURCES, Measured, Network, Skipped, SourceModel, State, Stored, Unusable
from zoogen.importers.tensors.npy import MatrixHeader, Rows, read_header

_WEIGHTS, _LAYOUT, _METRICS = "weights.npy", "layout.csv", ("metrics.csv", "metrics.csv.gz")
_MODEL, _STEP, _INDEX = "modeldir", "step", ("", "Unnamed: 0")
_THEIRS = "config."
_OURS = {
    "test_accuracy": "test_acc",
    "train_accuracy": "train_acc",
    "test_loss": "test_loss",
    "train_loss": "train_loss",
}
_NAMES = {
    "activation": "architecture.activation",
    "dropout": "architecture.dropout",
    "dnn_architecture": "architecture.name",
    "optimizer": "training.optimizer.name",
    "learning_rate": "training.optimizer.lr",
    "epochs": "training.epochs",
    "random_seed": "seed",
}
_WHOLE = ("epochs", "random_seed")  # pandas writes 42.0 where a column has gaps
_ACTIVATIONS = ("relu", "tanh", "sigmoid")
_ARCHITECTURE = {"dnn_architecture": "cnn", "num_layers": 3, "num_units": 16}
# Names of TensorFlow Datasets, and the side of their images; all were made grey.
_SIDES = {"mnist": 28, "fashion_mnist": 28, "cifar10": 32, "svhn_cropped": 32}


@SOURCES.register("small-cnn-zoo")
@dataclass(frozen=True)
class SmallCNNZoo:
    """Rows with the same ``modeldir`` are the checkpoints of one model."""

    files: Files
    registered_name: ClassVar[str]

    @staticmethod
    def recognises(files: Files) -> bool:
        return bool(_folders(files))

    def models(self) -> Iterator[SourceModel | Skipped]:
        for key, rows in self._rows.items():
            yield self._model(key, rows)

    def measured(self, model: SourceModel) -> Measured:
        notes: list[str] = []
        by_epoch = {self._steps[row]: self._metrics_of(row, notes) for row in self._rows[model.key]}
        return Measured(by_epoch, tuple(notes))

    def state(self, model: SourceModel, stored: Stored) -> State:
        row = next(row for row in self._rows[model.key] if self._steps[row] == stored.epoch)
        try:
            values = _float32(self._matrix.row(row))
        except IntegrityError as error:
            raise Unusable(str(error)) from error
        return State({v.name: v.tensor(values) for v in self._variables})

    def _model(self, key: str, rows: list[int]) -> SourceModel | Skipped:
        steps = [self._steps[row] for row in rows]
        if twice := sorted(step for step, count in Counter(steps).items() if count > 1):
            return Skipped(key, None, f"has several rows of step {twice[0]}, so that which is which is not told")
        config: dict[str, Any] = {}
        columns = self._columns_of(rows)
        for name, texts in columns.items():
            if name.startswith(_THEIRS):
                if len(set(texts)) > 1:
                    return Skipped(key, None, f"has rows that differ in {name}, so that they are not of one model")
                config[name.removeprefix(_THEIRS)] = value_of(texts[0])
        network, layout, why = self._network(config)
        notes = [f"is imported without code: {why}"] if network is None else []
        stored = [
            Stored(s, f"{self._place(_WEIGHTS)}[{row}]", self._header.row_bytes)
            for s, row in zip(steps, rows, strict=True)
        ]
        return SourceModel(
            key=key,
            settings=_settings(config, network, notes),
            original=json.dumps({name: _told(texts) for name, texts in columns.items()}),
            layout=layout,
            checkpoints=tuple(sorted(stored, key=lambda s: s.epoch)),
            network=network,
            notes=tuple(notes),
        )

    def _network(self, config: Mapping[str, Any]) -> tuple[Network | None, Layout, str]:
        """The network that a record describes and its layout, or the layout of the tensors alone and why."""
        activation, dropout, dataset = (config.get(name) for name in ("activation", "dropout", "dataset"))
        if other := next((name for name, value in _ARCHITECTURE.items() if config.get(name) != value), None):
            return None, self._bare, f"{other} is {config.get(other)!r}, not {_ARCHITECTURE[other]!r}"
        if activation not in _ACTIVATIONS or dataset not in _SIDES:
            name = "activation" if activation not in _ACTIVATIONS else "dataset"
            return None, self._bare, f"{name} {config.get(name)!r} is unknown here"
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            return None, self._bare, f"dropout {dropout!r} is no probability below 1"
        shapes = {e.name: e.shape for e in self._bare.entries}
        (outputs,) = shapes.get("fc.bias", (1,))
        shape = (1, _SIDES[dataset], _SIDES[dataset])
        # Dropout changes no layout, so that one is enough for all models.
        layout = describe(ARCHITECTURES.make("cnn-gap", {"activation": activation}), shape, outputs)
        if {e.name: e.shape for e in layout.entries} != shapes:
            return None, self._bare, "its variables are not those of the published network"
        architecture = ARCHITECTURES.make("cnn-gap", {"activation": activation, "dropout": float(dropout)})
        return Network(architecture, shape, outputs), layout, ""

    def _metrics_of(self, row: int, notes: list[str]) -> dict[str, float]:
        found = []
        for name, text in zip(self._table.columns, self._table.rows[row], strict=True):
            if name not in (_MODEL, _STEP, *_INDEX) and not name.startswith(_THEIRS):
                value = float("nan") if text in ("nan", "NaN") else value_of(text)
                if isinstance(value, (int, float)):
                    found.append((_OURS.get(name) or RESULT + column(name), float(value)))
        return one_each(found, notes)

    def _columns_of(self, rows: list[int]) -> dict[str, list[str]]:
        return dict(
            zip(self._table.columns, map(list, zip(*(self._table.rows[r] for r in rows), strict=True)), strict=True)
        )

    def _place(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name

    @cached_property
    def _folder(self) -> str:
        found = _folders(self.files)
        if len(found) != 1:
            wanted = f"{_WEIGHTS}, {_LAYOUT} and {_METRICS[0]} or {_METRICS[1]}"
            told = f"found them in {', '.join(found[:5])}; import each by itself" if found else "found no such folder"
            raise UserError(f"{self.files.name}: expected one folder with {wanted}\n{told}")
        return found[0]

    @cached_property
    def _header(self) -> MatrixHeader:
        return read_header(self.files, self._place(_WEIGHTS))

    @cached_property
    def _matrix(self) -> Rows:
        return Rows(self.files, self._place(_WEIGHTS), self._header)

    @cached_property
    def _variables(self) -> tuple[Variable, ...]:
        return read_variables(self.files, self._place(_LAYOUT), self._header.columns)

    @cached_property
    def _bare(self) -> Layout:
        return layout_of(self._variables)

    @cached_property
    def _table(self) -> Table:
        table = read_rows(self.files, self._metrics_file, self._header.rows)
        for name in (_MODEL, _STEP):
            if name not in table.columns:
                raise self._refused(f"has no column {name!r}")
        if len(table.rows) != self._header.rows:
            told = f"has {len(table.rows):,} rows and {_WEIGHTS} has {self._header.rows:,}"
            raise self._refused(f"{told}; which belongs to which is not known")
        return table

    @cached_property
    def _steps(self) -> list[int]:
        """Of every row."""
        place = self._table.columns.index(_STEP)
        found = []
        for number, row in enumerate(self._table.rows, start=1):
            step = whole_number(row[place])
            if step is None:
                raise self._refused(f"has step {row[place]!r:.60} in row {number}, which is no whole number from 0")
            found.append(step)
        return found

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        """The rows of every model, in the order of the table."""
        place = self._table.columns.index(_MODEL)
        found: dict[str, list[int]] = {}
        for number, row in enumerate(self._table.rows):
            if not row[place]:
                raise self._refused(f"has no {_MODEL} in row {number + 1}")
            found.setdefault(row[place], []).append(number)
        return found

    @property
    def _metrics_file(self) -> str:
        return next(name for name in map(self._place, _METRICS) if name in self.files.sizes)

    def _refused(self, why: str) -> IntegrityError:
        return IntegrityError(f"{self.files.name}: {self._metrics_file} {why}\nget all three files from their source")


def _folders(files: Files) -> list[str]:
    """Folders with weights, layout and metrics."""
    names = files.sizes
    beside = (n.removesuffix(_WEIGHTS) for n in names if n.rpartition("/")[2] == _WEIGHTS)
    return [b.rstrip("/") for b in beside if f"{b}{_LAYOUT}" in names and any(f"{b}{m}" in names for m in _METRICS)]


def _settings(config: Mapping[str, Any], network: Network | None, notes: list[str]) -> dict[str, Any]:
    whole = {n: int(v) if isinstance(v, float) and v.is_integer() and n in _WHOLE else v for n, v in config.items()}
    settings = settings_of(whole, {name: _NAMES.get(name) or CONFIG + column(name) for name in config}, notes)
    if network is not None:
        settings["architecture.name"] = network.architecture.registered_name
        settings["architecture.dropout"] = network.architecture.dropout
    if isinstance(optimizer := settings.get("training.optimizer.name"), str):
        settings["training.optimizer.name"] = optimizer.lower()
    return dict(sorted(settings.items()))


def _told(texts: list[str]) -> Any:
    """A column of a model's rows as the record keeps it: one value where all are the same."""
    one = len(set(texts)) == 1
    values = [plain(value_of(text)) for text in (texts[:1] if one else texts)]
    return values[0] if one else values


def _float32(row: Any) -> Any:
    """Numbers as float32.

    Raises:
        Unusable: they are of more digits or larger.
    """
    import numpy as np

    if row.dtype == np.float32:
        return row
    with np.errstate(over="ignore", invalid="ignore"):
        found = row.astype(np.float32)
    if not np.array_equal(found.astype(row.dtype), row, equal_nan=True):
        raise Unusable("holds numbers that float32 cannot keep")
    return found

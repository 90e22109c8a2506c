"""The derived tables of a zoo, checked, with the links between them as arrays; columns of states are read by name."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from zoogen.core.errors import IntegrityError
from zoogen.dataset.shards import ModelNumbers
from zoogen.store.check import CHECKPOINT_COLUMNS
from zoogen.store.columns import FileColumns, TableColumns, in_memory
from zoogen.store.derive import DerivedTables, planned_shards
from zoogen.store.shard import shards_folder
from zoogen.store.tables import read_parquet, release_memory
from zoogen.store.zoo import CHECKPOINTS_TABLE, MODELS_TABLE, PLAN_COLUMNS, ZooFolder, to_frame

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_GAP = "ggap"
_GAP_OF = ("train_acc", "test_acc", "train_eval_acc")
_FEW = 4
"""Less than this share of the states are few: their columns are taken from the file, and whole ones are not kept."""

_MODEL_COLUMNS = ("split", "seed", "status", "architecture_id", "task_id", "diverged_epoch", "last_epoch")


@dataclass(frozen=True)
class Tables:
    """Models and checkpoints. Of the checkpoints only what leads to weights is held; other columns are read by name.

    Attributes:
        models: One row per planned model.
        model_of: int64 [states], the row in ``models`` of each state, in the order of the shards.
        epochs: int64 [states].
        shards: Shard of each state, and its row there: int64 codes [states] into ``shard_names``, int64 rows [states].
        shard_names: In the order in which states name them.
        stored: The checkpoints table as it is stored.
        places: int64 [states], the row of each state in ``stored``; None: all of them.
    """

    models: pd.DataFrame
    model_of: np.ndarray
    epochs: np.ndarray
    shards: tuple[np.ndarray, np.ndarray]
    shard_names: tuple[str, ...]
    stored: TableColumns
    places: np.ndarray | None = None
    _columns: dict[str, pd.Series] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def ids(self) -> pd.Index:
        import pandas as pd

        return pd.Index(self.models["model_id"])

    @cached_property
    def numbers(self) -> ModelNumbers:
        """Rows of ``models`` by model id."""
        return ModelNumbers(self.models["model_id"].to_numpy(object))

    @cached_property
    def checkpoints(self) -> pd.DataFrame:
        """The whole table: one row per stored state. ``state_columns`` gives parts of it for less."""
        whole = self._read(self.state_names, None)
        self._columns.clear()
        return whole

    @cached_property
    def state_names(self) -> tuple[str, ...]:
        """Columns of ``checkpoints``, in order."""
        gap = {"train_acc", "test_acc"} <= set(self.stored.names) and _GAP not in self.stored.names
        return (*self.stored.names, *([_GAP] if gap else []))

    def state_columns(self, names: Iterable[str], rows: np.ndarray | None = None) -> pd.DataFrame:
        """Some columns of ``checkpoints``, of all states or of some rows; of few, no column is made whole.

        Raises:
            IntegrityError: a column is damaged.
        """
        import pandas as pd

        names = list(dict.fromkeys(names))
        if "checkpoints" not in self.__dict__:
            lacking = [name for name in names if name not in self._columns]
            if lacking and rows is not None and self.are_few(rows):
                return self._read(names, rows)
            if lacking:
                self._columns.update({str(n): column for n, column in self._read(lacking, None).items()})
        whole = self.checkpoints if "checkpoints" in self.__dict__ else self._columns
        columns = {name: whole[name] for name in names}
        if rows is not None:
            columns = {name: column.take(rows).reset_index(drop=True) for name, column in columns.items()}
        index = pd.RangeIndex(len(self.epochs) if rows is None else len(rows))
        return pd.DataFrame(columns, index=index, copy=False)

    def are_few(self, rows: np.ndarray) -> bool:
        """Whether rows of ``checkpoints`` are so few that columns of them are read for themselves."""
        return len(rows) * _FEW < len(self.epochs)

    def _read(self, names: Sequence[str], rows: np.ndarray | None) -> pd.DataFrame:
        import pandas as pd

        # Of few rows, what is held as numbers is not read again; of all, text comes smaller from the file.
        held = set() if rows is None else set(CHECKPOINT_COLUMNS)
        needed = {*names, *(_GAP_OF if _GAP in names else ())} - held
        places = self.places if rows is None else rows if self.places is None else self.places[rows]
        frame = self.stored.frame([name for name in self.stored.names if name in needed], places)
        if _GAP in names:
            frame = _with_gap(frame)
        if rows is None:
            return frame if [*frame] == [*names] else frame[list(names)]
        columns = {n: self._key(n, rows) if n in held else frame[n] for n in names}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(rows)))

    def _key(self, name: str, rows: np.ndarray) -> pd.Series:
        """A column of those that are held as numbers, as the table has it."""
        import pandas as pd

        if name == "model_id":
            return self.models[name].take(self.model_of[rows]).reset_index(drop=True)
        if name == "shard_id":
            return pd.Series(self.shard_names, dtype="str").take(self.shards[0][rows]).reset_index(drop=True)
        return pd.Series((self.epochs if name == "epoch" else self.shards[1])[rows].astype(np.int32))

    @cached_property
    def first_epoch(self) -> np.ndarray:
        """int64 [models]: the first stored epoch of each model; larger than any epoch where nothing is stored."""
        first = np.full(len(self.models), np.iinfo(np.int64).max)
        np.minimum.at(first, self.model_of, self.epochs)
        return first

    @cached_property
    def last_epoch(self) -> np.ndarray:
        """int64 [models]: the last stored epoch of each model, -1 where nothing is stored."""
        last = np.full(len(self.models), -1)
        np.maximum.at(last, self.model_of, self.epochs)
        return last


def read_tables(folder: ZooFolder) -> Tables:
    """Both tables as the last rebuild left them; made anew in memory where shards were sealed since.

    So of a zoo that is being built, every sealed shard is there.

    Raises:
        IntegrityError: a table, the plan or a shard's table is damaged or not of this format.
        UserError: the zoo has no plan yet.
    """
    with _nothing_collected():
        tables = _read_tables(folder)
    release_memory()
    return tables


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Without cyclic garbage collection: pandas and the tables are there to stay, and one full collection, which their
    import sets off, looks at all that torch holds (0.15 s of the first batch).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_tables(folder: ZooFolder) -> Tables:
    import pandas as pd

    try:
        models = to_frame(read_parquet(folder.path / MODELS_TABLE, PLAN_COLUMNS))
        stored: TableColumns = FileColumns(folder.path / CHECKPOINTS_TABLE, CHECKPOINT_COLUMNS)
    except FileNotFoundError:
        models, stored = _derived(folder, {})
    else:
        if _sealed_since(folder, stored):
            models, stored = _derived(folder, _failures(models))
    _check_models(models, folder)
    codes, values = stored.codes("model_id")
    model_of = pd.Index(models["model_id"]).get_indexer(pd.Index(values))[codes]
    shards, names = stored.codes("shard_id")
    epochs, rows = stored.numbers("epoch"), stored.numbers("row")
    places = None
    known = model_of >= 0
    if not known.all():  # a build that was killed between the two tables, or that writes them now
        log.warning(
            "%s: %d states belong to models that %s does not list yet; they are left out until the next build",
            folder.path,
            (~known).sum(),
            MODELS_TABLE,
        )
        places = np.flatnonzero(known)
        model_of, shards, epochs, rows = (column[known] for column in (model_of, shards, epochs, rows))
    shards, used = pd.factorize(shards)
    return Tables(models, model_of, epochs, (shards, rows), tuple(names[used].tolist()), stored, places)


def _sealed_since(folder: ZooFolder, stored: TableColumns) -> bool:
    """Whether a planned shard is sealed that the table does not know."""
    new = {place.name for place in folder.shard_folders()} - set(stored.codes("shard_id")[1].tolist())
    return bool(new) and any(s.shard_id in new for record in folder.read_cohorts() for s in record.segments)


def _derived(folder: ZooFolder, failures: Mapping[str, str]) -> tuple[pd.DataFrame, TableColumns]:
    """Both tables from the plan and the shards that are sealed now; nothing is written."""
    records = folder.read_cohorts()
    shards = planned_shards(records, folder.sealed(), shards_folder(folder.path))
    derived = DerivedTables(folder.plan_table(), records, shards, failures)
    schema = derived.checkpoints_schema()
    stored = in_memory(derived.checkpoints(schema), schema, folder.path / CHECKPOINTS_TABLE)
    return to_frame(derived.models(schema)), stored


def _failures(models: pd.DataFrame) -> dict[str, str]:
    if not {"status", "reason"} <= set(models.columns):
        return {}
    failed = models[models["status"] == "failed"]
    return dict(zip(failed["model_id"], failed["reason"].astype("str"), strict=True))


def _check_models(models: pd.DataFrame, folder: ZooFolder) -> None:
    missing = [name for name in _MODEL_COLUMNS if name not in models.columns]
    if missing:
        raise IntegrityError(f"{folder.path / MODELS_TABLE}: columns {', '.join(missing)} are missing")
    if models["model_id"].hasnans or not models["model_id"].is_unique:
        raise IntegrityError(f"{folder.path / MODELS_TABLE}: a model stands twice or has no id")


def _with_gap(checkpoints: pd.DataFrame) -> pd.DataFrame:
    """Add ``ggap``, train minus test accuracy, by the rule of the models table."""
    if not {"train_acc", "test_acc"} <= set(checkpoints.columns):
        return checkpoints
    train = checkpoints["train_acc"]
    if "train_eval_acc" in checkpoints.columns:
        train = checkpoints["train_eval_acc"].fillna(train)
    return checkpoints.assign(**{_GAP: train - checkpoints["test_acc"]})

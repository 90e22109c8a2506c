"""The derived tables of a zoo, read once and checked, with the links between them as arrays."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from zoogen.core.errors import IntegrityError
from zoogen.store.check import CHECKPOINT_COLUMNS
from zoogen.store.derive import DerivedTables, in_groups, planned_shards
from zoogen.store.shard import shards_folder
from zoogen.store.tables import read_parquet, release_memory
from zoogen.store.zoo import CHECKPOINTS_TABLE, MODELS_TABLE, PLAN_COLUMNS, ZooFolder, to_frame

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_MODEL_COLUMNS = ("split", "seed", "status", "architecture_id", "task_id", "diverged_epoch", "last_epoch")


@dataclass(frozen=True)
class Tables:
    """Models and checkpoints.

    Attributes:
        models: One row per planned model.
        checkpoints: One row per stored state, in the order of the shards.
        model_of: int64 [states], the row in ``models`` of each state.
    """

    models: pd.DataFrame
    checkpoints: pd.DataFrame
    model_of: np.ndarray

    @cached_property
    def ids(self) -> pd.Index:
        import pandas as pd

        return pd.Index(self.models["model_id"])

    @cached_property
    def epochs(self) -> np.ndarray:
        """int64 [states]."""
        return self.checkpoints["epoch"].to_numpy(np.int64)

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

    @cached_property
    def shards(self) -> tuple[np.ndarray, np.ndarray]:
        """Shard of each state, and its row there: int64 codes [states] into ``shard_names``, int64 rows [states]."""
        return self._shards[0], self.checkpoints["row"].to_numpy(np.int64)

    @cached_property
    def shard_names(self) -> tuple[str, ...]:
        return tuple(self._shards[1])

    @cached_property
    def _shards(self) -> tuple[np.ndarray, pd.Index]:
        import pandas as pd

        codes, names = pd.factorize(self.checkpoints["shard_id"])
        return codes, pd.Index(names)


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
        checkpoints = to_frame(read_parquet(folder.path / CHECKPOINTS_TABLE, CHECKPOINT_COLUMNS))
    except FileNotFoundError:
        models, checkpoints = _derived(folder, {})
    else:
        if _sealed_since(folder, checkpoints):
            models, checkpoints = _derived(folder, _failures(models))
    _check_models(models, folder)
    model_of = pd.Index(models["model_id"]).get_indexer(checkpoints["model_id"])
    known = model_of >= 0
    if not known.all():  # a build that was killed between the two tables, or that writes them now
        log.warning(
            "%s: %d states belong to models that %s does not list yet; they are left out until the next build",
            folder.path,
            (~known).sum(),
            MODELS_TABLE,
        )
        checkpoints = checkpoints[known].reset_index(drop=True)
        model_of = model_of[known]
    return Tables(models, _with_gap(checkpoints), model_of)


def _sealed_since(folder: ZooFolder, checkpoints: pd.DataFrame) -> bool:
    """Whether a planned shard is sealed that the table does not know."""
    new = {place.name for place in folder.shard_folders()} - set(checkpoints["shard_id"].unique())
    return bool(new) and any(s.shard_id in new for record in folder.read_cohorts() for s in record.segments)


def _derived(folder: ZooFolder, failures: Mapping[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables from the plan and the shards that are sealed now; nothing is written."""
    import pandas as pd

    records = folder.read_cohorts()
    shards = planned_shards(records, folder.sealed(), shards_folder(folder.path))
    derived = DerivedTables(folder.plan_table(), records, shards, failures)
    schema = derived.checkpoints_schema()
    groups = [to_frame(table) for table in in_groups(derived.checkpoints(schema))]
    checkpoints = pd.concat(groups, ignore_index=True) if groups else to_frame(schema.empty_table())
    return to_frame(derived.models(schema)), checkpoints


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
    return checkpoints.assign(ggap=train - checkpoints["test_acc"])

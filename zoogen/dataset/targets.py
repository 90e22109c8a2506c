"""What stands beside the weights of a state when something is learned from it: one column as target, or metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoogen.core.errors import UserError
from zoogen.dataset import filters

if TYPE_CHECKING:
    import pandas as pd

    from zoogen.dataset.selection import Selection
    from zoogen.dataset.tables import Tables


@dataclass(frozen=True)
class Targets:
    """Of some states, in their order.

    Attributes:
        values: float32 or int64 [states], or None where metadata are given.
        metadata: Columns by name, [states] each: numbers (float64 with NaN where a model lacks the setting), or text as
            objects ("" where it lacks it).
        classes: Values that int64 targets count.
    """

    values: Tensor | None
    metadata: Mapping[str, np.ndarray] = field(default_factory=dict)
    classes: tuple[Any, ...] = ()

    def one(self, place: int) -> Any:
        """Of one state: a tensor without dimensions, or metadata as a dict of text and numbers."""
        if self.values is not None:
            return self.values[place]
        return {name: values[place : place + 1].tolist()[0] for name, values in self.metadata.items()}

    def batch(self, places: np.ndarray) -> Any:
        """Of several states, as torch's data loader collates them: a tensor, or a dict of tensors and lists."""
        if self.values is not None:
            return self.values[torch.from_numpy(places)]
        found = {name: values[places] for name, values in self.metadata.items()}
        return {name: v.tolist() if v.dtype == object else torch.from_numpy(v) for name, v in found.items()}


def make_targets(selection: Selection, target: str | None) -> Targets:
    """The targets of a selection; see ``Selection.dataset``.

    Raises:
        UserError: an unknown column, one with missing values, or with several numbers per state.
    """
    zoo = selection.zoo
    if target is None:
        names = ["model_id", "epoch", *zoo.factors, "seed", "split"]
        table = filters.state_columns(zoo.tables, names, selection.rows)
        return Targets(None, {name: _plain(table[name]) for name in names})
    name = target_column(zoo.tables, target)
    column = filters.state_columns(zoo.tables, [name], selection.rows)[name]
    if column.isna().any():
        raise UserError(
            f"{name} is missing for {int(column.isna().sum())} of {len(column)} states\n"
            f'leave them out: .select("`{name}` != null")'
        )
    if column.dtype.kind in "iuf":
        return Targets(torch.tensor(column.to_numpy(np.float32)))
    # Of the whole zoo: training and test models must count the same classes.
    tables = zoo.tables
    source = tables.state_columns([name]) if name in tables.state_names else tables.models
    return _counted(column, classes_of(source[name.removeprefix(filters.FINAL)], name))


def recounted(targets: Targets, classes: tuple[Any, ...]) -> Targets:
    """The same targets as positions in a longer list of classes."""
    if targets.values is None or targets.classes == classes:
        return targets
    moved = torch.tensor([classes.index(value) for value in targets.classes])
    return Targets(moved[targets.values], {}, classes)


def target_column(tables: Tables, target: str) -> str:
    """The column that the name of a target means.

    Raises:
        UserError: none or several fit.
    """
    known = [c for c in tables.state_names if c not in ("shard_id", "row")]
    models = [f"{filters.FINAL}{c}" if c in known else c for c in tables.models.columns]
    return filters.resolve(target, [*known, *models])


def classes_of(column: pd.Series, name: str) -> tuple[Any, ...]:
    """The different values of a column, sorted.

    Raises:
        UserError: a value is a list.
    """
    try:
        return tuple(sorted(set(column.dropna().to_numpy(object).tolist())))
    except TypeError:
        raise UserError(f"{name} holds several numbers per state, a target is one value") from None


def _counted(column: pd.Series, classes: Sequence[Any]) -> Targets:
    codes = {value: code for code, value in enumerate(classes)}
    counted = [codes[value] for value in column.to_numpy(object).tolist()]
    return Targets(torch.tensor(counted, dtype=torch.int64), {}, tuple(classes))


def _plain(column: pd.Series) -> np.ndarray:
    """What torch's ``default_collate`` takes: int64, bool or float64, or text as objects.

    Where a model has no such setting, a number is NaN and text is "": NaN among text cannot be collated.
    """
    kind = column.dtype.kind
    if kind in "iufb":
        dtype = {"i": np.int64, "u": np.int64, "b": np.bool_, "f": np.float64}[kind]
        return column.to_numpy(np.float64, na_value=np.nan) if column.hasnans else column.to_numpy(dtype)
    told = zip(column.tolist(), column.notna().tolist(), strict=True)
    return np.array([str(value) if there else "" for value, there in told], dtype=object)

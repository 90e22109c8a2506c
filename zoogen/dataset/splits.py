"""Other model splits than the stored one: by the value of a setting, whole families at a time, never by state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.core.errors import IntegrityError, UserError, suggest
from zoogen.dataset import filters
from zoogen.dataset.selection import Selection

if TYPE_CHECKING:
    import pandas as pd

    from zoogen.dataset.zoo import Zoo

_PARENT = "parent_id"
_ROOT = "source.root"  # of imported models: the same for all that are related, perhaps of none that is in the zoo


@dataclass(frozen=True, repr=False)
class Resplit:
    """A model split by the value of a setting; made by ``Zoo.resplit`` and ``Zoo.leave_one_out``.

    Attributes:
        zoo: Whose models it splits.
        by: The setting, a column of the models.
        sides: "train", "val" or "test" of each row of ``zoo.models``, object [models].
    """

    zoo: Zoo
    by: str
    sides: np.ndarray

    def __repr__(self) -> str:
        counts = ", ".join(f"{side} {int(self.mask(side).sum()):,}" for side in filters.SPLITS)
        return f"<models of {self.zoo.name!r} split by {self.by}: {counts}>"

    @property
    def labels(self) -> pd.Series:
        """The side of each model, by ``model_id``."""
        import pandas as pd

        return pd.Series(self.sides, index=self.zoo.tables.ids, name="split")

    def mask(self, side: str) -> np.ndarray:
        """bool [models]: which rows of ``zoo.models`` are on a side.

        Raises:
            UserError: there is no such side.
        """
        if side not in filters.SPLITS:
            raise UserError(f"unknown model split {side!r}\n{suggest(str(side), filters.SPLITS)}")
        return self.sides == side

    def select(self, side: str, where: str | None = None, **conditions: Any) -> Selection:
        """Stored states of the models on a side that fulfil the conditions, which are those of ``Zoo.select``.

        The selection remembers this split: its ``normaliser`` is fitted on the training side.
        """
        found = self.zoo.select(where, **conditions)
        chosen = self.mask(side)[self.zoo.tables.model_of[found.rows]]
        return Selection(self.zoo, found.rows[chosen], self.sides)

    def of(self, twins: Zoo) -> Resplit:
        """The same split of a twin zoo: every twin on its parent's side.

        Raises:
            UserError: ``twins`` holds no twins of this zoo.
            IntegrityError: a twin's parent is not in this zoo.
        """
        from zoogen.dataset.twins import difference, origin_of

        origin = origin_of(twins)
        other = "its models started anew" if origin is None else difference(self.zoo, origin)
        if other:
            raise UserError(f"{twins.path} holds no twins of zoo {self.zoo.name!r} at {self.zoo.path}: {other}")
        return Resplit(twins, self.by, self.sides[_rows_of_parents(twins, self.zoo)])


def resplit(zoo: Zoo, by: str, test: Any, val: Any) -> Resplit:
    """See ``Zoo.resplit``."""
    top, column, deciding = _deciding(zoo, by)
    models = top.tables.models
    # Asked of models instead of states, so that those without any have a side too.
    tables = replace(top.tables, model_of=np.arange(len(models)))
    on_test, on_val = (filters.value_rows(tables, column, _listed(v)) for v in (test, val))
    if (on_test & on_val).any():
        raise UserError(f"val and test share values of {column}; a value is on one side")
    sides = np.full(len(models), "train", object)
    sides[on_val], sides[on_test] = "val", "test"
    sides = sides[deciding]
    for side in ("test", "train", *(["val"] if on_val.any() else [])):
        if not (sides == side).any():
            values = values_of(models[column].take(np.unique(deciding)))
            raise UserError(f"no model is left for {side}: {column} has the values {_shown(values)}{_kept(deciding)}")
    return Resplit(zoo, column, sides)


def leave_one_out(zoo: Zoo, by: str) -> dict[Any, Resplit]:
    """See ``Zoo.leave_one_out``."""
    top, column, deciding = _deciding(zoo, by)
    # Of the models that decide: the value of a child does not matter for where it goes.
    values = values_of(top.tables.models[column].take(np.unique(deciding)))
    if len(values) < 2:
        raise UserError(f"every model has {column} = {_shown(values)}; to leave one value out takes two or more")
    return {value: resplit(zoo, column, [value], []) for value in values}


def values_of(column: pd.Series) -> list[Any]:
    """Its values as plain Python ones, sorted; a missing one is left out."""
    return sorted(column.dropna().unique().tolist())


def _kept(deciding: np.ndarray) -> str:
    own = len(np.unique(deciding))
    return f" among the {own:,} models that decide for their relatives" if own < len(deciding) else ""


def _deciding(zoo: Zoo, by: str) -> tuple[Zoo, str, np.ndarray]:
    """What decides on which side the models of a zoo are.

    Returns:
        The zoo that its models go back to (itself, or the parents of twins); the setting there that ``by`` means; and
        the row there of the model that decides for each model here, int64 [models].
    """
    if not zoo.manifest.get("parents"):
        return zoo, filters.setting(zoo.tables, by), _roots(zoo)
    top, column, rows = _deciding(zoo.parent, _of_parents(zoo, by))
    return top, column, rows[_rows_of_parents(zoo, zoo.parent)]


def _roots(zoo: Zoo) -> np.ndarray:
    """int64 [models]: the row of the model that each goes back to within the zoo, itself where it started anew; of
    imported families whose root is not in the zoo, their first model.

    Raises:
        IntegrityError: a parent is not in the zoo, or models are their own forebears.
    """
    import pandas as pd

    models = zoo.tables.models
    if _ROOT in models:
        names, first, family = np.unique(models[_ROOT].to_numpy("U32"), return_index=True, return_inverse=True)
        root = zoo.tables.ids.get_indexer(pd.Index(names))
        return np.where(root < 0, first, root)[family]
    parents = np.arange(len(models))
    if _PARENT not in models:
        return parents
    child = models[_PARENT].notna().to_numpy()
    parents[child] = zoo.tables.ids.get_indexer(pd.Index(models[_PARENT][child]))
    if (parents < 0).any():
        raise IntegrityError(f"{zoo.path}: the parent {models[_PARENT][int(np.argmin(parents))]} is not in the zoo")
    for _ in range(len(models).bit_length()):  # each round doubles the generations that are skipped
        parents = parents[parents]
    if child[parents].any():
        raise IntegrityError(f"{zoo.path}: some models are their own forebears (column {_PARENT})")
    return parents


def _rows_of_parents(twins: Zoo, parent: Zoo) -> np.ndarray:
    """int64 [twins]: the row of each twin's parent in the parent zoo."""
    import pandas as pd

    models = twins.tables.models
    if _PARENT not in models:
        raise IntegrityError(f"{twins.path}: the table of models has no column {_PARENT}")
    rows = parent.tables.ids.get_indexer(pd.Index(models[_PARENT]))
    if (rows < 0).any():
        raise IntegrityError(
            f"{parent.path} has no model {models[_PARENT].iloc[int(np.argmin(rows))]}, but it has twins"
        )
    return rows


def _of_parents(twins: Zoo, by: str) -> str:
    """The column of the parents that ``by`` means.

    Raises:
        UserError: only the twins have it, and twins of one parent differ in it.
    """
    try:
        return filters.setting(twins.parent.tables, by)
    except UserError as error:
        raise UserError(
            f"{error}\ntwins stay on their parent's side, so they are split by settings of their parents"
        ) from None


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]


def _shown(values: list[Any]) -> str:
    return ", ".join(map(str, values[:12])) + (", ..." if len(values) > 12 else "")

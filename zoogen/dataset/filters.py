"""Which rows a selection keeps: predicates, factor values, epochs and model splits, all answered from the tables.

A name in a predicate means the checkpoint's own column where there is one (``test_acc`` at that epoch), else the
model's; ``final.test_acc`` is the model's value at its last checkpoint.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zoogen.core.errors import UserError, suggest
from zoogen.core.predicate import parse
from zoogen.dataset.tables import Tables

if TYPE_CHECKING:
    import pandas as pd

Epochs = int | Sequence[int] | range | slice | Literal["first", "last"]
SPLITS = ("train", "val", "test")
FINAL = "final."


def predicate_rows(tables: Tables, where: str) -> np.ndarray:
    """bool [states]; only the columns that ``where`` names are looked at.

    Raises:
        UserError: it is no predicate, or names a column that is not there.
    """
    predicate = parse(where)
    own = set(tables.state_names) - {"shard_id", "row"}
    known = [*own, *(f"{FINAL}{c}" if c in own and c != "model_id" else c for c in tables.models.columns)]
    used = set(predicate.resolve(dict.fromkeys(known)).values())
    if used & own - {"model_id"}:
        return predicate.mask(state_columns(tables, used))
    # A property of models alone is decided once per model.
    models = tables.models[[c.removeprefix(FINAL) for c in used]]
    return predicate.mask(models.rename(columns={c.removeprefix(FINAL): c for c in used}))[tables.model_of]


def state_columns(tables: Tables, names: Iterable[str], rows: np.ndarray | None = None) -> pd.DataFrame:
    """Columns of states (all, or some rows) by resolved name, those of their models joined."""
    import pandas as pd

    names = list(names)
    model_of = tables.model_of if rows is None else tables.model_of[rows]
    own = tables.state_columns([name for name in names if name in tables.state_names], rows)
    columns = {}
    for name in names:
        if name in own:
            columns[name] = own[name]
        else:
            columns[name] = tables.models[name.removeprefix(FINAL)].take(model_of).reset_index(drop=True)
    return pd.DataFrame(columns, index=pd.RangeIndex(len(model_of)), copy=False)


def resolve(name: str, columns: Iterable[str], what: str = "column") -> str:
    """The column a name means: that one, or the only one that ends in it (``lr``).

    Raises:
        UserError: none or several fit.
    """
    known = list(columns)
    if name in known:
        return name
    fitting = [c for c in known if c.endswith(f".{name}")]
    if len(fitting) > 1:
        raise UserError(f"{name!r} could be any of {', '.join(sorted(fitting))}; write more of it")
    if not fitting:
        raise UserError(f"unknown {what} {name!r}\n{suggest(name, known)}")
    return fitting[0]


def setting(tables: Tables, name: str) -> str:
    """The column of the models that the name of a setting means; a score of their last checkpoint is none.

    Raises:
        UserError: none or several fit.
    """
    states = set(tables.state_names) - {"model_id", "shard_id", "row"}
    known = [column for column in tables.models.columns if column not in states]
    if name in states and not any(column.endswith(f".{name}") for column in known):
        use = "epochs=..." if name == "epoch" else f'a condition: zoo.select("{name} > ...")'
        raise UserError(f"{name!r} is no setting of models, each of their states has its own; write it as {use}")
    return resolve(name, known, "setting")


def value_rows(tables: Tables, name: str, wanted: Any) -> np.ndarray:
    """bool [states]: those of models whose setting ``name`` is ``wanted``, or one of several.

    Several may be a list, tuple, set, array or pandas column. Tables hold lists as JSON text, and a list asks for it:
    ``hidden=[8, 8]`` is one value, ``hidden=[[8], [8, 8]]`` are two. None and NaN ask for what is missing.

    Raises:
        UserError: there is no such setting, or no model has such a value.
    """
    import pandas as pd

    column = tables.models[setting(tables, name)]
    options = _options(column, wanted)
    if column.dtype == "str" and all(isinstance(o, str) for o in options) and set(options) <= set(column):
        return column.isin(options).to_numpy(bool)[tables.model_of]  # at once: they may be thousands of ids
    keep = np.zeros(len(column), bool)
    for option in options:
        # Not isin: it would take 1 for True.
        fits = column.isna() if pd.isna(option) else _equal(column, option)
        if not fits.any():
            values = sorted({str(v) for v in column.dropna().unique()})
            shown = ", ".join(values[:12]) + (", ..." if len(values) > 12 else "")
            raise UserError(f"no model has {column.name} = {option!r}\nvalues in this zoo: {shown or 'none'}")
        keep |= fits.to_numpy(bool, na_value=False)
    return keep[tables.model_of]


def _options(column: pd.Series, wanted: Any) -> list[Any]:
    """The values asked for, lists as the text that tables hold of them."""
    wanted = wanted.tolist() if hasattr(wanted, "tolist") else wanted  # of NumPy and pandas
    if not isinstance(wanted, (list, tuple, set, frozenset, range)):
        return [_told(wanted)]
    if wanted and isinstance(wanted, (list, tuple)) and _equal(column, _told(wanted)).any():
        return [_told(wanted)]
    return [_told(option) for option in wanted]


def _told(value: Any) -> Any:
    return json.dumps(value, default=str) if isinstance(value, (list, tuple, dict)) else value


def _equal(column: pd.Series, option: Any) -> pd.Series:
    boolean = column.dtype.name in ("bool", "boolean")
    if boolean != isinstance(option, (bool, np.bool_)):
        return column.isna() & False
    return column.astype("str") == option if column.dtype.name == "category" else column == option


def split_rows(tables: Tables, wanted: str | Sequence[str]) -> np.ndarray:
    """bool [states]: those of models on these sides of the model split.

    Raises:
        UserError: there is no such side.
    """
    sides = [wanted] if isinstance(wanted, str) else list(wanted)
    for side in sides:
        if side not in SPLITS:
            raise UserError(f"unknown model split {side!r}\n{suggest(str(side), SPLITS)}")
    return tables.models["split"].isin(sides).to_numpy(bool)[tables.model_of]


def epoch_rows(tables: Tables, wanted: Epochs) -> np.ndarray:
    """bool [states]: those of the epochs asked for; "first" and "last" are each model's own.

    Raises:
        UserError: an epoch (or, of a range or slice, every one) is stored of no model.
    """
    if isinstance(wanted, str):
        if wanted not in ("first", "last"):
            raise UserError(f"unknown epochs {wanted!r}; give numbers, a range, 'first' or 'last'")
        ends = tables.first_epoch if wanted == "first" else tables.last_epoch
        return tables.epochs == ends[tables.model_of]
    stored = np.unique(tables.epochs)
    if isinstance(wanted, (range, slice)):
        chosen = stored[_within(stored, wanted)]
        unknown = [] if len(chosen) else [wanted]
    else:
        chosen = np.unique(_numbers(wanted))
        unknown = [e for e in chosen.tolist() if e not in stored]
    if unknown:
        raise UserError(f"no state of epochs {', '.join(map(str, unknown))} is stored\nstored epochs: {_shown(stored)}")
    return np.isin(tables.epochs, chosen)


def _within(stored: np.ndarray, wanted: range | slice) -> np.ndarray:
    if isinstance(wanted, slice):
        if any(end is not None and end < 0 for end in (wanted.start, wanted.stop)) or (wanted.step or 1) < 1:
            raise UserError(f"epochs {wanted}: ends and step are epochs, so not negative; 'last' is each model's last")
        end = int(stored.max(initial=-1)) + 1
        wanted = range(wanted.start or 0, end if wanted.stop is None else wanted.stop, wanted.step or 1)
    return np.array([e in wanted for e in stored.tolist()], bool)


def _numbers(wanted: Any) -> list[int]:
    found = list(wanted) if isinstance(wanted, Iterable) else [wanted]
    try:
        if any(isinstance(e, (bool, np.bool_)) for e in found):
            raise TypeError
        return [operator.index(e) for e in found]
    except TypeError:
        raise UserError(f"epochs are whole numbers, got {wanted!r}") from None


def _shown(stored: np.ndarray) -> str:
    if not len(stored):
        return "none yet"
    if len(stored) > 2 and len(set(np.diff(stored))) == 1:
        return f"{stored[0]}, {stored[1]}, ..., {stored[-1]}"
    return ", ".join(map(str, stored[:20].tolist())) + (f", ..., {stored[-1]}" if len(stored) > 20 else "")

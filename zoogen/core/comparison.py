"""Table columns as predicates compare them: values of one kind, missing ones marked, nothing converted silently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "==": np.equal,
    "!=": np.not_equal,  # of values that are there
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}

_SPOKEN = {"number": "numbers", "text": "text", "bool": "true and false", "mixed": "values of several types"}


@dataclass(frozen=True)
class Column:
    """Values of one column; where ``missing``, they mean nothing.

    ``kind`` is ``number``, ``bool``, ``text``, ``mixed`` (several of these), ``empty`` (all missing) or the name of
    another type, which does not compare. A constant is a column too; its ``values`` are one value.
    """

    values: Any
    missing: np.ndarray
    kind: str

    @classmethod
    def constant(cls, value: Any, rows: int) -> Column:
        """The same value in every row."""
        return cls(value, np.zeros(rows, bool), kind_of(value))

    def present(self, rows: np.ndarray) -> Any:
        """The values of some rows (bool [rows]), or the constant."""
        return self.values[rows] if isinstance(self.values, np.ndarray) else self.values


def compare(sign: str, left: Column, right: Column) -> np.ndarray:
    """bool [rows]. ``!=`` is the negation of ``==``; all others are false where either value is missing.

    Values of different kinds are unequal.
    """
    if sign == "!=":
        return ~compare("==", left, right)
    present = ~(left.missing | right.missing)
    a, b = left.present(present), right.present(present)
    result = np.asarray(SIGNS[sign](a, b), dtype=bool)
    if "mixed" in (left.kind, right.kind):  # 1 and True are equal to Python, not to the reader of a table
        count = int(present.sum())
        others = b if isinstance(b, np.ndarray) else [b] * count
        alike = np.fromiter((kind_of(x) == kind_of(y) for x, y in zip(a, others, strict=True)), bool, count)
        result = result & alike
    found = np.zeros(len(present), bool)
    found[present] = result
    return found


def mismatch(kind: str, other: str, what: str, sign: str) -> str | None:
    """Why values of these kinds do not compare (``what`` names the other side), or None when they do."""
    ordered = sign not in ("==", "!=")
    if "empty" in (kind, other) or ("mixed" in (kind, other) and not ordered):
        return None
    spoken = _SPOKEN.get(kind, f"values of type {kind}")
    if kind != other:
        return f"{spoken}, which cannot be compared with {what}"
    if kind not in ("number", "text", "bool") or (ordered and kind == "bool"):
        return f"{spoken}, which have no {sign}"
    return None


def column_of_series(series: pd.Series) -> Column:
    """A DataFrame's column: NumPy, nullable, text or categorical."""
    missing = series.isna().to_numpy(dtype=bool)
    dtype: Any = series.dtype
    if isinstance(dtype, np.dtype):
        return column_of_array(series.to_numpy(), missing)
    if dtype.kind in "iufb":  # a nullable type: fill the gaps, so that large integers stay exact
        filled = series.fillna(False if dtype.kind == "b" else 0)
        return column_of_array(filled.to_numpy(dtype=dtype.numpy_dtype), missing)
    return column_of_array(np.asarray(series, dtype=object), missing)


def column_of_array(values: np.ndarray, missing: np.ndarray | None = None) -> Column:
    """An array of numbers, booleans, text or objects; None and NaN are missing."""
    kind = {"b": "bool", "i": "number", "u": "number", "f": "number", "S": "text", "U": "text"}.get(values.dtype.kind)
    if missing is None:
        nothing = values != values if values.dtype.kind in "fO" else np.zeros(len(values), bool)
        missing = np.asarray(nothing | (values == None), bool) if values.dtype.kind == "O" else nothing  # noqa: E711
    if kind == "text":
        values = values.astype(str).astype(object)
    if kind is None and values.dtype.kind == "O":
        kinds = {kind_of(v) for v in values[~missing]}
        kind = kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "empty"
    return Column(values, missing, kind or str(values.dtype))


def kind_of(value: Any) -> str:
    """``number``, ``bool``, ``text`` or the name of the type."""
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (int, float, np.number)):
        return "number"
    return "text" if isinstance(value, str) else type(value).__name__

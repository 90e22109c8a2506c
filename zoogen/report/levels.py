"""Values of a setting as a few labelled levels, how much of a score they explain, and what to call a setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_WORDS = {"lr": "learning rate", "init": "initialisation"}


@dataclass(frozen=True)
class Levels:
    """A column cut into levels.

    Attributes:
        labels: One per level; numbers ascending, text by name, missing values last.
        codes: int64 [rows], each row's level.
        ordered: The levels are numbers, or ranges of numbers.
    """

    labels: tuple[str, ...]
    codes: np.ndarray
    ordered: bool

    def __len__(self) -> int:
        return len(self.labels)


def levels(column: pd.Series, most: int) -> Levels:
    """At most ``most`` levels: the values themselves; of too many numbers, ranges with equally many rows each; of too
    many texts, the most frequent ones.
    """
    present = column.dropna()
    numeric = column.dtype.kind in "iuf" and column.dtype.name != "bool"
    values = sorted(present.unique().tolist(), key=None if numeric else str)
    missing = bool(column.isna().any())
    room = most - missing
    if len(values) <= room:
        place = {value: i for i, value in enumerate(values)}
        labels = [show(v) for v in values]
        codes = np.array([place.get(v, len(values)) for v in column.tolist()], np.int64)
    elif numeric:
        edges = np.unique(np.quantile(present.to_numpy(float), np.linspace(0, 1, room + 1)))
        labels = [f"{a} to {b}" for a, b in pairwise(_short_numbers(edges.tolist()))]
        codes = np.clip(np.searchsorted(edges, column.to_numpy(float), side="right") - 1, 0, len(labels) - 1)
        codes[column.isna().to_numpy()] = len(labels)
    else:
        kept = sorted(present.astype("str").value_counts().index[: room - 1])
        place = {value: i for i, value in enumerate(kept)}
        labels = [*kept, f"{len(values) - len(kept)} others"]
        gone = column.isna().tolist()
        codes = np.array(
            [len(labels) if n else place.get(str(v), len(kept)) for v, n in zip(column.tolist(), gone, strict=True)],
            np.int64,
        )
    return Levels((*labels, *(["none"] if missing else [])), codes.astype(np.int64), numeric)


def _short_numbers(edges: Sequence[float]) -> list[str]:
    """Two digits where that keeps them apart."""
    short = [f"{edge:.2g}" for edge in edges]
    return short if len(set(short)) == len(edges) else [f"{edge:.4g}" for edge in edges]


def show(value: object) -> str:
    """A value as a label: ``0.001``, ``64``, ``relu``."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def explained(score: np.ndarray, codes: np.ndarray) -> float:
    """Share of the variance of a score that groups explain, corrected for their number (Kelley's epsilon squared).

    It is 0 on average for groups by chance, however many; 0 where there is nothing to explain.

    Args:
        score: float64 [rows], all finite.
        codes: int64 [rows], the group of each row.
    """
    _, codes = np.unique(codes, return_inverse=True)
    groups, rows = int(codes.max(initial=-1)) + 1, len(score)
    total = float(((score - score.mean()) ** 2).sum()) if rows else 0.0
    if groups < 2 or rows <= groups or total == 0:
        return 0.0
    means = np.bincount(codes, score) / np.bincount(codes)
    within = float(((score - means[codes]) ** 2).sum())
    return max(0.0, 1 - (within / (rows - groups)) / (total / (rows - 1)))


def titles(keys: Sequence[str]) -> dict[str, str]:
    """Short names of dotted keys, as long as they must be to differ: ``optimizer``, ``learning rate``."""
    short = {key: _short(key) for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def _short(key: str) -> str:
    parts = [p for p in key.split(".") if p != "name"]
    return _WORDS.get(parts[-1], parts[-1].replace("_", " "))

"""Models over their training: whole trajectories as an array, one after another, or as pairs of neighbouring epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoogen.core.errors import UserError
from zoogen.dataset.shards import Shards

if TYPE_CHECKING:
    from zoogen.dataset.normaliser import Normaliser
    from zoogen.dataset.reading import Reading
    from zoogen.dataset.selection import Selection

_PART_BYTES = 64 << 20  # what is read at once


class Trajectories(NamedTuple):
    """Weights of M models at T epochs each.

    Attributes:
        model_ids: str [M].
        epochs: int64 [T], ascending.
        weights: float32 [M, T, P].
    """

    model_ids: np.ndarray
    epochs: np.ndarray
    weights: np.ndarray


class Trajectory(NamedTuple):
    """Weights of one model over T epochs.

    Attributes:
        model_id: Its id.
        epochs: int64 [T], ascending.
        weights: float32 [T, P].
    """

    model_id: str
    epochs: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """States of the same models at neighbouring epochs; made by ``Selection.pairs``. ``len`` is the number of pairs.

    Attributes:
        before, after: Selections of equal length; row i of one follows from row i of the other.
    """

    before: Selection
    after: Selection

    def __len__(self) -> int:
        return len(self.before)

    def __repr__(self) -> str:
        return f"<{len(self):,} pairs of states from {self.before.zoo.name!r}>"

    def updates(
        self, columns: str | Sequence[str] | None = None, *, normaliser: Normaliser | None = None
    ) -> np.ndarray:
        """float32 [pairs, P]: what training added, weights after minus weights before; as ``Selection.weights``."""
        after = self.after.weights(columns, normaliser=normaliser)
        # In place: a zoo of updates needs no third matrix.
        return np.subtract(after, self.before.weights(columns, normaliser=normaliser), out=after)

    def iter_weights(
        self,
        batch: int = 1024,
        columns: str | Sequence[str] | None = None,
        *,
        dtype: Any = "float32",
        normaliser: Normaliser | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """(weights before, weights after) in parts of at most ``batch`` pairs; as ``Selection.iter_weights``."""
        sides = (s.iter_weights(batch, columns, dtype=dtype, normaliser=normaliser) for s in (self.before, self.after))
        yield from zip(*sides, strict=True)


def all_trajectories(selection: Selection, how: Reading) -> Trajectories:
    """See ``Selection.trajectories``."""
    tables = selection.zoo.tables
    rows, model_of = _ordered(selection)
    own, models = np.unique(tables.epochs[rows]), np.unique(model_of)
    if len(rows) != len(models) * len(own):
        raise UserError(_ragged(selection, model_of, models, own))
    weights = selection.read(rows, how)
    return Trajectories(_ids(selection)[models], own, weights.reshape(len(models), len(own), weights.shape[1]))


def each_trajectory(selection: Selection, how: Reading) -> Iterator[Trajectory]:
    """See ``Selection.iter_trajectories``."""
    tables = selection.zoo.tables
    rows, model_of = _ordered(selection)
    ids = _ids(selection)
    starts = np.flatnonzero(np.diff(model_of, prepend=-1))
    ends = np.append(starts[1:], len(rows))
    height = max(1, _PART_BYTES // max(1, 4 * how.width))
    first = 0
    with Shards(selection.zoo.path) as shards:
        while first < len(starts):
            # Several models at once: neighbours lie in the same chunks of the file.
            last = max(first + 1, int(np.searchsorted(ends, starts[first] + height, side="right")))
            begin = starts[first]
            weights = how.weights(shards, selection.states(rows[begin : ends[last - 1]]))
            for start, end in zip(starts[first:last], ends[first:last], strict=True):
                own = weights[start - begin : end - begin]
                yield Trajectory(ids[model_of[start]], tables.epochs[rows[start:end]], own)
            first = last


def pairs_of(selection: Selection) -> Pairs:
    """See ``Selection.pairs``."""
    from zoogen.dataset.selection import Selection as Selected

    tables = selection.zoo.tables
    listed = np.unique(tables.epochs[selection.rows])
    # Neighbours among all stored states of those epochs, not among the selected: a state left out leaves a gap.
    stored = np.flatnonzero(np.isin(tables.epochs, listed))
    stored = stored[np.lexsort((tables.epochs[stored], tables.model_of[stored]))]
    before, after = stored[:-1], stored[1:]
    chosen = np.zeros(len(tables.epochs), np.bool_)
    chosen[selection.rows] = True
    kept = (tables.model_of[before] == tables.model_of[after]) & chosen[before] & chosen[after]
    order = np.argsort(before[kept])
    return Pairs(*(Selected(selection.zoo, side[kept][order], selection.sides) for side in (before, after)))


def _ordered(selection: Selection) -> tuple[np.ndarray, np.ndarray]:
    """Rows model by model and by ascending epoch, and the model of each."""
    tables = selection.zoo.tables
    model_of = tables.model_of[selection.rows]
    order = np.lexsort((tables.epochs[selection.rows], model_of))
    return selection.rows[order], model_of[order]


def _ids(selection: Selection) -> np.ndarray:
    return selection.zoo.tables.models["model_id"].to_numpy(object)


def _ragged(selection: Selection, model_of: np.ndarray, models: np.ndarray, epochs: np.ndarray) -> str:
    tables = selection.zoo.tables
    counts = np.bincount(model_of, minlength=len(tables.models))[models]
    short = tables.models.take(models[counts < len(epochs)])
    shown = []
    for model, row in short.head(5).iterrows():
        own = tables.epochs[selection.rows][tables.model_of[selection.rows] == model]
        lacks = np.setdiff1d(epochs, own)
        told = ", ".join(map(str, lacks[:5].tolist())) + (", ..." if len(lacks) > 5 else "")
        why = f"; it diverged in epoch {row['diverged_epoch']}" if row["status"] == "diverged" else ""
        shown.append(f"  {row['model_id'][:12]} lacks {told}{why}")
    more = f"\n  ... and {len(short) - 5} more" if len(short) > 5 else ""
    some_diverged = (short["status"] == "diverged").any()
    advice = "\"status == 'trained'\"" if some_diverged else "epochs=[...] or 'final.test_acc > ...'"
    return (
        f"trajectories differ in length: {len(short)} of {len(models)} models lack some of the "
        f"{len(epochs)} epochs\n" + "\n".join(shown) + more + f"\nnarrow the selection, e.g. .select({advice}), "
        "or take them one by one with iter_trajectories()"
    )

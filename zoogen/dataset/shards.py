"""Reads states out of sealed shards: shard by shard, rows in ascending order, checked against the tables."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from zoogen.core.errors import IntegrityError
from zoogen.dataset.columns import pieces
from zoogen.store.durable import checked_name
from zoogen.store.read import ShardReader
from zoogen.store.shard import shards_folder

_MOST_OPEN = 64  # files; HDF5 keeps 0.6 MB for each
_PIECE_BYTES = 64 << 20  # what is read at once: bounds the memory beside the result


@dataclass(frozen=True)
class ModelNumbers:
    """Models by number, since millions of numbers are compared, moved and sent to workers faster than ids are.

    Attributes:
        ids: object [models].
    """

    ids: np.ndarray

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {model_id: number for number, model_id in enumerate(self.ids.tolist())}

    def of(self, ids: Sequence[str]) -> np.ndarray:
        """int64, the numbers of these ids; -1 for others."""
        return np.array([self._number_of.get(model_id, -1) for model_id in ids], np.int64)

    def __getstate__(self) -> dict[str, np.ndarray]:
        return {"ids": self.ids}


@dataclass(frozen=True)
class States:
    """Where states lie, one entry per state.

    Attributes:
        layout_id: Of all of them.
        shard_names: Of the zoo's shards.
        shard: int64 [states], codes into ``shard_names``.
        row: int64 [states], rows within the shards.
        models: int64 [states], codes into the ids of ``numbers``.
        epochs: int64 [states].
        numbers: Of models.
    """

    layout_id: str
    shard_names: tuple[str, ...]
    shard: np.ndarray
    row: np.ndarray
    models: np.ndarray
    epochs: np.ndarray
    numbers: ModelNumbers

    def __len__(self) -> int:
        return len(self.row)

    def take(self, places: np.ndarray | slice) -> States:
        parts = (self.shard[places], self.row[places], self.models[places], self.epochs[places])
        return States(self.layout_id, self.shard_names, *parts, self.numbers)

    def by_shard(self) -> Iterator[slice | np.ndarray]:
        """Places of the states of one shard after another, by ascending row; slices where that is their order already,
        as in the windows of streams.
        """
        if not len(self):
            return
        shards, rows = np.diff(self.shard), np.diff(self.row)
        if bool(((shards > 0) | ((shards == 0) & (rows >= 0))).all()):
            for start, end in _runs(shards):
                yield slice(start, end)
        else:
            order = np.lexsort((self.row, self.shard))
            for start, end in _runs(np.diff(self.shard[order])):
                yield order[start:end]


def _runs(steps: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and end of every run of equal numbers, from their differences."""
    yield from pairwise([0, *(np.flatnonzero(steps) + 1).tolist(), len(steps) + 1])


Fill = Callable[[ShardReader, np.ndarray, np.ndarray], None]
"""Reads rows of a shard into an array that is C-contiguous."""


class Shards:
    """The sealed shards of a zoo. The last few stay open until ``close`` or the end of a ``with`` block, and what is
    known of all others is kept until then, so that they are opened again without checking them again. A copy, in
    another process or not, opens its own.
    """

    def __init__(self, zoo: Path) -> None:
        self._zoo = zoo
        self._known: dict[str, _Shard] = {}
        self._open: OrderedDict[str, _Shard] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {"zoo": self._zoo}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["zoo"])  # type: ignore[misc]

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open; reading opens it again."""
        while self._open:
            self._open.popitem()[1].reader.close()
        self._known.clear()

    def weights(
        self, states: States, columns: np.ndarray | None, width: int, out: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 [states, width], in the order of ``states``; ``columns`` as ``columns.positions`` gives them.

        Args:
            out: C-contiguous array to read into.

        Raises:
            IntegrityError: a shard is damaged, or is not what the tables say.
        """
        out = np.empty((len(states), width), np.float32) if out is None else out
        reads = pieces(columns)
        self._each(states, lambda reader, rows, to: _fill_columns(reader, rows, reads, to), out)
        return out

    def predictions(self, states: States) -> np.ndarray | None:
        """uint8 [states, N_test] of states of one task, or None where some were not kept."""
        parts = [states.take(places) for places in states.by_shard()]
        samples = [self._opened(part).reader.predictions(part.row[:1]) for part in parts]
        found = [first.shape[1] for first in samples if first is not None]
        if len(found) < len(samples) or not found:
            return None
        kind = np.result_type(*(first.dtype for first in samples if first is not None))
        out = np.empty((len(states), found[0]), kind)
        self._each(states, _filling(lambda reader, rows: reader.predictions(rows)), out)
        return out

    def kept(self, states: States, prunable: int) -> np.ndarray | None:
        """bool [states, W], which prunable weights are left, or None where some states are of no twins.

        Raises:
            IntegrityError: a shard is damaged, or is not what the tables say.
        """
        return self._optional(
            states, np.empty((len(states), prunable), np.bool_), lambda r, rows: r.kept(prunable, rows)
        )

    def log_alpha(self, states: States, prunable: int) -> np.ndarray | None:
        """float32 [states, W], log alpha of variational dropout, or None where it was not kept; as ``kept``."""
        out = np.empty((len(states), prunable), np.float32)
        return self._optional(states, out, lambda r, rows: r.log_alpha(prunable, rows))

    def _optional(self, states: States, out: np.ndarray, read: Callable) -> np.ndarray | None:
        """``out`` filled with what ``read`` gives, or None where it gives nothing for some shard."""
        for places in states.by_shard():
            part = states.take(places)
            if read(self._opened(part).reader, part.row[:1]) is None:
                return None
        self._each(states, _filling(read), out)
        return out

    def side(self, states: States, dtype: str) -> np.ndarray:
        """[states of one shard, K]: the tensors of another dtype."""
        shard = self._opened(states)
        shard.check(states)
        return shard.reader.side(dtype, states.row)

    def _each(self, states: States, fill: Fill, out: np.ndarray) -> None:
        height = max(1, _PIECE_BYTES // max(1, out[:1].nbytes))
        for places in states.by_shard():
            own = states.take(places)
            shard = self._opened(own)
            for start in range(0, len(own), height):
                part = own if len(own) <= height else own.take(slice(start, start + height))
                shard.check(part)
                if isinstance(places, slice):
                    first = places.start + start
                    fill(shard.reader, part.row, out[first : first + len(part)])
                else:
                    apart = np.empty((len(part), *out.shape[1:]), out.dtype)
                    fill(shard.reader, part.row, apart)
                    out[places[start : start + len(part)]] = apart

    def _opened(self, states: States) -> _Shard:
        """The shard of states that are of one."""
        name = states.shard_names[states.shard[0]]
        if self._process != os.getpid():  # after a fork: file positions are shared with the parent, so open anew
            self.__init__(self._zoo)  # type: ignore[misc]
        if name not in self._known:
            self._known[name] = _Shard(self._zoo, name)
        shard = self._open[name] = self._known[name]
        self._open.move_to_end(name)
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].reader.close()
        if shard.reader.info.layout_id != states.layout_id:
            raise IntegrityError(
                f"shard {shard.reader.folder} has layout {shard.reader.info.layout_id}, "
                f"its models have {states.layout_id}; `zoogen verify` lists all damage"
            )
        return shard


class _Shard:
    """A shard and the (model, epoch) of its rows."""

    def __init__(self, zoo: Path, name: str) -> None:
        try:
            self.reader = ShardReader(shards_folder(zoo) / checked_name("shard", name))
        except ValueError as error:
            raise IntegrityError(f"{zoo}: the table of checkpoints names a shard that cannot be: {error}") from error
        try:
            self._ids, self._model_of = self.reader.models()
        except UnicodeDecodeError as error:
            raise IntegrityError(f"shard {self.reader.folder}: model ids are damaged ({error})") from error
        self._epochs = self.reader.epochs()
        self._numbers: tuple[ModelNumbers, np.ndarray] | None = None

    def check(self, states: States) -> None:
        """Raise unless the rows of these states, in ascending order, are the ones that the tables say."""
        rows = states.row
        inside = rows[0] >= 0 and rows[-1] < len(self._epochs)
        if not (
            inside
            and (self._epochs[rows] == states.epochs).all()
            and (self._models(states.numbers)[rows] == states.models).all()
        ):
            raise IntegrityError(
                f"shard {self.reader.folder}: its rows are not those that the zoo's checkpoints.parquet names\n"
                "`zoogen verify` says which of them is wrong; `zoogen build` makes the table anew"
            )

    def _models(self, numbers: ModelNumbers) -> np.ndarray:
        """int64 [rows of the shard], the number of each row's model."""
        if self._numbers is None or self._numbers[0] is not numbers:
            self._numbers = numbers, numbers.of(self._ids)[self._model_of]
        return self._numbers[1]


def _filling(read: Callable) -> Fill:
    def fill(reader: ShardReader, rows: np.ndarray, out: np.ndarray) -> None:
        out[...] = read(reader, rows)

    return fill


def _fill_columns(
    reader: ShardReader, rows: np.ndarray, reads: list[tuple[slice | None, np.ndarray | None]], out: np.ndarray
) -> None:
    if len(reads) == 1 and reads[0][1] is None:
        reader.weights(rows, reads[0][0], out)
        return
    start = 0
    for columns, picked in reads:
        found = reader.weights(rows, columns)
        found = found if picked is None else found[:, picked]
        out[:, start : start + found.shape[1]] = found
        start += found.shape[1]

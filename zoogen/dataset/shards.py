"""Reads states out of sealed shards: shard by shard, rows in ascending order, checked against the tables."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoogen.core.errors import IntegrityError
from zoogen.dataset.columns import pieces
from zoogen.store.durable import checked_name
from zoogen.store.read import ShardReader
from zoogen.store.shard import shards_folder

_MOST_OPEN = 32
_PIECE_BYTES = 64 << 20  # what is read at once: bounds the memory beside the result


@dataclass(frozen=True)
class States:
    """Where states lie, one entry per state.

    Attributes:
        layout_id: Of all of them.
        shard_names: Of the zoo's shards.
        shard: int64 [states], codes into ``shard_names``.
        row: int64 [states], rows within the shards.
        model_ids: object [states].
        epochs: int64 [states].
    """

    layout_id: str
    shard_names: tuple[str, ...]
    shard: np.ndarray
    row: np.ndarray
    model_ids: np.ndarray
    epochs: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def take(self, places: np.ndarray | slice) -> States:
        parts = (self.shard[places], self.row[places], self.model_ids[places], self.epochs[places])
        return States(self.layout_id, self.shard_names, *parts)

    def by_shard(self) -> Iterator[np.ndarray]:
        """Places of the states of one shard after another, by ascending row."""
        order = np.lexsort((self.row, self.shard))
        yield from np.split(order, np.flatnonzero(np.diff(self.shard[order])) + 1) if len(order) else ()


class Shards:
    """The sealed shards of a zoo. The last few stay open until ``close`` or the end of a ``with`` block; a copy in
    another process opens its own.
    """

    def __init__(self, zoo: Path) -> None:
        self._zoo = zoo
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
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

    def weights(
        self, states: States, columns: np.ndarray | None, width: int, out: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 [states, width], in the order of ``states``; ``columns`` as ``columns.positions`` gives them.

        Raises:
            IntegrityError: a shard is damaged, or is not what the tables say.
        """
        out = np.empty((len(states), width), np.float32) if out is None else out
        reads = pieces(columns)
        self._each(states, 4 * max(1, width), lambda reader, rows: _columns(reader, rows, reads), out)
        return out

    def predictions(self, states: States) -> np.ndarray | None:
        """uint8 [states, N_test] of states of one task, or None where some were not kept."""
        firsts = [(self._opened(states, places).reader, places[:1]) for places in states.by_shard()]
        samples = [reader.predictions(states.row[place]) for reader, place in firsts]
        found = [first.shape[1] for first in samples if first is not None]
        if len(found) < len(samples) or not found:
            return None
        kind = np.result_type(*(first.dtype for first in samples if first is not None))
        out = np.empty((len(states), found[0]), kind)
        self._each(states, max(1, found[0]), lambda reader, rows: reader.predictions(rows), out)
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
            if read(self._opened(states, places).reader, states.row[places[:1]]) is None:
                return None
        self._each(states, max(1, out.shape[1] * out.itemsize), read, out)
        return out

    def side(self, states: States, dtype: str) -> np.ndarray:
        """[1, K]: the tensors of another dtype, of one state."""
        (places,) = states.by_shard()
        opened = self._opened(states, places)
        return opened.read(states.take(places), lambda reader, rows: reader.side(dtype, rows))

    def _each(self, states: States, row_bytes: int, read: Callable, out: np.ndarray) -> None:
        height = max(1, _PIECE_BYTES // row_bytes)
        for places in states.by_shard():
            opened = self._opened(states, places)
            for start in range(0, len(places), height):
                part = places[start : start + height]
                first, last = int(part[0]), int(part[-1])
                together = last - first + 1 == len(part) and bool((np.diff(part) == 1).all())
                # A slice is copied several times faster than the same places one by one.
                out[slice(first, last + 1) if together else part] = opened.read(states.take(part), read)

    def _opened(self, states: States, places: np.ndarray) -> _OpenShard:
        name = states.shard_names[states.shard[places[0]]]
        if self._process != os.getpid():  # after a fork: file positions are shared with the parent, so open anew
            self.__init__(self._zoo)  # type: ignore[misc]
        if name not in self._open:
            while len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)[1].reader.close()
            self._open[name] = _OpenShard(self._zoo, name)
        self._open.move_to_end(name)
        opened = self._open[name]
        if opened.reader.info.layout_id != states.layout_id:
            raise IntegrityError(
                f"shard {opened.reader.folder} has layout {opened.reader.info.layout_id}, "
                f"its models have {states.layout_id}; `zoogen verify` lists all damage"
            )
        return opened


class _OpenShard:
    """An open shard and the (model, epoch) of its rows."""

    def __init__(self, zoo: Path, name: str) -> None:
        try:
            self.reader = ShardReader(shards_folder(zoo) / checked_name("shard", name))
        except ValueError as error:
            raise IntegrityError(f"{zoo}: the table of checkpoints names a shard that cannot be: {error}") from error
        try:
            self._model_ids = np.array(self.reader.model_ids(), dtype=object)
            self._epochs = self.reader.epochs()
        except UnicodeDecodeError as error:
            raise IntegrityError(f"shard {self.reader.folder}: model ids are damaged ({error})") from error

    def read(self, states: States, read: Callable[[ShardReader, np.ndarray], np.ndarray]) -> np.ndarray:
        """What ``read`` gives for the rows of these states."""
        rows = states.row
        inside = rows.min() >= 0 and rows.max() < len(self._epochs)
        if not (
            inside
            and np.array_equal(self._epochs[rows], states.epochs)
            and np.array_equal(self._model_ids[rows], states.model_ids)
        ):
            raise IntegrityError(
                f"shard {self.reader.folder}: its rows are not those that the zoo's checkpoints.parquet names\n"
                "`zoogen verify` says which of them is wrong; `zoogen build` makes the table anew"
            )
        return read(self.reader, rows)


def _columns(reader: ShardReader, rows: np.ndarray, reads: list[tuple[slice | None, np.ndarray | None]]) -> np.ndarray:
    parts = []
    for columns, picked in reads:
        found = reader.weights(rows, columns)
        parts.append(found if picked is None else found[:, picked])
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts, axis=1) if parts else np.empty((len(rows), 0), np.float32)

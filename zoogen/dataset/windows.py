"""In which order a stream takes states, so that shuffled reads stay sequential: a pure function of seed and epoch.

States are dealt in blocks (neighbours in a shard, about 1.3 MB). An epoch puts the blocks in random order, cuts their
row into windows (the buffer) and shuffles the states of each window. So a file is read in pieces of a block, a window
is read once, and any batch of any epoch can be told without those before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from zoogen.core.errors import UserError
from zoogen.core.streams import permutation, stream_key, subkey
from zoogen.dataset.shards import States

_BLOCK_BYTES = 5 << 18
_WINDOW_BYTES = 48 << 20  # of a shuffled stream, which holds two of them
_PART_BYTES = 8 << 20  # of one in the order of the selection
_CHUNK_STATES = 16  # rows of a chunk in the file: blocks are whole chunks where they can be


class Order:
    """Batches of every epoch, as places in ``states``.

    Args:
        states: What is streamed.
        width: float32 numbers that are read per state.
        batch: States per batch.
        shuffle: Else the order of ``states``, in every epoch.
        seed: Of the shuffling.
        buffer: States per window, or None for about 48 MB of them.
        drop_last: Leave out an incomplete last batch.

    Raises:
        UserError: no batch, or numbers below 1.
    """

    def __init__(
        self, states: States, width: int, batch: int, shuffle: bool, seed: int, buffer: int | None, drop_last: bool
    ) -> None:
        if batch < 1 or (buffer is not None and buffer < 1):
            raise UserError(f"a batch and a buffer have at least one state, got {batch} and {buffer}")
        size = 4 * max(1, width)
        self.states = states
        self.batch = batch
        self.shuffle = shuffle
        self.seed = seed
        room = buffer or (_WINDOW_BYTES if shuffle else _PART_BYTES) // size
        self.batches_per_window = max(1, room // batch)
        self.batches = len(states) // batch if drop_last else -(-len(states) // batch)
        if not self.batches:
            raise UserError(f"{len(states)} states do not fill a batch of {batch}; take smaller batches")
        rows = _BLOCK_BYTES // size
        self._block_rows = max(1, rows - rows % _CHUNK_STATES if rows > _CHUNK_STATES else rows)
        self._known: tuple[int, np.ndarray] | None = None

    def places(self, epoch: int, number: int) -> np.ndarray:
        """States of one window, in the order of the files if they are shuffled later, else in that of the selection."""
        length = self.batches_per_window * self.batch
        start, stop = number * length, min((number + 1) * length, len(self.states))
        if not self.shuffle:
            return np.arange(start, stop)
        return self._sequential[np.sort(self._shuffled(epoch)[start:stop])]

    def rows(self, epoch: int, number: int) -> list[np.ndarray]:
        """Which of ``places`` each batch of a window takes."""
        count = self.window_states(number)
        order = permutation(self._key(epoch, number + 1), count).numpy() if self.shuffle else np.arange(count)
        left = self.batches - number * self.batches_per_window
        batches = range(min(self.batches_per_window, left))
        return [order[b * self.batch : (b + 1) * self.batch] for b in batches]

    def window_states(self, number: int) -> int:
        """How many states window ``number`` of any epoch has."""
        length = self.batches_per_window * self.batch
        return min(length, len(self.states) - number * length)

    def epoch(self, epoch: int) -> Iterator[np.ndarray]:
        """Places of the states of each batch."""
        for number in range(-(-self.batches // self.batches_per_window)):
            places = self.places(epoch, number)
            yield from (places[chosen] for chosen in self.rows(epoch, number))

    def fingerprint(self) -> str:
        """Digest of all that the order depends on: equal where a state of iteration may be taken up again."""
        names, codes = np.unique(self.states.shard, return_inverse=True)
        told = [self.states.shard_names[code] for code in names]
        settings = (self.batch, self.shuffle, self.seed, self.batches_per_window, self.batches, self._block_rows)
        found = hashlib.blake2b(repr((told, settings)).encode(), digest_size=16)
        for numbers in (codes, self.states.row):
            found.update(np.ascontiguousarray(numbers, "<i8").tobytes())
        return found.hexdigest()

    @cached_property
    def _sequential(self) -> np.ndarray:
        """All places in the order of the files."""
        return np.lexsort((self.states.row, self.states.shard))

    @cached_property
    def _block_of(self) -> np.ndarray:
        """Number of the block of each of ``_sequential``."""
        shard, row = self.states.shard[self._sequential], self.states.row[self._sequential] // self._block_rows
        starts = (np.diff(shard, prepend=-1) != 0) | (np.diff(row, prepend=-1) != 0)
        return np.cumsum(starts) - 1

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Positions in ``_sequential`` in the order in which windows take them."""
        if self._known is None or self._known[0] != epoch:
            rank = permutation(self._key(epoch, 0), int(self._block_of[-1]) + 1).numpy()
            self._known = epoch, np.argsort(rank[self._block_of], kind="stable")
        return self._known[1]

    def _key(self, epoch: int, part: int) -> int:
        """Of the blocks (part 0) or of window ``part - 1``."""
        key = subkey(subkey(stream_key(self.seed, "order"), epoch), part)
        assert isinstance(key, int)
        return key

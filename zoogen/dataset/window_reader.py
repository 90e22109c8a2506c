"""Reads the windows of a stream, one after another: the next one in a thread while one is used."""

from __future__ import annotations

import os
from concurrent.futures import Future
from copy import copy
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from zoogen.dataset.reading import Reading, Weights
from zoogen.dataset.shards import Shards
from zoogen.dataset.windows import Order

Key = tuple[int, int]
"""Epoch, and number of the window in it."""


class Window(NamedTuple):
    """States in memory.

    Attributes:
        key: Which window it is.
        rows: Their weights.
        places: Which states these are.
        batches: Rows of each batch.
    """

    key: Key
    rows: Weights
    places: np.ndarray
    batches: list[np.ndarray]


class _Coming(NamedTuple):
    key: Key
    memory: Weights
    found: Future[Window]
    thread: Thread
    process: int


class WindowReader:
    """Two windows at a time: the one in use, and the next.

    Whoever uses a shuffled window copies its rows, so the memory of a window that was used up takes another one: fresh
    memory costs a third of the time of reading. A copy, in another process or not, begins anew with files of its own.

    Attributes:
        in_use: The window that was asked for last.
    """

    def __init__(self, shards: Shards, how: Reading, order: Order) -> None:
        self._shards = shards
        self._how = how
        self._order = order
        self.in_use: Window | None = None
        self._coming: _Coming | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": copy(self._shards), "how": self._how, "order": copy(self._order)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def get(self, key: Key, following: Key | None) -> Window:
        """A window; ``following`` is the one that will be asked for next.

        Raises:
            IntegrityError: a shard is damaged; the message names it.
        """
        if self.in_use is None or self.in_use.key != key:
            memory = self.in_use.rows if self.in_use is not None and self._order.shuffle else None
            self.in_use = None
            self.in_use = self._arrived(key)
            if self.in_use is None:
                self.in_use, memory = self._read(key, memory), None
            if following is not None:
                # Taken here also where it is new: memory that a thread takes is given back to the system each time.
                memory = self._how.empty(len(self.in_use.places)) if memory is None else memory
                self._coming = self._begin(following, memory)
        return self.in_use

    @property
    def held(self) -> int:
        """Bytes of weights in memory: of the window in use, and of the next."""
        rows = [] if self.in_use is None else [self.in_use.rows]
        return sum(map(_bytes_of, rows if self._coming is None else [*rows, self._coming.memory]))

    def release(self) -> None:
        """Give the memory of both windows back; a window that is asked for is then read again."""
        if self._coming is not None and self._coming.process == os.getpid():
            self._coming.thread.join()
        self.in_use = self._coming = None

    def _arrived(self, key: Key) -> Window | None:
        """What the thread read, when it is done; None where that is another window, or was read before a fork."""
        coming, self._coming = self._coming, None
        if coming is None or coming.process != os.getpid():
            return None
        coming.thread.join()
        return coming.found.result() if coming.key == key else None

    def _begin(self, key: Key, memory: Weights) -> _Coming:
        found: Future[Window] = Future()

        def run() -> None:
            try:
                found.set_result(self._read(key, memory))
            except BaseException as error:  # raised when the window is asked for
                found.set_exception(error)

        thread = Thread(target=run, name="zoogen-window")
        thread.start()
        return _Coming(key, memory, found, thread, os.getpid())

    def _read(self, key: Key, memory: Weights | None) -> Window:
        places, batches = self._order.window(*key)
        if memory is None or len(memory) < len(places):
            memory = self._how.empty(len(places))
        states = self._order.states.take(places)
        return Window(key, self._how.weights(self._shards, states, memory[: len(places)]), places, batches)


def _bytes_of(rows: Weights) -> int:
    """Of all the memory that these rows are a part of."""
    if isinstance(rows, Tensor):
        return rows.untyped_storage().nbytes()
    return (rows if rows.base is None else rows.base).nbytes

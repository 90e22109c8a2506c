"""Reads the windows of a stream, one after another: the next one in a thread while one is used."""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import copy
from typing import Any, NamedTuple

import numpy as np

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
    """

    key: Key
    rows: Weights
    places: np.ndarray


class _Memories:
    """Memory that windows are read into, used again once no array lies in it: fresh memory costs a third of the time of
    reading. Batches of a window that is not shuffled are parts of it, so they may lie in it for long.
    """

    def __init__(self, how: Reading) -> None:
        self._how = how
        self._owned: list[np.ndarray] = []

    @property
    def size(self) -> int:
        return sum(one.nbytes for one in self._owned)

    def take(self, states: int) -> Weights:
        """Room for a window, of at least so many states."""
        for place in range(len(self._owned)):
            # One reference is that of the list, one that of the call: no array, no tensor, no window is in it.
            if len(self._owned[place]) >= states and sys.getrefcount(self._owned[place]) <= 2:
                return self._how.seen(self._owned[place])
        # A third one: the last batch of a window is mostly kept until the first of the next is there.
        self._owned = [*self._owned[-2:], self._how.memory(states)]
        return self._how.seen(self._owned[-1])

    def release(self) -> None:
        self._owned.clear()


class WindowReader:
    """Two windows at a time: the one in use, and the next. A copy, in another process or not, begins anew with files of
    its own.

    Attributes:
        in_use: The window that was asked for last.
        batches: Rows of each of its batches; found by whoever uses it, since the thread that reads has more to do.
    """

    def __init__(self, shards: Shards, how: Reading, order: Order) -> None:
        self._shards = shards
        self._how = how
        self._order = order
        self._memories = _Memories(how)
        self.in_use: Window | None = None
        self.batches: list[np.ndarray] = []
        self._coming: tuple[Key, Future[Window]] | None = None
        # One thread that stays: windows that each took one of their own were read a tenth more slowly.
        self._thread: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": copy(self._shards), "how": self._how, "order": copy(self._order)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def get(self, key: Key, following: Key | None) -> Window:
        """A window; ``following`` is the one that will be asked for next.

        Raises:
            IntegrityError: a shard is damaged; the message names it.
        """
        if self._process != os.getpid():  # neither the thread nor what it reads came along in a fork
            self._coming, self._thread, self._process = None, None, os.getpid()
        if self.in_use is None or self.in_use.key != key:
            self.in_use = None
            self.in_use = self._arrived(key) or self._read(key, self._memory(key))
            if following is not None:
                # Taken here: memory that a thread takes is given back to the system each time.
                self._coming = self._begin(following, self._memory(following))
            self.batches = self._order.rows(*key)
        return self.in_use

    @property
    def held(self) -> int:
        """Bytes of weights in memory."""
        return self._memories.size

    def release(self) -> None:
        """Give the memory of all windows back, and end the thread; a window that is asked for is then read again."""
        if self._thread is not None and self._process == os.getpid():
            self._thread.shutdown()
        self.in_use = self._coming = self._thread = None
        self._memories.release()

    def _memory(self, key: Key) -> Weights:
        return self._memories.take(self._order.window_states(key[1]))

    def _arrived(self, key: Key) -> Window | None:
        """What the thread read, when it is done; None where that is another window."""
        coming, self._coming = self._coming, None
        if coming is None:
            return None
        wait([coming[1]])  # also where it is another one: shards are read by one thread at a time
        return coming[1].result() if coming[0] == key else None

    def _begin(self, key: Key, memory: Weights) -> tuple[Key, Future[Window]]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "zoogen-window")
        return key, self._thread.submit(self._read, key, memory)

    def _read(self, key: Key, memory: Weights) -> Window:
        places = self._order.places(*key)
        states = self._order.states.take(places)
        return Window(key, self._how.weights(self._shards, states, memory[: len(places)]), places)

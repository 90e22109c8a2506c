"""Writes beside the training: one piece of work at a time in one background thread, one epoch behind at most."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Result = TypeVar("Result")


class BackgroundWriter(Generic[Result]):
    """A context manager; leaving it waits for the work in hand, whatever the reason."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="zoogen-writer")
        self._last: Future[list[Result]] | None = None

    def __enter__(self) -> BackgroundWriter[Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    @property
    def failed(self) -> bool:
        """Whether the work in hand has ended in an error, which ``wait`` will raise."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def begin(self, work: Callable[[], list[Result]]) -> None:
        """Start ``work``; the work before it has been waited for."""
        assert self._last is None, "depth one: wait first"
        self._last = self._pool.submit(work)

    def wait(self) -> list[Result]:
        """What the work in hand brought; nothing where none is.

        Raises:
            Exception: whatever the work raised, once.
        """
        last, self._last = self._last, None
        return [] if last is None else last.result()

"""All work in this process, one item after the other: for debugging, and where Ray is not installed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any

from zoogen.schedule.stop import StopFlag
from zoogen.schedule.threads import limit_threads
from zoogen.schedule.work import Event, Started, WorkerFactory, attempt, worker_name


class SerialExecutor:
    """One worker, here. ``threads`` limits its arithmetic threads (None: all cores, torch's default)."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads

    def start(self) -> None:
        """Nothing to start."""

    def run(self, factory: WorkerFactory, todo: deque[Any], stop: StopFlag) -> Generator[Event, None, None]:
        """See ``Executor.run``; errors of the factory come as they are."""
        if self._threads is not None:
            limit_threads(self._threads)
        worker = factory()
        while todo and not stop():
            item = todo.popleft()
            yield Started(item, worker_name())
            yield from attempt(worker, item, stop)

    def close(self) -> None:
        """Nothing to end."""

    def __enter__(self) -> SerialExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

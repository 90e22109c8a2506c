"""What the executors agree on: workers, the events of a run, and what counts as which failure."""

from __future__ import annotations

import os
import socket
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from zoogen.core.errors import Incomplete, ZoogenError
from zoogen.core.records import Resources
from zoogen.schedule.stop import StopFlag


class Item(Protocol):
    """A piece of work, e.g. a cohort; picklable."""

    @property
    def resources(self) -> Resources: ...


class Worker(Protocol):
    """Made once per worker process and kept for the whole run: what it holds (data, torch) is loaded once."""

    def run(self, item: Any, should_stop: Callable[[], bool]) -> Iterator[Any]:
        """Work on ``item``, yielding small picklable messages; the generator's end means the item is done.

        An item may come again after a failure, so what it did before has to be found and continued or redone.

        Raises:
            Incomplete: ``should_stop()`` said so; the item is left resumable.
        """
        ...


WorkerFactory = Callable[[], Worker]
"""Picklable: a module-level class, or ``functools.partial`` of one."""


@dataclass(frozen=True)
class Failure:
    """Why an item did not get done.

    Attributes:
        kind: The worker raised (``exception``), ran out of memory (``memory``) or disappeared (``lost``: killed, or
            its node died).
        reason: One line.
        details: The traceback, or what the executor knows about the loss.
        error: The exception itself if it is one of ours.
    """

    kind: Literal["exception", "memory", "lost"]
    reason: str
    details: str
    error: ZoogenError | None = None

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure that a raised exception stands for."""
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        details = "".join(traceback.format_exception(error))
        ours = error if isinstance(error, ZoogenError) else None
        return cls("memory" if _is_memory(error) else "exception", reason, details, ours)


def _is_memory(error: Exception) -> bool:
    # By name and text, because this room does not import torch: torch.OutOfMemoryError on GPUs, a RuntimeError of
    # DefaultCPUAllocator on CPUs.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


@dataclass(frozen=True)
class Started:
    """A worker (``host:pid``) began with the item, for the first time or again."""

    item: Any
    worker: str


@dataclass(frozen=True)
class Message:
    """The worker yielded ``payload``; messages of one attempt come in their order."""

    item: Any
    payload: Any


@dataclass(frozen=True)
class Finished:
    """The item is done."""

    item: Any


@dataclass(frozen=True)
class Stopped:
    """The worker left the item resumable, or was ended because it did not stop in time."""

    item: Any
    reason: str


@dataclass(frozen=True)
class Failed:
    """From an executor: this attempt failed. From ``run_all``: the item is given up."""

    item: Any
    failure: Failure


@dataclass(frozen=True)
class Retried:
    """The attempt failed and the same item will be tried again."""

    item: Any
    failure: Failure


@dataclass(frozen=True)
class Split:
    """The item failed again and was replaced by its two parts."""

    item: Any
    parts: tuple[Any, Any]
    failure: Failure


Event = Started | Message | Finished | Stopped | Failed | Retried | Split


class Executor(Protocol):
    """Runs work items on workers; also a context manager (``start`` and ``close``)."""

    def start(self) -> None:
        """Begin to start up and return at once, so that planning goes on meanwhile; ``run`` does it otherwise."""
        ...

    def run(self, factory: WorkerFactory, todo: deque[Any], stop: StopFlag) -> Generator[Event, None, None]:
        """Take items from the left of ``todo`` until it is empty and all work has ended, yielding what happens.

        The caller may append to ``todo`` between two events. Every item taken ends in exactly one ``Finished``,
        ``Failed`` or ``Stopped``. Once ``stop`` is raised no item is started. Closing the generator ends the workers.

        Raises:
            EnvironmentFault: there is no way to run workers, or none big enough for an item.
        """
        ...

    def close(self) -> None:
        """End everything that ``start`` began."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(self, *exc: object) -> None: ...


def attempt(worker: Worker, item: Any, should_stop: Callable[[], bool]) -> Iterator[Event]:
    """One attempt at one item: its messages, then how it ended. Exceptions become events, so they survive transport."""
    try:
        for payload in worker.run(item, should_stop):
            yield Message(item, payload)
    except Incomplete as error:
        yield Stopped(item, str(error))
    except Exception as error:
        yield Failed(item, Failure.of(error))
    else:
        yield Finished(item)


def worker_name() -> str:
    """``host:pid`` of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"

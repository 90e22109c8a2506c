"""The inside of a Ray worker process; plain Python, so that it can be read and tested without Ray."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from zoogen.schedule.shape import Shape
from zoogen.schedule.stop import StopFlag
from zoogen.schedule.threads import limit_threads
from zoogen.schedule.work import Event, Failure, Worker, attempt, worker_name


class Actor:
    """Holds one Worker and runs one item at a time; ``stop`` comes in through a second thread."""

    def __init__(self) -> None:
        self._stop = StopFlag()
        self._worker: Worker | None = None

    def prepare(self, factory: bytes, shape: Shape) -> str | Failure:
        """Construct the worker; its name, or why that failed.

        The driver hands the factory over pickled, so that importing what it needs (torch) comes after the variables
        that torch reads.
        """
        cpus, gpus = shape
        limit_threads(max(1, math.floor(cpus)))
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # with GPUs, Ray has set it to those that are ours
        try:
            self._worker = pickle.loads(factory)()
        except Exception as error:
            return Failure.of(error)
        return worker_name()

    def run(self, item: Any) -> Iterator[Event]:
        """The events of one attempt, without the item: the driver knows it, and it is larger than its messages."""
        assert self._worker is not None
        for event in attempt(self._worker, item, self._stop):
            yield replace(event, item=None)

    def stop(self, reason: str) -> None:
        """Raise the flag that the running item asks."""
        self._stop.request(reason)

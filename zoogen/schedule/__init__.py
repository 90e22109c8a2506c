"""Runs a function over work items on long-lived workers: in this process (``serial``) or through Ray (``ray``).

The room knows nothing of training: an item has ``resources``, a worker turns an item into a stream of messages, and
``run_all`` retries, bisects and reports. Importing this package loads neither Ray nor torch.
"""

from zoogen.schedule.attempts import run_all
from zoogen.schedule.serial import SerialExecutor
from zoogen.schedule.stop import StopFlag, stop_on_signals
from zoogen.schedule.work import (
    Event,
    Executor,
    Failed,
    Failure,
    Finished,
    Message,
    Retried,
    Split,
    Started,
    Stopped,
    Worker,
    WorkerFactory,
)

__all__ = [
    "Event",
    "Executor",
    "Failed",
    "Failure",
    "Finished",
    "Message",
    "Retried",
    "SerialExecutor",
    "Split",
    "Started",
    "StopFlag",
    "Stopped",
    "Worker",
    "WorkerFactory",
    "run_all",
    "stop_on_signals",
]

"""Stopping on request: a flag that running work asks between two steps, and the signals that raise it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopFlag:
    """Raised once, never lowered; call it to ask (``should_stop()``).

    A plain attribute, not a ``threading.Event``: setting an event takes a lock, which would deadlock a signal handler
    that interrupts its own thread inside that lock.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._raised = False

    def request(self, reason: str) -> None:
        """Ask everyone who looks at the flag to stop; the first reason is kept."""
        self.reason = self.reason or reason
        self._raised = True

    def __call__(self) -> bool:
        return self._raised


@contextmanager
def stop_on_signals(flag: StopFlag) -> Iterator[None]:
    """Within the block, SIGINT (Ctrl-C) and SIGTERM (Slurm, spot instances) raise ``flag``; handlers are put back.

    A SIGINT after that does not wait for the work to stop: it raises KeyboardInterrupt. Outside the main thread, where
    Python delivers no signals, the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if flag() and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.request(signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            # None stands for a handler that was not installed from Python and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

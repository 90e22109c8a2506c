"""Progress of a build on stderr: one bar on a terminal, a plain line now and then otherwise."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zoogen.cli.terminal import printable
from zoogen.core.words import counted, duration
from zoogen.schedule import StopFlag

if TYPE_CHECKING:
    from zoogen.build.pipeline import Reporter
    from zoogen.build.storing import Progress
    from zoogen.plan import Plan

PLAIN_SECONDS = 10.0
"""Between two plain lines."""

RATE_SECONDS = 1.0
"""Of reports before a rate is told."""


class _Account:
    """Counts what is done; knows the recent rate (the first seconds, and a resumed zoo's past, do not blur it)."""

    def __init__(self) -> None:
        self.models = self.done = self.already = self.steps = self.total_steps = self.diverged = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=200)

    def begin(self, models: int, already: int, steps: int) -> None:
        self.models, self.already, self.total_steps = models, already, steps

    def add(self, progress: Progress) -> None:
        self.done += progress.models
        self.diverged += progress.diverged
        self.steps += progress.model_steps
        if progress.model_steps:
            self._recent.append((time.monotonic(), self.steps))

    def rate(self) -> float:
        """Model-steps per second between the latest reports; workers' start-up is not in it."""
        if len(self._recent) < 2:
            return 0.0
        (first, before), (last, after) = self._recent[0], self._recent[-1]
        # An epoch is reported when the next one is trained, the last one right after it: such a pair says nothing.
        return (after - before) / (last - first) if last - first >= RATE_SECONDS else 0.0

    def words(self) -> str:
        rate = self.rate()
        left = (self.total_steps - self.steps) / rate if rate else 0.0
        tail = f", {rate:,.0f} model-steps/s, {duration(left)} left" if rate else ""
        diverged = f" ({self.diverged} diverged)" if self.diverged else ""
        return f"{self.done}/{self.models} models{diverged}{tail}"


class _Plain:
    def __init__(self, stop: StopFlag) -> None:
        self._account = _Account()
        self._stop = stop
        self._last = time.monotonic()

    def begin(self, path: Path, plan: Plan, models: int, done: int, model_steps: int) -> None:
        self._account.begin(models, done, model_steps)
        self.note(_opening(path, plan, models, done))

    def progress(self, progress: Progress) -> None:
        self._account.add(progress)
        now = time.monotonic()
        if now - self._last >= PLAIN_SECONDS:
            self._last = now
            self.note(self._account.words())

    def note(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, stop: StopFlag) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._account = _Account()
        self._stop = stop
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[words]}"))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("starting", total=None, words="")

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, path: Path, plan: Plan, models: int, done: int, model_steps: int) -> None:
        self._account.begin(models, done, model_steps)
        self.note(_opening(path, plan, models, done))
        from rich.markup import escape

        self._bar.update(self._task, description=escape(printable(plan.blueprint.name)), total=max(1, model_steps))

    def progress(self, progress: Progress) -> None:
        self._account.add(progress)
        words = "stopping, the last states are kept" if self._stop() else self._account.words()
        self._bar.update(self._task, completed=self._account.steps, words=words)

    def note(self, text: str) -> None:
        self._bar.console.print(printable(text), markup=False, highlight=False)


def _opening(path: Path, plan: Plan, models: int, done: int) -> str:
    if not models:
        return f"{path}: nothing to train"
    elsewhere = f" ({done} of {len(plan)} are done or not asked for now)" if done else ""
    return f"{path}: training {counted(models, 'model')}{elsewhere}"


@contextmanager
def reporter(stop: StopFlag) -> Iterator[Reporter]:
    """The bar on a terminal, plain lines otherwise."""
    if sys.stderr.isatty():
        with _Bar(stop) as bar:
            yield bar
    else:
        yield _Plain(stop)

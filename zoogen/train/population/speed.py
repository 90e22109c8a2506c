"""How long one optimizer step of one model takes, from a short run on some of the task's own samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

import torch

from zoogen.core.contracts import TaskData
from zoogen.core.records import Cohort, Job
from zoogen.train.plain import PlainTrainer
from zoogen.train.population.engine import Engine
from zoogen.train.population.trainer import initial_rows
from zoogen.train.population.trial import FewSamples, training_samples, trial_cohort

SECONDS = 0.15
"""Measured, after a warm-up epoch; one epoch where that takes longer."""

_SAMPLES = 640
_MOST_SECONDS = 2.0  # of one epoch, at the plain trainer's speed; else fewer steps, then fewer models

_EPOCHS = 10**6  # more than a measurement can reach


def plain_seconds(cohort: Cohort, data: TaskData, device: str, should_stop: Callable[[], bool]) -> float:
    """Seconds per step of the plain trainer, from one model: it trains one after the other.

    Raises:
        Incomplete: ``should_stop()`` said so.
    """
    steps = max(1, _SAMPLES // cohort.jobs[0].training.batch_size)
    few = few_training_samples(cohort, data, steps)
    trainer = PlainTrainer(trial_cohort(cohort, cohort.jobs[:1], _EPOCHS), few, device)
    return _least_seconds(lambda: trainer.train_epoch(should_stop)) / trainer.steps_per_epoch


def few_training_samples(cohort: Cohort, data: TaskData, steps: int) -> FewSamples:
    """The task with about ``steps`` optimizer steps per epoch."""
    return FewSamples(data, {"train": training_samples(data, cohort.jobs[0].training.batch_size, steps)})


def affordable(cohort: Cohort, models: int, plain: float) -> tuple[int, int]:
    """How many models, and steps of each, to measure where the plain trainer takes ``plain`` seconds per step."""
    steps = max(1, _SAMPLES // cohort.jobs[0].training.batch_size)
    models = max(2, min(models, int(_MOST_SECONDS / plain)))
    return models, max(1, min(steps, int(_MOST_SECONDS / (plain * models))))


def engine_seconds(
    engine: Engine, cohort: Cohort, models: int, few: FewSamples, device: str, should_stop: Callable[[], bool]
) -> float:
    """Seconds per step and model of an engine that was made for the data ``few``, on ``models`` models at once.

    Raises:
        Incomplete: ``should_stop()`` said so.
        torch.OutOfMemoryError: so many do not fit.
    """
    jobs = trial_cohort(cohort, repeated(cohort.jobs, models), _EPOCHS).jobs
    rows, _ = initial_rows(trial_cohort(cohort, cohort.jobs[:models], _EPOCHS), torch.device(device))
    rows = rows.take(list(islice(cycle(range(len(rows))), models)))
    epoch = 0

    def train() -> None:
        nonlocal rows, epoch
        rows, _ = engine.train_epoch(jobs, rows, epoch, should_stop)
        epoch += 1

    return _least_seconds(train) / (jobs[0].training.steps_per_epoch(few.size("train")) * models)


def repeated(jobs: Sequence[Job], models: int) -> list[Job]:
    """``models`` jobs, from the first ones over and over."""
    return list(islice(cycle(jobs), models))


def _least_seconds(epoch: Callable[[], None]) -> float:
    """Of an epoch, among as many as take ``SECONDS``: other work on the machine only ever adds."""
    epoch()
    found: list[float] = []
    while sum(found) < SECONDS:
        began = time.perf_counter()
        epoch()
        found.append(time.perf_counter() - began)
    return min(found)

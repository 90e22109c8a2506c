"""One cohort from where it stands to its last epoch: what is trained, evaluated and handed out, and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from zoogen.core.contracts import Trainer
from zoogen.core.records import Checkpoint, Cohort, CohortState


@dataclass(frozen=True)
class EpochDone:
    """What one epoch brought.

    Attributes:
        epoch: Epochs completed; 0 for the initial state.
        checkpoints: To be stored, in the order of their rows in a shard: the last finite states of models that diverged
            in this epoch (of an earlier epoch, where that was not a planned one), then the living models.
        state: Copies out what is needed to continue from here; call it before the next epoch is asked for.
        seconds_train, seconds_evaluate: Wall time.
        steps: Optimizer steps of all models together.
    """

    epoch: int
    checkpoints: list[Checkpoint]
    state: Callable[[], CohortState]
    seconds_train: float
    seconds_evaluate: float
    steps: int


def train_cohort(
    trainer: Trainer,
    cohort: Cohort,
    start: CohortState | None,
    should_stop: Callable[[], bool],
    *,
    until: int | None = None,
) -> Iterator[EpochDone]:
    """Train ``cohort`` and yield after its initial state and after each epoch.

    With a ``start``, the first epoch yielded is the one after it: what was due at ``start`` was handed out before.
    Planned checkpoints up to ``cohort.stored_through`` are in sealed shards already and not made again. Where every
    model has diverged, the remaining epochs have no rows, and the iteration ends.

    Args:
        trainer: Freshly constructed for the same cohort.
        should_stop: Asked between two steps and between two epochs.
        until: Stop after this epoch, if that is before the cohort's last.

    Raises:
        Incomplete: ``should_stop()`` said so in the middle of an epoch; the last state handed out is where to resume.
    """
    last = cohort.epochs if until is None else min(until, cohort.epochs)
    if start is not None:
        trainer.restore(start)
    else:
        yield _epoch_done(trainer, cohort, newly_diverged=(), seconds_train=0.0, steps=0)
    while trainer.epoch < last and (before := _living(trainer, cohort)):
        began = time.perf_counter()
        trainer.train_epoch(should_stop)
        seconds = time.perf_counter() - began
        gone = tuple(m for m in before if m in trainer.diverged)
        yield _epoch_done(trainer, cohort, gone, seconds, steps=trainer.steps_per_epoch * len(before))


def _epoch_done(
    trainer: Trainer, cohort: Cohort, newly_diverged: tuple[str, ...], seconds_train: float, steps: int
) -> EpochDone:
    began = time.perf_counter()
    checkpoints = []
    planned = cohort.recording.epochs
    # They all stood at the end of the epoch before: their last rows, unless these were due anyway.
    for epoch in sorted({trainer.last_finite[m] for m in newly_diverged}):
        if epoch not in planned and epoch > cohort.stored_through:
            stood = tuple(m for m in newly_diverged if trainer.last_finite[m] == epoch)
            checkpoints.append(trainer.checkpoint(stood))
    living = _living(trainer, cohort)
    if trainer.epoch in planned and trainer.epoch > cohort.stored_through and living:
        checkpoints.append(trainer.checkpoint(living))
    return EpochDone(
        epoch=trainer.epoch,
        checkpoints=checkpoints,
        state=trainer.state,
        seconds_train=seconds_train,
        seconds_evaluate=time.perf_counter() - began,
        steps=steps,
    )


def _living(trainer: Trainer, cohort: Cohort) -> tuple[str, ...]:
    return tuple(m for m in cohort.model_ids if m not in trainer.diverged)

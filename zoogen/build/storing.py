"""What a worker puts on disk for one cohort: its state after every epoch, its shards, its log."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoogen.core.layout import Layout
from zoogen.core.records import Checkpoint, Cohort, CohortState
from zoogen.store.resume import is_sealed
from zoogen.store.shard import seal_shard
from zoogen.store.work import Work

if TYPE_CHECKING:
    from zoogen.train.run import EpochDone


@dataclass(frozen=True)
class Progress:
    """What happened since the last one, for the driver's bar.

    ``models`` counts those that are through: sealed with their last planned epoch, or diverged.
    """

    cohort_id: str
    epoch: int
    model_steps: int = 0
    models: int = 0
    diverged: int = 0
    sealed: str | None = None


@dataclass(frozen=True)
class Note:
    """What a worker wants the user to know."""

    text: str


def is_finished(cohort: Cohort, state: CohortState | None) -> bool:
    """Whether nothing is left to train: the last epoch is done, or every model has diverged."""
    return state is not None and (state.epoch >= cohort.epochs or len(state.diverged) == len(cohort.jobs))


@dataclass
class EpochStore:
    """Keeps one cohort's epochs and seals its segments as soon as their last epoch is there.

    Attributes:
        zoo, token: Where, and the right to write.
        cohort, layout: What is stored.
        work: The cohort's work folder.
        journal: The cohort's log.
        rows: Checkpoints that no shard holds yet.
    """

    zoo: Path
    token: str
    cohort: Cohort
    layout: Layout
    work: Work
    journal: CohortLog
    rows: list[Checkpoint]

    def put(self, done: EpochDone, state: CohortState, device: str, waited: float, *, last: bool) -> list[Progress]:
        """Put an epoch on disk, with its line in the log, and seal what it completes.

        Args:
            done: The epoch.
            state: After it.
            device: Where it was trained.
            waited: Seconds the training has stood still for storing, for the log.
            last: Nothing is trained after it meanwhile, so that this takes time of its own.
        """
        began = time.monotonic()
        self.rows += done.checkpoints
        self.work.save(state, done.checkpoints)
        sealed = list(self.seal_through(state))
        self.journal.epoch(done, waited + (time.monotonic() - began if last else 0.0), device)
        return [Progress(self.cohort.cohort_id, done.epoch, model_steps=done.steps), *sealed]

    def seal_through(self, state: CohortState) -> Iterator[Progress]:
        """Seal what is complete at ``state``; a finished cohort (all models diverged, say) seals all that is left."""
        finished = is_finished(self.cohort, state)
        for segment in self.cohort.segments:
            if segment.last > state.epoch and not finished:
                break
            if not is_sealed(self.zoo, segment.shard_id):
                cohort, layout, rows = self.cohort, self.layout, self.rows
                seal_shard(self.zoo, segment.shard_id, cohort, layout, rows, state=state, token=self.token)
                last = segment == self.cohort.segments[-1]
                yield Progress(
                    self.cohort.cohort_id,
                    segment.last,
                    models=len(self.cohort.jobs) if last else 0,
                    diverged=len(state.diverged) if last else 0,
                    sealed=segment.shard_id,
                )
            self.work.drop_through(segment.last)
            self.rows = [c for c in self.rows if c.epoch > segment.last]


class CohortLog:
    """``logs/<cohort>.jsonl``: a JSON line per epoch (seconds, host, device) and per message; under no digest."""

    def __init__(self, zoo: Path, cohort: Cohort) -> None:
        self._path = zoo / "logs" / f"{cohort.cohort_id}.jsonl"
        self._cohort_id = cohort.cohort_id

    def __enter__(self) -> CohortLog:
        self._path.parent.mkdir(exist_ok=True)
        self._file = self._path.open("a", buffering=1)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def epoch(self, done: EpochDone, waited: float, device: str) -> None:
        """An epoch that is on disk; ``waited``: seconds the training stood still for storing."""
        self._write(
            event="epoch",
            epoch=done.epoch,
            steps=done.steps,
            seconds_train=round(done.seconds_train, 6),
            seconds_evaluate=round(done.seconds_evaluate, 6),
            seconds_store=round(max(0.0, waited), 6),
            device=device,
        )

    def note(self, message: str) -> None:
        self._write(event="note", message=message)

    def _write(self, **fields: object) -> None:
        stamp = {"time": round(time.time(), 3), "host": socket.gethostname(), "cohort_id": self._cohort_id}
        self._file.write(json.dumps(stamp | fields) + "\n")

"""What one worker does with one cohort: continue it, train it epoch by epoch, keep its state, seal its shards.

A worker lives for the whole build: torch is imported once, each task's data are mapped once. It sends the driver small
``Progress`` records only; weights go straight to disk.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.contracts import TaskData, describe_task
from zoogen.core.layout import Layout
from zoogen.core.modules import describe
from zoogen.core.records import Checkpoint, Cohort, CohortState, Segment
from zoogen.store.resume import is_sealed, read_state
from zoogen.store.shard import seal_shard
from zoogen.store.work import Work

log = logging.getLogger("zoogen")


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


@dataclass
class CohortWorker:
    """Trains cohorts one after another.

    Attributes:
        zoo: The zoo's folder.
        token: Of this build; a stale worker's token is refused by the store.
        data_root, cache: Where the task data and their decoded copies are.
        device: ``cpu``, ``cuda``, or ``auto``: the GPU for cohorts that ask for one.
        until: Stop every cohort at this epoch, resumably.
    """

    zoo: Path
    token: str
    data_root: Path | None
    cache: Path
    device: str = "auto"
    until: int | None = None

    def __post_init__(self) -> None:
        self._data: dict[str, TaskData] = {}

    def run(self, cohort: Cohort, should_stop: Callable[[], bool]) -> Iterator[Progress]:
        """Bring ``cohort`` to its last epoch (or ``until``), yielding progress after every epoch and seal."""
        import torch

        from zoogen.train.plain import PlainTrainer
        from zoogen.train.run import train_cohort

        # The same number under every executor: it decides how sums are cut, and so the last bits.
        torch.set_num_threads(max(1, int(cohort.resources.cpus)))

        with CohortLog(self.zoo, cohort) as journal:
            task = cohort.jobs[0].task
            layout = describe(cohort.jobs[0].architecture, task.input_shape, task.outputs)
            # One suffix per attempt: a worker that was lost from sight but lives on is fenced off by the next one.
            token = f"{self.token}-{secrets.token_hex(4)}"
            work = Work.claim(self.zoo, cohort, token)
            state, rows = self._start(cohort, work, layout, journal)
            ending = SegmentEnd(self.zoo, token, cohort, layout, work, rows)
            if state is not None:
                # A kill between the last save and its seal leaves a full segment behind.
                yield from ending.seal_through(state, self._finished(cohort, state))
            if not self._finished(cohort, state):
                device = self._device(cohort)
                trainer = PlainTrainer(cohort, self._load(task), device)
                began = time.monotonic()
                for done in train_cohort(trainer, cohort, state, should_stop, until=self.until):
                    state = done.state()
                    ending.rows += done.checkpoints
                    work.save(state, done.checkpoints)
                    finished = self._finished(cohort, state)
                    sealed = list(ending.seal_through(state, finished))
                    seconds = time.monotonic() - began
                    journal.epoch(done, seconds, device)
                    yield Progress(cohort.cohort_id, done.epoch, model_steps=done.steps)
                    yield from sealed
                    began = time.monotonic()
            if all(is_sealed(self.zoo, s.shard_id) for s in cohort.segments):
                work.finish()

    def _finished(self, cohort: Cohort, state: CohortState | None) -> bool:
        return state is not None and (state.epoch >= cohort.epochs or len(state.diverged) == len(cohort.jobs))

    def _start(
        self, cohort: Cohort, work: Work, layout: Layout, journal: CohortLog
    ) -> tuple[CohortState | None, list[Checkpoint]]:
        """Where to go on: the work folder, else the last shard that kept an optimizer state, else epoch 0.

        Never beyond the first segment that is not sealed: an earlier shard may have been damaged and moved aside.
        """
        sealed = list(takewhile(lambda s: is_sealed(self.zoo, s.shard_id), cohort.segments))
        found = work.load()
        if found is not None and _has_rows_after(sealed, cohort, *found):
            journal.note(f"continues after epoch {found[0].epoch} from its work folder")
            return found
        stateless = all(j.training.optimizer.state_tensors == 0 for j in cohort.jobs)
        for segment in reversed(sealed):
            state = read_state(self.zoo, segment.shard_id, cohort, layout, stateless=stateless)
            if state is not None:
                journal.note(f"continues after epoch {state.epoch} from shard {segment.shard_id}")
                return state, []
        return None, []

    def _device(self, cohort: Cohort) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if cohort.resources.gpus > 0 else "cpu"

    def _load(self, task: Any) -> TaskData:
        key = digest(canonical_json(describe_task(task)))
        if key not in self._data:
            self._data[key] = task.load(self.data_root, self.cache)
        return self._data[key]


def _has_rows_after(sealed: Sequence[Segment], cohort: Cohort, state: CohortState, rows: Sequence[Checkpoint]) -> bool:
    """Whether the kept ``rows`` hold every planned epoch between the last of the ``sealed`` segments and ``state``."""
    through = sealed[-1].last if sealed else cohort.stored_through
    # Where every model has diverged, rows end with the last finite state.
    all_gone = len(state.diverged) == len(cohort.jobs)
    end = max(state.last_finite.values()) if all_gone else state.epoch
    return {e for e in cohort.recording.epochs if through < e <= end} <= {c.epoch for c in rows}


@dataclass
class SegmentEnd:
    """Seals segments of a cohort as soon as their last epoch is there."""

    zoo: Path
    token: str
    cohort: Cohort
    layout: Layout
    work: Work
    rows: list[Checkpoint]

    def seal_through(self, state: CohortState, finished: bool) -> Iterator[Progress]:
        """Seal what is complete at ``state``; a finished cohort (all models diverged, say) seals all that is left."""
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

    def epoch(self, done: Any, seconds: float, device: str) -> None:
        self._write(
            event="epoch",
            epoch=done.epoch,
            steps=done.steps,
            seconds_train=round(done.seconds_train, 6),
            seconds_evaluate=round(done.seconds_evaluate, 6),
            seconds_store=round(max(0.0, seconds - done.seconds_train - done.seconds_evaluate), 6),
            device=device,
        )

    def note(self, message: str) -> None:
        self._write(event="note", message=message)

    def _write(self, **fields: Any) -> None:
        stamp = {"time": round(time.time(), 3), "host": socket.gethostname(), "cohort_id": self._cohort_id}
        self._file.write(json.dumps(stamp | fields) + "\n")

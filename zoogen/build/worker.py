"""What one worker does with one cohort: continue it, train it epoch by epoch, keep its state, seal its shards.

A worker lives for the whole build: torch is imported once, each task's data are mapped once. It sends the driver small
``Progress`` records only; weights go straight to disk.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from zoogen.build.parents import read_origin
from zoogen.build.programs import Kind, Programs, Wish, device_of
from zoogen.build.storing import CohortLog, EpochStore, Note, Progress, is_finished
from zoogen.build.writer import BackgroundWriter
from zoogen.core.canonical import canonical_json, digest
from zoogen.core.contracts import TaskData, Trainer, describe_task
from zoogen.core.layout import Layout
from zoogen.core.modules import describe
from zoogen.core.records import Checkpoint, Cohort, CohortState, Segment
from zoogen.store.resume import is_sealed, read_state, sealed_run
from zoogen.store.work import Work


@dataclass
class CohortWorker:
    """Trains cohorts one after another.

    Attributes:
        zoo: The zoo's folder.
        token: Of this build; a stale worker's token is refused by the store.
        data_root, cache: Where the task data and their decoded copies are.
        device: ``cpu``, ``cuda``, or ``auto``: the GPU for cohorts that ask for one.
        until: Stop every cohort at this epoch, resumably.
        wish: Which trainer was asked for.
        kinds: What the plan has of each kind of models.
        parent: The zoo that twins are made of.
    """

    zoo: Path
    token: str
    data_root: Path | None
    cache: Path
    device: str = "auto"
    until: int | None = None
    wish: Wish = field(default_factory=Wish)
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    parent: Path | None = None

    def __post_init__(self) -> None:
        self._data: dict[str, TaskData] = {}
        self._programs = Programs(self.zoo, self.cache, self.wish, self.kinds)

    def run(self, cohort: Cohort, should_stop: Callable[[], bool]) -> Iterator[Progress | Note]:
        """Bring ``cohort`` to its last epoch (or ``until``), yielding progress after every epoch and seal."""
        import torch

        # The same number under every executor: it decides how sums are cut, and so the last bits.
        torch.set_num_threads(max(1, int(cohort.resources.cpus)))

        with CohortLog(self.zoo, cohort) as journal:
            task = cohort.jobs[0].task
            layout = describe(cohort.jobs[0].architecture, task.input_shape, task.outputs)
            # One suffix per attempt: a worker that was lost from sight but lives on is fenced off by the next one.
            token = f"{self.token}-{secrets.token_hex(4)}"
            work = Work.claim(self.zoo, cohort, token)
            state, rows = self._start(cohort, work, layout, journal)
            store = EpochStore(self.zoo, token, cohort, layout, work, journal, rows)
            if state is not None:
                # A kill between the last save and its seal leaves a full segment behind.
                yield from store.seal_through(state)
            if not is_finished(cohort, state):
                device = device_of(cohort.resources, self.device)
                trainer = yield from self._trainer(cohort, layout, device, journal, should_stop)
                yield from self._train(trainer, store, state, device, should_stop)
            if all(is_sealed(self.zoo, s.shard_id) for s in cohort.segments):
                work.finish()

    def _trainer(
        self, cohort: Cohort, layout: Layout, device: str, journal: CohortLog, should_stop: Callable[[], bool]
    ) -> Generator[Note, None, Trainer]:
        from zoogen.train.population.choice import make_trainer
        from zoogen.train.population.trial import layout_of
        from zoogen.twins.trainer import TwinTrainer, trained_cohort

        data = self._load(cohort.jobs[0].task)
        told: list[str] = []
        twins = cohort.jobs[0].training.sparsify is not None
        training = layout_of(cohort.jobs[0]) if twins else layout
        trained = trained_cohort(cohort, training) if twins else cohort
        try:
            program = self._programs.of(cohort, trained, data, device, should_stop, told.append)
        finally:
            for text in told:
                journal.note(text)
        journal.note(f"{program} ({program.reason})")
        yield from map(Note, told)
        cache = self._programs.cache
        if not twins:
            return make_trainer(cohort, data, device, program, cache)
        assert self.parent is not None, "twins without the zoo of their parents"
        origin = read_origin(self.parent, cohort)
        return TwinTrainer(
            cohort, layout, training, lambda own: make_trainer(own, data, device, program, cache), origin
        )

    def _train(
        self,
        trainer: Trainer,
        store: EpochStore,
        start: CohortState | None,
        device: str,
        should_stop: Callable[[], bool],
    ) -> Iterator[Progress]:
        """Train on from ``start``; an epoch is written while the next one trains, and reported once it is on disk."""
        from zoogen.train.run import train_cohort

        with BackgroundWriter[Progress]() as writer:

            def stop() -> bool:
                return should_stop() or writer.failed  # what could not be written is not trained on

            try:
                began = time.monotonic()
                for done in train_cohort(trainer, store.cohort, start, stop, until=self.until):
                    state = done.state()  # a copy: the trainer goes on changing what it has
                    written = writer.wait()
                    waited = time.monotonic() - began - done.seconds_train - done.seconds_evaluate
                    last = done.epoch == self.until or is_finished(store.cohort, state)
                    writer.begin(partial(store.put, done, state, device, waited, last=last))
                    yield from written
                    began = time.monotonic()
            except Exception:
                yield from writer.wait()
                raise
            yield from writer.wait()

    def _start(
        self, cohort: Cohort, work: Work, layout: Layout, journal: CohortLog
    ) -> tuple[CohortState | None, list[Checkpoint]]:
        """Where to go on: the work folder, else the last shard that kept an optimizer state, else epoch 0.

        Never beyond the first segment that is not sealed: an earlier shard may have been damaged and moved aside.
        """
        sealed = sealed_run(self.zoo, cohort)
        found = work.load()
        if found is not None and _has_rows_after(sealed, cohort, *found):
            journal.note(f"continues after epoch {found[0].epoch} from its work folder")
            return found
        if cohort.jobs[0].parents:
            return None, []  # shards hold what twins have become, not what they train on with; they are short
        stateless = all(j.training.optimizer.state_tensors == 0 for j in cohort.jobs)
        for segment in reversed(sealed):
            state = read_state(self.zoo, segment.shard_id, cohort, layout, stateless=stateless)
            if state is not None:
                journal.note(f"continues after epoch {state.epoch} from shard {segment.shard_id}")
                return state, []
        return None, []

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

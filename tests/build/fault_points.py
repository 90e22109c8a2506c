"""Makes a process say where it is (training, saving, sealing, renaming), so that a kill can be aimed and proved.

Each thread (one trains, one writes) has one line, in ``<folder>/<pid>-<thread>``: phase, how often it was entered, what
it works on. The line is one ``pwrite`` of fixed length, so after a SIGKILL it tells where the process died.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_LENGTH = 96


@dataclass(frozen=True)
class Point:
    """Where a thread is: ``train``, ``save``, ``seal``, ``rename`` or ``between``."""

    phase: str
    count: int
    detail: str

    def is_at(self, hold: Point) -> bool:
        """Whether it is there; a hold without detail is anywhere in its phase."""
        return (self.phase, self.count) == (hold.phase, hold.count) and hold.detail in ("", self.detail)


def read_points(folder: Path) -> dict[int, list[Point]]:
    """Process id -> where its threads are, of all that have said so."""
    found = defaultdict(list)
    for path in sorted(folder.iterdir()):
        text = path.read_text()
        if len(text) == _LENGTH:
            phase, count, detail = text.rstrip().split("|")
            found[int(path.name.partition("-")[0])].append(Point(phase, int(count), detail))
    return dict(found)


class _Here:
    def __init__(self, folder: Path, hold: Point | None) -> None:
        self._folder = folder
        self._hold = hold
        self._counts: Counter[str] = Counter()  # a phase belongs to one of the threads
        self._files: dict[str, int] = {}

    def say(self, phase: str, detail: str) -> None:
        thread = threading.current_thread().name  # every cohort's writer has the same
        if thread not in self._files:
            self._files[thread] = os.open(self._folder / f"{os.getpid()}-{thread}", os.O_WRONLY | os.O_CREAT)
        line = f"{phase}|{self._counts[phase]}|{detail}"[: _LENGTH - 1].ljust(_LENGTH)
        os.pwrite(self._files[thread], line.encode(), 0)
        if self._hold is not None and Point(phase, self._counts[phase], detail).is_at(self._hold):
            time.sleep(600)  # until it is killed, however late that is

    @contextmanager
    def phase(self, name: str, detail: str) -> Iterator[None]:
        self._counts[name] += 1
        self.say(name, detail)
        yield
        self.say("between", f"after {name}")


def install(folder: Path, slow: float, shard_bytes: int | None = None, hold: Point | None = None) -> None:
    """Wrap the worker's steps.

    Args:
        folder: Where each process says where it is.
        slow: Seconds spent before and after the rename, which else takes microseconds, and at the end of an epoch's
            training.
        shard_bytes: Seal shards before they exceed this, so that a tiny cohort has several.
        hold: The thread that comes here goes no further.
    """
    from zoogen.build import storing
    from zoogen.plan import cohorts
    from zoogen.store import shard, work
    from zoogen.train.plain import PlainTrainer
    from zoogen.train.population.trainer import PopulationTrainer

    here = _Here(folder, hold)
    save, seal, rename = work.Work.save, storing.seal_shard, os.rename

    def slow_training(train):
        def train_epoch(self, should_stop):
            with here.phase("train", f"epoch {self.epoch + 1}"):
                train(self, should_stop)
                time.sleep(slow)

        return train_epoch

    def save_state(self, state, checkpoints):
        with here.phase("save", f"epoch {state.epoch}"):
            save(self, state, checkpoints)

    def seal_shard(zoo, shard_id, *args, **kwargs):
        with here.phase("seal", shard_id[:8]):
            return seal(zoo, shard_id, *args, **kwargs)

    def telling(name):
        step = getattr(shard, name)

        def call(path, *args, **kwargs):
            here.say("seal", Path(path).name)
            return step(path, *args, **kwargs)

        setattr(shard, name, call)

    class Os:
        """What ``shard`` calls ``os``; ``os.rename`` itself stays as it is for everybody else."""

        @staticmethod
        def rename(source, target):
            with here.phase("rename", "before"):
                time.sleep(slow)
                rename(source, target)
                here.say("rename", "after")
                time.sleep(slow)

    for name in ("write_stacks", "write_parquet", "write_file"):
        telling(name)
    if shard_bytes:
        cohorts.SHARD_BYTES = shard_bytes
    shard.os = Os
    for trainer in (PlainTrainer, PopulationTrainer):
        trainer.train_epoch = slow_training(trainer.train_epoch)
    work.Work.save = save_state
    storing.seal_shard = seal_shard

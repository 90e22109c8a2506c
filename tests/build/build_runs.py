"""Builds in this process and in others, and what to compare of the zoos they leave."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fault_points
import yaml
from fault_points import Point, read_points

from zoogen.build.pipeline import BuildOptions, Outcome
from zoogen.build.pipeline import build as run_build
from zoogen.schedule import SerialExecutor, StopFlag

BLUEPRINT = {
    "zoo": "small",
    "version": 1,
    "task": {"name": "digits", "split_seed": 42},
    "architecture": {"name": "mlp", "hidden": [4]},
    "training": {"epochs": 2, "batch_size": 256, "optimizer": {"name": "adam", "lr": {"grid": [1.0e-3, 1.0e-2]}}},
    "seeds": {"range": [0, 2]},
    "resources": {"cohort": 2},
}
"""Four models in two cohorts, five steps an epoch; tests change single values by dotted key."""


def write_blueprint(path: Path, changes: dict | None = None) -> Path:
    """``BLUEPRINT`` with ``changes`` ({"training.epochs": 3}; None removes a key) as a file."""
    data = yaml.safe_load(yaml.safe_dump(BLUEPRINT))
    for key, value in (changes or {}).items():
        *parents, name = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(name, None)
        else:
            place[name] = value
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


class Recorder:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list = []
        self.notes: list[str] = []
        self.pending = 0

    def begin(self, path, plan, models, done, model_steps) -> None:
        self.pending = models

    def progress(self, progress) -> None:
        self.steps.append(progress)

    def note(self, text) -> None:
        self.notes.append(text)


def build(blueprint: Path, out: Path, *, reporter: Recorder | None = None, **options) -> Outcome:
    """One build in this process, one cohort after the other."""
    return run_build(BuildOptions(blueprint, out, **options), SerialExecutor(), reporter or Recorder(), StopFlag())


def shards(zoo: Path) -> dict[str, bytes]:
    """Every file below ``shards/``, half-written ones included."""
    root = zoo / "shards"
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def everything(zoo: Path) -> dict[str, bytes]:
    """Every file of the zoo but the lock and the token, which each builder writes."""
    files = {str(p.relative_to(zoo)): p for p in sorted(zoo.rglob("*")) if p.is_file()}
    return {name: p.read_bytes() for name, p in files.items() if name not in (".work/lock", ".work/token")}


def rows(zoo: Path) -> dict[tuple[str, int], bytes]:
    """(model id, epoch) -> its weights; fails where one is stored twice."""
    import h5py

    found: dict[tuple[str, int], bytes] = {}
    for path in sorted(zoo.glob("shards/*/weights.h5")):
        with h5py.File(path) as file:
            keys = zip(file["model_id"].asstr()[:], file["epoch"][:].tolist(), strict=True)
            for key, weights in zip(keys, file["weights"][:], strict=True):
                assert key not in found, f"{key} is stored twice"
                found[key] = weights.tobytes()
    return found


def leftovers(zoo: Path) -> list[str]:
    """Temporary files anywhere, and work of cohorts that are finished."""
    found = [p for p in zoo.rglob("*") if p.name.startswith(".tmp-")]
    return sorted(str(p.relative_to(zoo)) for p in [*found, *(zoo / ".work" / "cohorts").glob("*")])


@dataclass
class Command:
    """A ``zoogen`` command in a process of its own."""

    process: multiprocessing.process.BaseProcess
    log: Path
    points: Path

    def wait(self, seconds: float = 60) -> int:
        """Its exit code; minus the number of the signal that ended it."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s"
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text()

    def reach(self, phase: str, count: int, seconds: float = 60) -> None:
        """Wait until a thread has entered ``phase`` for the ``count``-th time."""
        self._wait_for(lambda point: point.phase == phase and point.count >= count, seconds)

    def reach_hold(self, hold: Point, seconds: float = 60) -> None:
        """Wait until a thread is where it is held."""
        self._wait_for(lambda point: point.is_at(hold), seconds)

    def _wait_for(self, there: Callable[[Point], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not any(there(point) for threads in read_points(self.points).values() for point in threads):
            assert self.process.is_alive(), self.output
            assert time.monotonic() < deadline, f"it never came: {read_points(self.points)}"
            time.sleep(0.002)


SLOW_IMPORTS = [
    "zoogen.build.pipeline", "zoogen.train.plain", "zoogen.train.run", "zoogen.store.derive", "zoogen.cli.main",
    "zoogen.cli.build", "zoogen.report.card", "zoogen.tasks", "zoogen.architectures", "pandas", "pyarrow.pandas_compat",
    "h5py", "torch._dynamo",
]  # fmt: skip


class Commands:
    """Starts commands from a server that has torch imported, so that each takes no seconds to come up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Command] = []
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(SLOW_IMPORTS)

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        for command in self._started:
            command.process.kill()
            command.process.join()

    def __call__(
        self,
        *arguments: object,
        slow: float = 0.0,
        shard_bytes: int | None = None,
        hold: Point | None = None,
        environment: dict[str, str] | None = None,
    ) -> Command:
        """Start ``zoogen *arguments``; for ``slow``, ``shard_bytes`` and ``hold`` see ``fault_points.install``."""
        number = len(self._started)
        log, points = self._folder / f"log-{number}", self._folder / f"points-{number}"
        points.mkdir()
        given = {**os.environ, **(environment or {})}
        faults = (slow, shard_bytes, hold)
        process = self._context.Process(
            target=_run, args=([str(a) for a in arguments], str(log), str(points), faults, given)
        )
        process.start()
        self._started.append(Command(process, log, points))
        return self._started[-1]


def _run(
    arguments: list[str],
    log: str,
    points: str,
    faults: tuple[float, int | None, Point | None],
    environment: dict[str, str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    fault_points.install(Path(points), *faults)
    from zoogen.cli.main import main

    sys.argv = ["zoogen", *arguments]
    main()


def call(module: str, name: str, arguments: tuple) -> None:
    """Run a function of a test file in another process, which cannot import test files by itself."""
    import importlib

    getattr(importlib.import_module(module), name)(*arguments)

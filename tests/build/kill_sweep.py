"""Kills builds on Ray (kill -9) at random moments and compares what later builds make of it with an undisturbed zoo.

``python tests/build/kill_sweep.py --kills 20 --seed 0`` prints a table. Who is killed, in which phase and after which
delay come from the seed; where the process really died comes from what it wrote itself (``fault_points``).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import psutil
from build_runs import Recorder, build, leftovers, shards, write_blueprint
from fault_points import Point, read_points

from zoogen.store.verify import verify

CHANGES = {
    "architecture.hidden": [32],
    "architecture.activation": {"grid": ["relu", "tanh"]},
    "training.epochs": 4,
    "training.batch_size": 16,
    "training.optimizer.lr": {"grid": [1.0e-3, 3.0e-3, 1.0e-2, 3.0e-2]},
    "seeds.range": [0, 4],
    "resources.cohort": 4,
}
"""32 models in 8 cohorts."""

SHARD_BYTES = 80_000
"""Two epochs of four models of 2,410 weights: three shards a cohort."""

SLOW = 0.05
"""Seconds before and after each rename: it takes microseconds, and no random moment would fall into it."""

VICTIMS = (("driver", "both", "worker"), ("both", "driver", "worker"))
"""A zoo is killed three times; a build that loses a worker only goes on by itself and completes it."""

LONGEST_DELAY = {"train": 0.3, "save": 0.02, "seal": 0.04, "rename": 0.1}


@dataclass
class Kill:
    """One kill: what was aimed at, and what it met."""

    victim: str
    phase: str
    count: int
    delay: float
    met: tuple[Point, ...] = ()
    sealed: int = 0
    outcome: str = ""

    def row(self, number: int) -> str:
        assert self.met
        moment = f"{self.phase} {self.count} + {self.delay * 1000:.0f} ms"
        met = "; ".join(f"{point.phase}: {point.detail}" for point in self.met)
        return f"| {number} | {self.victim} | {moment} | {met} | {self.sealed} | {self.outcome} |"


HEADER = "| kill | who | aimed at | died in | shards sealed then | after building again |\n|---|---|---|---|---|---|"


def draw(kills: int, seed: int) -> list[Kill]:
    """The moments of a sweep."""
    rng = random.Random(seed)
    found = []
    for number in range(kills):
        victim = VICTIMS[number // 3 % 2][number % 3]
        phase = rng.choice(["train", "train", "save", "seal", "seal", "rename", "rename"])
        count = rng.randint(1, 5 if phase in ("train", "save") else 3)
        found.append(Kill(victim, phase, count, rng.uniform(0, LONGEST_DELAY[phase])))
    return found


class RayBuild:
    """``zoogen build`` on a local Ray of two cores, in processes that say where they are."""

    def __init__(self, blueprint: Path, zoo: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.points, self._log = folder / "points", folder / "log"
        self.points.mkdir()
        told = {
            "PYTHONPATH": str(Path(__file__).parent / "faulty_site"),
            "ZOOGEN_TEST_POINTS": str(self.points),
            "ZOOGEN_TEST_SLOW": str(SLOW),
            "ZOOGEN_TEST_SHARD_BYTES": str(SHARD_BYTES),
        }
        # Not measured: the epochs of a measurement would count as training.
        options = ["-o", str(zoo), "--cpus", "2", "--trainer", "plain"]
        command = [sys.executable, "-m", "zoogen", "build", str(blueprint), *options]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, env={**os.environ, **told}, stdout=log, stderr=log)
        self.family: list[psutil.Process] = []
        self.folders: set[str] = set()

    @property
    def output(self) -> str:
        return self._log.read_text()

    def reach(self, phase: str, count: int, seconds: float = 180) -> int:
        """The process id of the first worker that enters ``phase`` for the ``count``-th time."""
        deadline = time.monotonic() + seconds
        while True:
            for pid, threads in read_points(self.points).items():
                if any(point.phase == phase and point.count >= count for point in threads):
                    return pid
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"never came to {phase} {count}\n{self.output}")
            time.sleep(0.001)

    def remember_family(self) -> None:
        """Every process of this build and Ray's folder, so that none is forgotten when the driver is gone."""
        self.family = [psutil.Process(self.process.pid)]
        self.family += self.family[0].children(recursive=True)
        for process in self.family:
            with contextlib.suppress(psutil.Error):
                self.folders |= set(re.findall(r"/tmp/zoogen-ray-\w+", " ".join(process.cmdline())))

    def clear_away(self, seconds: float = 60) -> list[psutil.Process]:
        """Wait for what a killed driver left running; returns what had to be killed, and removes Ray's own folder."""
        _, alive = psutil.wait_procs(self.family, timeout=seconds)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        return alive


def strike(run: RayBuild, kill: Kill) -> None:
    """Wait for the moment, kill, and note where the worker was."""
    pid = run.reach(kill.phase, kill.count)
    run.remember_family()
    time.sleep(kill.delay)
    if kill.victim in ("worker", "both"):
        os.kill(pid, signal.SIGKILL)
    if kill.victim in ("driver", "both"):
        os.kill(run.process.pid, signal.SIGKILL)
    kill.met = tuple(read_points(run.points)[pid])


def sweep(folder: Path, kills: list[Kill], show=lambda line: None) -> None:
    """Carry out the kills, three to a zoo; raises AssertionError where a zoo is not what it would have been."""
    blueprint = write_blueprint(folder / "blueprint.yaml", CHANGES)
    undisturbed = folder / "undisturbed"
    first = RayBuild(blueprint, undisturbed, folder / "first")
    assert first.process.wait(600) == 0, first.output
    expected = shards(undisturbed)
    assert len({name.partition("/")[0] for name in expected}) == 24
    show(HEADER)
    for start in range(0, len(kills), 3):
        chain = kills[start : start + 3]
        zoo = folder / f"zoo-{start}"
        runs = []
        code: int | None = None
        for number, kill in enumerate(chain, start):
            run = RayBuild(blueprint, zoo, folder / f"run-{number}")
            runs.append(run)
            strike(run, kill)
            kill.sealed = sum(1 for p in (zoo / "shards").iterdir() if not p.name.startswith("."))
            damaged = verify(zoo).damaged
            assert not damaged, damaged
            code = run.process.wait(600)
            # The next build starts at once, beside workers that outlive their driver.
            assert code == (0 if kill.victim == "worker" else -signal.SIGKILL), run.output
        if code != 0:
            last = RayBuild(blueprint, zoo, folder / f"last-{start}")
            assert last.process.wait(600) == 0, last.output
        report = verify(zoo)
        assert report.complete, report
        assert report.counts["models"] == 32
        assert shards(zoo) == expected, "the bytes differ from those of an undisturbed build"
        assert leftovers(zoo) == []
        reporter = Recorder()
        assert build(blueprint, zoo, reporter=reporter).exit_code == 0
        assert reporter.pending == 0
        for number, (kill, run) in enumerate(zip(chain, runs, strict=True), start):
            alive = run.clear_away()
            assert not alive, f"left running: {alive}"
            kill.outcome = "equal"
            show(kill.row(number + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kill-sweep-"))
    os.environ["ZOOGEN_CACHE"] = str(folder / "cache")
    kills = draw(given.kills, given.seed)
    try:
        sweep(folder, kills, lambda line: print(line, flush=True))
    except BaseException:
        print(f"kept for a look: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""A zoo of 1,000 models x 51 checkpoints of cnn-s (2,464 parameters): bytes on disk, seconds to open and to read.

Weights are random (they do not compress), metrics are random; the zoo is written through the store itself, 16 models
to a shard, and read through ``zoogen.open``. The page cache is warm.

    python tests/benchmarks/store.py [--models 1000] [--epochs 50] [--runs 7]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import machine, spread

BLUEPRINT = """
zoo: benchmark
version: 1
task: {{name: usps, size: 28}}
architecture: {{name: cnn-s, activation: tanh}}
training: {{epochs: {epochs}, batch_size: 10, optimizer: {{name: adam, lr: 1.0e-3}}}}
seeds: {{range: [0, {models}]}}
checkpoints: {{optimizer: none}}
"""


def write_zoo(folder: Path, models: int, epochs: int) -> float:
    """Plan, cohorts and sealed shards as a build leaves them, with made-up weights; returns the seconds to seal."""
    from zoogen.blueprint import loads
    from zoogen.build.ledger import Ledger
    from zoogen.build.manifest import make_manifest
    from zoogen.build.reconcile import Reconciled
    from zoogen.core.records import Checkpoint, CohortState
    from zoogen.plan import make_plan
    from zoogen.store.derive import rebuild_tables
    from zoogen.store.shard import seal_shard
    from zoogen.store.zoo import ZooFolder

    plan = make_plan(loads(BLUEPRINT.format(models=models, epochs=epochs)))
    reconciled = Reconciled((), np.full(len(plan), -1, np.int32)).with_new(plan, np.ones(len(plan), bool))
    zoo = ZooFolder(folder)
    zoo.create(make_manifest(plan, {}))
    Ledger(zoo, plan, reconciled).write()
    (folder / "logs").mkdir(exist_ok=True)
    token = zoo.new_token()
    rng = np.random.default_rng(0)
    layout = plan.layouts[0]
    names = ("train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc", "learning_rate", "weight_norm")
    seconds = 0.0
    for cohort in reconciled.cohorts:
        rows = len(cohort.jobs)
        made = [
            Checkpoint(
                epoch,
                cohort.model_ids,
                rng.standard_normal((rows, layout.parameters), dtype=np.float32),
                {},
                {name: rng.random(rows) for name in names} | {"test_acc_per_class": rng.random((rows, 10))},
            )
            for epoch in cohort.recording.epochs
        ]
        state = CohortState(epochs, cohort.model_ids, made[-1].weights)
        began = time.perf_counter()
        for segment in cohort.segments:
            seal_shard(folder, segment.shard_id, cohort, layout, made, state=state, token=token)
        seconds += time.perf_counter() - began
    rebuild_tables(zoo, {})
    return seconds


def timed(action: Callable[[], object], runs: int) -> dict[str, float]:
    action()
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return spread(seconds)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", type=int, default=1000)
    arguments.add_argument("--epochs", type=int, default=50)
    arguments.add_argument("--runs", type=int, default=7)
    given = arguments.parse_args()
    import zoogen

    folder = Path(tempfile.mkdtemp(prefix="zoogen-benchmark-"))
    try:
        sealing = write_zoo(folder / "zoo", given.models, given.epochs)
        raw = given.models * (given.epochs + 1) * 2464 * 4
        files = [p for p in (folder / "zoo").rglob("*") if p.is_file()]
        total = sum(p.stat().st_size for p in files)
        weights = sum(p.stat().st_size for p in files if p.name == "weights.h5")
        opened = zoogen.open(folder / "zoo")
        one = opened.models["model_id"].iloc[given.models // 2]
        last = given.epochs

        def open_tables() -> object:
            zoo = zoogen.open(folder / "zoo")
            return zoo.models, zoo.checkpoints

        def check_epoch() -> None:
            assert opened.select(epochs=last).weights().shape == (given.models, 2464)

        check_epoch()
        found = {
            "models": given.models,
            "states": given.models * (given.epochs + 1),
            "raw_bytes": raw,
            "weights_over_raw": weights / raw,
            "all_files_over_raw": total / raw,
            "files": len(files),
            "seal_seconds": sealing,
            "open_and_read_tables": timed(open_tables, given.runs),
            "one_epoch_of_all": timed(lambda: opened.select(epochs=last).weights(), given.runs),
            "one_trajectory": timed(lambda: opened.select(f"model_id == '{one}'").weights(), given.runs),
            "everything": timed(lambda: opened.select().weights(), 3),
            "machine": machine(),
        }
        print(json.dumps(found))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

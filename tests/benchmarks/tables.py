"""Select states of a zoo by a score: seconds and memory of a new process, over the number of states.

Only the tables are made up, no weights: of 1,000 and 20,000 models x 51 epochs, with eight scores and the accuracies of
ten classes per state, row groups as a build leaves them. Each number is of a process of its own, beyond its imports
(pandas and pyarrow included). The page cache is warm.

    python tests/benchmarks/tables.py [--models 1000 20000] [--runs 9] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import machine, table, told

BLUEPRINT = """
zoo: tables
version: 1
task: {{name: usps, size: 28}}
architecture: {{name: cnn-s, activation: {{grid: [tanh, relu, gelu, sigmoid]}}, dropout: {{grid: [0.0, 0.3]}}}}
training: {{epochs: 50, batch_size: 10, optimizer: {{name: adam, lr: {{grid: [1.0e-3, 1.0e-2]}}}}}}
seeds: {{range: [0, {seeds}]}}
checkpoints: {{optimizer: none}}
"""
SCORES = ("train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc", "learning_rate", "weight_norm")
ASKED = {
    "select by score and split": "z.select('test_acc > 0.5', split='train')",
    "... and where they lie": "z.select('test_acc > 0.5', split='train').states()",
    "few rows with all columns": "z.select('test_acc > 0.999').checkpoints",
    "the whole table": "z.checkpoints",
}
PROCESS = """
import gc, json, sys, time, psutil
import pandas, pyarrow.parquet, zoogen, zoogen.dataset.tables
process = psutil.Process()
before = process.memory_info().rss
began = time.perf_counter()
z = zoogen.open(sys.argv[1])
found = eval(sys.argv[2])
seconds = time.perf_counter() - began
gc.collect()
print(json.dumps([seconds, (process.memory_info().rss - before) / 1e6, len(found)]))
"""


def write_tables(folder: Path, models: int) -> None:
    """A zoo without weights; an empty folder stands for each shard."""
    import pyarrow as pa

    from zoogen.blueprint import loads
    from zoogen.build.ledger import Ledger
    from zoogen.build.manifest import make_manifest
    from zoogen.build.reconcile import Reconciled
    from zoogen.plan import make_plan
    from zoogen.store.derive import in_groups
    from zoogen.store.tables import write_parquet
    from zoogen.store.zoo import CHECKPOINTS_TABLE, MODELS_TABLE, ZooFolder

    plan = make_plan(loads(BLUEPRINT.format(seeds=models // 16)))
    reconciled = Reconciled((), np.full(len(plan), -1, np.int32)).with_new(plan, np.ones(len(plan), bool))
    zoo = ZooFolder(folder)
    zoo.create(make_manifest(plan, {}))
    Ledger(zoo, plan, reconciled).write()
    rng = np.random.default_rng(0)
    parts = []
    for cohort in reconciled.cohorts:
        ids, epochs = list(cohort.model_ids), np.array(cohort.recording.epochs, np.int32)
        for segment in cohort.segments:
            (folder / "shards" / segment.shard_id).mkdir()
            rows = len(ids) * len(epochs)
            classes = pa.array(rng.random(10 * rows))
            columns = {
                "model_id": pa.array(ids * len(epochs)),
                "epoch": pa.array(epochs.repeat(len(ids))),
                "shard_id": pa.array([segment.shard_id] * rows),
                "row": pa.array(np.arange(rows, dtype=np.int32)),
                **{name: pa.array(rng.random(rows)) for name in SCORES},
                "test_acc_per_class": pa.ListArray.from_arrays(np.arange(0, 10 * rows + 1, 10, np.int32), classes),
            }
            parts.append(pa.table(columns))
    write_parquet(folder / CHECKPOINTS_TABLE, in_groups(parts), parts[0].schema)
    about = zoo.plan_table()
    columns = {name: about[name] for name in about.column_names} | {
        "status": pa.array(["trained"] * len(about)),
        "reason": pa.nulls(len(about), pa.string()),
        "diverged_epoch": pa.nulls(len(about), pa.int32()),
        "last_epoch": pa.array(np.full(len(about), 50, np.int32)),
        **{name: pa.array(rng.random(len(about))) for name in (*SCORES, "ggap")},
    }
    models_table = pa.table(columns)
    write_parquet(folder / MODELS_TABLE, [models_table], models_table.schema)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, nargs="+", default=[1000, 20000])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where the zoos are kept, and taken from when they are there")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="zoogen-benchmark-") as temporary:
        for models in given.models:
            folder = (given.folder or Path(temporary)) / f"tables-{models}"
            if not folder.exists():
                write_tables(folder, models)
            for what, code in ASKED.items():
                seconds, megabytes = [], []
                for run in range(given.runs + 1):
                    command = [sys.executable, "-c", PROCESS, str(folder), code]
                    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    took, size, _ = json.loads(out)
                    if run:  # the first fills the page cache
                        seconds.append(took)
                        megabytes.append(size)
                rows.append([f"{models // 16 * 16 * 51:,}", what, told([1e3 * s for s in seconds]), told(megabytes)])
    print(table(["states", "asked for", "ms, median (range)", "MB"], rows))
    print(json.dumps({"n": given.runs, "machine": machine()}))


if __name__ == "__main__":
    main()

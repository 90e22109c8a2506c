"""Ten times the models: time and memory of whole builds of cnn-s on USPS in one process.

    python tests/benchmarks/growth.py --data DIR_WITH_USPS [--models 64] [--epochs 3] [--runs 3]

Each build is a process of its own (``--executor serial``), its program chosen beforehand by a first, small build.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, spread
from model_steps import BLUEPRINT, task_data


def one_build(data: Path, folder: Path, models: int, epochs: int) -> dict[str, float]:
    """Wall clock, peak memory, and seconds spent on epochs, of one build."""
    blueprint, zoo = folder / "blueprint.yaml", folder / "zoo"
    blueprint.write_text(BLUEPRINT.format(models=models, epochs=epochs, cohort=16))
    shutil.rmtree(zoo, ignore_errors=True)
    command = [sys.executable, "-m", "zoogen", "build", str(blueprint), "--out", str(zoo), "--data", str(data)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--executor", "serial"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    assert status == 0
    lines = [json.loads(line) for log in (zoo / "logs").glob("*.jsonl") for line in log.open()]
    parts = ("seconds_train", "seconds_evaluate", "seconds_store")
    epochs_done = [sum(line[part] for part in parts) for line in lines if line["event"] == "epoch"]
    return {"wall": wall, "epochs": sum(epochs_done), "peak_mb": usage.ru_maxrss / 1024}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("ZOOGEN_DATA"))
    arguments.add_argument("--models", type=int, default=64)
    arguments.add_argument("--epochs", type=int, default=3)
    arguments.add_argument("--runs", type=int, default=3)
    given = arguments.parse_args()
    if given.data is None:
        arguments.error("name the folder with the USPS files: --data DIR or ZOOGEN_DATA")
    task_data(given.data)
    sizes = (given.models, 10 * given.models)
    found: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory(prefix="zoogen-growth-") as folder:
        one_build(given.data, Path(folder), 16, 1)
        for _ in range(given.runs):
            for size in sizes:
                found[size].append(one_build(given.data, Path(folder), size, given.epochs))
                print(size, {k: round(v, 2) for k, v in found[size][-1].items()}, flush=True)
    told = {str(size): {name: spread([run[name] for run in own]) for name in own[0]} for size, own in found.items()}
    ratios = [b["epochs"] / a["epochs"] for a, b in zip(found[sizes[0]], found[sizes[1]], strict=True)]
    print(json.dumps({**told, "ratio_of_epochs": spread(ratios), "machine": machine()}))


if __name__ == "__main__":
    main()

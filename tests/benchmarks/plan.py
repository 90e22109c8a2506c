"""A plan of 1,000,000 cells: seconds and peak memory of ``zoogen plan`` as a whole process.

python tests/benchmarks/plan.py [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, spread

BLUEPRINT = """
zoo: million
version: 1
task: {name: mnist}
architecture: {name: cnn-s, activation: {grid: [tanh, relu, sigmoid, gelu]}, dropout: {grid: [0.0, 0.5]}}
training:
  epochs: 50
  batch_size: 10
  optimizer: {name: adam, lr: {grid: [1.0e-3, 1.0e-4, 1.0e-5, 1.0e-2, 1.0e-1]}, weight_decay: {grid: [1.0e-3, 1.0e-4, 0.0, 0.1, 0.01]}}
seeds: {range: [0, 5000]}
"""  # noqa: E501


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=3)
    runs = arguments.parse_args().runs
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million.yaml"
        path.write_text(BLUEPRINT)
        for _ in range(runs):
            began = time.perf_counter()
            command = [sys.executable, "-m", "zoogen", "plan", str(path), "--json"]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seconds.append(time.perf_counter() - began)
            assert json.loads(out)["total"]["models"] == 1_000_000
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"cells": 1_000_000, "seconds": spread(seconds), "peak_bytes": peak, "machine": machine()}))


if __name__ == "__main__":
    main()

"""Opening and streaming a zoo of 1,000 models x 51 checkpoints of cnn-s, beside raw h5py and beside loose files.

The zoo is written through the store itself: random weights (they do not compress), 16 models to a shard. The page cache
is warm; bytecode is compiled, as an installation has it.

- First batch: seconds from the start of a process until ``zoogen.open(...).select(split="train").stream(batch=256,
  shuffle=True)`` gives a batch, less those of a process, started just before, that only imports torch.
- Streaming: a whole epoch of all states with a target, against ``file["weights"][:]`` of every shard with h5py as it
  is, in the same process; the two take turns, and the ratio is that of neighbouring runs.
- Memory: resident set before the first batch, and how much higher it gets while an epoch is streamed, over zoo size.
- Loose files: the same states, one ``torch.save`` each, in the folders that Ray Tune leaves, read as the published
  loaders do: every file loaded and flattened before there is a first batch. Writing is not counted.

    python tests/benchmarks/open_zoo.py [--models 1000] [--epochs 51] [--runs 9] [--loose-runs 3] [--folder DIR]

The folder (default: one that is removed at the end) needs 4 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import machine, table, told

IMPORT_TORCH = "import time, torch; print(time.monotonic())"
FIRST_BATCH = """
import sys, time
import torch, zoogen
weights, about = next(iter(zoogen.open(sys.argv[1]).select(split="train").stream(batch=256, shuffle=True)))
print(time.monotonic())
assert weights.shape == (256, 2464) and len(about["model_id"]) == 256
"""
STREAM_AN_EPOCH = """
import json, sys, threading, psutil
import torch, zoogen
process = psutil.Process()
imported = process.memory_info().rss
stream = zoogen.open(sys.argv[1]).select().stream(256, "test_acc", shuffle=True)
before, peak, over = process.memory_info().rss, [0], threading.Event()
def watch():
    while not over.wait(0.002):
        peak[0] = max(peak[0], process.memory_info().rss)
watcher = threading.Thread(target=watch)
watcher.start()
states = sum(len(weights) for weights, _ in stream)
over.set()
watcher.join()
print(json.dumps({"states": states, "imported": imported, "before": before, "peak": peak[0]}))
"""
LOOSE_FILES = """
import json, resource, sys, time
from pathlib import Path
import torch
began = time.monotonic()
rows = []
for trial in sorted(Path(sys.argv[1]).iterdir()):
    for place in sorted(trial.glob("checkpoint_*")):
        state = torch.load(place / "checkpoints", map_location="cpu", weights_only=sys.argv[2] == "True")
        rows.append(torch.cat([tensor.flatten() for tensor in state.values()]))
rows = torch.stack(rows)
batch = rows[torch.randperm(len(rows))[:256]]
seconds = time.monotonic() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps([seconds, len(rows), rows.double().sum().item(), peak]))
"""


def ran(code: str, folder: Path, *arguments: object) -> str:
    """What a new process prints; its bytecode is kept in ``folder``."""
    about = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    about["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=about, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def first_batch(zoo: Path, folder: Path, runs: int) -> dict[str, list[float]]:
    """Seconds of both processes and their difference."""
    found: dict[str, list[float]] = {"import torch": [], "first batch": [], "beyond": []}
    for run in range(runs + 1):
        seconds = []
        for code in (IMPORT_TORCH, FIRST_BATCH):
            began = time.monotonic()  # one clock for all processes
            seconds.append(float(ran(code, folder, zoo)) - began)
        if run:  # the first compiles
            for name, value in zip(found, [*seconds, seconds[1] - seconds[0]], strict=True):
                found[name].append(value)
    return found


def rates(zoo: Path, runs: int) -> Iterator[tuple[str, int, list[float], list[float]]]:
    """Order, batch size, MB/s of h5py and of the stream."""
    import h5py

    import zoogen

    files = sorted((zoo / "shards").glob("*/weights.h5"))
    selection = zoogen.open(zoo).select()
    size = len(selection) * selection.layout.parameters * 4 / 1e6

    def raw() -> float:
        began = time.perf_counter()
        for path in files:
            with h5py.File(path, locking=False) as file:  # as the stream has it open, in this process
                file["weights"][:]
        return size / (time.perf_counter() - began)

    def streamed(stream: Any) -> float:
        began = time.perf_counter()
        states = sum(len(weights) for weights, _ in stream)
        assert states == len(selection)
        return size / (time.perf_counter() - began)

    for shuffle in (False, True):
        for batch in (64, 256, 1024):
            stream = selection.stream(batch, "test_acc", shuffle=shuffle)
            raw(), streamed(stream)
            turns = [(raw(), streamed(stream)) for _ in range(runs)]
            yield "shuffled" if shuffle else "in order", batch, *map(list, zip(*turns, strict=True))


def write_loose(zoo: Path, folder: Path) -> float:
    """The states of a zoo as trials of Ray Tune; returns the sum of all weights."""
    import torch

    import zoogen

    total = 0.0
    opened = zoogen.open(zoo)
    layout = opened.select().layout
    for number, one in enumerate(opened.select().iter_trajectories()):
        for epoch, row in zip(one.epochs.tolist(), torch.from_numpy(one.weights), strict=True):
            place = folder / f"NN_tune_trainable_{number:05d}" / f"checkpoint_{epoch:06d}"
            place.mkdir(parents=True)
            state = {name: tensor.clone() for name, tensor in layout.unflatten({"float32": row}).items()}
            torch.save(state, place / "checkpoints")
            total += row.double().sum().item()
    return total


def seconds_told(values: list[float]) -> str:
    return told(values, "{:.2f}".format)


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f}"


def measure(folder: Path, models: int, epochs: int, runs: int, loose_runs: int) -> None:
    from store import write_zoo

    zoo = folder / "zoo"
    write_zoo(zoo, models, epochs - 1)
    found = first_batch(zoo, folder, runs)
    print(
        table(["seconds", "median (range)"], [[name, seconds_told(values)] for name, values in found.items()]),
        flush=True,
    )

    rows = []
    for order, batch, raw, streamed in rates(zoo, runs):
        ratios = [s / r for s, r in zip(streamed, raw, strict=True)]
        rows.append([order, str(batch), told(raw), told(streamed), seconds_told(ratios)])
    print(table(["order", "batch", "h5py, MB/s", "stream, MB/s", "stream over h5py"], rows), flush=True)

    header = ["models", "states", "weights, MB", "tables, MB", "bytes per state", "streaming adds, MB"]
    print(table(header, list(memory(zoo, folder, models, epochs, runs))), flush=True)

    total = write_loose(zoo, folder / "loose")
    rows = [["zoogen", seconds_told(found["beyond"]), ""]]
    for weights_only in (False, True):
        seconds, peaks = [], []
        for _ in range(loose_runs):
            took, states, sum_of_all, peak = json.loads(ran(LOOSE_FILES, folder, folder / "loose", weights_only))
            assert states == models * epochs
            assert abs(sum_of_all - total) < 1e-6 * states
            seconds.append(took)
            peaks.append(peak)
        rows.append([f"loose files, weights_only={weights_only}", seconds_told(seconds), megabytes(max(peaks))])
    rows[0][2] = megabytes(json.loads(ran(STREAM_AN_EPOCH, folder, zoo))["peak"])
    print(table(["way", "first batch, s beyond the import of torch", "peak memory, MB (torch included)"], rows))
    print(json.dumps({"models": models, "epochs": epochs, "n": runs, "n_loose": loose_runs, "machine": machine()}))


def memory(zoo: Path, folder: Path, models: int, epochs: int, runs: int) -> Iterator[list[str]]:
    from store import write_zoo

    for count in (models // 4, models, 4 * models):
        own = zoo if count == models else folder / f"zoo-{count}"
        if own != zoo:
            write_zoo(own, count, epochs - 1)
        each = [json.loads(ran(STREAM_AN_EPOCH, folder, own)) for _ in range(max(1, runs // 3))]
        states = each[0]["states"]
        assert states == count * epochs
        tables = statistics.median(one["before"] - one["imported"] for one in each)
        added = told([(one["peak"] - one["before"]) / 1e6 for one in each])
        yield [
            f"{count:,}",
            f"{states:,}",
            megabytes(states * 2464 * 4),
            megabytes(tables),
            f"{tables / states:,.0f}",
            added,
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=51, help="checkpoints per model, the initial state included")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--loose-runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="work here (it must be empty) and keep everything")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zoogen-benchmark-") as temporary:
        folder = options.folder or Path(temporary)
        measure(folder, options.models, options.epochs, options.runs, options.loose_runs)


if __name__ == "__main__":
    main()

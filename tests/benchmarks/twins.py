"""Sparse twins per hour: ``zoogen sparsify``, start to sealed shards, against a plain loop over models.

The loop is what one writes with torch: ``torch.nn.utils.prune`` (or noisy layers with torch's own random numbers), data
in memory, an index per batch, ``torch.optim``, evaluation of validation and test part after every epoch; one process
per core. It gets fewer twins, and its start-up is not counted. Both train cnn-s on USPS at batch 10 with Adam, from
parents of the same zoo. The ways take turns, ``--runs`` times.

    python tests/benchmarks/twins.py --data DIR [--runs 3] [--twins 48] [--epochs 5]

DIR holds USPS.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine, spread

PARENTS = """\
zoo: parents
version: 1
task: {name: usps, size: 28, split_seed: 42}
architecture: {name: cnn-s, activation: tanh}
training: {epochs: 2, batch_size: 10, optimizer: {name: adam, lr: 3.0e-4, weight_decay: 1.0e-3}}
seeds: {range: [0, 48]}
checkpoints: {epochs: [2]}
"""
SPARSITY = 0.8
METHODS = ("magnitude", "variational-dropout")


def with_zoogen(method: str, parents: Path, out: Path, twins: int, epochs: int, data: Path) -> float:
    """Seconds of the whole command."""
    command = [sys.executable, "-m", "zoogen", "sparsify", str(parents), "--method", method, "--out", str(out)]
    command += ["--epochs", str(epochs), "--sample", str(twins), "--data", str(data)]
    command += ["--sparsity", str(SPARSITY)] if method == "magnitude" else []
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):  # 3: a sample of the plan is not all of it
        raise SystemExit(done.stderr)
    return time.perf_counter() - began


def loop(method: str, parents: Path, models: list[str], epochs: int, data: Path, seconds: Any) -> None:
    """Train these twins one after the other; puts the seconds into a queue."""
    import torch

    import zoogen
    from zoogen.core.registry import TASKS
    from zoogen.tasks.places import cache_root

    torch.set_num_threads(1)
    zoo = zoogen.open(parents)
    loaded = TASKS.make("usps", {"size": 28, "split_seed": 42}).load(data, cache_root())
    parts = {}
    for part in ("train", "val", "test"):
        inputs, targets = loaded.tensors(part, "cpu")
        parts[part] = loaded.prepare(inputs), targets
    began = time.perf_counter()
    for model_id in models:
        train_one(zoo.module(model_id), method, parts, epochs)
    seconds.put(time.perf_counter() - began)


def train_one(module: Any, method: str, parts: Any, epochs: int) -> None:
    import torch
    from torch.nn.utils import prune

    from zoogen.train.sparsify.methods import VariationalDropout
    from zoogen.train.sparsify.variational import convert, kl_term, variational_layers

    noisy: list[Any] = []
    if method == "magnitude":
        layers = [(m, "weight") for m in module.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        prune.global_unstructured(layers, prune.L1Unstructured, amount=SPARSITY)
    else:
        module = convert(module, VariationalDropout())
        noisy = variational_layers(module)
        for layer in noisy:
            layer.noise.draw = torch.randn_like
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-4, weight_decay=1e-3)
    inputs, targets = parts["train"]
    for epoch in range(epochs):
        module.train()
        for batch in torch.randperm(len(targets)).split(10):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(inputs[batch]), targets[batch])
            if noisy and epoch:
                loss = loss + 0.01 * epoch / epochs * kl_term(noisy)
            loss.backward()
            optimizer.step()
        module.eval()
        with torch.no_grad():
            for part in ("val", "test"):
                images, labels = parts[part]
                torch.cat([module(some) for some in images.split(512)]).argmax(1).eq(labels).sum()


def with_loop(method: str, parents: Path, models: list[str], epochs: int, data: Path) -> float:
    """Seconds of the slowest process, one per core."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    cores = os.cpu_count() or 1
    shares = [models[core::cores] for core in range(cores)]
    running = [context.Process(target=loop, args=(method, parents, own, epochs, data, queue)) for own in shares if own]
    for process in running:
        process.start()
    found = max(queue.get() for _ in running)
    for process in running:
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--twins", type=int, default=48, help="made by zoogen")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    rates: dict[str, dict[str, list[float]]] = {m: {"zoogen": [], "loop": []} for m in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        blueprint, parents = Path(folder) / "parents.yaml", Path(folder) / "parents"
        blueprint.write_text(PARENTS)
        command = [sys.executable, "-m", "zoogen", "build", str(blueprint), "--out", str(parents)]
        subprocess.run([*command, "--data", str(options.data)], check=True)
        import zoogen

        some = zoogen.open(parents).models.model_id[: 2 * (os.cpu_count() or 1)].tolist()
        for run in range(options.runs):
            for method in METHODS:
                out = Path(folder) / f"{method}-{run}"
                seconds = with_zoogen(method, parents, out, options.twins, options.epochs, options.data)
                rates[method]["zoogen"].append(3600 * options.twins / seconds)
                seconds = with_loop(method, parents, some, options.epochs, options.data)
                rates[method]["loop"].append(3600 * len(some) / seconds)
                print({way: round(own[-1]) for way, own in rates[method].items()}, method, flush=True)
    summary = {
        method: {
            **{way: spread(own) for way, own in ways.items()},
            "ratio": statistics.median(a / b for a, b in zip(ways["zoogen"], ways["loop"], strict=True)),
        }
        for method, ways in rates.items()
    }
    print(json.dumps({"epochs": options.epochs, "twins_per_hour": summary, "machine": machine()}))


if __name__ == "__main__":
    main()

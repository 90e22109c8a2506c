"""Model-steps per second for cnn-s at batch 10 on USPS: zoogen, a plain PyTorch loop, one Ray Tune trial per model.

All three train the same 20 models (tanh, kaiming_uniform, Adam 1e-3) for 3 epochs of 600 steps on all cores and keep
every epoch's weights. ``loop`` is the least one can write: data in memory, one process per core, no evaluation, no
storing; ``tune`` evaluates and checkpoints each epoch in a trial of its own, as the older repositories run it.

    python tests/benchmarks/model_steps.py --data DIR_WITH_USPS [--runs 3] [--models 20] [--epochs 3] [--skip tune]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from machine import machine, spread

BLUEPRINT = """
zoo: benchmark
version: 1
task: {{name: usps, size: 28}}
architecture: {{name: cnn-s, activation: tanh, init: kaiming_uniform}}
training: {{epochs: {epochs}, batch_size: 10, optimizer: {{name: adam, lr: 1.0e-3}}}}
seeds: {{range: [0, {models}]}}
resources: {{cohort: {cohort}}}
"""


def task_data(data: Path):
    from zoogen.core.registry import TASKS
    from zoogen.tasks.places import cache_root

    return TASKS.make("usps", {"size": 28}).load(data, cache_root())


def model_and_data(data: Path, seed: int):
    """The network zoogen would make for this seed, and the prepared training part."""
    from zoogen.core.modules import build_model
    from zoogen.core.registry import ARCHITECTURES

    loaded = task_data(data)
    inputs, targets = loaded.tensors("train", "cpu")
    architecture = ARCHITECTURES.make("cnn-s", {"activation": "tanh", "init": "kaiming_uniform"})
    return build_model(architecture, (1, 28, 28), 10, seed), loaded.prepare(inputs), targets


def train_loop(data: Path, seeds: list[int], epochs: int) -> tuple[int, float]:
    """Steps done and seconds spent in the plainest loop, start-up of the process not counted."""
    import torch

    torch.set_num_threads(1)
    steps = 0
    seconds = 0.0
    for seed in seeds:
        model, inputs, targets = model_and_data(data, seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        began = time.perf_counter()
        for _ in range(epochs):
            for batch in torch.randperm(len(targets)).split(10):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
                optimizer.step()
                steps += 1
        seconds += time.perf_counter() - began
    return steps, seconds


def time_loop(data: Path, models: int, epochs: int) -> dict[str, float]:
    """One process per core, each training its share of the models."""
    cores = os.cpu_count() or 1
    shares = [list(range(core, models, cores)) for core in range(cores)]
    context = multiprocessing.get_context("spawn")
    began = time.perf_counter()
    with ProcessPoolExecutor(cores, mp_context=context) as pool:
        done = list(pool.map(train_loop, [data] * cores, shares, [epochs] * cores))
    wall = time.perf_counter() - began
    return {"wall": wall, "training": max(s for _, s in done), "steps": sum(n for n, _ in done)}


def time_zoogen(data: Path, models: int, epochs: int) -> dict[str, float]:
    """A whole build with Ray, from the command's start to the finished tables."""
    from zoogen.build.pipeline import BuildOptions, build
    from zoogen.cli.progress import reporter
    from zoogen.schedule import StopFlag
    from zoogen.schedule.ray import RayExecutor

    folder = Path(tempfile.mkdtemp(prefix="zoogen-benchmark-"))
    try:
        cohort = max(1, min(16, models // (2 * (os.cpu_count() or 1))))
        blueprint = folder / "blueprint.yaml"
        blueprint.write_text(BLUEPRINT.format(models=models, epochs=epochs, cohort=cohort))
        stop = StopFlag()
        began = time.perf_counter()
        with reporter(stop) as shown:
            outcome = build(BuildOptions(blueprint, folder / "zoo", data=data), RayExecutor(), shown, stop)
        wall = time.perf_counter() - began
        assert outcome.trained == models
        timing = [json.loads(line) for log in (folder / "zoo/logs").glob("*.jsonl") for line in log.open()]
        epochs_done = [t for t in timing if t["event"] == "epoch"]
        parts = {
            key: sum(t[key] for t in epochs_done) for key in ("seconds_train", "seconds_evaluate", "seconds_store")
        }
        first = min(t["time"] - t["seconds_train"] - t["seconds_evaluate"] - t["seconds_store"] for t in epochs_done)
        busy = max(t["time"] for t in epochs_done) - first
        return {"wall": wall, "training": busy, "steps": outcome.model_steps, **parts}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tune_trial(config: dict[str, object]) -> None:
    """One model as one trial: train, evaluate, checkpoint every epoch."""
    import torch
    from ray import tune

    torch.set_num_threads(1)
    data = Path(str(config["data"]))
    model, inputs, targets = model_and_data(data, int(str(config["seed"])))
    loaded = task_data(data)
    test_inputs, test_targets = loaded.tensors("test", "cpu")
    test_inputs = loaded.prepare(test_inputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(int(str(config["epochs"]))):
        for batch in torch.randperm(len(targets)).split(10):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        with torch.inference_mode():
            accuracy = (model(test_inputs).argmax(1) == test_targets).float().mean().item()
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, Path(folder) / "checkpoint")
            tune.report({"test_acc": accuracy}, checkpoint=tune.Checkpoint.from_directory(folder))


def time_tune(data: Path, models: int, epochs: int) -> dict[str, float]:
    """Wall clock of ``Tuner.fit`` with one trial per model, one CPU each, Ray's start included."""
    import ray
    from ray import tune

    folder = tempfile.mkdtemp(prefix="zoogen-benchmark-tune-")
    here = str(Path(__file__).parent)
    began = time.perf_counter()
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": {"PYTHONPATH": here}},
        )
        space = {"seed": tune.grid_search(list(range(models))), "epochs": epochs, "data": str(data)}
        tuner = tune.Tuner(
            tune.with_resources(tune_trial, {"cpu": 1}),
            param_space=space,
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        results = tuner.fit()
        wall = time.perf_counter() - began
        assert not results.errors, results.errors
        return {"wall": wall, "training": wall, "steps": float(models * epochs * 600)}
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


WAYS = {"zoogen": time_zoogen, "loop": time_loop, "tune": time_tune}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, default=os.environ.get("ZOOGEN_DATA"))
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--models", type=int, default=20)
    arguments.add_argument("--epochs", type=int, default=3)
    arguments.add_argument("--skip", action="append", default=[], choices=WAYS)
    arguments.add_argument("--only", choices=WAYS, help="One run of one way, in this process.")
    given = arguments.parse_args()
    if given.only:
        print(json.dumps(WAYS[given.only](given.data, given.models, given.epochs)))
        return
    if given.data is None:
        arguments.error("name the folder with the USPS files: --data DIR or ZOOGEN_DATA")
    task_data(given.data)  # decoded once, before any clock runs
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS if name not in given.skip}
    sizes = ["--data", str(given.data), "--models", str(given.models), "--epochs", str(given.epochs)]
    for _ in range(given.runs):  # in turn, so that a drift of the machine meets all alike
        for name in runs:  # a process each: a second local Ray in one process does not start
            command = [sys.executable, __file__, "--only", name, *sizes]
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            runs[name].append(json.loads(out.splitlines()[-1]))
            print(name, {k: round(v, 2) for k, v in runs[name][-1].items()}, flush=True)
    found: dict[str, object] = {"models": given.models, "epochs": given.epochs, "machine": machine()}
    for name, own in runs.items():
        found[name] = {
            "steps_per_second_training": spread([r["steps"] / r["training"] for r in own]),
            "steps_per_second_wall": spread([r["steps"] / r["wall"] for r in own]),
            "wall": spread([r["wall"] for r in own]),
        }
    if "zoogen" in runs:
        shares = [1 - r["seconds_train"] / (r["training"] * (os.cpu_count() or 1)) for r in runs["zoogen"]]
        found["share_of_worker_time_outside_train_epoch"] = spread(shares)
        for part in ("seconds_evaluate", "seconds_store"):
            total = [sum(r[p] for p in ("seconds_train", "seconds_evaluate", "seconds_store")) for r in runs["zoogen"]]
            found[f"share_{part}"] = spread([r[part] / t for r, t in zip(runs["zoogen"], total, strict=True)])
    print(json.dumps(found))


if __name__ == "__main__":
    main()

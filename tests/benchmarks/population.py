"""Model-steps per second of each way to train the same models: plain loop, plain trainer, native and stacked engine.

On a CPU every core runs a process of its own, all at once, for ``--seconds`` each; the ways take turns, so that a drift
of the machine meets all alike. ``loop`` is the least one can write with torch: data in memory, an index per batch,
``torch.optim``. On a GPU the stacked engine runs at M = 1, 16, 64, 256, 1024 and 4096 models beside one eager model at
a time, with the share of the fp32 roofline and the time that each CNN zoo of 2022 would take.

    python tests/benchmarks/population.py --data DIR [--device cpu|cuda] [--runs 5] [--seconds 2] [--only NET ...]

DIR holds USPS and ``cifar10-images.tar.gz``.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine, spread


@dataclass(frozen=True)
class Net:
    """What is trained: an architecture on a task, with Adam or SGD at a batch size."""

    architecture: str
    arguments: dict[str, Any]
    task: str
    batch_size: int
    models: int = 16


def resnet(width: int) -> Net:
    return Net("resnet18", {"width": width}, "cifar32", 10, models=8)


NETS = {
    "cnn-s": Net("cnn-s", {"activation": "tanh"}, "usps", 10),
    "cnn-s-rgb": Net("cnn-s", {"activation": "tanh"}, "cifar28", 10),
    "cnn-l": Net("cnn-l", {"activation": "tanh"}, "cifar32", 10),
    "mlp": Net("mlp", {"hidden": [32, 16]}, "digits", 64),
    **{f"resnet18-w{width}": resnet(width) for width in (2, 4, 8, 16)},
}
WAYS = ("loop", "plain", "stacked", "native")

MODELS_AT_ONCE = (1, 16, 64, 256, 1024, 4096)


class Few:
    """A task with fewer training samples, so that an epoch takes a fraction of a second."""

    def __init__(self, data: Any, samples: int) -> None:
        self._data, self._samples = data, samples
        self.outputs = data.outputs

    def size(self, part: str) -> int:
        return min(self._samples, self._data.size(part))

    def tensors(self, part: str, device: Any) -> Any:
        inputs, targets = self._data.tensors(part, device)
        return inputs[: self._samples], targets[: self._samples]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def cifar_task(data: Path, size: int) -> tuple[Any, Path]:
    """Every 50th CIFAR-10 image of the archive, as an image folder in the cache, unpacked once; and its data root."""
    from zoogen.core.registry import TASKS
    from zoogen.tasks.places import cache_root

    folder = cache_root() / "benchmark-cifar10"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unpacked = Path(tempfile.mkdtemp(dir=folder.parent))
        with tarfile.open(data / "cifar10-images.tar.gz") as archive:
            for number, member in enumerate(m for m in archive if m.isfile()):
                if number % 50 == 0:
                    archive.extract(member, unpacked, filter="data")
        unpacked.rename(folder)
    counts = {part: sum(1 for f in (folder / part).rglob("*") if f.is_file()) for part in ("train", "test")}
    settings = {"folder": folder.name, "classes": 10, "size": size, **counts}
    return TASKS.make("image-folder", settings), folder.parent


def load_task(name: str, data: Path) -> tuple[Any, Any]:
    """The task and its loaded data."""
    from zoogen.core.registry import TASKS
    from zoogen.tasks.places import cache_root

    if name.startswith("cifar"):
        task, root = cifar_task(data, int(name.removeprefix("cifar")))
        return task, task.load(root, cache_root())
    task = TASKS.make(name, {"size": 28} if name == "usps" else {})
    return task, task.load(data, cache_root())


def make_cohort(net: Net, task: Any, models: int, first_seed: int = 0) -> Any:
    from zoogen.core.modules import describe
    from zoogen.core.recipe import Training
    from zoogen.core.records import Cohort, Job, Recording, Seeds
    from zoogen.core.registry import ARCHITECTURES
    from zoogen.train.optimizers import Adam
    from zoogen.train.schedules import Constant

    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in net.arguments.items()}
    architecture = ARCHITECTURES.make(net.architecture, arguments)
    training = Training(10**6, net.batch_size, Adam(lr=1e-3), Constant())
    jobs = tuple(
        Job(f"model-{s}", architecture, task, training, Seeds(s, s, s, s))
        for s in range(first_seed, first_seed + models)
    )
    layout = describe(architecture, task.input_shape, task.outputs)
    return Cohort("benchmark", jobs, 10**6, Recording((0,)), (), layout.layout_id)


def make_trainer(way: str, cohort: Any, data: Any, device: str) -> Any:
    import torch

    from zoogen.tasks.places import cache_root
    from zoogen.train.plain import PlainTrainer
    from zoogen.train.population.engines import Wanted, make_engine
    from zoogen.train.population.trainer import PopulationTrainer

    if way == "plain":
        return PlainTrainer(cohort, data, device)
    models = len(cohort.jobs)
    wanted = Wanted(cohort.jobs[0], data, torch.device(device), cache_root() / "kernels", 1, {}, models)
    return PopulationTrainer(cohort, data, device, make_engine(way, wanted))


class Loop:
    """The plainest loop over models, one after another."""

    def __init__(self, cohort: Any, data: Any, device: str) -> None:
        import torch

        from zoogen.core.modules import build_model

        self._batch = cohort.jobs[0].training.batch_size
        inputs, self._targets = data.tensors("train", device)
        self._inputs = data.prepare(inputs)
        self._models = []
        for job in cohort.jobs:
            model = build_model(job.architecture, job.task.input_shape, job.task.outputs, job.seeds.init).to(device)
            self._models.append((model, torch.optim.Adam(model.parameters(), lr=1e-3)))
        self.steps_per_epoch = -(-len(self._targets) // self._batch)

    def train_epoch(self, _: Any) -> None:
        import torch

        for model, optimizer in self._models:
            for batch in torch.randperm(len(self._targets), device=self._targets.device).split(self._batch):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(self._inputs[batch]), self._targets[batch])
                loss.backward()
                optimizer.step()


def rate(way: str, net: Net, data: Path, device: str, seconds: float, seed: int, models: int, wait: Any) -> float:
    """Model-steps per second of one process, warm-up excluded; 0 where the way cannot train these models."""
    import torch

    from zoogen.train.population.engine import Unsupported

    torch.set_num_threads(1)
    task, loaded = load_task(net.task, data)
    few = Few(loaded, 20 * net.batch_size)
    own = 1 if way in ("loop", "plain") else models
    cohort = make_cohort(net, task, own, seed)
    try:
        trainer = Loop(cohort, few, device) if way == "loop" else make_trainer(way, cohort, few, device)
        trainer.train_epoch(lambda: False)
        trainer.train_epoch(lambda: False)
    except Unsupported as reason:
        print(f"{way}: {reason}", flush=True)
        wait()
        return 0.0
    synchronize(device)
    wait()
    steps, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        trainer.train_epoch(lambda: False)
        synchronize(device)
        steps += own * trainer.steps_per_epoch
    return steps / elapsed


def synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _in_process(way: str, net: Net, data: Path, seconds: float, seed: int, barrier: Any, results: Any) -> None:
    results.put(rate(way, net, data, "cpu", seconds, seed, net.models, barrier.wait))


def on_all_cores(way: str, net: Net, data: Path, seconds: float) -> float:
    """Sum of the rates of one process per core."""
    context = multiprocessing.get_context("spawn")
    cores = os.cpu_count() or 1
    barrier, results = context.Barrier(cores), context.Queue()
    processes = [
        context.Process(target=_in_process, args=(way, net, data, seconds, 100 * core, barrier, results))
        for core in range(cores)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"{way}: a process ended with exit code {process.exitcode}")
    return sum(results.get() for _ in processes)


def evaluated_per_second(way: str, net: Net, data: Path, device: str) -> float:
    """Samples times models that one process evaluates per second."""
    import torch

    torch.set_num_threads(1)
    task, loaded = load_task(net.task, data)
    trainer = make_trainer(way, make_cohort(net, task, net.models), loaded, device)
    ids = tuple(f"model-{m}" for m in range(net.models))
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        trainer.checkpoint(ids)  # of the initial state: all three parts
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    samples = sum(loaded.size(part) for part in ("train", "val", "test"))
    return net.models * samples / statistics.median(seconds)


def projected_hours(steps: dict[str, float], evaluated: dict[str, float]) -> dict[str, float]:
    """Hours that each CNN zoo of 2022 would take, from model-steps and evaluated samples per second of its network."""
    from zoogen.blueprint import load
    from zoogen.plan import make_plan

    hours = {}
    for file in sorted((Path(__file__).parents[2] / "blueprints" / "model-zoos-2022").glob("*.yaml")):
        plan = make_plan(load(file, ()))
        seconds = 0.0
        for group in plan.groups:
            name = group.architecture.registered_name + ("-rgb" * (group.task.input_shape == (3, 28, 28)))
            if name not in steps:
                break
            train, val, test = group.task.sizes
            n = len(group)
            seconds += n * group.training.epochs * group.training.steps_per_epoch(train) / steps[name]
            seconds += n * (len(group.recording.epochs) * (val + test) + train) / evaluated[name]
        else:
            hours[file.stem] = seconds / 3600
    return hours


def flops_per_step(net: Net, data: Path) -> float:
    """Multiplications and additions of forward and backward pass of one step, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    task, loaded = load_task(net.task, data)
    job = make_cohort(net, task, 1).jobs[0]
    model = job.architecture.build(task.input_shape, task.outputs)
    inputs, targets = loaded.tensors("train", "cpu")
    with FlopCounterMode(display=False) as counter:
        outputs = model(loaded.prepare(inputs[: net.batch_size]))
        torch.nn.functional.cross_entropy(outputs, targets[: net.batch_size]).backward()
    return float(counter.get_total_flops())


def matrix_product_flops(device: str, size: int) -> float:
    """FLOP/s of a float32 matrix product, one CPU core or the GPU: the practical roofline."""
    import torch

    torch.set_num_threads(1)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronize(device)
        began = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def on_cpu(nets: list[str], data: Path, runs: int, seconds: float, ways: list[str]) -> dict[str, Any]:
    cores = os.cpu_count() or 1
    roofline = matrix_product_flops("cpu", 1024)
    found: dict[str, Any] = {"matrix_product_gflops_per_core": roofline / 1e9}
    for name in nets:
        net = NETS[name]
        work = flops_per_step(net, data)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(runs):
            for way in ways:
                if not rates[way] or rates[way][-1] > 0:
                    rates[way].append(on_all_cores(way, net, data, seconds))
        found[name] = {"mflop_per_step": work / 1e6}
        for way, own in rates.items():
            middle = statistics.median(own)
            found[name][way] = {
                **spread(own),
                "over_loop": middle / statistics.median(rates.get("loop", [math.nan])),
                "share_of_matrix_product": middle * work / (cores * roofline),
            }
        print(name, json.dumps(found[name]), flush=True)
    best = {name: max(own[way]["median"] for way in ways) for name, own in found.items() if name in NETS}
    zoos = [name for name in best if name.startswith("cnn")]
    evaluated = {name: cores * evaluated_per_second("native", NETS[name], data, "cpu") for name in zoos}
    found["evaluated_samples_per_second"] = evaluated
    found["projected_hours"] = projected_hours(best, evaluated)
    return found


def on_cuda(nets: list[str], data: Path, runs: int, seconds: float) -> dict[str, Any]:
    roofline = matrix_product_flops("cuda", 8192)
    found: dict[str, Any] = {"matrix_product_tflops": roofline / 1e12}
    for name in nets:
        net = NETS[name]
        work = flops_per_step(net, data)
        eager = [rate("loop", net, data, "cuda", seconds, 0, 1, lambda: None) for _ in range(runs)]
        found[name] = {"mflop_per_step": work / 1e6, "one eager model": spread(eager)}
        for models in MODELS_AT_ONCE:
            own = [rate("stacked", net, data, "cuda", seconds, 0, models, lambda: None) for _ in range(runs)]
            middle = statistics.median(own)
            found[name][f"M={models}"] = {
                **spread(own),
                "over_eager": middle / statistics.median(eager),
                "share_of_matrix_product": middle * work / roofline,
            }
        print(name, json.dumps(found[name]), flush=True)
    best = {
        name: max(own[f"M={models}"]["median"] for models in MODELS_AT_ONCE)
        for name, own in found.items()
        if name in NETS
    }
    zoos = [name for name in best if name.startswith("cnn")]
    evaluated = {name: evaluated_per_second("stacked", NETS[name], data, "cuda") for name in zoos}
    found["evaluated_samples_per_second"] = evaluated
    found["projected_hours"] = projected_hours(best, evaluated)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("ZOOGEN_DATA"))
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=2.0)
    arguments.add_argument("--only", nargs="+", choices=NETS, default=list(NETS))
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="On a CPU.")
    given = arguments.parse_args()
    if given.data is None:
        arguments.error("name the folder with USPS and cifar10-images.tar.gz: --data DIR or ZOOGEN_DATA")
    data = Path(given.data).absolute()
    for name in given.only:
        load_task(NETS[name].task, data)  # decoded once, before any clock runs
    if given.device == "cuda":
        found = on_cuda(given.only, data, given.runs, given.seconds)
    else:
        found = on_cpu(given.only, data, given.runs, given.seconds, given.ways)
    print(json.dumps({"machine": machine(), **found}))


if __name__ == "__main__":
    main()

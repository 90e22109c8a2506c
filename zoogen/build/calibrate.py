"""How long a plan would take on this machine, from a short run of a cohort of each kind on made-up data."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import numpy as np

from zoogen.core.layout import Layout
from zoogen.core.records import Cohort, Recording
from zoogen.plan import Plan
from zoogen.plan.cells import Group
from zoogen.plan.cohorts import cohort_size
from zoogen.tasks.places import cache_root

SECONDS = 1.0
"""Measured per kind of model, after a warm-up step."""

_SAMPLES = 512


def estimate_seconds(plan: Plan, workers: int | None = None) -> float:
    """Training and evaluation seconds of the whole plan on ``workers`` cores (default: all of this machine).

    A cohort of each kind (architecture, batch size, optimizer, task shape) is trained for about a second on random
    images of the task's shape, with the program a build would choose, and evaluated once; the rest is multiplication.
    Start-up and storing are not counted: they are below a tenth of the time of any zoo that is worth an estimate.
    """
    kinds: dict[tuple[Any, ...], tuple[float, float]] = {}
    seconds = 0.0
    cores = workers or os.cpu_count() or 1
    for group, layout in zip(plan.groups, plan.layouts, strict=True):
        key = (
            layout.layout_id,
            group.training.batch_size,
            group.training.optimizer.registered_name,
            group.task.input_shape,
        )
        if key not in kinds:
            kinds[key] = _measure(group, layout)
        per_step, per_sample = kinds[key]
        train, val, test = group.task.sizes
        steps = group.training.epochs * group.training.steps_per_epoch(train)
        evaluated = len(group.recording.epochs) * (val + test)
        parallel = max(1.0, cores / max(1.0, group.resources.cpus))
        seconds += len(group) * (steps * per_step + evaluated * per_sample) / parallel
    return seconds


def _measure(group: Group, layout: Layout) -> tuple[float, float]:
    """Seconds per optimizer step, and per evaluated sample, of one model on one core."""
    import torch

    from zoogen.train.population.choice import Choice, choose_program, make_trainer

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(group.resources.cpus)))
    try:
        data = _RandomImages(group)
        models = min(len(group), cohort_size(group, layout))
        jobs = tuple(
            replace(job, training=replace(job.training, epochs=10**6)) for job in map(group.job, range(models))
        )
        resources = replace(group.resources, compile=False)
        cohort = Cohort("calibration", jobs, 10**6, Recording((0,), "none"), (), layout.layout_id, resources)
        cache = cache_root() / "kernels"
        program = choose_program(Choice(cohort, data, "cpu", cache))
        trainer = make_trainer(cohort, data, "cpu", program, cache)
        trainer.train_epoch(lambda: False)  # warm-up
        began, epochs = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < SECONDS:
            trainer.train_epoch(lambda: False)
            epochs += 1
        per_step = elapsed / max(1, epochs * data.steps * models)
        living = tuple(m for m in cohort.model_ids if m not in trainer.diverged)
        began = time.perf_counter()
        if living:
            trainer.checkpoint(living)
        return per_step, (time.perf_counter() - began) / (2 * data.samples * max(1, len(living)))
    finally:
        torch.set_num_threads(threads)


class _RandomImages:
    """A task's shape with made-up samples: enough for a few steps, prepared as images are."""

    fingerprint = "calibration"

    def __init__(self, group: Group) -> None:
        import torch

        batch = group.training.batch_size
        self.samples = max(batch, min(_SAMPLES, 16 * batch))
        self.steps = group.training.steps_per_epoch(self.samples)
        self.outputs = group.task.outputs
        rng = torch.Generator().manual_seed(0)
        shape = (self.samples, *group.task.input_shape)
        self._inputs = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
        self._targets = torch.randint(0, self.outputs, (self.samples,), generator=rng)

    def size(self, part: str) -> int:
        return self.samples

    def split(self) -> dict[Any, np.ndarray]:
        return {part: np.arange(self.samples) for part in ("train", "val", "test")}

    def tensors(self, part: str, device: Any) -> tuple[Any, Any]:
        return self._inputs.to(device), self._targets.to(device)

    def prepare(self, inputs_B: Any) -> Any:
        return inputs_B.float().mul_(1 / 128).sub_(1)

    def augment(self, inputs_KB: Any, keys_K: Any, steps_K: Any) -> Any:
        return inputs_KB

    def loss(self, outputs_BC: Any, targets_B: Any, label_smoothing: float = 0.0) -> Any:
        import torch

        return torch.nn.functional.cross_entropy(
            outputs_BC, targets_B, reduction="none", label_smoothing=label_smoothing
        )

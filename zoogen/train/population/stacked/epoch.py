"""What drives one epoch of a block of models, from their jobs: orders, keys, learning rates, settings of each model.

Shape suffixes: M models, N samples of the training part, S steps of the epoch, L dropout or variational layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoogen.core import streams
from zoogen.core.records import Job
from zoogen.train.population.stacked.dropout import thresholds_and_scales
from zoogen.train.population.stacked.optimizers import columns
from zoogen.train.population.steps import learning_rates, step_keys, stream_keys

_SORTED_AT_ONCE = 256
"""Models whose orders are made together; bounds memory."""


def orders(jobs: Sequence[Job], epoch: int, samples: int, device: torch.device) -> Tensor:
    """What ``steps.epoch_orders`` gives, made on the device: a millisecond per model on a CPU core would be as much as
    a GPU needs for its epoch. int64 [M, N]."""
    keys_M1 = torch.as_tensor(streams.subkey(stream_keys(jobs, "order").to(device), epoch))[:, None]
    places_N = torch.arange(samples, device=device)
    parts = [streams.bits(keys, places_N).argsort(dim=1, stable=True) for keys in keys_M1.split(_SORTED_AT_ONCE)]
    return torch.cat(parts)


class Epoch:
    """The epoch after ``epoch`` completed ones.

    Args:
        rates_ML: Of dropout layers.
        noisy: Number of variational layers.

    Attributes:
        jobs: The models.
        steps: Optimizer steps.
        tensors: All that varies between models, steps or epochs, by name, on the device. What none of the models
            uses (momentum, clipping, a dropout layer, a KL term of weight 0) has no tensor, and costs nothing.
        program: What a step does with the tensors: steps of equal programs differ in the tensors' values only.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        epoch: int,
        samples: int,
        rates_ML: Sequence[Sequence[float]],
        device: torch.device,
        noisy: int = 0,
    ) -> None:
        self.jobs = jobs
        self.steps = jobs[0].training.steps_per_epoch(samples)
        first = epoch * self.steps
        lr_MS, momentum_MS = learning_rates(jobs, first, self.steps, self.steps)
        self.last_learning_rates = lr_MS[:, -1].clone()
        tensors: dict[str, Tensor] = {
            "order_MN": orders(jobs, epoch, samples, device),
            "first_step": torch.tensor([first]),
            "augment_keys_M": stream_keys(jobs, "augment"),
            "lr_MS": lr_MS,
            **columns([job.training.optimizer for job in jobs]),
            **self._dropout(rates_ML, first),
            **self._noise(noisy, first),
        }
        if momentum_MS is not None:
            tensors["momentum_MS"] = momentum_MS
        if noisy and any(weights := [_kl_weight(job, epoch, samples) for job in jobs]):
            tensors["kl_weights_M"] = torch.tensor(weights, dtype=torch.float64)
        clips = [job.training.clip_norm for job in jobs]
        if any(clips):
            limits = [[torch.inf if c is None else c] for c in clips]
            tensors["clip_M1"] = torch.tensor(limits, dtype=torch.float64)
        self.tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        self.smoothing = tuple(job.training.label_smoothing for job in jobs)
        training = jobs[0].training
        self.program: tuple[Any, ...] = (
            training.batch_size,
            training.micro_batch,
            training.precision,
            type(training.optimizer),
            getattr(training.optimizer, "nesterov", False),
            self.smoothing,
            tuple(tensors),
        )

    def _dropout(self, rates_ML: Sequence[Sequence[float]], first: int) -> dict[str, Tensor]:
        keys_M = stream_keys(self.jobs, "dropout")
        found: dict[str, Tensor] = {}
        for layer, rates_M in enumerate(zip(*rates_ML, strict=True)):
            if any(rates_M):
                found[f"dropout_keys_{layer}"] = step_keys(keys_M, layer, first, self.steps)
                found[f"dropout_thresholds_{layer}"], found[f"dropout_scales_{layer}"] = thresholds_and_scales(rates_M)
        return found

    def _noise(self, noisy: int, first: int) -> dict[str, Tensor]:
        if not noisy:
            return {}
        keys_M = torch.tensor([streams.stream_key(job.seeds.dropout, "noise") for job in self.jobs])
        return {"noise_keys_LMS": torch.stack([step_keys(keys_M, layer, first, self.steps) for layer in range(noisy)])}


def _kl_weight(job: Job, epoch: int, samples: int) -> float:
    return job.training.sparsify.kl_weight(epoch, job.training.epochs, samples)

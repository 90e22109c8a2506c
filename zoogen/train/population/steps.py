"""What drives the steps of a block of models: their batch orders, learning rates and dropout keys, from their jobs.

The same streams and closed forms as the plain trainer's, so that both train the same models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoogen.core import streams
from zoogen.core.records import Job
from zoogen.train.schedules import Constant, StepSettings


def epoch_orders(jobs: Sequence[Job], epoch: int, samples: int) -> Tensor:
    """Order of the training samples in the epoch after ``epoch`` completed ones: int64 [M, N]."""
    # Models of a shared order seed share their order; it is computed once.
    found: dict[int, Tensor] = {}
    for seed in {job.seeds.order for job in jobs}:
        key = streams.subkey(streams.stream_key(seed, "order"), epoch)
        assert isinstance(key, int)
        found[seed] = streams.permutation(key, samples)
    return torch.stack([found[job.seeds.order] for job in jobs])


def learning_rates(
    jobs: Sequence[Job], first_step: int, steps: int, steps_per_epoch: int
) -> tuple[Tensor, Tensor | None]:
    """Learning rate and momentum (beta1 for Adam) of each step: float64 [M, S]; momentum None where none is set."""
    # Models that share schedule, rate and epochs share their settings; they are computed once.
    found: dict[tuple[Any, float, int], list[StepSettings]] = {}
    keys = [(job.training.schedule, job.training.optimizer.lr, job.training.epochs) for job in jobs]
    for key in set(keys):
        schedule, lr, epochs = key
        if isinstance(schedule, Constant):
            found[key] = [StepSettings(lr)] * steps
        else:
            numbers = range(first_step, first_step + steps)
            found[key] = [schedule.at(s, lr, epochs * steps_per_epoch, steps_per_epoch) for s in numbers]
    rates = torch.tensor([[s.lr for s in found[key]] for key in keys], dtype=torch.float64)
    if found[keys[0]][0].momentum is None:
        return rates, None
    return rates, torch.tensor([[s.momentum for s in found[key]] for key in keys], dtype=torch.float64)


def stream_keys(jobs: Sequence[Job], stream: streams.Stream) -> Tensor:
    """The stream's key of each model: int64 [M]."""
    return torch.tensor([streams.stream_key(getattr(job.seeds, stream), stream) for job in jobs], dtype=torch.int64)


def step_keys(keys_M: Tensor, layer: int, first_step: int, steps: int) -> Tensor:
    """Subkeys of one layer for a run of steps: int64 [M, S]."""
    keys = streams.subkey(keys_M[:, None], torch.arange(first_step, first_step + steps), layer)
    assert isinstance(keys, Tensor)
    return keys

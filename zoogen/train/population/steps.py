"""What drives the steps of a block of models: their batch orders, learning rates and dropout keys, from their jobs.

The same streams and closed forms as the plain trainer's, so that both train the same models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoogen.core import streams
from zoogen.core.records import Job
from zoogen.train.schedules import Constant


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
    rates, momenta = [], []
    for job in jobs:
        schedule, lr = job.training.schedule, job.training.optimizer.lr
        if isinstance(schedule, Constant):
            rates.append([lr] * steps)
            continue
        total = job.training.epochs * steps_per_epoch
        settings = [schedule.at(s, lr, total, steps_per_epoch) for s in range(first_step, first_step + steps)]
        rates.append([s.lr for s in settings])
        momenta.append([s.momentum for s in settings])
    moved = bool(momenta) and momenta[0][0] is not None
    return (
        torch.tensor(rates, dtype=torch.float64),
        torch.tensor(momenta, dtype=torch.float64) if moved else None,
    )


def stream_keys(jobs: Sequence[Job], stream: streams.Stream) -> Tensor:
    """The stream's key of each model: int64 [M]."""
    return torch.tensor([streams.stream_key(getattr(job.seeds, stream), stream) for job in jobs], dtype=torch.int64)


def step_keys(keys_M: Tensor, layer: int, first_step: int, steps: int) -> Tensor:
    """Subkeys of one layer for a run of steps: int64 [M, S]."""
    places_S = (torch.arange(first_step, first_step + steps, dtype=torch.int64) << 16) + layer
    return streams.bits(keys_M[:, None], places_S) & 0x7FFFFFFFFFFFFFFF | 1

"""Stacked optimizer steps against ``torch.optim``, step by step, with settings of each model's own."""

from __future__ import annotations

import pytest
import torch

from zoogen.train.optimizer_state import flat_state
from zoogen.train.optimizers import SGD, Adam, AdamW, RMSprop
from zoogen.train.population.engine import Unsupported
from zoogen.train.population.stacked.engine import StackedEngine
from zoogen.train.population.stacked.optimizers import columns, counts_steps, state_names, step
from zoogen.train.schedules import Cosine, OneCycle, Step

SETTINGS = {
    "sgd": [SGD(lr=0.1), SGD(lr=0.01)],
    "sgd-decay": [SGD(lr=0.1, weight_decay=0.1), SGD(lr=0.02)],
    "momentum": [SGD(lr=0.1, momentum=0.9), SGD(lr=0.05, momentum=0.5, weight_decay=0.01)],
    "momentum-and-none": [SGD(lr=0.1), SGD(lr=0.05, momentum=0.5)],
    "nesterov": [SGD(lr=0.1, momentum=0.9, nesterov=True), SGD(lr=0.02, momentum=0.3, nesterov=True, weight_decay=0.1)],
    "adam": [Adam(lr=0.01), Adam(lr=0.1, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.1)],
    "adam-without-means": [Adam(lr=0.01, beta1=0.0, beta2=0.0), Adam(lr=0.01)],
    "adamw": [AdamW(lr=0.01), AdamW(lr=0.1, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.5)],
    "adamw-without-decay": [AdamW(lr=0.01, weight_decay=0.0), AdamW(lr=0.1, weight_decay=0.0)],
    "rmsprop": [RMSprop(lr=0.01), RMSprop(lr=0.001, alpha=0.5, eps=1e-3, weight_decay=0.1)],
    "rmsprop-momentum": [RMSprop(lr=0.01, momentum=0.9), RMSprop(lr=0.001, momentum=0.5)],
    "rmsprop-momentum-and-none": [RMSprop(lr=0.01), RMSprop(lr=0.001, momentum=0.5)],
}
SHAPES = [(4, 3), (4,), (2, 4)]


def gradient(step_: int, model: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Of very different sizes from step to step."""
    rng = torch.Generator().manual_seed(100 * step_ + model)
    return (torch.randn(size, generator=rng, dtype=torch.float64) * 10.0 ** (step_ % 5 - 3)).to(dtype)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-12, 1e-13), (torch.float32, 1e-5, 1e-6)])
def test_fifty_steps_are_torchs_one_by_one(name, dtype, rtol, atol):
    """Each step starts from torch's state, so that float32 rounds once: by a few units in the seventh digit."""
    entries = SETTINGS[name]
    size = sum(torch.Size(shape).numel() for shape in SHAPES)
    parameters = [
        [torch.nn.Parameter(torch.full(shape, 0.3 * (m + 1), dtype=dtype)) for shape in SHAPES]
        for m in range(len(entries))
    ]
    optimizers = [entry.build(own) for entry, own in zip(entries, parameters, strict=True)]
    kind = type(entries[0])
    settings = columns(entries)
    state = {n: torch.zeros(len(entries), size, dtype=dtype) for n in state_names(kind, "momentum" in settings)}
    if counts_steps(kind):
        state["step"] = torch.zeros(len(entries), len(SHAPES))
    scratch = torch.empty(len(entries), size, dtype=dtype)
    nesterov = getattr(entries[0], "nesterov", False)
    for number in range(50):
        lrs = [entry.lr * (1 + number % 3) for entry in entries]
        weights = torch.stack([torch.cat([p.detach().reshape(-1) for p in own]) for own in parameters])
        gradients = torch.stack([gradient(number, m, size, dtype) for m in range(len(entries))])
        for own, optimizer, row, lr in zip(parameters, optimizers, gradients, lrs, strict=True):
            for p, part in zip(own, row.split([p.numel() for p in own]), strict=True):
                p.grad = part.view(p.shape).clone()
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        at = {**settings, "lr": torch.tensor(lrs, dtype=torch.float64)[:, None]}
        step(kind, nesterov, weights, gradients, state, at, scratch)
        for m, (own, optimizer) in enumerate(zip(parameters, optimizers, strict=True)):
            expected = torch.cat([p.detach().reshape(-1) for p in own])
            torch.testing.assert_close(weights[m], expected, rtol=rtol, atol=atol)
            known = flat_state(optimizer)
            for state_name, rows in state.items():
                wanted = known.get(state_name, torch.zeros_like(rows[m]))
                torch.testing.assert_close(rows[m], wanted, rtol=rtol, atol=atol)
                rows[m] = wanted


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "schedule", [None, OneCycle(), Cosine(warmup_epochs=1)], ids=["constant", "one-cycle", "cosine"]
)
def test_the_engine_steps_as_torch_with_every_schedule(oracle, name, schedule):
    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))

    def engine(job, data):
        return StackedEngine(job, data, torch.device("cpu"))

    oracle.agree(engine, oracle.jobs(network, SETTINGS[name], schedule=schedule), oracle.images(train=16), epochs=4)


def test_models_may_have_schedules_of_their_own(oracle):
    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 4))

    jobs = [
        oracle.jobs(network, [SGD(lr=0.1)] * 3, schedule=schedule)[m]
        for m, schedule in enumerate([Step(epochs=(1,)), Step(epochs=(2,), gamma=0.5), Step(epochs=(1, 2))])
    ]
    oracle.agree(lambda job, data: StackedEngine(job, data, torch.device("cpu")), jobs, oracle.images(), epochs=4)


class Adagrad:
    registered_name = "adagrad"


def test_another_optimizer_is_refused(oracle):
    jobs = oracle.jobs(lambda: torch.nn.Linear(8, 4), [Adagrad()])
    with pytest.raises(Unsupported, match="optimizer 'adagrad'"):
        StackedEngine(jobs[0], oracle.images(), torch.device("cpu"))

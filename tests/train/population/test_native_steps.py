"""The generated C program against ``nn.Module`` and ``torch.optim`` in float64, step by step from the same states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoogen.train.optimizers import SGD, Adam, AdamW, RMSprop
from zoogen.train.population.engine import Unsupported
from zoogen.train.population.native.engine import NativeEngine
from zoogen.train.schedules import OneCycle


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(self.act(x)))


class TwoHeads(nn.Module):
    """One value feeds three layers, one of them pooled, and a layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.same = nn.Conv2d(3, 3, 1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(3 * 3 * 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.same(torch.tanh(self.same(y)))
        return self.fc((self.pool(y) + self.pool(z)).view(x.size(0), -1))


class Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh().mean((2, 3))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(128, 128)
        self.b = nn.Linear(128, 128)
        self.b.weight = self.a.weight
        self.c = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sigmoid(self.b(torch.tanh(self.a(torch.flatten(x, 1))))))


def conv(layer: nn.Module, after: int, *more: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), *more, nn.Flatten(), nn.Linear(after, 4))


NETWORKS: dict[str, Any] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 7), nn.Tanh(), nn.Linear(7, 4, bias=False)),
    "conv": lambda: conv(nn.Conv2d(2, 5, 3), 180),
    "conv-wide": lambda: conv(nn.Conv2d(2, 13, (5, 2), bias=False), 13 * 28),
    "conv-strided": lambda: conv(nn.Conv2d(2, 4, 3, stride=2, padding=1), 64),
    "conv-strided-unevenly": lambda: conv(nn.Conv2d(2, 4, (3, 4), stride=(3, 2), padding=(0, 2)), 4 * 2 * 5),
    "conv-padded-widely": lambda: conv(nn.Conv2d(2, 3, 5, padding=4), 3 * 144),
    "conv-dilated": lambda: conv(nn.Conv2d(2, 3, 3, padding=2, dilation=2), 192),
    "conv-grouped": lambda: conv(nn.Conv2d(2, 6, 3, groups=2), 216),
    "conv-depthwise": lambda: conv(nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)), 512),
    "conv-same": lambda: conv(nn.Conv2d(2, 3, 3, padding="same"), 192),
    "conv1d": lambda: conv(nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 4, 5, stride=2, padding=1)), 4 * 31),
    "two-convs": lambda: conv(nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 2, stride=2)), 27),
    "max-pool": lambda: conv(nn.Conv2d(2, 3, 3), 27, nn.MaxPool2d(2)),
    "max-pool-with-rest": lambda: conv(nn.Conv2d(2, 3, 2), 27, nn.MaxPool2d(2)),
    "conv-then-max-pool-with-rest": lambda: conv(nn.Sequential(nn.Conv2d(2, 3, 2), nn.MaxPool2d(2)), 27),
    "conv-then-avg-pool-with-rest": lambda: conv(nn.Sequential(nn.Conv2d(2, 3, 2), nn.AvgPool2d(2)), 27),
    "pool-then-pool": lambda: conv(nn.Sequential(nn.Conv2d(2, 3, 1), nn.MaxPool2d(2), nn.MaxPool2d(2)), 12),
    "max-pool-overlapping": lambda: conv(nn.Conv2d(2, 3, 3), 27, nn.MaxPool2d(3, 2, 1)),
    "avg-pool": lambda: conv(nn.Conv2d(2, 3, 3), 27, nn.AvgPool2d(2)),
    "avg-pool-overlapping": lambda: conv(nn.Conv2d(2, 3, 3), 27, nn.AvgPool2d(3, 2, 1)),
    "adaptive-pool": lambda: conv(nn.Conv2d(2, 3, 3), 3, nn.AdaptiveAvgPool2d(1)),
    "pool1d": lambda: conv(nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 3), nn.MaxPool1d(2), nn.AvgPool1d(3)), 30),
    "batch-norm": lambda: conv(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), 108),
    "batch-norm-plain": lambda: conv(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False)), 108),
    "batch-norm-flat": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)),
    "residual": lambda: conv(nn.Sequential(nn.Conv2d(2, 4, 3), Residual(), Residual()), 144),
    "shared-values": TwoHeads,
    "tied": Tied,
    "mean": Averaged,
    "dropout": lambda: conv(nn.Conv2d(2, 3, 3), 108, nn.Dropout(0.3)),
    "dropout-odd": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 7), nn.Dropout(0.5), nn.Linear(7, 4)),
    **{
        f"act-{act.__name__}": lambda act=act: nn.Sequential(nn.Flatten(), nn.Linear(128, 9), act(), nn.Linear(9, 4))
        for act in (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.LeakyReLU, nn.SiLU)
    },
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Makes engines whose programs compute in float64, and are compiled once."""
    kernels = tmp_path_factory.mktemp("kernels")
    return lambda job, data: NativeEngine(job, data, torch.device("cpu"), cache=kernels, dtype=torch.float64)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_layer_steps_as_in_torch(oracle, engine, kind):
    """An epoch is one step here, so every step starts from equal states."""
    oracle.agree(engine, oracle.jobs(NETWORKS[kind], [SGD(lr=0.05), SGD(lr=0.2)]), oracle.images(6))


OPTIMIZERS: dict[str, list[Any]] = {
    "sgd": [SGD(lr=0.1), SGD(lr=0.01, weight_decay=0.1)],
    "momentum": [SGD(lr=0.1, momentum=0.9), SGD(lr=0.05, momentum=0.5, weight_decay=0.01), SGD(lr=0.1)],
    "nesterov": [SGD(lr=0.1, momentum=0.9, nesterov=True), SGD(lr=0.02, momentum=0.3, nesterov=True)],
    "adam": [Adam(lr=0.01), Adam(lr=0.1, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.1)],
    "adamw": [AdamW(lr=0.01), AdamW(lr=0.1, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.5)],
    "rmsprop": [RMSprop(lr=0.01), RMSprop(lr=0.001, alpha=0.5, eps=1e-3, weight_decay=0.1)],
    "rmsprop-momentum": [RMSprop(lr=0.01, momentum=0.9), RMSprop(lr=0.001, momentum=0.5), RMSprop(lr=0.001)],
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", [None, OneCycle()], ids=["constant", "one-cycle"])
def test_every_optimizer_steps_as_in_torch_with_settings_of_its_own_per_model(oracle, engine, name, schedule):
    jobs = oracle.jobs(NETWORKS["linear"], OPTIMIZERS[name], schedule=schedule)
    oracle.agree(engine, jobs, oracle.images(6), epochs=6)


@pytest.mark.parametrize("kind", ["dropout", "batch-norm", "max-pool"])
@pytest.mark.parametrize("training", [{}, {"micro_batch": 2}, {"clip_norm": 0.5}], ids=str)
def test_epochs_of_several_steps_with_a_smaller_last_batch_agree(oracle, engine, kind, training):
    jobs = oracle.jobs(NETWORKS[kind], [Adam(lr=1e-3)] * 3, smoothing=[0.0, 0.2], **training)
    oracle.agree(engine, jobs, oracle.images(22, augmented=True))


def test_a_step_of_many_samples_passes_through_in_chunks(oracle, engine):
    jobs = oracle.jobs(NETWORKS["conv-wide"], [SGD(lr=0.1)], batch_size=64)
    oracle.agree(engine, jobs, oracle.images(150), epochs=2)


@pytest.mark.filterwarnings("ignore:dropout2d")
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Dropout2d(0.5), "Dropout2d"),
        (nn.LayerNorm(4), "LayerNorm"),
        (nn.Softmax(1), "Softmax"),
        (nn.BatchNorm1d(4, track_running_stats=False), "running statistics"),
    ],
)
def test_what_has_no_code_is_refused_by_name(oracle, engine, layer, reason):
    jobs = oracle.jobs(lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 4), layer), [SGD(lr=0.1)])
    with pytest.raises(Unsupported, match=reason):
        engine(jobs[0], oracle.images(6))

"""The generated C program against ``nn.Module`` and ``torch.optim`` in float64, step by step from the same states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from zoogen.core.layout import Layout, describe_module
from zoogen.core.recipe import Training
from zoogen.core.records import Job, Seeds
from zoogen.train.dropout import DropoutStream, replace_dropout
from zoogen.train.model import epoch_order
from zoogen.train.optimizer_state import flat_state, load_flat_state
from zoogen.train.optimizers import SGD, Adam, AdamW, RMSprop
from zoogen.train.population.engine import Rows, Unsupported
from zoogen.train.population.native.engine import NativeEngine
from zoogen.train.population.steps import stream_keys
from zoogen.train.schedules import Constant, OneCycle

# Design, section 5: 1e-9 after each step. Most cases agree to 1e-14; a bias before a batch norm has no gradient but
# rounding noise, which Adam scales up to the size of a step.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


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


@dataclass(frozen=True)
class Net:
    registered_name: ClassVar[str] = "native-test-net"
    per_model: ClassVar[frozenset[str]] = frozenset()
    runs_code: ClassVar[bool] = False
    kind: str = "conv"

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return NETWORKS[self.kind]()


@dataclass(frozen=True)
class Task:
    registered_name: ClassVar[str] = "native-test-task"
    version: ClassVar[int] = 1
    input_shape: tuple[int, ...] = (2, 8, 8)
    outputs: int = 4


class Data:
    """Random images; the training part is so small that an epoch has one or two steps."""

    outputs = 4

    def __init__(self, train: int) -> None:
        rng = torch.Generator().manual_seed(0)
        self._parts = {
            part: (
                torch.randint(0, 256, (n, 2, 8, 8), dtype=torch.uint8, generator=rng),
                torch.randint(0, 4, (n,), generator=rng),
            )
            for part, n in {"train": train, "val": 5, "test": 33}.items()
        }

    def size(self, part: str) -> int:
        return len(self._parts[part][1])

    def tensors(self, part: str, device: Any) -> tuple[Tensor, Tensor]:
        return self._parts[part]

    def prepare(self, inputs_B: Tensor) -> Tensor:
        return inputs_B.float().mul(torch.tensor([0.01, 0.02]).view(2, 1, 1)).sub(1.5)

    def augment(self, inputs_KB: Tensor, keys_K: Tensor, steps_K: Tensor) -> Tensor:
        return inputs_KB

    def loss(self, outputs_BC: Tensor, targets_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return nn.functional.cross_entropy(outputs_BC, targets_B, reduction="none", label_smoothing=label_smoothing)


def jobs_of(kind: str, optimizers: list[Any], batch_size: int = 6, schedule: Any = None, **training: Any) -> list[Job]:
    """One model per optimizer, with seeds of its own."""
    schedule = schedule or Constant()
    return [
        Job(f"m{i}", Net(kind), Task(), Training(20, batch_size, o, schedule, **training), Seeds(i, 10 + i, 0, 20 + i))
        for i, o in enumerate(optimizers)
    ]


def row_of(module: nn.Module, layout: Layout) -> Tensor:
    """The module's float tensors in the order of the layout, float64 [P]."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    own = [tensors[e.name].detach().reshape(-1) for e in layout.entries if e.dtype == "float32"]
    return torch.cat(own).double()


class Reference:
    """One model as torch trains it, in float64."""

    def __init__(self, job: Job, data: Data) -> None:
        torch.manual_seed(job.seeds.init)
        module = job.architecture.build((2, 8, 8), 4)
        self.layout = describe_module(module)
        dropouts = replace_dropout(module)
        self.module, self.job, self._data = module.double(), job, data
        self._dropout = DropoutStream(job.seeds.dropout, dropouts, torch.device("cpu"))
        self._parameters = [self.module.get_parameter(e.name) for e in self.layout.entries if e.trainable]
        self._optimizer = job.training.optimizer.build(self._parameters)
        steps = job.training.steps_per_epoch(data.size("train"))
        self._schedule = job.training.schedule.build(self._optimizer, job.training.epochs * steps, steps)
        self._steps = steps

    def epoch(self, epoch: int) -> dict[str, float]:
        self.module.train()
        training = self.job.training
        inputs, targets = self._data.tensors("train", "cpu")
        order = epoch_order(int(stream_keys([self.job], "order")), epoch, len(targets))
        self._dropout.prepare(epoch * self._steps, self._steps)
        losses, hits = [], []
        for step, rows in enumerate(order.split(training.batch_size), start=epoch * self._steps):
            self._dropout.start_step(step)
            self._schedule.apply(step)
            self._optimizer.zero_grad()
            for some in rows.split(training.micro_batch or training.batch_size):
                outputs = self.module(self._data.prepare(inputs[some]).double())
                loss = self._data.loss(outputs, targets[some], training.label_smoothing)
                (loss.sum() / len(rows)).backward()
                losses.append(loss.detach())
                hits.append(outputs.argmax(1) == targets[some])
            norm = nn.utils.get_total_norm([p.grad for p in self._parameters])
            if training.clip_norm:
                nn.utils.clip_grad_norm_(self._parameters, training.clip_norm)
            self._optimizer.step()
        return {
            "train_loss": torch.cat(losses).mean().item(),
            "train_acc": torch.cat(hits).double().mean().item(),
            "learning_rate": self._schedule.at(epoch * self._steps + self._steps - 1).lr,
            "grad_norm": norm.item(),
        }

    def load(self, rows: Rows, m: int) -> None:
        tensors = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        with torch.no_grad():
            for e in self.layout.entries:
                row = rows.weights if e.dtype == "float32" else rows.side[e.dtype]
                tensors[e.name].copy_(row[m, e.offset : e.offset + e.size].view(e.shape))
        load_flat_state(self._optimizer, {name: own[m] for name, own in rows.optimizer.items()})


def assert_steps_agree(jobs: list[Job], tmp_path: Path, *, train: int, epochs: int = 4) -> None:
    """Both start every epoch from the engine's state."""
    data = Data(train)
    references = [Reference(job, data) for job in jobs]
    layout = references[0].layout
    side = {
        d: torch.stack([r.layout.flatten(r.module.state_dict(), d) for r in references]) for d in layout.side_dtypes
    }
    rows = Rows(torch.stack([row_of(r.module, layout) for r in references]), side)
    engine = NativeEngine(jobs[0], data, torch.device("cpu"), cache=tmp_path, dtype=torch.float64)
    for epoch in range(epochs):
        before = rows
        rows, measured = engine.train_epoch(jobs, rows, epoch, lambda: False)
        for m, reference in enumerate(references):
            if epoch:
                reference.load(before, m)
            expected = reference.epoch(epoch)
            torch.testing.assert_close(rows.weights[m], row_of(reference.module, layout), **TOLERANCE)
            for name, value in flat_state(reference._optimizer).items():
                torch.testing.assert_close(rows.optimizer[name][m].double(), value.double(), **TOLERANCE)
            for dtype, own in rows.side.items():
                assert torch.equal(own[m], layout.flatten(reference.module.state_dict(), dtype))
            for name, value in expected.items():
                assert measured[name][m].item() == pytest.approx(value, rel=1e-9), name
            reference.module.eval()
            inputs, targets = data.tensors("test", "cpu")
            with torch.no_grad():
                outputs = reference.module(data.prepare(inputs).double())
            scores = engine.evaluate([jobs[m]], rows.take([m]), "test", -1, [0.0])
            torch.testing.assert_close(scores.losses[0], data.loss(outputs, targets), **TOLERANCE)
            assert torch.equal(scores.predictions[0], outputs.argmax(1))


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_layer_steps_as_in_torch(kind, tmp_path):
    jobs = jobs_of(kind, [SGD(lr=0.05), SGD(lr=0.2)])
    assert_steps_agree(jobs, tmp_path, train=6)


OPTIMIZERS: dict[str, list[Any]] = {
    "sgd": [SGD(lr=0.1), SGD(lr=0.01, weight_decay=0.1)],
    "momentum": [SGD(lr=0.1, momentum=0.9), SGD(lr=0.05, momentum=0.5, weight_decay=0.01)],
    "nesterov": [SGD(lr=0.1, momentum=0.9, nesterov=True), SGD(lr=0.02, momentum=0.3, nesterov=True)],
    "adam": [Adam(lr=0.01), Adam(lr=0.1, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.1)],
    "adamw": [AdamW(lr=0.01), AdamW(lr=0.1, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.5)],
    "rmsprop": [RMSprop(lr=0.01), RMSprop(lr=0.001, alpha=0.5, eps=1e-3, weight_decay=0.1)],
    "rmsprop-momentum": [RMSprop(lr=0.01, momentum=0.9), RMSprop(lr=0.001, momentum=0.5)],
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", [None, OneCycle()], ids=["constant", "one-cycle"])
def test_every_optimizer_steps_as_in_torch_with_settings_of_its_own_per_model(name, schedule, tmp_path):
    jobs = jobs_of("linear", OPTIMIZERS[name], schedule=schedule)
    assert_steps_agree(jobs, tmp_path, train=6, epochs=6)


@pytest.mark.parametrize("kind", ["dropout", "batch-norm", "max-pool"])
@pytest.mark.parametrize("training", [{}, {"micro_batch": 2}, {"clip_norm": 0.5}, {"label_smoothing": 0.2}], ids=str)
def test_epochs_of_several_steps_with_a_smaller_last_batch_agree(kind, training, tmp_path):
    jobs = jobs_of(kind, [Adam(lr=1e-3)] * 3, **training)
    assert_steps_agree(jobs, tmp_path, train=22)


def test_a_step_of_many_samples_passes_through_in_chunks(tmp_path):
    jobs = jobs_of("conv-wide", [SGD(lr=0.1)], batch_size=64)
    assert_steps_agree(jobs, tmp_path, train=150, epochs=2)


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
def test_what_has_no_code_is_refused_by_name(layer, reason, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "odd", lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 4), layer))
    with pytest.raises(Unsupported, match=reason):
        NativeEngine(
            jobs_of("odd", [SGD(lr=0.1)])[0], Data(6), torch.device("cpu"), cache=tmp_path, dtype=torch.float64
        )

"""Every architecture of the house that the native engine takes: one float64 step against torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from zoogen.core.layout import describe_module
from zoogen.core.modules import build_model
from zoogen.core.recipe import Training
from zoogen.core.records import Job, Seeds
from zoogen.core.registry import ARCHITECTURES
from zoogen.train.dropout import DropoutStream, replace_dropout
from zoogen.train.model import epoch_order
from zoogen.train.optimizers import SGD
from zoogen.train.population.engine import Rows
from zoogen.train.population.native.engine import NativeEngine
from zoogen.train.population.steps import stream_keys
from zoogen.train.schedules import Constant

ARGUMENTS = {
    "cnn-s": {"activation": "gelu", "dropout": 0.2},
    "cnn-l": {"activation": "tanh", "dropout": 0.1},
    "mlp": {"hidden": (32, 16), "activation": "silu"},
    "resnet18": {"width": 2},
}


@dataclass(frozen=True)
class Task:
    registered_name: ClassVar[str] = "native-architecture-task"
    version: ClassVar[int] = 1
    input_shape: tuple[int, ...] = (3, 32, 32)
    outputs: int = 10


class Data:
    outputs = 10

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.inputs = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=rng)
        self.targets = torch.randint(0, 10, (4,), generator=rng)

    def size(self, part):
        return 4

    def tensors(self, part, device):
        return self.inputs, self.targets

    def prepare(self, inputs_B):
        return inputs_B.float() / 64 - 2

    def augment(self, inputs_KB, keys_K, steps_K):
        return inputs_KB

    def loss(self, outputs_BC, targets_B, label_smoothing=0.0):
        return nn.functional.cross_entropy(outputs_BC, targets_B, reduction="none", label_smoothing=label_smoothing)


@pytest.mark.parametrize("name", [*ARGUMENTS, pytest.param("resnet50", marks=pytest.mark.slow)])
def test_a_step_of_each_architecture_is_torchs(name, tmp_path_factory):
    architecture = ARCHITECTURES.make(name, ARGUMENTS.get(name, {"width": 2}))
    job = Job("m", architecture, Task(), Training(1, 4, SGD(lr=0.01), Constant()), Seeds(3, 4, 5, 6))
    data = Data()
    engine = NativeEngine(job, data, torch.device("cpu"), cache=tmp_path_factory.mktemp("kernels"), dtype=torch.float64)
    module = build_model(architecture, (3, 32, 32), 10, 3)
    layout = describe_module(module)
    dropout = DropoutStream(6, replace_dropout(module), torch.device("cpu"))
    tensors = dict(module.double().named_parameters()) | dict(module.named_buffers())

    def row() -> torch.Tensor:
        return torch.cat([tensors[e.name].detach().reshape(-1) for e in layout.entries if e.dtype == "float32"])

    side = {d: layout.flatten(tensors, d)[None] for d in layout.side_dtypes}
    rows, _ = engine.train_epoch([job], Rows(row()[None], side), 0, lambda: False)
    before = row()
    dropout.prepare(0, 1)
    dropout.start_step(0)
    order = epoch_order(int(stream_keys([job], "order")), 0, 4)
    loss = nn.functional.cross_entropy(module(data.prepare(data.inputs[order]).double()), data.targets[order])
    loss.backward()
    torch.optim.SGD([p for p in module.parameters() if p.grad is not None], lr=0.01).step()
    assert (row() - before).abs().max() > 1e-4
    torch.testing.assert_close(rows.weights[0], row(), rtol=1e-9, atol=1e-9)

"""Every architecture of the house, one float64 step of each engine against torch."""

from __future__ import annotations

import pytest
import torch

from zoogen.core.recipe import Training
from zoogen.core.records import Job, Seeds
from zoogen.core.registry import ARCHITECTURES
from zoogen.train.optimizers import SGD
from zoogen.train.population.native.engine import NativeEngine
from zoogen.train.population.stacked.engine import StackedEngine
from zoogen.train.schedules import Constant

CASES = {
    "cnn-s": {"activation": "gelu", "dropout": 0.2},
    "cnn-l": {"activation": "tanh", "dropout": 0.1},
    "cnn-gap": {"activation": "relu", "dropout": 0.2},
    "mlp": {"hidden": (32, 16), "activation": "silu"},
    "resnet18": {"width": 2},
    "resnet50": {"width": 2},
    "squeezenet1_1": {},
    "mobilenet_v3_small": {},
    "shufflenet_v2_x0_5": {},
}
SLOW = ("resnet50", "mobilenet_v3_small", "shufflenet_v2_x0_5")


def stacked(job, data, kernels):
    chosen = {"conv2d": "unfold", "max_pool": "slices"}
    return StackedEngine(job, data, torch.device("cpu"), variants=chosen)


def native(job, data, kernels):
    return NativeEngine(job, data, torch.device("cpu"), cache=kernels, dtype=torch.float64)


PAIRS = [
    pytest.param(engine, name, id=f"{engine.__name__}-{name}", marks=[pytest.mark.slow] * (name in SLOW))
    for engine, names in ((stacked, CASES), (native, ("cnn-s", "cnn-l", "cnn-gap", "mlp", "resnet18", "resnet50")))
    for name in names
]


@pytest.mark.parametrize(("make", "name"), PAIRS)
def test_a_step_of_each_architecture_is_torchs(oracle, tmp_path, make, name):
    class Images(oracle.images):
        outputs = 10

        def _inputs(self, n, rng):
            return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=rng)

        def prepare(self, inputs_B):
            return inputs_B.float() / 64 - 2

    recipe = Training(1, 4, SGD(lr=0.001), Constant())
    known = name if name in ARCHITECTURES.names() else "torchvision"
    arguments = CASES[name] if known == name else {"model": name}
    jobs = [
        Job(f"m{m}", ARCHITECTURES.make(known, arguments), oracle.shape((3, 32, 32), 10), recipe, Seeds(m, 4, 5, 6))
        for m in range(2)
    ]
    # Deep networks with norms over four samples amplify rounding; far below what any mistake would make.
    oracle.agree(lambda job, data: make(job, data, tmp_path), jobs, Images(train=4, test=3), epochs=1, rtol=1e-8)

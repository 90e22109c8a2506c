"""Every architecture of the house, one float64 step of the stacked engine against torch."""

from __future__ import annotations

import pytest
import torch

from zoogen.core.recipe import Training
from zoogen.core.records import Job, Seeds
from zoogen.core.registry import ARCHITECTURES
from zoogen.train.optimizers import SGD
from zoogen.train.population.stacked.engine import StackedEngine
from zoogen.train.schedules import Constant

CASES = [
    ("cnn-s", {"activation": "gelu", "dropout": 0.2}),
    ("cnn-l", {"activation": "tanh", "dropout": 0.1}),
    ("mlp", {"hidden": (32, 16), "activation": "silu"}),
    ("resnet18", {"width": 2}),
    ("torchvision", {"model": "squeezenet1_1"}),
    pytest.param("resnet50", {"width": 2}, marks=pytest.mark.slow),
    pytest.param("torchvision", {"model": "mobilenet_v3_small"}, marks=pytest.mark.slow),
    pytest.param("torchvision", {"model": "shufflenet_v2_x0_5"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_step_of_each_architecture_is_torchs(oracle, name, arguments):
    class Images(oracle.images):
        outputs = 10

        def _inputs(self, n, rng):
            return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=rng)

        def prepare(self, inputs_B):
            return inputs_B.float() / 64 - 2

    recipe = Training(1, 4, SGD(lr=0.001), Constant())
    jobs = [
        Job(f"m{m}", ARCHITECTURES.make(name, arguments), oracle.shape((3, 32, 32), 10), recipe, Seeds(m, 4, 5, 6))
        for m in range(2)
    ]
    chosen = {"conv2d": "unfold", "max_pool": "slices"}

    def engine(job, data):
        return StackedEngine(job, data, torch.device("cpu"), variants=chosen)

    # Deep networks with norms over four samples amplify rounding; far below what any mistake would make.
    oracle.agree(engine, jobs, Images(train=4, test=3), epochs=1, rtol=1e-8)

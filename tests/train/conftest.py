"""A small task and small networks, made here, so that the trainer is tested apart from the other rooms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoogen.core import streams
from zoogen.core.layout import describe_module
from zoogen.core.modules import build_model
from zoogen.core.recipe import Training
from zoogen.core.records import Cohort, Job, Recording, Resources, Seeds
from zoogen.train.optimizers import SGD
from zoogen.train.plain import PlainTrainer
from zoogen.train.schedules import Constant


@dataclass(frozen=True)
class SmallNet:
    """Convolution, norm, dropout and linear layers; ``torch_random`` adds a layer that draws from torch's generator."""

    registered_name: ClassVar[str] = "small-net"
    per_model: ClassVar[frozenset[str]] = frozenset({"dropout"})
    runs_code: ClassVar[bool] = False

    norm: bool = False
    dropout: float = 0.0
    torch_random: float = 0.0
    unused: bool = False
    scale: float = 1.0
    frozen: bool = False

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        layers: dict[str, nn.Module] = {"conv": nn.Conv2d(input_shape[0], 4, 3, padding=1)}
        if self.norm:
            layers["norm"] = nn.BatchNorm2d(4)
        layers |= {"act": nn.Tanh(), "pool": nn.MaxPool2d(2), "drop1": nn.Dropout(self.dropout)}
        if self.torch_random:
            layers["drop2d"] = nn.Dropout2d(self.torch_random)
        layers |= {"flatten": nn.Flatten(), "drop2": nn.Dropout(self.dropout), "fc": nn.Linear(64, outputs)}
        network = nn.Sequential()
        for name, layer in layers.items():
            network.add_module(name, layer)
        if self.unused:
            network.fc.register_parameter("unused", nn.Parameter(torch.ones(5)))
        if self.frozen:
            network.conv.requires_grad_(False)
        with torch.no_grad():
            network.fc.weight.mul_(self.scale)
        return network


@dataclass(frozen=True)
class SmallTask:
    registered_name: ClassVar[str] = "small"
    version: ClassVar[int] = 1
    input_shape: tuple[int, ...] = (1, 8, 8)
    outputs: int = 3


class SmallData:
    """Three classes of 8x8 images: one bright half each (top, bottom, left) under noise."""

    fingerprint = "small"
    outputs = 3

    def __init__(self, sizes: tuple[int, int, int] = (64, 20, 30), *, augmented: bool = False) -> None:
        self.sizes = dict(zip(("train", "val", "test"), sizes, strict=True))
        self.augmented = augmented
        self.augment_calls: list[tuple[int, int, int]] = []
        self._parts = {part: self._make(n, seed) for seed, (part, n) in enumerate(self.sizes.items())}

    def _make(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 160, (n, 1, 8, 8), dtype=np.uint8)
        targets = rng.integers(0, 3, n)
        for image, target in zip(images, targets, strict=True):
            half = (slice(0, 4), slice(4, 8), slice(None))[target]
            columns = slice(0, 4) if target == 2 else slice(None)
            image[0, half, columns] += 60
        return torch.from_numpy(images), torch.from_numpy(targets)

    def size(self, part: str) -> int:
        return self.sizes[part]

    def tensors(self, part: str, device: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = self._parts[part]
        return inputs.to(device), targets.to(device)

    def prepare(self, inputs_B: Tensor) -> Tensor:
        return inputs_B.float() / 100 - 1

    def augment(self, inputs_KB: Tensor, keys_K: Tensor, steps_K: Tensor) -> Tensor:
        if not self.augmented:
            return inputs_KB
        samples = inputs_KB.shape[1]
        self.augment_calls += [(*told, samples) for told in zip(keys_K.tolist(), steps_K.tolist(), strict=True)]
        keys_K1 = streams.subkey(keys_K, steps_K)[:, None]
        draws_KB = streams.bits(keys_K1, torch.arange(samples, device=inputs_KB.device))
        return torch.where((draws_KB < 0)[..., None, None, None], inputs_KB.flip(-1), inputs_KB)

    def loss(self, outputs_BC: Tensor, targets_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return nn.functional.cross_entropy(outputs_BC, targets_B, reduction="none", label_smoothing=label_smoothing)


PLAIN_NET = SmallNet()
PLAIN_SGD = SGD(lr=0.1)
CONSTANT = Constant()
EVERY_EPOCH = Recording((0, 1, 2, 3))
ONE_CORE = Resources()


@dataclass(frozen=True)
class Setup:
    """Makes cohorts and trainers; every field can be set anew in ``cohort`` and ``trainer``."""

    data: SmallData = field(default_factory=SmallData)
    architecture: SmallNet = PLAIN_NET
    optimizer: Any = PLAIN_SGD
    schedule: Any = CONSTANT
    epochs: int = 3
    batch_size: int = 10
    training: dict[str, Any] = field(default_factory=dict)
    recording: Recording = EVERY_EPOCH
    resources: Resources = ONE_CORE
    stored_through: int = -1

    def job(self, seed: int = 0, **changes: Any) -> Job:
        own = replace(self, **changes)
        recipe = Training(own.epochs, own.batch_size, own.optimizer, own.schedule, **own.training)
        return Job(f"model-{seed}", own.architecture, SmallTask(), recipe, Seeds(seed, seed, seed, seed))

    def cohort(self, *jobs: Job, **changes: Any) -> Cohort:
        own = replace(self, **changes)
        jobs = jobs or (own.job(),)
        layout = describe_module(self.module(jobs[0]))
        return Cohort(
            "cohort", jobs, own.epochs, own.recording, (), layout.layout_id, own.resources, own.stored_through
        )

    def trainer(self, *jobs: Job, **changes: Any) -> PlainTrainer:
        own = replace(self, **changes)
        return PlainTrainer(own.cohort(*jobs), own.data, "cpu")

    @staticmethod
    def module(job: Job) -> nn.Module:
        return build_model(job.architecture, job.task.input_shape, job.task.outputs, job.seeds.init)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """More threads only wait for each other on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def setup() -> Setup:
    return Setup()


@pytest.fixture
def small_data() -> Callable[..., SmallData]:
    return SmallData


@pytest.fixture
def small_net() -> Callable[..., SmallNet]:
    return SmallNet


@pytest.fixture
def same_state() -> Callable[[Any, Any], None]:
    """Asserts that two CohortStates are equal, bit for bit."""

    def check(a: Any, b: Any) -> None:
        assert (a.epoch, a.model_ids, a.diverged, a.last_finite) == (b.epoch, b.model_ids, b.diverged, b.last_finite)
        assert a.weights.tobytes() == b.weights.tobytes()
        for name in ("side", "optimizer", "training_metrics"):
            rows_a, rows_b = getattr(a, name), getattr(b, name)
            assert rows_a.keys() == rows_b.keys()
            for key in rows_a:
                assert rows_a[key].dtype == rows_b[key].dtype
                assert rows_a[key].tobytes() == rows_b[key].tobytes(), (name, key)

    return check

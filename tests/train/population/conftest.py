"""What tests of every engine share: any network as an architecture, small data, and torch in float64 as the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from zoogen.core import streams
from zoogen.core.layout import describe_module
from zoogen.core.modules import build_model
from zoogen.core.recipe import Training
from zoogen.core.records import Job, Seeds
from zoogen.train.dropout import DropoutStream, replace_dropout
from zoogen.train.model import epoch_order
from zoogen.train.optimizer_state import flat_state, load_flat_state
from zoogen.train.population.engine import Engine, Rows
from zoogen.train.schedules import Constant


@dataclass(frozen=True)
class OneOff:
    """An architecture made of any function: ``make()``, or ``make(dropout)`` where ``dropout`` is set."""

    registered_name: ClassVar[str] = "one-off"
    per_model: ClassVar[frozenset[str]] = frozenset({"dropout"})
    runs_code: ClassVar[bool] = False

    make: Callable[..., nn.Module]
    dropout: float | None = None

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return self.make() if self.dropout is None else self.make(self.dropout)


@dataclass(frozen=True)
class Shape:
    """A task, as far as a network needs to know it."""

    registered_name: ClassVar[str] = "shape"
    version: ClassVar[int] = 1
    input_shape: tuple[int, ...] = (2, 8, 8)
    outputs: int = 4


class RandomImages:
    """Bytes [2, 8, 8] without meaning; ``augmented`` mirrors some of them."""

    outputs = 4

    def __init__(self, train: int = 22, test: int = 9, *, augmented: bool = False) -> None:
        self._augmented = augmented
        rng = torch.Generator().manual_seed(0)
        self._parts = {
            part: (self._inputs(n, rng), torch.randint(0, 4, (n,), generator=rng))
            for part, n in {"train": train, "val": 0, "test": test}.items()
        }

    def _inputs(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.randint(0, 256, (n, 2, 8, 8), dtype=torch.uint8, generator=rng)

    def size(self, part: str) -> int:
        return len(self._parts[part][1])

    def tensors(self, part: str, device: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = self._parts[part]
        return inputs.to(device), targets.to(device)

    def prepare(self, inputs_B: Tensor) -> Tensor:
        scale = torch.full((2, 1, 1), 0.01, device=inputs_B.device)
        scale[1] = 0.02
        return inputs_B.float() * scale - 1.5

    def augment(self, inputs_KB: Tensor, keys_K: Tensor, steps_K: Tensor) -> Tensor:
        if not self._augmented:
            return inputs_KB
        keys_K1 = streams.subkey(keys_K, steps_K)[:, None]
        draws_KB = streams.bits(keys_K1, torch.arange(inputs_KB.shape[1], device=inputs_KB.device))
        return torch.where((draws_KB < 0)[..., None, None, None], inputs_KB.flip(-1), inputs_KB)

    def loss(self, outputs_BC: Tensor, targets_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return nn.functional.cross_entropy(outputs_BC, targets_B, reduction="none", label_smoothing=label_smoothing)


class RandomTokens(RandomImages):
    """Sequences of 8 tokens out of 11; ``prepare`` leaves them as they are."""

    def _inputs(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.randint(0, 11, (n, 8), generator=rng)

    def prepare(self, inputs_B: Tensor) -> Tensor:
        return inputs_B


class Reference:
    """One model as ``torch.nn`` and ``torch.optim`` train it, in float64, on the random streams of its job."""

    def __init__(self, job: Job, data: Any) -> None:
        module = build_model(job.architecture, job.task.input_shape, job.task.outputs, job.seeds.init)
        self.layout = describe_module(module)
        self.job = job
        self._data = data
        self._masks = DropoutStream(job.seeds.dropout, replace_dropout(module), torch.device("cpu"))
        self.module = module.double()
        self._trained = [self._tensors()[e.name] for e in self.layout.entries if e.trainable]
        self.optimizer = job.training.optimizer.build(self._trained)
        self._steps = job.training.steps_per_epoch(data.size("train"))
        self._schedule = job.training.schedule.build(self.optimizer, job.training.epochs * self._steps, self._steps)

    def _tensors(self) -> dict[str, Tensor]:
        """As they are: a network may have put a new tensor into the place of a buffer."""
        return dict(self.module.named_parameters()) | dict(self.module.named_buffers())

    def row(self, dtype: str = "float32") -> Tensor:
        """Of one dtype of the layout; what it calls float32 is float64 here."""
        tensors = self._tensors()
        return torch.cat([tensors[e.name].detach().reshape(-1) for e in self.layout.entries if e.dtype == dtype])

    @torch.no_grad()
    def load(self, rows: Rows, m: int) -> None:
        """Stand where model ``m`` stands."""
        tensors = self._tensors()
        for e in self.layout.entries:
            row = rows.weights if e.dtype == "float32" else rows.side[e.dtype]
            tensors[e.name].copy_(row[m, e.offset : e.offset + e.size].view(e.shape))
        load_flat_state(self.optimizer, {name: own[m] for name, own in rows.optimizer.items()})

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """The epoch after ``epoch`` completed ones; returns what was measured."""
        data, training, seeds = self._data, self.job.training, self.job.seeds
        self.module.train()
        inputs, targets = data.tensors("train", "cpu")
        order = epoch_order(streams.stream_key(seeds.order, "order"), epoch, len(targets))
        augment_key = torch.tensor([streams.stream_key(seeds.augment, "augment")])
        self._masks.prepare(epoch * self._steps, self._steps)
        losses, hits, norm = [], [], torch.tensor(0.0)
        for step, rows in enumerate(order.split(training.batch_size), start=epoch * self._steps):
            self._masks.start_step(step)
            self._schedule.apply(step)
            self.optimizer.zero_grad()
            seen = data.prepare(data.augment(inputs[rows][None], augment_key, torch.tensor([step]))[0])
            micro = training.micro_batch or len(rows)
            for some, wanted in zip(seen.split(micro), targets[rows].split(micro), strict=True):
                outputs = self.module(some.double() if some.is_floating_point() else some)
                loss = data.loss(outputs, wanted, training.label_smoothing)
                (loss.sum() / len(rows)).backward()
                losses.append(loss.detach())
                hits.append(outputs.argmax(1) == wanted)
            norm = nn.utils.get_total_norm([p.grad for p in self._trained])
            if training.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._trained, training.clip_norm)
            self.optimizer.step()
        return {
            "train_loss": torch.cat(losses).mean().item(),
            "train_acc": torch.cat(hits).double().mean().item(),
            "learning_rate": self._schedule.at((epoch + 1) * self._steps - 1).lr,
            "grad_norm": norm.item(),
        }

    @torch.no_grad()
    def evaluate(self, part: str, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Losses and outputs of every sample."""
        inputs, targets = self._data.tensors(part, "cpu")
        seen = self._data.prepare(inputs)
        outputs = self.module.eval()(seen.double() if seen.is_floating_point() else seen)
        return self._data.loss(outputs, targets, label_smoothing), outputs


MakeEngine = Callable[[Job, Any], Engine]


class Oracle:
    """Makes jobs of any network, and holds an engine against torch."""

    shape = Shape
    images = RandomImages
    tokens = RandomTokens
    reference = Reference

    @staticmethod
    def jobs(
        make: Callable[..., nn.Module],
        optimizers: Sequence[Any],
        *,
        batch_size: int = 6,
        schedule: Any = None,
        dropout: Sequence[float | None] = (None,),
        smoothing: Sequence[float] = (0.0,),
        shape: Shape | None = None,
        **training: Any,
    ) -> list[Job]:
        """One model per optimizer, with seeds of its own; rates and smoothing repeat where there are fewer."""
        schedule = schedule or Constant()
        found = []
        for m, optimizer in enumerate(optimizers):
            own = {"label_smoothing": smoothing[m % len(smoothing)], **training}
            recipe = Training(20, batch_size, optimizer, schedule, **own)
            seeds = Seeds(m, 10 + m, 20 + m, 30 + m)
            found.append(Job(f"m{m}", OneOff(make, dropout[m % len(dropout)]), shape or Shape(), recipe, seeds))
        return found

    @staticmethod
    def start(jobs: Sequence[Job], data: Any, dtype: torch.dtype = torch.float64) -> Rows:
        """The untrained models."""
        references = [Reference(job, data) for job in jobs]
        side = {d: torch.stack([r.row(d) for r in references]) for d in references[0].layout.side_dtypes}
        return Rows(torch.stack([r.row() for r in references]).to(dtype), side)

    @classmethod
    def agree(
        cls, make_engine: MakeEngine, jobs: Sequence[Job], data: Any, *, epochs: int = 3, rtol: float = 1e-9
    ) -> Engine:
        """Assert that an engine trains and evaluates as torch does, epoch by epoch from the engine's own states.

        A bias in front of a batch norm has no gradient but rounding noise, which Adam scales up to the size of a step:
        hence the absolute part of the tolerance.
        """
        close = {"rtol": rtol, "atol": rtol / 10}
        references = [Reference(job, data) for job in jobs]
        engine, rows = make_engine(jobs[0], data), cls.start(jobs, data)
        for epoch in range(epochs):
            before = rows
            kept = before.take(range(len(before)))
            rows, measured = engine.train_epoch(jobs, before, epoch, lambda: False)
            assert torch.equal(before.weights, kept.weights), "the rows that came in belong to the trainer"
            scores = engine.evaluate(jobs, rows, "test", -1, [0.1] * len(jobs))
            for m, reference in enumerate(references):
                if epoch:
                    reference.load(before, m)
                expected = reference.train_epoch(epoch)
                torch.testing.assert_close(rows.weights[m], reference.row(), **close)
                states = flat_state(reference.optimizer)
                assert states.keys() <= rows.optimizer.keys()
                for name, state in rows.optimizer.items():
                    wanted = states.get(name, torch.zeros_like(state[m])).double()
                    torch.testing.assert_close(state[m].double(), wanted, **close)
                for dtype, side in rows.side.items():
                    assert torch.equal(side[m], reference.row(dtype))
                for name, value in expected.items():
                    assert measured[name].dtype == torch.float64
                    assert measured[name][m].item() == pytest.approx(value, rel=rtol), name
                losses, outputs = reference.evaluate("test", 0.1)
                torch.testing.assert_close(scores.losses[m].double(), losses, **close)
                # Two outputs that are equal up to rounding may come in either order.
                chosen = outputs.gather(1, scores.predictions[m][:, None])[:, 0]
                torch.testing.assert_close(chosen, outputs.amax(1), **close)
        return engine


@pytest.fixture(scope="session")
def oracle() -> type[Oracle]:
    return Oracle

"""One block of models in the program's memory order: every element a vector with one model per lane."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from zoogen.core import streams
from zoogen.core.layout import Layout
from zoogen.core.records import Job
from zoogen.train.dropout import CounterDropout, replace_dropout
from zoogen.train.population.engine import Rows
from zoogen.train.population.native.arguments import Arguments
from zoogen.train.population.native.graph import KINDS, Graph
from zoogen.train.population.native.program import Settings
from zoogen.train.population.steps import learning_rates, step_keys, stream_keys


@dataclass(frozen=True)
class Program:
    """A compiled program, and what it was generated for."""

    library: ctypes.CDLL
    lanes: int
    scratch: int
    settings: Settings


# Each optimizer's number in updates.h, and torch's names of its first and second moment.
_OPTIMIZERS = {
    "sgd": (0, "momentum_buffer", None),
    "adam": (1, "exp_avg", "exp_avg_sq"),
    "adamw": (2, "exp_avg", "exp_avg_sq"),
    "rmsprop": (3, "momentum_buffer", "square_avg"),
}


class Block:
    """Models in lanes; lanes without a model repeat the last one, and what they compute is dropped."""

    def __init__(self, program: Program, jobs: Sequence[Job], rows: Rows, graph: Graph, layout: Layout) -> None:
        self._program = program
        self._jobs = jobs
        self._layout = layout
        self._side = rows.side
        self.dtype = rows.weights.dtype
        self._optimizer = jobs[0].training.optimizer.registered_name
        lanes = program.lanes
        self._weights_PL = self._to_lanes(rows.weights)
        self._moments = [self._moment(rows, name) for name in self._names()]
        counted = rows.optimizer.get("step")
        self._updates = torch.zeros(len(rows)) if counted is None else counted[:, 0]
        self.loss_sums = torch.zeros(lanes, dtype=torch.float64)
        self.gradient_norms = torch.full((lanes,), torch.nan, dtype=torch.float64)
        self.hits = torch.zeros(lanes, dtype=torch.int64)
        settings = [self._settings(job) for job in jobs]
        columns = {
            name: self.pad(torch.tensor([s[name] for s in settings], dtype=torch.float64)) for name in settings[0]
        }
        clip = jobs[0].training.clip_norm
        self.arguments = Arguments(
            lanes,
            optimizer=_OPTIMIZERS[self._optimizer][0],
            activations=torch.tensor([KINDS.get(o.kind, -1) for o in graph.operations], dtype=torch.int32),
            slopes=torch.tensor([o.settings.get("slope", 0.0) for o in graph.operations], dtype=self.dtype),
            nesterov=int(getattr(jobs[0].training.optimizer, "nesterov", False)),
            weights=self._weights_PL,
            gradients=torch.empty_like(self._weights_PL),
            first_moment=self._moments[0],
            second_moment=self._moments[1],
            loss_sums=self.loss_sums,
            gradient_norms=self.gradient_norms,
            hits=self.hits,
            scratch=torch.empty(program.scratch, lanes, dtype=self.dtype),
            clip=None if clip is None else torch.full((lanes,), clip, dtype=torch.float64),
            **columns,
        )
        self._dropout()
        self._noise_keys = torch.tensor([streams.stream_key(job.seeds.dropout, "noise") for job in jobs])
        self._noisy_layers = len(graph.noisy)
        if rows.kept is not None:
            masks_MT = rows.weights.new_ones(len(rows), layout.trainable)
            masks_MT[:, torch.from_numpy(layout.prunable_places)] = rows.kept.to(masks_MT)
            self.arguments.set(masks=self._to_lanes(masks_MT))

    def _names(self) -> tuple[str | None, str | None]:
        _, first, second = _OPTIMIZERS[self._optimizer]
        return (first if first != "momentum_buffer" or any(self._has_momentum()) else None), second

    def _has_momentum(self) -> list[bool]:
        """Which models keep a momentum buffer: those with momentum, or with a schedule that moves it."""
        _, moved = learning_rates(self._jobs[:1], 0, 1, 1)
        return [moved is not None or getattr(job.training.optimizer, "momentum", 0.0) > 0 for job in self._jobs]

    def _moment(self, rows: Rows, name: str | None) -> Tensor | None:
        if name is None:
            return None
        blank = rows.weights.new_zeros(len(rows), self._layout.trainable)
        return self._to_lanes(rows.optimizer.get(name, blank))

    @staticmethod
    def _settings(job: Job) -> dict[str, float]:
        o: Any = job.training.optimizer
        return {
            "beta1": float(getattr(o, "beta1", getattr(o, "momentum", 0.0))),
            "beta2": float(getattr(o, "beta2", getattr(o, "alpha", 0.0))),
            "eps": float(getattr(o, "eps", 0.0)),
            "decay": o.weight_decay,
            "smoothing": job.training.label_smoothing,
        }

    def _dropout(self) -> None:
        if not self._program.settings.dropout:
            return
        self._dropout_keys = stream_keys(self._jobs, "dropout")
        rates_ML = torch.tensor([dropout_rates(job) for job in self._jobs], dtype=torch.float64)
        # As in dropout.keep_mask: the lowest share of the 2**32 values drops.
        thresholds = torch.tensor([[round(p * 2**32) - 2**31 for p in row] for row in rates_ML.tolist()])
        self.arguments.set(
            dropout_thresholds=self.pad(thresholds).T.contiguous(),
            dropout_scales=self.pad(1 / (1 - rates_ML)).T.contiguous().to(self.dtype),
        )

    def updates_after(self, steps: int) -> Tensor:
        """Updates that every lane's moments have seen after ``steps`` of this block's, float64 [LANES].

        Not the steps of the training: a twin that was sent back to an earlier epoch begins to count anew.
        """
        return self.pad(self._updates.double() + steps)

    def keys_from(self, first_step: int, steps: int) -> None:
        """Provide the keys of dropout and noise for a run of steps."""
        self.arguments.set(key_steps=steps)
        if self._program.settings.dropout:
            layers = len(dropout_rates(self._jobs[0]))
            self.arguments.set(dropout_keys=self._keys(self._dropout_keys, layers, first_step, steps))
        if self._noisy_layers:
            self.arguments.set(noise_keys=self._keys(self._noise_keys, self._noisy_layers, first_step, steps))

    def _keys(self, keys_M: Tensor, layers: int, first_step: int, steps: int) -> Tensor:
        """Subkeys of each layer and step, int64 [layers, S, LANES]."""
        return torch.stack([self.pad(step_keys(keys_M, k, first_step, steps)).T for k in range(layers)]).contiguous()

    def weigh_kl(self, epoch: int, samples: int) -> None:
        """Set what the KL term of noisy weights counts in the epoch after ``epoch`` completed ones."""
        if self._noisy_layers:
            trainings = [job.training for job in self._jobs]
            weights = [t.sparsify.kl_weight(epoch, t.epochs, samples) for t in trainings]
            self.arguments.set(kl_weights=self.pad(torch.tensor(weights, dtype=torch.float64)))

    @property
    def augment_keys(self) -> Tensor:
        """Augment stream key of every lane."""
        return self.pad(stream_keys(self._jobs, "augment"))

    def pad(self, values_M: Tensor) -> Tensor:
        """[M, ...] -> [LANES, ...], the last model repeated."""
        missing = self._program.lanes - len(values_M)
        return torch.cat([values_M, values_M[-1:].expand(missing, *values_M.shape[1:])]).contiguous()

    def per_step(self, values_MS: Tensor) -> Tensor:
        """Settings of every step, real [S, LANES]."""
        return self.pad(values_MS).T.contiguous().to(self.dtype)

    def _to_lanes(self, rows_MP: Tensor) -> Tensor:
        return self.pad(rows_MP).T.contiguous()

    def _from_lanes(self, lanes_PL: Tensor) -> Tensor:
        return lanes_PL[:, : len(self._jobs)].T.contiguous()

    def rows(self, steps: int, passes: int) -> Rows:
        """The models as they stand after ``steps``, and ``passes`` through the network, in this block."""
        models, names = len(self._jobs), self._names()
        optimizer = {n: self._from_lanes(m) for n, m in zip(names, self._moments, strict=True) if n and m is not None}
        if "momentum_buffer" in optimizer:
            # Without momentum the buffer held the last gradient; torch keeps none, which is stored as zeros.
            optimizer["momentum_buffer"][~torch.tensor(self._has_momentum())] = 0
        if self._optimizer != "sgd":
            tensors = sum(e.trainable for e in self._layout.entries)
            optimizer["step"] = (self._updates + steps)[:, None].expand(models, tensors).float().contiguous()
        side = {dtype: rows.clone() for dtype, rows in self._side.items()}
        for e in self._layout.entries:
            if e.name.rpartition(".")[2] == "num_batches_tracked":
                side[e.dtype][:, e.offset] += passes
        return Rows(self._from_lanes(self._weights_PL), side, optimizer)


def dropout_rates(job: Job) -> tuple[float, ...]:
    """Rate of each dropout layer, in module order."""
    return _rates(job.architecture, job.task.input_shape, job.task.outputs)


@lru_cache(maxsize=4096)
def _rates(architecture: Any, input_shape: tuple[int, ...], outputs: int) -> tuple[float, ...]:
    with torch.device("meta"):
        module = architecture.build(input_shape, outputs)
    replace_dropout(module)
    return tuple(layer.p for layer in module.modules() if isinstance(layer, CounterDropout))

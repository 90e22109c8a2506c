"""The stacked engine: a block of models as stacked tensors, computed by torch on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoogen.core.contracts import PartName, TaskData
from zoogen.core.errors import Incomplete
from zoogen.core.records import Job
from zoogen.train.dropout import replace_dropout
from zoogen.train.network import build_network
from zoogen.train.population.engine import Rows, Scores, Unsupported
from zoogen.train.population.stacked.block import Block, as_seen, block_key
from zoogen.train.population.stacked.choice import choose
from zoogen.train.population.stacked.epoch import Epoch
from zoogen.train.population.stacked.losses import StackedLoss
from zoogen.train.population.stacked.network import StackedNetwork, batchable_attention, program_of
from zoogen.train.population.stacked.optimizers import check_optimizer
from zoogen.train.population.stacked.trial import try_out
from zoogen.train.precision import check_precision, matrix_arithmetic, mixed

# Input elements of all models together in one pass of an evaluation: bounds memory, and on a CPU keeps to its caches.
_ELEMENTS = {"cpu": 2**19, "cuda": 2**25}


class StackedEngine:
    """Implements :class:`zoogen.train.population.engine.Engine` with torch's own operations on any device.

    No value of one model enters the computation of another. Rounding may depend on how many models there are: in
    training not on a CPU with the variants ``unfold`` and ``loop`` of convolutions (matrix by matrix, the same sums),
    by a unit in the last place with ``grouped`` and ``shifted`` and in evaluation, which takes as many samples at once
    as fit beside each other.

    Args:
        example: A job of the cohort.
        data: The task, loaded.
        device: Where.
        variants: Which variant of a layer to use, by layer name (as ``describe()["variants"]`` gives them, to compute
            the same again) or by kind: ``{"conv2d": "unfold", "max_pool": "slices"}``. The others are measured.
        cache: Folder of what was measured before.
        models: Models of a block to measure for.

    Raises:
        Unsupported: a layer, the optimizer or the precision has no stacked form.
        UserError: the device cannot do the precision, or a variant is not known.
    """

    name: ClassVar[str] = "stacked"

    def __init__(
        self,
        example: Job,
        data: TaskData,
        device: torch.device,
        *,
        variants: Mapping[str, str] | None = None,
        cache: Path | None = None,
        models: int = 16,
    ) -> None:
        training = example.training
        if training.precision == "float16":
            raise Unsupported("precision float16 scales the loss of each model apart")
        check_precision(training.precision, device)
        check_optimizer(training.optimizer)
        self._data = data
        self._device = device
        self._precision = training.precision
        self._network = StackedNetwork(example, device)
        self._rates: dict[Any, tuple[float, ...]] = {}
        self._block: Block | None = None
        batch = min(training.micro_batch or training.batch_size, training.batch_size, data.size("train"))
        with self._arithmetic():
            try_out(self._network, data, device, training.precision)
            choose(
                self._network.tuned,
                variants or {},
                models=models,
                batch=batch,
                precision=training.precision,
                device=device,
                cache=cache,
            )

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        with matrix_arithmetic(self._precision), batchable_attention(self._device):
            yield

    def train_epoch(
        self, jobs: Sequence[Job], rows: Rows, epoch: int, should_stop: Callable[[], bool]
    ) -> tuple[Rows, Mapping[str, Tensor]]:
        """See :class:`zoogen.train.population.engine.Engine`."""
        samples, batch = self._data.size("train"), jobs[0].training.batch_size
        rates_ML = [self._dropout_rates(job) for job in jobs]
        plan = Epoch(jobs, epoch, samples, rates_ML, self._device, noisy=len(self._network.noises))
        # Kept for the next epoch only if this one comes to its end: out of memory, it must be gone.
        block, self._block = self._block, None
        if block is None or block.key != block_key(plan, rows):
            block = None
            self._network.to(rows.weights.dtype)
            block = Block(self._network, self._data, self._device, plan, rows)
        block.load(plan, rows)
        with self._arithmetic():
            for start in range(0, samples, batch):
                if should_stop():
                    raise Incomplete(f"{len(jobs)} models were stopped in epoch {epoch + 1}")
                block.step(min(batch, samples - start))
        measured = {**block.measured(samples), "learning_rate": plan.last_learning_rates}
        self._block = block
        return block.rows(), measured

    def _dropout_rates(self, job: Job) -> tuple[float, ...]:
        """Of each dropout layer, in module order.

        Raises:
            Unsupported: the job's network is not the one this engine was made for.
        """
        network = job.architecture, job.training.sparsify
        try:
            if network in self._rates:
                return self._rates[network]
        except TypeError:  # an architecture of someone else's that cannot be hashed
            return self._read_rates(job)
        return self._rates.setdefault(network, self._read_rates(job))

    def _read_rates(self, job: Job) -> tuple[float, ...]:
        module = build_network(job, seed=0)
        if program_of(module) != self._network.program:
            raise Unsupported(f"the network of model {job.model_id} differs in more than its dropout rates")
        return tuple(layer.p for layer in replace_dropout(module))

    @torch.no_grad()
    def evaluate(
        self, jobs: Sequence[Job], rows: Rows, part: PartName, first: int, label_smoothing: Sequence[float]
    ) -> Scores:
        """See :class:`zoogen.train.population.engine.Engine`; losses of float64 rows are float64."""
        inputs, targets = self._data.tensors(part, self._device)
        if first >= 0:
            inputs, targets = inputs[:first], targets[:first]
        models, dtype = len(rows), rows.weights.dtype
        loss = StackedLoss(self._data, label_smoothing, self._device)
        self._network.to(dtype)
        # A network may write into its buffers even here; those of the trainer stay as they are.
        tensors = self._network.views(rows.weights.clone(), {name: side.clone() for name, side in rows.side.items()})
        size = max(1, _ELEMENTS.get(self._device.type, _ELEMENTS["cpu"]) // (models * prod(inputs.shape[1:])))
        losses = [torch.empty(models, 0, dtype=dtype, device=self._device)]
        predictions = [torch.empty(models, 0, dtype=torch.int64, device=self._device)]
        with self._arithmetic():
            for start in range(0, len(targets), size):
                inputs_B, targets_B = inputs[start : start + size], targets[start : start + size]
                with mixed(self._precision, self._device):
                    outputs_MBC = self._network(tensors, as_seen(self._data, inputs_B, dtype), training=False)
                outputs_MBC = outputs_MBC.to(dtype)
                losses.append(loss(outputs_MBC, targets_B.expand(models, -1)))
                predictions.append(outputs_MBC.argmax(2))
        return Scores(torch.cat(losses, dim=1), torch.cat(predictions, dim=1))

    def describe(self) -> dict[str, Any]:
        """The variant of every layer that has several, by layer name."""
        return {"engine": self.name, "variants": {layer.name: layer.variant for layer in self._network.tuned}}

"""The native engine: a generated C program on blocks of as many models as a vector register has lanes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from zoogen.core.contracts import PartName, TaskData
from zoogen.core.errors import Incomplete
from zoogen.core.layout import describe_module
from zoogen.core.records import Job
from zoogen.train.dropout import replace_dropout
from zoogen.train.network import build_network
from zoogen.train.population.engine import Rows, Scores, Unsupported
from zoogen.train.population.native.block import Block, Program, dropout_rates
from zoogen.train.population.native.compiler import load, vector_bytes
from zoogen.train.population.native.graph import trace
from zoogen.train.population.native.program import Settings, generate, prelude
from zoogen.train.population.native.samples import Samples, augments, check_cross_entropy
from zoogen.train.population.steps import epoch_orders, learning_rates

SCRATCH_BYTES = 1 << 30
"""A program whose activations need more than this per thread is left to the other engines."""

EVALUATED = 2048
"""Samples evaluated between two looks at the loss; bounds memory."""

Result = TypeVar("Result")


class NativeEngine:
    """Implements :class:`zoogen.train.population.engine.Engine` on CPUs.

    What a model becomes does not depend on how many models there are, on the lane it is in or on the number of
    threads: every lane computes the same sums in the same order.

    Args:
        example: A job of the cohort.
        data: The task, loaded.
        device: The CPU.
        cache: Where compiled programs are kept.
        threads: Blocks computed at the same time.
        dtype: Of the rows to come; float64 is for tests.

    Raises:
        Unsupported: no compiler, or a layer or setting that has no generated code.
    """

    name: ClassVar[str] = "native"

    def __init__(
        self,
        example: Job,
        data: TaskData,
        device: torch.device,
        *,
        cache: Path,
        threads: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if device.type != "cpu":
            raise Unsupported("generated C runs on CPUs only")
        if example.training.precision != "float32":
            raise Unsupported(f"generated C has no precision {example.training.precision!r}")
        check_cross_entropy(data)
        self._data = data
        self._cache = cache
        self._threads = threads
        module = build_network(example, seed=0)
        self._layout = describe_module(module)
        names = {e.name: e.name for e in self._layout.entries} | dict(self._layout.aliases)
        replace_dropout(module)
        self._graph = trace(module, example.task.input_shape, names)
        self._check_graph(example)
        self._samples = Samples(data, example.task.input_shape)
        self._augments = augments(data)
        self._programs: dict[tuple[bool, torch.dtype], Program] = {}
        self._program([example], dtype)

    def _check_graph(self, example: Job) -> None:
        graph = self._graph
        if graph.shapes[graph.output] != (example.task.outputs,):
            raise Unsupported(f"its output has shape {graph.shapes[graph.output]}, not ({example.task.outputs},)")
        used = {name for o in graph.operations for name in o.tensors.values()}
        unused = [e.name for e in self._layout.entries if e.trainable and e.name not in used]
        if unused:
            raise Unsupported(f"parameter {unused[0]!r} takes no part in its forward")
        training = example.training
        last = self._data.size("train") % training.batch_size
        flat = any(o.kind == "batch_norm" and len(graph.shapes[o.out]) == 1 for o in graph.operations)
        if flat and 1 in (last, training.batch_size, training.micro_batch):
            raise Unsupported("a batch norm without an image cannot normalise a batch of one sample")

    def _program(self, jobs: Sequence[Job], dtype: torch.dtype) -> Program:
        """The compiled program for these jobs: without what none of them uses."""
        training = jobs[0].training
        dropped = any(p > 0 for job in jobs for p in dropout_rates(job))
        key = (dropped, dtype)
        if key not in self._programs:
            size = torch.finfo(dtype).bits // 8
            lanes = max(1, vector_bytes() // size)
            settings = Settings(
                batch_size=training.batch_size,
                micro_batch=min(training.micro_batch or training.batch_size, training.batch_size),
                dropout=dropped,
                registers=32 if vector_bytes() == 64 else 16,
            )
            source = generate(self._graph, self._layout, settings)
            if source.scratch * lanes * size > SCRATCH_BYTES:
                raise Unsupported(f"its activations take {source.scratch * lanes * size >> 20} MiB per thread")
            defines = {"LANES": str(lanes)} | ({"DOUBLE": "1"} if dtype == torch.float64 else {})
            library = load(prelude() + source.text, defines, self._cache)
            self._programs[key] = Program(library, lanes, source.scratch, settings)
        return self._programs[key]

    def train_epoch(
        self, jobs: Sequence[Job], rows: Rows, epoch: int, should_stop: Callable[[], bool]
    ) -> tuple[Rows, Mapping[str, Tensor]]:
        """See :class:`zoogen.train.population.engine.Engine`."""
        program = self._program(jobs, rows.weights.dtype)

        def train(models: Sequence[int]) -> tuple[Rows, dict[str, Tensor]]:
            own = [jobs[m] for m in models]
            block = Block(program, own, rows.take(models), self._graph, self._layout)
            return self._train(program, block, own, epoch, should_stop)

        parts = self._each_block(program.lanes, len(jobs), train)
        after = [own for own, _ in parts]
        # A block whose models have no momentum keeps no buffer for it; stored, that is zeros.
        widths = {name: own.shape[1] for r in after for name, own in r.optimizer.items()}
        return Rows(
            torch.cat([r.weights for r in after]),
            {name: torch.cat([r.side[name] for r in after]) for name in after[0].side},
            {
                name: torch.cat([r.optimizer.get(name, r.weights.new_zeros(len(r), width)) for r in after])
                for name, width in widths.items()
            },
        ), {name: torch.cat([measured[name] for _, measured in parts]) for name in parts[0][1]}

    def _each_block(self, lanes: int, models: int, work: Callable[[Sequence[int]], Result]) -> list[Result]:
        """``work`` on consecutive models, as many at once as there are lanes, in threads."""
        blocks = [range(start, min(start + lanes, models)) for start in range(0, models, lanes)]
        if self._threads == 1 or len(blocks) == 1:
            return [work(block) for block in blocks]
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(work, blocks))

    def _train(
        self, program: Program, block: Block, jobs: Sequence[Job], epoch: int, should_stop: Callable[[], bool]
    ) -> tuple[Rows, dict[str, Tensor]]:
        part = self._samples.part("train", block.dtype)
        samples, batch = len(part.targets), program.settings.batch_size
        steps = -(-samples // batch)
        first_step = epoch * steps
        order = block.pad(epoch_orders(jobs, epoch, samples))
        rates, momenta = learning_rates(jobs, first_step, steps, steps)
        arguments = block.arguments
        arguments.set(
            order=order,
            n_order=samples,
            targets=[part.targets] * program.lanes,
            inputs=[part.inputs] * program.lanes,
            lut=self._samples.table(block.dtype),
        )
        block.weigh_kl(epoch, samples)
        rates_SL, momenta_SL = block.per_step(rates), None if momenta is None else block.per_step(momenta)
        done, pace = 0, _Pace()
        while done < steps:
            if should_stop():
                raise Incomplete(f"{len(jobs)} models were stopped in epoch {epoch + 1}")
            n = min(pace.steps, steps - done)
            first, last = done * batch, min((done + n) * batch, samples)
            if self._augments:
                self._augment(block, jobs, order[:, first:last], first_step + done)
            block.keys_from(first_step + done, n)
            arguments.set(
                first=first,
                samples=last - first,
                updates=block.updates_after(done),
                rates=rates_SL[done:],
                momenta=None if momenta_SL is None else momenta_SL[done:],
            )
            with pace:
                program.library.zoogen_train(ctypes.byref(arguments.struct))
            done += n
        passes = sum(-(-min(batch, samples - s) // program.settings.micro_batch) for s in range(0, samples, batch))
        measured = {
            "train_loss": block.loss_sums / samples,
            "train_acc": block.hits.double() / samples,
            "learning_rate": block.pad(rates[:, -1]),
            "grad_norm": block.gradient_norms,
        }
        return block.rows(steps, passes), {name: v[: len(jobs)].clone() for name, v in measured.items()}

    def _augment(self, block: Block, jobs: Sequence[Job], order_LN: Tensor, first_step: int) -> None:
        """Hand the coming steps' samples over one by one: every model sees its own crops."""
        raw, _ = self._data.tensors("train", "cpu")
        batch = jobs[0].training.batch_size
        lanes, n = order_LN.shape
        keys_L = block.augment_keys
        pieces = []
        whole = n // batch * batch
        for start, size, count in ((0, batch, whole // batch), (whole, n - whole, 1)):
            if size and count:
                chosen = raw[order_LN[:, start : start + size * count].reshape(-1)]
                batches_KB = chosen.view(lanes * count, size, *raw.shape[1:])
                numbers_S = first_step + start // batch + torch.arange(count)
                seen = self._data.augment(batches_KB, keys_L.repeat_interleave(count), numbers_S.repeat(lanes))
                pieces.append(seen.reshape(lanes, size * count, *raw.shape[1:]))
        seen = torch.cat(pieces, dim=1)
        block.arguments.set(inputs=[self._samples.ready(own, block.dtype) for own in seen], gathered=1)

    def evaluate(
        self, jobs: Sequence[Job], rows: Rows, part: PartName, first: int, label_smoothing: Sequence[float]
    ) -> Scores:
        """See :class:`zoogen.train.population.engine.Engine`."""
        program = self._program(jobs, rows.weights.dtype)

        def evaluate(models: Sequence[int]) -> Scores:
            block = Block(program, [jobs[m] for m in models], rows.take(models), self._graph, self._layout)
            return self._evaluate(program, block, part, first, [label_smoothing[m] for m in models])

        found = self._each_block(program.lanes, len(jobs), evaluate)
        return Scores(torch.cat([s.losses for s in found]), torch.cat([s.predictions for s in found]))

    def _evaluate(
        self, program: Program, block: Block, part: PartName, first: int, label_smoothing: Sequence[float]
    ) -> Scores:
        samples = self._samples.part(part, block.dtype)
        total = len(samples.targets) if first < 0 else min(first, len(samples.targets))
        models, classes = len(label_smoothing), self._data.outputs
        outputs = torch.empty(EVALUATED, classes, program.lanes, dtype=block.dtype)
        block.arguments.set(
            inputs=[samples.inputs] * program.lanes, lut=self._samples.table(block.dtype), outputs=outputs
        )
        losses, predictions = [], []
        for start in range(0, total, EVALUATED):
            n = min(EVALUATED, total - start)
            block.arguments.set(first=start, samples=n)
            program.library.zoogen_evaluate(ctypes.byref(block.arguments.struct))
            outputs_MNC = outputs[:n].permute(2, 0, 1)[:models].contiguous()
            targets = samples.targets[start : start + n]
            losses.append(self._losses(outputs_MNC, targets, label_smoothing))
            predictions.append(outputs_MNC.argmax(2))
        return Scores(torch.cat(losses, dim=1), torch.cat(predictions, dim=1))

    def _losses(self, outputs_MNC: Tensor, targets_N: Tensor, label_smoothing: Sequence[float]) -> Tensor:
        """Per-sample losses [M, N], by the task's own function; models of one smoothing together."""
        smoothing = torch.tensor(label_smoothing, dtype=torch.float64)
        losses_MN = outputs_MNC.new_empty(outputs_MNC.shape[:2])
        for value in sorted(set(label_smoothing)):
            which = smoothing == value
            own = outputs_MNC[which]
            targets = targets_N.repeat(len(own))
            losses_MN[which] = self._data.loss(own.flatten(0, 1), targets, value).view(len(own), -1)
        return losses_MN

    def describe(self) -> dict[str, Any]:
        """The vector width: nothing else is chosen."""
        return {"engine": self.name, "vector_bytes": vector_bytes()}


class _Pace:
    """How many steps to run before asking again whether to stop: about a tenth of a second's worth."""

    SECONDS = 0.1
    MOST = 4096

    def __init__(self) -> None:
        self.steps = 8

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if time.perf_counter() - self._began < self.SECONDS / 2:
            self.steps = min(2 * self.steps, self.MOST)

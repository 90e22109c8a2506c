"""An engine that has the plain trainer do the work, so that what surrounds an engine is tested with right numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from zoogen.core.layout import describe_module
from zoogen.core.modules import build_model
from zoogen.core.records import Cohort, CohortState, Recording, Resources
from zoogen.train.metrics import TRAINING_METRICS
from zoogen.train.plain import PlainTrainer
from zoogen.train.population.engine import Rows, Scores


class LoopEngine:
    """Trains and evaluates model by model; ``spoil(rows, measured)`` makes it wrong on purpose."""

    def __init__(self, wanted, name="loop", spoil=None, spoil_scores=None, variants=None):
        self.name = name
        self.data = wanted.data
        self.models = []  # how many at once, call by call
        self._spoil = spoil or (lambda before, rows, measured: (rows, measured))
        self._spoil_scores = spoil_scores or (lambda scores: scores)
        self._variants = variants or {}

    def train_epoch(self, jobs, rows, epoch, should_stop):
        self.models.append(len(jobs))
        jobs = tuple(replace(job, model_id=str(m)) for m, job in enumerate(jobs))
        layout = describe_module(self._module(jobs[0]))
        cohort = Cohort("loop", jobs, 10**6, Recording(()), (), layout.layout_id, Resources())
        trainer = PlainTrainer(cohort, self.data, "cpu")
        arrays = ({name: own.numpy() for name, own in part.items()} for part in (rows.side, rows.optimizer))
        trainer.restore(CohortState(epoch, cohort.model_ids, rows.weights.numpy(), *arrays))
        trainer.train_epoch(should_stop)
        state = trainer.state()
        after = Rows(
            torch.from_numpy(state.weights),
            {name: torch.from_numpy(own) for name, own in state.side.items()},
            {name: torch.from_numpy(own) for name, own in state.optimizer.items()},
        )
        none = np.full(len(jobs), np.nan)
        measured = {name: torch.from_numpy(state.training_metrics.get(name, none)) for name in TRAINING_METRICS}
        return self._spoil(rows, after, measured)

    @torch.no_grad()
    def evaluate(self, jobs, rows, part, first, label_smoothing):
        inputs, targets = self.data.tensors(part, "cpu")
        if first >= 0:
            inputs, targets = inputs[:first], targets[:first]
        losses, predictions = [], []
        for m, (job, smoothing) in enumerate(zip(jobs, label_smoothing, strict=True)):
            module = self._module(job).eval()
            flat = {"float32": rows.weights[m], **{name: own[m] for name, own in rows.side.items()}}
            module.load_state_dict(describe_module(module).unflatten(flat))
            outputs = module(self.data.prepare(inputs))
            losses.append(self.data.loss(outputs, targets, smoothing))
            predictions.append(outputs.argmax(1))
        return self._spoil_scores(Scores(torch.stack(losses), torch.stack(predictions)))

    @staticmethod
    def _module(job):
        return build_model(job.architecture, job.task.input_shape, job.task.outputs, job.seeds.init)

    def describe(self):
        return {"engine": self.name, "variants": self._variants}

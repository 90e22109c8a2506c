"""The plain trainer: each model of a cohort is an ``nn.Module`` with ``torch.optim``, trained in turn within an epoch.

It is the oracle of faster trainers and the way to train large models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from zoogen.core.contracts import TaskData
from zoogen.core.records import Checkpoint, Cohort, CohortState
from zoogen.train.duties import as_stored, check_layout, check_models, keeps_optimizer
from zoogen.train.metrics import TRAINING_METRICS
from zoogen.train.model import Snapshot, TrainedModel


class PlainTrainer:
    """Implements :class:`zoogen.core.contracts.Trainer`."""

    def __init__(self, cohort: Cohort, data: TaskData, device: str) -> None:
        """Construct the models in their initial state (epoch 0).

        Raises:
            UserError: the device cannot do the precision asked for.
            IntegrityError: a model has another layout than the plan says.
        """
        self._cohort = cohort
        self._data = data
        self._device = torch.device(device)
        self._epoch = 0
        self._models = {j.model_id: TrainedModel(j, data, self._device, cohort.resources) for j in cohort.jobs}
        for model_id, model in self._models.items():
            check_layout(cohort, model_id, model.layout)
        self._kept = {model_id: model.snapshot(0, {}) for model_id, model in self._models.items()}
        self._diverged: dict[str, int] = {}

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._epoch

    @property
    def diverged(self) -> Mapping[str, int]:
        """model_id -> first epoch whose loss or weights were not finite."""
        return self._diverged

    @property
    def last_finite(self) -> dict[str, int]:
        """model_id -> epoch of the state kept, for diverged models.

        Initial weights that are not finite are kept all the same (epoch 0): they are where the model stands.
        """
        return {model_id: self._kept[model_id].epoch for model_id in self._diverged}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one model in one epoch."""
        return next(iter(self._models.values())).steps_per_epoch

    def train_epoch(self, should_stop: Callable[[], bool]) -> None:
        """Train every living model for one epoch.

        Raises:
            Incomplete: ``should_stop()`` said so between two steps; the models are no longer at an epoch boundary.
        """
        for model_id, model in self._models.items():
            if model_id in self._diverged:
                continue
            after = model.snapshot(self._epoch + 1, model.train_epoch(self._epoch, should_stop))
            if after.finite:
                self._kept[model_id] = after
            else:
                self._diverged[model_id] = self._epoch + 1
                model.load(self._kept[model_id])
        self._epoch += 1

    def state(self) -> CohortState:
        """A copy of everything needed to continue from here."""
        kept = list(self._kept.values())
        measured = any(s.metrics for s in kept)
        return CohortState(
            epoch=self._epoch,
            model_ids=tuple(self._kept),
            weights=_stack(s.weights for s in kept),
            side=_stack_side(kept),
            optimizer=_stack_optimizer(kept),
            diverged=dict(self._diverged),
            last_finite=self.last_finite,
            training_metrics={n: _metric(kept, n) for n in TRAINING_METRICS} if measured else {},
            kept=None if kept[0].kept is None else _stack(s.kept for s in kept if s.kept is not None),
        )

    def restore(self, state: CohortState) -> None:
        """Continue from ``state``: afterwards equal, bit for bit on CPU, to a run that was never interrupted.

        Raises:
            IntegrityError: the state is of other models.
        """
        check_models(self._cohort, state)
        self._epoch = state.epoch
        self._diverged = dict(state.diverged)
        for row, model_id in enumerate(state.model_ids):
            epoch = state.last_finite.get(model_id, state.epoch)
            self._kept[model_id] = _snapshot(state, row, epoch, self._device)
            self._models[model_id].load(self._kept[model_id])

    def checkpoint(self, model_ids: tuple[str, ...]) -> Checkpoint:
        """Evaluate these models and copy them out; rows in the order asked for.

        The models are all living (their epoch is the trainer's), or all diverged with the same last finite epoch; a
        diverged model stands still in its last finite state and keeps the training metrics of that epoch.
        """
        kept = [self._kept[m] for m in model_ids]
        (epoch,) = {s.epoch for s in kept}
        recording = self._cohort.recording
        measured = [self._measure(m) for m in model_ids]
        return Checkpoint(
            epoch=epoch,
            model_ids=model_ids,
            weights=_stack(s.weights for s in kept),
            side=_stack_side(kept),
            metrics={name: np.stack([row[name] for row, _ in measured]) for name in measured[0][0]},
            optimizer=_stack_optimizer(kept) if keeps_optimizer(recording, epoch) else {},
            predictions=self._predicted(measured) if recording.test_predictions else None,
            kept=None if kept[0].kept is None else _stack(s.kept for s in kept if s.kept is not None),
        )

    def _predicted(self, measured: Sequence[tuple[Mapping[str, np.ndarray], np.ndarray]]) -> np.ndarray:
        return as_stored(np.stack([predictions for _, predictions in measured]), self._data.outputs)

    def _measure(self, model_id: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The metric columns of one model, and its test predictions [N_test]."""
        model, kept = self._models[model_id], self._kept[model_id]
        values: dict[str, float] = dict.fromkeys(TRAINING_METRICS, np.nan) | dict(kept.metrics)
        if kept.epoch == 0:
            start = model.evaluate("train", label_smoothing=model.job.training.label_smoothing)
            values |= {"train_loss": start.loss, "train_acc": start.acc, "learning_rate": model.first_learning_rate}
        if self._cohort.recording.evaluate_train:
            train = model.evaluate("train", first=self._cohort.recording.evaluate_train)
            values |= {"train_eval_loss": train.loss, "train_eval_acc": train.acc}
        val, test = model.evaluate("val"), model.evaluate("test")
        trainable = kept.weights[: model.layout.trainable]
        values |= {
            "val_loss": val.loss,
            "val_acc": val.acc,
            "test_loss": test.loss,
            "test_acc": test.acc,
            "weight_norm": trainable.double().norm().item(),
        }
        columns = {name: np.float64(value) for name, value in values.items()}
        return {**columns, "test_acc_per_class": test.acc_per_class}, test.predictions  # type: ignore[dict-item]


def _stack(rows: Iterable[Tensor]) -> np.ndarray:
    return torch.stack(list(rows)).cpu().numpy()


def _stack_side(kept: Sequence[Snapshot]) -> dict[str, np.ndarray]:
    return {dtype: _stack(s.side[dtype] for s in kept) for dtype in kept[0].side}


def _stack_optimizer(kept: Sequence[Snapshot]) -> dict[str, np.ndarray]:
    """Rows of a model that has no optimizer state (it diverged in its first epoch) are zeros."""
    templates = {name: torch.zeros_like(row) for s in kept for name, row in s.optimizer.items()}
    return {name: _stack(s.optimizer.get(name, zeros) for s in kept) for name, zeros in sorted(templates.items())}


def _metric(kept: Sequence[Snapshot], name: str) -> np.ndarray:
    return np.array([s.metrics.get(name, np.nan) for s in kept], dtype=np.float64)


def _snapshot(state: CohortState, row: int, epoch: int, device: torch.device) -> Snapshot:
    def copy(rows: np.ndarray) -> Tensor:
        return torch.tensor(rows[row], device=device)

    return Snapshot(
        epoch=epoch,
        weights=copy(state.weights),
        side={name: copy(rows) for name, rows in state.side.items()},
        optimizer={name: copy(rows) for name, rows in state.optimizer.items()},
        metrics={name: float(rows[row]) for name, rows in state.training_metrics.items()} if epoch else {},
        kept=None if state.kept is None else copy(state.kept),
    )

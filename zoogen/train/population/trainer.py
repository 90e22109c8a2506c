"""The population trainer: a cohort's models as stacked rows, trained and evaluated block by block by an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from zoogen.core.contracts import PartName, TaskData
from zoogen.core.errors import EnvironmentFault
from zoogen.core.layout import describe_module
from zoogen.core.records import Checkpoint, Cohort, CohortState, Job
from zoogen.train.duties import as_stored, check_layout, check_models, keeps_optimizer
from zoogen.train.metrics import TRAINING_METRICS
from zoogen.train.network import build_network
from zoogen.train.population.engine import Engine, Rows, Scores
from zoogen.train.population.steps import learning_rates
from zoogen.train.sparsify.masks import first_mask

log = logging.getLogger("zoogen")

Result = TypeVar("Result")


class PopulationTrainer:
    """Implements :class:`zoogen.core.contracts.Trainer`.

    Args:
        cohort: What to train.
        data: The task, loaded.
        device: Where.
        engine: Made for this kind of models on this device.
        block: Models computed at once; halved where they do not fit into memory.
    """

    def __init__(self, cohort: Cohort, data: TaskData, device: str, engine: Engine, block: int | None = None) -> None:
        self._cohort = cohort
        self._data = data
        self._device = torch.device(device)
        self._engine = engine
        self._block = block or len(cohort.jobs)
        self._epoch = 0
        self._position = {job.model_id: m for m, job in enumerate(cohort.jobs)}
        self._rows, self._trainable = initial_rows(cohort, self._device)
        # Epoch of each model's row, and what was measured while that epoch ran.
        self._row_epoch = np.zeros(len(cohort.jobs), dtype=np.int64)
        self._measured = {name: np.full(len(cohort.jobs), np.nan) for name in TRAINING_METRICS}
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
        """model_id -> epoch of the state kept, for diverged models."""
        return {model_id: int(self._row_epoch[self._position[model_id]]) for model_id in self._diverged}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one model in one epoch."""
        return self._cohort.jobs[0].training.steps_per_epoch(self._data.size("train"))

    def train_epoch(self, should_stop: Callable[[], bool]) -> None:
        """Train every living model for one epoch.

        Raises:
            Incomplete: ``should_stop()`` said so between two steps; the models are no longer at an epoch boundary.
            EnvironmentFault: not even one model fits into memory.
        """
        living = [m for model_id, m in self._position.items() if model_id not in self._diverged]

        def train(models: Sequence[int]) -> tuple[Rows, Mapping[str, Tensor]]:
            return self._engine.train_epoch(self._jobs(models), self._rows.take(models), self._epoch, should_stop)

        for models, (after, measured) in self._blocks(living, train):
            self._keep(models, after, measured)
        self._epoch += 1

    def _keep(self, models: Sequence[int], after: Rows, measured: Mapping[str, Tensor]) -> None:
        """Take over what is finite; the others have diverged and stand where they stood before this epoch."""
        finite = (after.weights.isfinite().all(dim=1).cpu() & measured["train_loss"].isfinite()).tolist()
        kept = [i for i, ok in enumerate(finite) if ok]
        for i, ok in enumerate(finite):
            if not ok:
                self._diverged[self._cohort.jobs[models[i]].model_id] = self._epoch + 1
        if not kept:
            return
        places = [models[i] for i in kept]
        self._rows = self._rows.put(places, after if len(kept) == len(models) else after.take(kept))
        self._row_epoch[places] = self._epoch + 1
        for name, values in measured.items():
            self._measured[name][places] = values.numpy()[kept]

    def _blocks(
        self, models: Sequence[int], work: Callable[[Sequence[int]], Result]
    ) -> Iterator[tuple[Sequence[int], Result]]:
        """Do ``work`` on all ``models``, as many at once as fit into memory."""
        start = 0
        while start < len(models):
            part = models[start : start + self._block]
            try:
                result = work(part)
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise EnvironmentFault(
                        f"one model of cohort {self._cohort.cohort_id} does not fit into the memory of {self._device}\n"
                        "set a smaller training.micro_batch or batch size, or choose a device with more memory"
                    ) from error
                self._block = len(part) // 2
                log.warning("%d models at once do not fit into memory; going on with %d", len(part), self._block)
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            yield part, result
            start += len(part)

    def _jobs(self, models: Sequence[int]) -> list[Job]:
        return [self._cohort.jobs[m] for m in models]

    # State

    def state(self) -> CohortState:
        """A copy of everything needed to continue from here."""
        measured = bool((self._row_epoch > 0).any())
        return CohortState(
            epoch=self._epoch,
            model_ids=self._cohort.model_ids,
            weights=_array(self._rows.weights),
            side=_arrays(self._rows.side),
            optimizer=_arrays(self._rows.optimizer),
            diverged=dict(self._diverged),
            last_finite=self.last_finite,
            training_metrics={name: values.copy() for name, values in self._measured.items()} if measured else {},
            kept=None if self._rows.kept is None else _array(self._rows.kept),
        )

    def restore(self, state: CohortState) -> None:
        """Continue from ``state``: afterwards equal, bit for bit on CPU, to a run that was never interrupted.

        Raises:
            IntegrityError: the state is of other models.
        """
        check_models(self._cohort, state)

        def tensor(rows: np.ndarray) -> Tensor:
            return torch.tensor(rows, device=self._device)

        self._epoch = state.epoch
        self._diverged = dict(state.diverged)
        self._rows = Rows(
            tensor(state.weights),
            {name: tensor(rows) for name, rows in state.side.items()},
            {name: tensor(rows) for name, rows in state.optimizer.items()},
            None if state.kept is None else tensor(state.kept),
        )
        self._row_epoch = np.array([state.last_finite.get(m, state.epoch) for m in state.model_ids], dtype=np.int64)
        blank = np.full(len(state.model_ids), np.nan)
        self._measured = {name: state.training_metrics.get(name, blank).copy() for name in TRAINING_METRICS}

    # Checkpoints

    def checkpoint(self, model_ids: tuple[str, ...]) -> Checkpoint:
        """Evaluate these models and copy them out; rows in the order asked for.

        The models are all living (their epoch is the trainer's), or all diverged with the same last finite epoch; a
        diverged model stands still in its last finite state and keeps the training metrics of that epoch.
        """
        models = [self._position[m] for m in model_ids]
        (epoch,) = {int(e) for e in self._row_epoch[models]}
        recording = self._cohort.recording
        metrics, predictions = self._measure(models, epoch)
        rows = self._rows.take(models)
        return Checkpoint(
            epoch=epoch,
            model_ids=model_ids,
            weights=_array(rows.weights),
            side=_arrays(rows.side),
            metrics=metrics,
            optimizer=_arrays(rows.optimizer) if keeps_optimizer(recording, epoch) else {},
            predictions=as_stored(predictions, self._data.outputs) if recording.test_predictions else None,
            kept=None if rows.kept is None else _array(rows.kept),
        )

    def _measure(self, models: Sequence[int], epoch: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The metric columns of some models, and their test predictions [M, N_test]."""
        jobs = self._jobs(models)
        plain = [0.0] * len(jobs)
        columns = {name: values[models] for name, values in self._measured.items()}
        if epoch == 0:
            smoothing = [job.training.label_smoothing for job in jobs]
            loss, acc, _, _ = self._score(models, "train", -1, smoothing)
            rates, _ = learning_rates(jobs, 0, 1, self.steps_per_epoch)
            columns |= {"train_loss": loss, "train_acc": acc, "learning_rate": rates[:, 0].numpy()}
        if first := self._cohort.recording.evaluate_train:
            columns["train_eval_loss"], columns["train_eval_acc"], _, _ = self._score(models, "train", first, plain)
        columns["val_loss"], columns["val_acc"], _, _ = self._score(models, "val", -1, plain)
        columns["test_loss"], columns["test_acc"], per_class, predictions = self._score(models, "test", -1, plain)
        trained = self._rows.take(models).weights[:, : self._trainable]
        columns["weight_norm"] = _array(trained.double().norm(dim=1))
        return {**columns, "test_acc_per_class": per_class}, predictions

    def _score(
        self, models: Sequence[int], part: PartName, first: int, smoothing: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Loss and accuracy [M], accuracy per class [M, C] (NaN without samples), predictions [M, N]."""
        outputs = self._data.outputs
        _, targets = self._data.tensors(part, "cpu")
        targets_N = (targets if first < 0 else targets[:first]).numpy()
        if not len(targets_N):
            nothing = np.full(len(models), np.nan)
            return nothing, nothing, np.full((len(models), outputs), np.nan), np.empty((len(models), 0), dtype=np.int64)
        place = {m: i for i, m in enumerate(models)}

        def evaluate(block: Sequence[int]) -> Scores:
            own = [smoothing[place[m]] for m in block]
            return self._engine.evaluate(self._jobs(block), self._rows.take(block), part, first, own)

        found = [scores for _, scores in self._blocks(models, evaluate)]
        losses_M = torch.cat([s.losses.double().mean(dim=1) for s in found]).cpu().numpy()
        predictions_MN = torch.cat([s.predictions for s in found]).cpu().numpy()
        hits_MN = predictions_MN == targets_N
        per_class_MC = np.full((len(models), outputs), np.nan)
        for c in np.unique(targets_N):
            per_class_MC[:, c] = hits_MN[:, targets_N == c].mean(axis=1)
        return losses_M, hits_MN.mean(axis=1), per_class_MC, predictions_MN


def initial_rows(cohort: Cohort, device: torch.device) -> tuple[Rows, int]:
    """The untrained models, and how many parameters at the start of a row are trained.

    Raises:
        IntegrityError: a model has another layout than the plan says.
    """
    weights, side, kept = [], [], []
    for job in cohort.jobs:
        module = build_network(job)
        layout = describe_module(module)
        check_layout(cohort, job.model_id, layout)
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        weights.append(layout.flatten(tensors))
        mask = first_mask(job, layout, weights[-1].numpy())
        if mask is not None:
            kept.append(torch.from_numpy(mask))
            weights[-1][torch.from_numpy(layout.prunable_places[~mask])] = 0
        side.append({dtype: layout.flatten(tensors, dtype) for dtype in layout.side_dtypes})
    stacked = {dtype: torch.stack([own[dtype] for own in side]).to(device) for dtype in layout.side_dtypes}
    masks = torch.stack(kept).to(device) if kept else None
    return Rows(torch.stack(weights).to(device), stacked, kept=masks), layout.trainable


def _array(rows: Tensor) -> np.ndarray:
    return rows.detach().cpu().numpy().copy()


def _arrays(rows: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: _array(own) for name, own in sorted(rows.items())}

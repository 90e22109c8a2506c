"""Twins in training: any trainer, started from the parents' weights, pruned when due, read out as sparse rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from zoogen.core import streams
from zoogen.core.contracts import Trainer
from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.layout import Layout
from zoogen.core.records import Checkpoint, Cohort, CohortState
from zoogen.train.sparsify.masks import prune
from zoogen.twins.measures import agreement, cohens_kappa, distances, layer_sparsities
from zoogen.twins.origin import Origin
from zoogen.twins.sparse_rows import SparseRows

LOSS_WITHIN, ACCURACY_WITHIN = 1e-3, 1e-2
"""Differences that evaluating the same weights again may show in float32: of the loss relative to it, of accuracy."""

CONVERTED_LOSS_WITHIN = 1e-2
"""The same of a converted model, whose weights below about 0.0015 are removed, and in low precisions."""

_SECOND_LOOK = 1
"""Parents are evaluated as if after this epoch: at epoch 0 a trainer evaluates the training samples too."""


class TwinTrainer:
    """Implements :class:`zoogen.core.contracts.Trainer` for a cohort of twins.

    Args:
        cohort: The twins, in the layout of their parents.
        stored: That layout.
        training: The layout in which they train.
        make: Constructs the trainer of the same cohort in the layout that trains.
        origin: Where they start.

    Raises:
        IntegrityError: the parents do not score what their zoo recorded.
        UserError: with its noise a converted model no longer equals its parent.
    """

    def __init__(
        self, cohort: Cohort, stored: Layout, training: Layout, make: Callable[[Cohort], Trainer], origin: Origin
    ) -> None:
        self._cohort = cohort
        self._layout = training
        self._stored = stored
        self._origin = origin
        self._methods = [job.training.sparsify for job in cohort.jobs]
        self._rows = SparseRows(stored, training, self._methods[0])
        self._position = {m: i for i, m in enumerate(cohort.model_ids)}
        self._trainer = make(trained_cohort(cohort, training))
        blank = self._trainer.state()
        parents = replace(
            blank,
            epoch=_SECOND_LOOK,
            weights=self._rows.without_noise(self._rows.put(blank.weights, origin.weights)),
            side=dict(origin.side),
            kept=None if blank.kept is None else np.ones_like(blank.kept),
        )
        self._trainer.restore(parents)
        seen = self._trainer.checkpoint(cohort.model_ids)
        assert seen.predictions is not None
        self._predictions = seen.predictions
        self._check_parents(seen)
        self._trainer.restore(self._start(blank))
        self._check_conversion(seen)

    def _start(self, blank: CohortState) -> CohortState:
        """The twins before their first epoch."""
        weights = self._rows.put(blank.weights, self._origin.weights)
        kept = None if blank.kept is None else np.ones_like(blank.kept)
        start = replace(blank, weights=weights, side=dict(self._origin.side), kept=kept)
        return self._pruned(start, 0)

    def _check_parents(self, seen: Checkpoint) -> None:
        within = LOSS_WITHIN if self._cohort.jobs[0].training.precision == "float32" else CONVERTED_LOSS_WITHIN
        if wrong := _differing(seen, self._origin.test_loss, self._origin.test_acc, within):
            m, what = wrong
            raise IntegrityError(
                f"parent {self._cohort.jobs[m].parents[0].model_id} has {what} that its zoo recorded\n"
                "the data or the code of its architecture are not those it was trained with; put them back"
            )

    def _check_conversion(self, parents: Checkpoint) -> None:
        """Weights that are noise from the start are removed by the conversion; that must not change the model."""
        if self._methods[0].masked:
            return
        state = self._trainer.state()
        self._trainer.restore(replace(state, epoch=_SECOND_LOOK))
        seen = self._trainer.checkpoint(self._cohort.model_ids)
        self._trainer.restore(state)
        told = parents.metrics
        if wrong := _differing(seen, told["test_loss"], told["test_acc"], CONVERTED_LOSS_WITHIN):
            m, what = wrong
            raise UserError(
                f"twin {self._cohort.model_ids[m]} has, with noise on its weights, {what} of its parent: "
                "too many weights are small against the noise they start with\n"
                f"start with less: method.log_sigma2 below {self._methods[m].log_sigma2:g}"
            )

    # The trainer's contract

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._trainer.epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one model in one epoch."""
        return self._trainer.steps_per_epoch

    @property
    def diverged(self) -> Mapping[str, int]:
        """model_id -> first epoch whose loss or weights were not finite."""
        return self._trainer.diverged

    @property
    def last_finite(self) -> Mapping[str, int]:
        """model_id -> epoch of the state kept, for diverged models."""
        return self._trainer.last_finite

    def state(self) -> CohortState:
        """A copy of everything needed to continue from here; rows in the layout that trains."""
        return self._trainer.state()

    def restore(self, state: CohortState) -> None:
        """Continue from ``state``."""
        self._trainer.restore(state)

    def train_epoch(self, should_stop: Callable[[], bool]) -> None:
        """Prune what is due, then train every living model for one epoch.

        Raises:
            Incomplete: ``should_stop()`` said so between two steps.
        """
        epoch = self.epoch
        if epoch > 0 and self._due(epoch):
            self._trainer.restore(self._pruned(self._trainer.state(), epoch))
        self._trainer.train_epoch(should_stop)

    def checkpoint(self, model_ids: tuple[str, ...]) -> Checkpoint:
        """Evaluate these twins, compare them with their parents and copy them out as they are stored."""
        found = self._trainer.checkpoint(model_ids)
        rows = [self._position[m] for m in model_ids]
        stored = self._rows.read(found.weights, found.kept)
        own = _compared(found, stored.weights, self._predictions[rows], self._origin.weights[rows], self._stored)
        layers = layer_sparsities(stored.kept, self._stored)
        trained = stored.weights[:, : self._stored.trainable].astype(np.float64)
        metrics = dict(found.metrics) | {"weight_norm": np.linalg.norm(trained, axis=1)}
        metrics |= {"sparsity": (~stored.kept).mean(axis=1), "layer_sparsity": layers, **own}
        if stored.kl is not None:
            metrics["kl"] = stored.kl
        recording = self._cohort.recording
        return replace(
            found,
            weights=stored.weights,
            kept=stored.kept,
            log_alpha=stored.log_alpha if recording.log_alpha else None,
            metrics=metrics,
            predictions=found.predictions if recording.test_predictions else None,
        )

    # Pruning

    def _due(self, epoch: int) -> bool:
        """Whether any twin is pruned after ``epoch`` completed ones."""
        trainings = [job.training for job in self._cohort.jobs]
        return any(t.sparsify.masked and t.sparsify.due(epoch, t.epochs) is not None for t in trainings)

    def _pruned(self, state: CohortState, epoch: int) -> CohortState:
        """``state`` with the prunings carried out that are due before the epoch after ``epoch`` completed ones."""
        if state.kept is None:
            return state
        weights, kept = state.weights.copy(), state.kept.copy()
        side = {name: rows.copy() for name, rows in state.side.items()}
        optimizer = {name: rows.copy() for name, rows in state.optimizer.items()}
        for m, (job, method) in enumerate(zip(self._cohort.jobs, self._methods, strict=True)):
            sparsity = method.due(epoch, job.training.epochs)
            if sparsity is None or job.model_id in state.diverged:
                continue
            key = streams.stream_key(job.seeds.init, "mask")
            kept[m] = prune(method, sparsity, self._layout, weights[m], kept[m], key)
            removed = self._layout.prunable_places[~kept[m]]
            if method.rewind is not None:
                assert self._origin.rewind is not None
                weights[m] = self._origin.rewind[m]
                for name, rows in self._origin.rewind_side.items():
                    side[name][m] = rows[m]
                for name, rows in optimizer.items():  # a new training from there
                    if name != "grad_scaler":  # belongs to the arithmetic; a scale of 0 would end the training
                        rows[m] = 0
            weights[m, removed] = 0
            for rows in optimizer.values():
                if rows.shape[1] == self._layout.trainable:
                    rows[m, removed] = 0
        return replace(state, weights=weights, side=side, optimizer=optimizer, kept=kept)


def trained_cohort(cohort: Cohort, training: Layout) -> Cohort:
    """The cohort as its trainer sees it: in the layout that trains, with the predictions that are compared."""
    recording = replace(cohort.recording, test_predictions=True)
    return replace(cohort, layout_id=training.layout_id, recording=recording)


def _compared(
    found: Checkpoint, weights_MP: np.ndarray, parents_MN: np.ndarray, parents_MP: np.ndarray, layout: Layout
) -> dict[str, np.ndarray]:
    """The columns that compare twins with their parents."""
    assert found.predictions is not None
    distance, cosine = distances(weights_MP, parents_MP, layout)
    return {
        "agreement": agreement(found.predictions, parents_MN),
        "kappa": cohens_kappa(found.predictions, parents_MN),
        "distance": distance,
        "cosine_distance": cosine,
    }


def _differing(
    seen: Checkpoint, test_loss: np.ndarray, test_acc: np.ndarray, loss_within: float
) -> tuple[int, str] | None:
    """The first model that does not score as told, and in what; NaN tells nothing."""
    for name, told, within in (
        ("test_loss", test_loss, loss_within * np.abs(test_loss)),
        ("test_acc", test_acc, np.full(len(test_acc), ACCURACY_WITHIN)),
    ):
        found = seen.metrics[name]
        wrong = ~(np.isnan(told) | (np.abs(found - told) <= np.maximum(within, 1e-6)))
        if wrong.any():
            m = int(np.flatnonzero(wrong)[0])
            return m, f"a {name} of {found[m]:.5g} and not the {told[m]:.5g}"
    return None

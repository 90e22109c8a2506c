"""Frozen records that rooms hand each other: what to train (Job, Cohort) and what came out (Checkpoint)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from zoogen.core.recipe import Training

if TYPE_CHECKING:
    import numpy as np

KeepOptimizer = Literal["none", "last", "all"]


@dataclass(frozen=True)
class Parent:
    """A checkpoint that a model starts from."""

    model_id: str
    epoch: int
    role: str


@dataclass(frozen=True)
class Seeds:
    """One seed per stream of randomness; equal unless the blueprint sets one apart."""

    init: int
    order: int
    augment: int
    dropout: int


@dataclass(frozen=True)
class Job:
    """One model to train; ``model_id`` is the digest of all the rest (design, section 4)."""

    model_id: str
    architecture: Any  # an entry of core.registry.ARCHITECTURES
    task: Any  # an entry of core.registry.TASKS
    training: Training
    seeds: Seeds
    parents: tuple[Parent, ...] = ()


@dataclass(frozen=True)
class Resources:
    """What one cohort takes while it trains, and how its program is run; never part of a model's identity.

    Attributes:
        cpus: Cores, also the number of torch threads (at least one).
        gpus: GPUs; a fraction lets several cohorts share one.
        compile: Run the model through ``torch.compile``.
        channels_last: Keep images and convolution weights in channels-last memory order.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    compile: bool = False
    channels_last: bool = False


@dataclass(frozen=True)
class Segment:
    """The epochs ``first`` to ``last`` (inclusive) of a cohort, sealed as one shard."""

    shard_id: str
    first: int
    last: int


@dataclass(frozen=True)
class Recording:
    """What is kept of a trajectory.

    Attributes:
        epochs: Checkpoint epochs, ascending, none above the training's epochs; 0 is the initial state.
        optimizer: Optimizer states of no checkpoint, of the last one, or of all.
        test_predictions: Keep the argmax of every test sample (uint8; int32 beyond 256 classes).
        evaluate_train: Also evaluate on the first n training samples of the split (0: do not; -1: all of them).
        log_alpha: Keep log alpha of every weight, for twins by variational dropout.
    """

    epochs: tuple[int, ...]
    optimizer: KeepOptimizer = "last"
    test_predictions: bool = False
    evaluate_train: int = 0
    log_alpha: bool = False


@dataclass(frozen=True)
class Cohort:
    """Models that one device trains together: same architecture shape, task, batch size, steps and optimizer family.

    ``jobs`` is the order of the models in every shard. ``stored_through`` is the last epoch whose checkpoints are in
    sealed shards already (-1: none); a cohort split after a failure retrains, but stores only what is missing.
    """

    cohort_id: str
    jobs: tuple[Job, ...]
    epochs: int
    recording: Recording
    segments: tuple[Segment, ...]
    layout_id: str
    resources: Resources = Resources()
    stored_through: int = -1

    @property
    def model_ids(self) -> tuple[str, ...]:
        return tuple(job.model_id for job in self.jobs)


@dataclass(frozen=True)
class CohortState:
    """Everything needed to continue a cohort after ``epoch``; random streams need no state (core.streams).

    Row m of every array belongs to ``model_ids[m]``. Diverged models keep the row of their last finite state.

    Attributes:
        epoch: Epochs completed; 0 is the initial state.
        weights: float32 [M, P], flat in the order of the layout.
        side: Tensors of other dtypes, flat per dtype name: ``{"int64": [M, K]}``.
        optimizer: Flat optimizer state by name, [M, P_trainable] or [M, K] (empty before the first step).
        diverged: model_id -> first epoch whose loss or weights were not finite.
        last_finite: model_id -> epoch of the row kept, for diverged models.
        training_metrics: float64 [M] by name: what was measured while the epoch of each row ran, and cannot be found
            again from its weights (``zoogen.train.metrics.TRAINING_METRICS``); empty at epoch 0.
        kept: bool [M, W], which prunable weights are left (``Layout.prunable``), for models that are pruned;
            weight and optimizer state of the others are 0.
    """

    epoch: int
    model_ids: tuple[str, ...]
    weights: np.ndarray
    side: Mapping[str, np.ndarray] = field(default_factory=dict)
    optimizer: Mapping[str, np.ndarray] = field(default_factory=dict)
    diverged: Mapping[str, int] = field(default_factory=dict)
    last_finite: Mapping[str, int] = field(default_factory=dict)
    training_metrics: Mapping[str, np.ndarray] = field(default_factory=dict)
    kept: np.ndarray | None = None


@dataclass(frozen=True)
class Checkpoint:
    """One epoch of a cohort as it is stored: rows of models that are stored at ``epoch``.

    Attributes:
        epoch: Epoch of these rows.
        model_ids: One per row, in the order of the cohort's jobs.
        weights: float32 [rows, P].
        side: As in CohortState, [rows, K] per dtype name.
        metrics: One value per row and name, float64 [rows] (NaN: not measured), or [rows, C] for per-class values.
            Names: see ``zoogen.train.metrics``.
        optimizer: As in CohortState; empty unless the recording keeps it at this epoch.
        predictions: uint8 [rows, N_test] (int32 for more than 256 classes), the argmax of each test sample, or None.
        kept: bool [rows, W], which prunable weights are left, for sparse twins; the others are 0 in ``weights``.
        log_alpha: float32 [rows, W] of variational dropout, where the recording keeps it.
    """

    epoch: int
    model_ids: tuple[str, ...]
    weights: np.ndarray
    side: Mapping[str, np.ndarray]
    metrics: Mapping[str, np.ndarray]
    optimizer: Mapping[str, np.ndarray] = field(default_factory=dict)
    predictions: np.ndarray | None = None
    kept: np.ndarray | None = None
    log_alpha: np.ndarray | None = None

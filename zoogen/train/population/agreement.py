"""Whether a trainer computes what the plain trainer computes: compared step by step before it is used.

Rounding differs between two right ways to compute a step, and a network amplifies it: one unit of a deep ReLU network
that falls to the other side of zero changes the gradient by a percent. So states are made equal before each epoch of a
step or two; differences are measured against the size of the update; and the plain trainer itself, run from weights
that are off by a few roundings, tells how much this very step amplifies. Elements whose gradient is nothing but
rounding (a bias in front of a batch norm) are left out where the optimizer divides by the gradient's size: their
updates have a random sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from zoogen.core.contracts import PartName, TaskData, Trainer
from zoogen.core.records import Cohort, CohortState, Job
from zoogen.train.plain import PlainTrainer
from zoogen.train.population.trial import FewSamples, layout_of, never, training_samples, trial_cohort

TOLERANCE = {"float32": 1e-4, "tf32": 3e-2, "bfloat16": 1e-1}
"""Difference of an update that is always allowed, as a share of its size (L2 norms over a model).

Between two right ways in float32 up to 5e-5 was measured on smooth networks (at a learning rate of 1e-4, where the
weights' own rounding counts); a mistake (a wrong mask, momentum, mean) shows as 1e-3 or more."""

AMPLIFIED = 10.0
"""Allowed beyond that: this often what the plain trainer changes when its weights are off by eight roundings."""

_ROUNDING = {"float32": 2.0**-23, "tf32": 2.0**-11, "bfloat16": 2.0**-8}
_SHAKEN_BY = 8  # a sum of some hundred products is off by this many roundings
_SHAKES = 3  # most shakes push no unit over the edge
_CHAOTIC = 0.3  # a step whose update changes by this share says nothing

_EPOCHS = 2
_EVALUATED = 64

_SECOND_MOMENTS = ("exp_avg_sq", "square_avg")
_SIGNIFICANT = 1e-2  # of the root mean square of the gradient


def disagreement(
    make: Callable[[Cohort, TaskData], Trainer], cohort: Cohort, data: TaskData, device: str
) -> str | None:
    """Where a trainer's numbers are not those of the plain trainer; None where they agree.

    Args:
        make: Constructs the trainer in question, for two models of the cohort and a few samples.
        cohort: Whose models.
        data: The task, loaded.
        device: Where.
    """
    jobs = _two_of(cohort.jobs)
    steps = training_samples(data, jobs[0].training.batch_size, 2)
    few = FewSamples(data, {"train": steps, "val": _EVALUATED, "test": _EVALUATED})
    sub = trial_cohort(cohort, jobs, _EPOCHS)
    plain, found = PlainTrainer(sub, few, device), make(sub, few)
    shaken = PlainTrainer(sub, few, device)
    if found.state().weights.tobytes() != plain.state().weights.tobytes():
        return "initial weights"
    compare = _Comparison(sub, few)
    for _ in range(_EPOCHS):
        start = plain.state()
        controls = [_epoch(shaken, _shaken(start, compare.rounding, seed)) for seed in range(_SHAKES)]
        if problem := compare(_epoch(found, start), _epoch(plain, start), controls):
            return problem
    if not compare.compared:
        return "its steps amplify rounding so much that nothing can be compared"
    return None


def _two_of(jobs: Sequence[Job]) -> list[Job]:
    """Two models that are as calm and as different as the cohort has them."""
    by_rate = sorted(jobs, key=lambda job: job.training.optimizer.lr)
    first = by_rate[0]
    other = next((job for job in by_rate if job.architecture != first.architecture), None)
    return [first, *([other] if other else by_rate[1:2])]


def _shaken(state: CohortState, rounding: float, seed: int) -> CohortState:
    """Every weight off by a few roundings, up or down."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], state.weights.shape)
    return replace(state, weights=(state.weights * (1 + _SHAKEN_BY * rounding * signs)).astype(np.float32))


@dataclass(frozen=True)
class _Epoch:
    """``scores`` of the living models at ``start``, and the state an epoch later."""

    start: CohortState
    scores: dict[str, np.ndarray]
    end: CohortState

    def model(self, m: int) -> _Model:
        weights = self.end.weights[m].astype(np.float64)
        return _Model(
            weights,
            weights - self.start.weights[m],
            {name: rows[m].astype(np.float64) for name, rows in self.end.optimizer.items()},
            {n: rows[m] for n, rows in self.end.side.items() if not np.issubdtype(rows.dtype, np.floating)},
            {name: float(rows[m]) for name, rows in self.end.training_metrics.items()},
        )


@dataclass(frozen=True)
class _Model:
    """One model after an epoch, in float64 where it is real."""

    weights: np.ndarray
    updates: np.ndarray
    optimizer: dict[str, np.ndarray]
    integers: dict[str, np.ndarray]
    measured: dict[str, float]


def _epoch(trainer: Trainer, start: CohortState) -> _Epoch:
    trainer.restore(start)
    living = tuple(m for m in start.model_ids if m not in start.diverged)
    scores = dict(trainer.checkpoint(living).metrics) if living else {}
    trainer.train_epoch(never)
    return _Epoch(start, scores, trainer.state())


class _Comparison:
    """Compares epochs from the same state; ``compared`` counts updates that could be."""

    def __init__(self, cohort: Cohort, data: TaskData) -> None:
        job = cohort.jobs[0]
        self.rounding = _ROUNDING[job.training.precision]
        self.compared = 0
        self._tolerance = TOLERANCE[job.training.precision]
        self._trained = layout_of(job).trainable
        parts: tuple[PartName, ...] = ("train", "val", "test")
        self._samples = {part: data.size(part) for part in parts}

    def __call__(self, found: _Epoch, right: _Epoch, controls: Sequence[_Epoch]) -> str | None:
        """What differs, in words."""
        epochs = [found, right, *controls]
        for m in range(len(right.scores.get("test_loss", ()))):
            if problem := self._scores([{n: float(v[m]) for n, v in e.scores.items() if v.ndim == 1} for e in epochs]):
                return problem
        for m, model_id in enumerate(right.end.model_ids):
            if any(model_id in e.end.diverged for e in (right, *controls)):
                continue
            if model_id in found.end.diverged:
                return "a model that diverges"
            if problem := self._model([e.model(m) for e in epochs]):
                return problem
        return None

    def _scores(self, scores: Sequence[dict[str, float]]) -> str | None:
        for part in ("val", "test"):
            if self._samples[part] and self._differ([np.array([s[f"{part}_loss"]]) for s in scores]):
                return f"{part}_loss"
            if self._misses(part, [s[f"{part}_acc"] for s in scores]):
                return f"{part}_acc"
        return None

    def _model(self, models: Sequence[_Model]) -> str | None:
        found, right = models[:2]
        for name, values in right.integers.items():
            if name not in found.integers or not np.array_equal(found.integers[name], values):
                return f"buffers of type {name}"
        if found.optimizer.keys() != right.optimizer.keys():
            return f"optimizer state {sorted(found.optimizer)}, not {sorted(right.optimizer)}"
        for name in right.optimizer:
            if self._differ([model.optimizer[name] for model in models]):
                return f"optimizer state {name}"
        trained = np.arange(len(right.weights)) < self._trained
        for what, places in (("updates", trained & self._significant(right)), ("running statistics", ~trained)):
            # Weights are rounded where they are stored, however small their update.
            stored = 4 * 2.0**-23 * _norm(right.weights[places])
            if self._differ([model.updates[places] for model in models], stored, count=what == "updates"):
                return what
        for name in ("train_loss", "grad_norm"):
            if self._differ([np.array([model.measured[name]]) for model in models]):
                return name
        if not np.isclose(found.measured["learning_rate"], right.measured["learning_rate"], rtol=1e-9, atol=0):
            return "learning_rate"
        return "train_acc" if self._misses("train", [model.measured["train_acc"] for model in models]) else None

    def _significant(self, right: _Model) -> np.ndarray:
        """Which trained elements have a gradient that is more than rounding, where that matters: bool [P]."""
        significant = np.ones(len(right.weights), dtype=bool)
        for name in _SECOND_MOMENTS:
            if name in right.optimizer:
                size = np.sqrt(right.optimizer[name])
                significant[: self._trained] = size >= _SIGNIFICANT * np.sqrt(np.mean(size**2))
        return significant

    def _misses(self, part: PartName, values: Sequence[float]) -> bool:
        """Whether an accuracy is another one; samples between two classes may fall either way."""
        n = self._samples[part]
        found, right, *controls = (n * value for value in values)
        allowed = 1 + n / 50 + 3 * max(abs(control - right) for control in controls)
        return n > 0 and not abs(found - right) <= allowed

    def _differ(self, values: Sequence[np.ndarray], stored: float = 0.0, *, count: bool = False) -> bool:
        """Whether the first of the values is not the second, given what the others tell of rounding."""
        found, right, *controls = values
        if found.shape != right.shape:
            return True
        size = _norm(right)
        spread = max(_norm(control - right) for control in controls)
        if not spread <= _CHAOTIC * size + stored:  # NaN too
            return False
        self.compared += count and size > 0
        return not _norm(found - right) <= max(self._tolerance * size, AMPLIFIED * spread) + stored


def _norm(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).sum()))

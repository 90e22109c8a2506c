"""A trainer that computes something else is found out within two steps; one that only rounds otherwise is not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from loop_engine import LoopEngine

from zoogen.core.records import Job
from zoogen.train.optimizers import SGD, Adam, AdamW, RMSprop
from zoogen.train.plain import PlainTrainer
from zoogen.train.population.agreement import disagreement
from zoogen.train.population.engines import Wanted
from zoogen.train.population.trainer import PopulationTrainer
from zoogen.train.schedules import Cosine, OneCycle

OPTIMIZERS = [
    SGD(lr=0.1),
    SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    Adam(lr=0.01, weight_decay=0.01),
    AdamW(lr=1e-4),
    RMSprop(lr=0.003, momentum=0.5),
    SGD(lr=1e6),
]


@pytest.fixture
def compared(setup, small_net, small_data):
    """What is said of a trainer made from an engine, or by ``make``."""

    def compare(make=None, *, jobs=None, spoil=None, spoil_scores=None, **changes):
        changes = {"data": small_data(augmented=True), "architecture": small_net(norm=True, dropout=0.2)} | changes
        own = replace(setup, **changes)
        cohort = own.cohort(*(jobs or [own.job(seed) for seed in (1, 2, 3)]))

        def population(cohort, data):
            wanted = Wanted(cohort.jobs[0], data, torch.device("cpu"), Path(), 1, {}, 2)
            engine = LoopEngine(wanted, spoil=spoil, spoil_scores=spoil_scores)
            return PopulationTrainer(cohort, data, "cpu", engine)

        return disagreement(make or population, cohort, own.data, "cpu")

    return compare


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("schedule", [Cosine(), OneCycle()], ids=str)
def test_the_plain_trainers_own_numbers_agree(compared, optimizer, schedule):
    assert compared(optimizer=optimizer, schedule=schedule, epochs=1) is None


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:-1], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_another_rounding_agrees(compared, small_net, optimizer, seed):
    """Also where the gradient of a bias in front of a batch norm is nothing but rounding, which Adam blows up."""

    class Rounds(PlainTrainer):
        def train_epoch(self, should_stop):
            before = self.state()
            signs = np.random.default_rng(seed).choice([-1.0, 1.0], before.weights.shape)
            off = (before.weights * (1 + 2.0**-23 * signs)).astype(np.float32)
            self.restore(replace(before, weights=off))
            super().train_epoch(should_stop)
            after = self.state()
            self.restore(replace(after, weights=before.weights + (after.weights - off)))

    assert compared(lambda cohort, data: Rounds(cohort, data, "cpu"), optimizer=optimizer) is None


def rows_with(change):
    return lambda before, rows, measured: (replace(rows, **change(before, rows)), measured)


def measured_with(change):
    return lambda before, rows, measured: (rows, {**measured, **change(measured)})


def one_state(rows, name, factor):
    return {"optimizer": {**rows.optimizer, name: rows.optimizer[name] * factor}}


MISTAKES = {
    "a learning rate off by 0.1 %": (
        rows_with(lambda before, rows: {"weights": before.weights + 1.001 * (rows.weights - before.weights)}),
        "updates",
    ),
    "a bias that is never trained": (
        rows_with(lambda before, rows: {"weights": torch.cat([rows.weights[:, :-11], before.weights[:, -11:]], 1)}),
        "updates",
    ),
    "running statistics that stand still": (
        rows_with(lambda before, rows: {"weights": torch.cat([rows.weights[:, :-8], before.weights[:, -8:]], 1)}),
        "running statistics",
    ),
    "a wrong second moment": (
        rows_with(lambda before, rows: one_state(rows, "exp_avg_sq", 1.01)),
        "optimizer state exp_avg_sq",
    ),
    "a step counter that stands still": (
        rows_with(lambda before, rows: one_state(rows, "step", 0)),
        "optimizer state step",
    ),
    "batches that are not counted": (
        rows_with(lambda before, rows: {"side": {n: own - 1 for n, own in rows.side.items()}}),
        "buffers of type int64",
    ),
    "the loss of another batch": (measured_with(lambda m: {"train_loss": m["train_loss"] * 1.01}), "train_loss"),
    "a norm after clipping": (measured_with(lambda m: {"grad_norm": m["grad_norm"] * 0.9}), "grad_norm"),
    "the next step's rate": (measured_with(lambda m: {"learning_rate": m["learning_rate"] * 0.999}), "learning_rate"),
    "hits that are not counted": (measured_with(lambda m: {"train_acc": m["train_acc"] * 0}), "train_acc"),
    "a model that becomes infinite": (
        rows_with(lambda before, rows: {"weights": rows.weights * torch.inf}),
        "a model that diverges",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_training_is_found(compared, mistake):
    spoil, told = MISTAKES[mistake]
    assert compared(spoil=spoil, optimizer=Adam(lr=0.01)) == told


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda s: replace(s, losses=s.losses * 1.001), "val_loss"),
        (lambda s: replace(s, predictions=(s.predictions + 1) % 3), "val_acc"),
    ],
)
def test_a_mistake_in_evaluation_is_found(compared, spoil, told):
    assert compared(spoil_scores=spoil) == told


def test_dropout_of_another_stream_is_found(compared):
    def trainer(cohort, data):
        moved = tuple(replace(job, seeds=replace(job.seeds, dropout=99)) for job in cohort.jobs)
        return PlainTrainer(replace(cohort, jobs=moved), data, "cpu")

    assert compared(trainer) is not None


def test_other_initial_weights_are_found(compared):
    def trainer(cohort, data):
        moved = tuple(replace(job, seeds=replace(job.seeds, init=99)) for job in cohort.jobs)
        return PlainTrainer(replace(cohort, jobs=moved), data, "cpu")

    assert compared(trainer) == "initial weights"


def test_models_that_all_diverge_at_once_say_nothing_and_so_are_not_trusted(compared, small_net, small_data, setup):
    own = replace(setup, architecture=small_net(scale=float("inf")))
    jobs: list[Job] = [own.job(seed) for seed in (1, 2)]
    assert "nothing can be compared" in str(compared(jobs=jobs, architecture=own.architecture, data=small_data()))

"""The population trainer with each engine: what a model becomes, whoever is trained beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from zoogen.core.errors import EnvironmentFault, Incomplete, IntegrityError
from zoogen.core.records import Recording
from zoogen.train.optimizers import SGD, Adam
from zoogen.train.population.native.compiler import vector_bytes
from zoogen.train.population.native.engine import NativeEngine
from zoogen.train.population.trainer import PopulationTrainer
from zoogen.train.schedules import Cosine


def never() -> bool:
    return False


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def population(setup, kernels):
    """Makes a population trainer of jobs."""

    def make(*jobs, engine=None, block=None, data=None, threads=1, **changes):
        own = replace(setup, **changes)
        data = data or own.data
        engine = engine or NativeEngine(jobs[0], data, torch.device("cpu"), cache=kernels, threads=threads)
        return PopulationTrainer(own.cohort(*jobs), data, "cpu", engine, block)

    return make


def trained(trainer, epochs=2):
    for _ in range(epochs):
        trainer.train_epoch(never)
    return trainer.state()


def assert_same_model(a, m, b, n):
    assert a.weights[m].tobytes() == b.weights[n].tobytes()
    for name in a.optimizer:
        assert a.optimizer[name][m].tobytes() == b.optimizer[name][n].tobytes(), name
    for name in a.training_metrics:
        assert a.training_metrics[name][m] == b.training_metrics[name][n], name


def test_a_model_is_the_same_bytes_alone_in_three_and_in_three_hundred(setup, small_net, population):
    def job(seed):
        own = small_net(dropout=0.25 if seed % 2 else 0.5)
        return setup.job(seed, architecture=own, optimizer=Adam(lr=1e-3 * (1 + seed % 7)))

    alone = trained(population(job(17)))
    three = trained(population(job(3), job(17), job(4)))
    many = trained(population(*(job(seed) for seed in range(300)), threads=2))
    assert_same_model(alone, 0, three, 1)
    assert_same_model(alone, 0, many, 17)
    assert len(np.unique(many.weights[:, 0])) == 300


@pytest.mark.parametrize("first_with", [0, 12])
def test_momentum_is_kept_in_whichever_block_of_a_cohort_it_occurs(setup, population, first_with):
    """Lanes are filled in order, so one block has no momentum at all and another has nothing else."""
    with_it = [setup.job(seed, optimizer=SGD(lr=0.1, momentum=0.9)) for seed in range(first_with, first_with + 20)]
    without = [setup.job(seed, optimizer=SGD(lr=0.1)) for seed in range(40, 60)]
    many = trained(population(*(with_it + without if first_with == 0 else without + with_it)), 3)
    for own, place in ((with_it[-1], 19 if first_with == 0 else 39), (without[-1], 39 if first_with == 0 else 19)):
        alone = trained(population(own), 3)
        assert alone.weights[0].tobytes() == many.weights[place].tobytes()
        kept = alone.optimizer.get("momentum_buffer", np.zeros((1, many.optimizer["momentum_buffer"].shape[1])))
        np.testing.assert_array_equal(many.optimizer["momentum_buffer"][place], kept[0])


def test_a_model_without_dropout_is_the_same_bytes_beside_one_that_drops(setup, small_net, population):
    plain = setup.job(0, optimizer=Adam(lr=0.01))
    dropping = setup.job(1, optimizer=Adam(lr=0.01), architecture=small_net(dropout=0.5))
    assert_same_model(trained(population(plain)), 0, trained(population(dropping, plain)), 1)


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_it_trains_the_plain_trainers_models(setup, small_net, small_data, population, norm, augmented):
    """Float32 rounds each step to about 1e-7 of its size; 14 steps of these networks amplify that below 100 times."""
    data = small_data(augmented=augmented)
    settings = [(0, 0.0, SGD(lr=0.05)), (1, 0.3, SGD(lr=0.1, momentum=0.9)), (2, 0.5, SGD(lr=0.02, weight_decay=0.01))]
    jobs = [
        setup.job(seed, architecture=small_net(norm=norm, dropout=p), optimizer=o, schedule=Cosine())
        for seed, p, o in settings
    ]
    ours = population(*jobs, data=data, architecture=small_net(norm=norm))
    plain = setup.trainer(*jobs, data=data, architecture=small_net(norm=norm))
    start = plain.state()
    assert ours.state().weights.tobytes() == start.weights.tobytes()
    a, b = trained(ours), trained(plain)
    np.testing.assert_allclose(a.weights, b.weights, atol=2e-5)
    assert np.abs(b.weights - start.weights).max() > 0.01
    assert a.optimizer.keys() == b.optimizer.keys()
    for name in a.optimizer:
        np.testing.assert_allclose(a.optimizer[name], b.optimizer[name], atol=1e-4)
    for name in b.side:
        assert a.side[name].tobytes() == b.side[name].tobytes()
    for name in b.training_metrics:
        np.testing.assert_allclose(a.training_metrics[name], b.training_metrics[name], rtol=1e-3)
    ids = tuple(job.model_id for job in jobs)
    mine, theirs = ours.checkpoint(ids), plain.checkpoint(ids)
    assert mine.metrics.keys() == theirs.metrics.keys()
    for name, values in theirs.metrics.items():
        np.testing.assert_allclose(mine.metrics[name], values, rtol=1e-3, atol=1e-3, err_msg=name)


def test_initial_checkpoints_are_the_plain_trainers(setup, population):
    recording = Recording((0, 1), optimizer="all", test_predictions=True, evaluate_train=32)
    jobs = [setup.job(seed, training={"label_smoothing": 0.1 * seed}) for seed in range(3)]
    ids = tuple(job.model_id for job in jobs)
    mine = population(*jobs, recording=recording).checkpoint(ids)
    theirs = setup.trainer(*jobs, recording=recording).checkpoint(ids)
    assert mine.weights.tobytes() == theirs.weights.tobytes()
    assert mine.metrics.keys() == theirs.metrics.keys()
    for name, values in theirs.metrics.items():
        np.testing.assert_allclose(mine.metrics[name], values, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(mine.predictions, theirs.predictions)


def test_a_model_that_diverges_leaves_its_neighbours_bytes_alone(setup, population):
    # Weight decay at this rate multiplies the weights by -1e4 in every step.
    wild = setup.job(1, optimizer=SGD(lr=1e6, momentum=0.9, weight_decay=0.01))
    others = [setup.job(seed, optimizer=SGD(lr=0.1, momentum=0.9)) for seed in (0, 2, 3)]
    trainer = population(others[0], wild, *others[1:])
    first = trained(trainer, 1)
    with_it, without = trained(trainer, 2), trained(population(*others), 3)
    for m, n in ((0, 0), (2, 1), (3, 2)):
        assert_same_model(with_it, m, without, n)
    assert (with_it.diverged, with_it.last_finite) == ({"model-1": 2}, {"model-1": 1})
    assert_same_model(with_it, 1, first, 1)
    assert np.isfinite(with_it.weights).all()


def test_resumed_from_a_state_it_goes_on_with_the_same_bytes(setup, small_net, population, same_state):
    net = small_net(norm=True, dropout=0.2)
    jobs = [setup.job(seed, architecture=net, optimizer=Adam(lr=0.01)) for seed in range(3)]
    whole = population(*jobs, architecture=net)
    half = trained(whole, 1)
    expected = trained(whole, 2)
    again = population(*jobs, architecture=net)
    again.restore(half)
    same_state(again.state(), half)
    same_state(trained(again, 2), expected)


def test_a_state_of_other_models_is_refused(setup, population):
    state = population(setup.job(0)).state()
    with pytest.raises(IntegrityError, match="holds 1 models"):
        population(setup.job(1), setup.job(2)).restore(state)


def test_it_stops_between_steps(setup, population):
    trainer = population(setup.job(0, batch_size=1))
    answers = iter([False, True])
    with pytest.raises(Incomplete, match="stopped in epoch 1"):
        trainer.train_epoch(lambda: next(answers))


class Short:
    """An engine that has room for two models at a time."""

    name = "short"

    def __init__(self, engine, room):
        self.engine, self.room, self.sizes = engine, room, []

    def train_epoch(self, jobs, *rest):
        self.sizes.append(len(jobs))
        if len(jobs) > self.room:
            raise torch.OutOfMemoryError("no room")
        return self.engine.train_epoch(jobs, *rest)

    def evaluate(self, *args):
        return self.engine.evaluate(*args)


def test_out_of_memory_halves_the_block_and_goes_on(setup, population, kernels, caplog):
    jobs = [setup.job(seed) for seed in range(5)]
    engine = NativeEngine(jobs[0], setup.data, torch.device("cpu"), cache=kernels)
    short = Short(engine, 2)
    found = trained(population(*jobs, engine=short), 1)
    assert short.sizes == [5, 2, 2, 1]
    assert "5 models at once do not fit into memory; going on with 2" in caplog.text
    expected = trained(population(*jobs), 1)
    for m in range(5):
        assert_same_model(found, m, expected, m)


def test_a_single_model_without_room_is_the_environments_fault(setup, population, kernels):
    engine = NativeEngine(setup.job(0), setup.data, torch.device("cpu"), cache=kernels)
    trainer = population(setup.job(0), setup.job(1), engine=Short(engine, 0))
    with pytest.raises(EnvironmentFault, match="does not fit into the memory of cpu"):
        trainer.train_epoch(never)


def test_the_bytes_do_not_depend_on_the_width_of_the_machines_vectors(setup, small_net, population, monkeypatch):
    jobs = [setup.job(s, architecture=small_net(norm=True, dropout=0.3), optimizer=Adam(lr=0.01)) for s in range(3)]
    found = []
    # Wider vectors than the machine's are put together from pieces, which rounds some products on their own.
    for width in (width for width in (8, 16, 32, 64) if width <= vector_bytes()):
        monkeypatch.setattr("zoogen.train.population.native.engine.vector_bytes", lambda width=width: width)
        found.append(trained(population(*jobs, architecture=small_net(norm=True))))
    for other in found[1:]:
        for m in range(3):
            assert_same_model(found[0], m, other, m)

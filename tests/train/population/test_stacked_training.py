"""What the stacked engine does around a step: losses, clipping, evaluation, neighbours, precision, resuming."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoogen.core.errors import Incomplete, UserError
from zoogen.tasks.augmentation import Augmentation
from zoogen.train.optimizers import SGD, Adam
from zoogen.train.population.engine import Unsupported
from zoogen.train.population.stacked import engine as stacked_engine
from zoogen.train.population.stacked.block import Block
from zoogen.train.population.stacked.engine import StackedEngine
from zoogen.train.population.trainer import PopulationTrainer
from zoogen.train.schedules import Cosine, OneCycle

CPU = torch.device("cpu")
VARIANTS = {"conv2d": "unfold", "max_pool": "slices"}


def never() -> bool:
    return False


def make(job, data, **further):
    return StackedEngine(job, data, CPU, **{"variants": VARIANTS} | further)


def network(p: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.MaxPool2d(2), nn.Dropout(p), nn.Flatten(), nn.Linear(36, 4)
    )  # fmt: skip


OPTIMIZERS = [SGD(lr=0.05), SGD(lr=0.02, momentum=0.9), SGD(lr=0.1, weight_decay=0.01)]


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"micro_batch": 4},  # 6 = 4 + 2
        {"micro_batch": 99},
        {"clip_norm": 0.5},
        {"micro_batch": 3, "clip_norm": 1e-3},
        {"batch_size": 22},  # the whole part
        {"batch_size": 64},  # more than there is
        {"schedule": Cosine(warmup_epochs=1)},
    ],
    ids=str,
)
def test_steps_are_torchs_with_augmentation_dropout_and_smoothing_of_each_models_own(oracle, training):
    # 22 samples: three batches of 6 and one of 4.
    jobs = oracle.jobs(network, OPTIMIZERS, dropout=[0.3, 0.0, 0.5], smoothing=[0.0, 0.2, 0.0], **training)
    oracle.agree(make, jobs, oracle.images(augmented=True))


def test_norms_are_clipped_model_by_model(oracle):
    jobs = [
        replace(job, training=replace(job.training, clip_norm=clip))
        for job, clip in zip(oracle.jobs(network, [SGD(lr=10.0)] * 3), (None, 0.1, 100.0), strict=True)
    ]
    oracle.agree(make, jobs, oracle.images(), epochs=1)


def test_the_loss_is_the_tasks_own(oracle):
    class SquaredError(oracle.images):
        def loss(self, outputs_BC, targets_B, label_smoothing=0.0):
            wanted = nn.functional.one_hot(targets_B, 4) * (1 - label_smoothing)
            return (outputs_BC - wanted).square().sum(1)

    jobs = oracle.jobs(network, OPTIMIZERS, smoothing=[0.0, 0.1, 0.2])
    oracle.agree(make, jobs, SquaredError())


def test_evaluation_in_pieces_is_evaluation_at_once(oracle, monkeypatch):
    jobs, data = oracle.jobs(network, OPTIMIZERS), oracle.images(test=50)
    engine, rows = make(jobs[0], data), oracle.start(jobs, data)
    smoothing = [0.0, 0.3, 0.1]
    whole = engine.evaluate(jobs, rows, "test", -1, smoothing)
    monkeypatch.setattr(stacked_engine, "_ELEMENTS", {"cpu": 3 * 2 * 64 * 7})  # 7 samples of 3 models
    parts = engine.evaluate(jobs, rows, "test", -1, smoothing)
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-12, atol=1e-13)
    assert torch.equal(parts.predictions, whole.predictions)
    few = engine.evaluate(jobs, rows, "test", 9, smoothing)
    torch.testing.assert_close(few.losses, whole.losses[:, :9], rtol=1e-12, atol=1e-13)
    assert engine.evaluate(jobs, rows, "val", -1, smoothing).losses.shape == (3, 0)
    for m, job in enumerate(jobs):
        reference = oracle.reference(job, data)
        losses, outputs = reference.evaluate("test", smoothing[m])
        torch.testing.assert_close(whole.losses[m], losses, rtol=1e-9, atol=1e-10)
        assert torch.equal(whole.predictions[m], outputs.argmax(1))


def test_float32_rows_give_float32_scores(oracle):
    jobs, data = oracle.jobs(network, OPTIMIZERS), oracle.images()
    scores = make(jobs[0], data).evaluate(jobs, oracle.start(jobs, data, torch.float32), "test", -1, [0.0] * 3)
    assert (scores.losses.dtype, scores.predictions.dtype) == (torch.float32, torch.int64)


class Watch(TorchDispatchMode):
    """Notes every operation, those of the backward pass too."""

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.operations.add(str(function.overloadpacket))
        return function(*arguments, **keywords or {})


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "lift_fresh", "lift", "item"}


@pytest.mark.parametrize("variants", [VARIANTS, {"conv2d": "grouped"}, {"conv2d": "shifted"}, {"conv2d": "loop"}])
def test_a_step_never_waits_for_the_device_and_copies_nothing_to_it(oracle, monkeypatch, variants):
    """So it can be recorded as a CUDA graph: no value is read, none is made on the host, no tensor moves in memory."""
    augmentation = Augmentation(padding=1, flip=True, degrees=20.0)

    class Augmented(oracle.images):
        def augment(self, inputs_KB, keys_K, steps_K):
            return augmentation(inputs_KB, keys_K, steps_K)

    watch, places = Watch(), []
    step = Block._step

    def watched(block, size):
        with watch:
            step(block, size)
        own = [*block._tensors.values(), *block._given.values(), *block._state.values(), block._at, block._loss_sums]
        places.append([tensor.data_ptr() for tensor in own])

    monkeypatch.setattr(Block, "_step", watched)
    jobs = oracle.jobs(
        network, [Adam(lr=0.1)] * 3, dropout=[0.3, 0.0, 0.5], smoothing=[0.0, 0.1], schedule=OneCycle(), clip_norm=1.0
    )
    data = Augmented()
    engine, rows = make(jobs[0], data, variants=variants | {"max_pool": "slices"}), oracle.start(jobs, data)
    for epoch in range(2):
        rows, _ = engine.train_epoch(jobs, rows, epoch, never)
    assert {"aten.index_select", "aten.mul_", "aten.native_batch_norm_backward"} <= watch.operations
    assert not watch.operations & {f"aten.{name}" for name in WAITING}
    assert len(places) == 8
    assert all(found == places[0] for found in places)


# Through the population trainer, in float32


@pytest.fixture
def population(setup, small_net):
    def make_trainer(*jobs, data=None, variants=VARIANTS, block=None):
        own = data or setup.data
        engine = StackedEngine(jobs[0], own, CPU, variants=variants)
        cohort = setup.cohort(*jobs, architecture=jobs[0].architecture)
        return PopulationTrainer(cohort, own, "cpu", engine, block)

    return make_trainer


def trained(trainer, epochs=2):
    for _ in range(epochs):
        trainer.train_epoch(never)
    return trainer.state()


def varied(setup, small_net, seeds=range(3), optimizer=Adam, **training):
    return [
        setup.job(
            seed,
            architecture=small_net(norm=True, dropout=0.1 * (seed % 3)),
            optimizer=optimizer(lr=1e-3 * (1 + seed)),
            training={"label_smoothing": 0.1 * (seed % 2)} | training,
        )
        for seed in seeds
    ]


def row_of(state, m):
    return [state.weights[m], *(rows[m] for rows in state.optimizer.values()), *(r[m] for r in state.side.values())]


def assert_same_bytes(a, m, b, n):
    for x, y in zip(row_of(a, m), row_of(b, n), strict=True):
        assert x.tobytes() == y.tobytes()
    for name in a.training_metrics:
        assert a.training_metrics[name][m] == b.training_metrics[name][n], name


@pytest.mark.parametrize("training", [{}, {"clip_norm": 0.1, "micro_batch": 4}], ids=str)
def test_it_trains_the_plain_trainers_models(setup, small_net, small_data, population, training):
    """Float32 rounds each of the 14 steps to about 1e-7 of its size; 2e-5 leaves room for what training amplifies. Not
    Adam, which scales the rounding noise of a bias in front of a batch norm up to the size of a step."""
    data = small_data(augmented=True)
    jobs = varied(setup, small_net, optimizer=lambda lr: SGD(lr=20 * lr, momentum=0.9), **training)
    ours, plain = population(*jobs, data=data), setup.trainer(*jobs, data=data, architecture=jobs[0].architecture)
    assert ours.state().weights.tobytes() == plain.state().weights.tobytes()
    a, b = trained(ours), trained(plain)
    np.testing.assert_allclose(a.weights, b.weights, atol=2e-5)
    for name, rows in b.side.items():
        assert a.side[name].tobytes() == rows.tobytes()
    for name, values in b.training_metrics.items():
        np.testing.assert_allclose(a.training_metrics[name], values, rtol=1e-3, err_msg=name)
    ids = tuple(job.model_id for job in jobs)
    mine, theirs = ours.checkpoint(ids).metrics, plain.checkpoint(ids).metrics
    for name in ("val_loss", "test_loss"):
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-3)


@pytest.mark.parametrize("conv", ["unfold", "grouped", "shifted", "loop"])
def test_bfloat16_is_as_far_from_the_plain_trainers_as_that_is_from_float32(setup, small_net, population, conv):
    """Both round every product to 8 bits, in other orders: their distance is that of two such trajectories."""

    def jobs(precision):
        training = {"precision": precision}
        return [
            setup.job(seed, architecture=small_net(dropout=0.2), optimizer=SGD(lr=0.05), training=training)
            for seed in range(2)
        ]

    ours = trained(population(*jobs("bfloat16"), variants=VARIANTS | {"conv2d": conv})).weights
    plain, exact = (trained(setup.trainer(*jobs(precision))).weights for precision in ("bfloat16", "float32"))
    assert ours.dtype == np.float32
    rounding = np.linalg.norm(plain - exact)
    assert 0 < np.linalg.norm(ours - plain) < 2 * rounding
    assert rounding / 4 < np.linalg.norm(ours - exact) < 2 * rounding  # ours rounds too


@pytest.mark.parametrize("conv", ["unfold", "loop"])
def test_a_model_is_the_same_bytes_alone_in_three_and_in_thirty(setup, small_net, population, conv):
    """Matrix products and convolutions of each model for itself: nothing of a neighbour enters, not even rounding."""
    variants = VARIANTS | {"conv2d": conv}
    jobs = varied(setup, small_net, range(30))
    alone = trained(population(jobs[2], variants=variants))
    three = trained(population(jobs[1], jobs[2], jobs[0], variants=variants))
    many = trained(population(*jobs, variants=variants, block=17))
    assert_same_bytes(alone, 0, three, 1)
    assert_same_bytes(alone, 0, many, 2)


@pytest.mark.parametrize("conv", ["grouped", "shifted"])
def test_a_model_is_the_same_up_to_rounding_among_others(setup, small_net, population, conv):
    """These sum in an order that may depend on how many models there are: one unit in the last place of each step."""
    variants = VARIANTS | {"conv2d": conv}
    jobs = varied(setup, small_net, optimizer=lambda lr: SGD(lr=20 * lr))
    alone, three = trained(population(jobs[2], variants=variants)), trained(population(*jobs, variants=variants))
    np.testing.assert_allclose(three.weights[2], alone.weights[0], atol=1e-5)


@pytest.mark.parametrize("conv", ["unfold", "grouped", "shifted", "loop"])
def test_a_diverging_model_leaves_its_neighbours_bytes_alone(setup, population, conv):
    def jobs(wild):
        # Weight decay at this rate multiplies the weights by -1e4 in every step.
        return [
            setup.job(seed, optimizer=SGD(lr=1e6 if seed == 1 and wild else 0.1, momentum=0.9, weight_decay=0.01))
            for seed in range(4)
        ]

    variants = VARIANTS | {"conv2d": conv}
    engine = StackedEngine(jobs(False)[0], setup.data, CPU, variants=variants)
    rows = population(*jobs(False)).state()
    start = stacked_engine.Rows(torch.from_numpy(rows.weights))
    with_it, measured = engine.train_epoch(jobs(True), start, 0, never)
    without, expected = engine.train_epoch(jobs(False), start, 0, never)
    neighbours = [0, 2, 3]
    assert torch.equal(with_it.weights[neighbours], without.weights[neighbours])
    for name in expected:
        assert torch.equal(measured[name][neighbours], expected[name][neighbours]), name
    scores, wanted = (engine.evaluate(jobs(False), after, "test", -1, [0.0] * 4) for after in (with_it, without))
    assert torch.equal(scores.losses[neighbours], wanted.losses[neighbours])

    trainer = population(*jobs(True), variants=variants)
    first = trained(trainer, 1)
    after = trained(trainer, 2)
    assert set(after.diverged) == {"model-1"}
    assert np.isfinite(after.weights).all()
    kept = first if after.last_finite["model-1"] == 1 else population(*jobs(True)).state()
    assert after.weights[1].tobytes() == kept.weights[1].tobytes()


def test_resumed_from_a_state_it_goes_on_with_the_same_bytes(setup, small_net, population, same_state):
    jobs = varied(setup, small_net)
    whole = population(*jobs)
    half = trained(whole, 1)
    expected = trained(whole, 2)
    again = population(*jobs)
    again.restore(half)
    same_state(trained(again, 2), expected)


def test_blocks_of_other_sizes_and_kinds_do_not_disturb_each_other(setup, small_net, population):
    """The engine keeps a block's tensors for the next one: nothing of the models before may stay in them."""
    jobs = varied(setup, small_net, range(5))
    one_by_one = [trained(population(job)) for job in jobs]
    together = trained(population(*jobs, block=2))
    for m, alone in enumerate(one_by_one):
        assert_same_bytes(alone, 0, together, m)


def test_it_stops_between_steps_and_can_be_asked_again(setup, small_net, population, same_state):
    jobs = varied(setup, small_net)
    trainer = population(*jobs)
    start = trainer.state()
    answers = iter([False, False, True])
    with pytest.raises(Incomplete, match="3 models were stopped in epoch 1"):
        trainer.train_epoch(lambda: next(answers))
    trainer.restore(start)
    same_state(trained(trainer), trained(population(*jobs)))


def test_training_leaves_torchs_generator_and_switches_alone(setup, small_net, population):
    def switches():
        cuda = torch.backends.cuda
        return (
            cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.mha.get_fastpath_enabled(),
            cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), torch.is_grad_enabled(),
        )  # fmt: skip

    torch.manual_seed(3)
    before = torch.get_rng_state(), switches()
    trainer = population(*varied(setup, small_net), variants={})  # measures, too
    trained(trainer, 1)
    trainer.checkpoint(("model-0",))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert switches() == before[1]


def test_float16_is_left_to_the_plain_trainer_and_tf32_to_gpus(setup):
    with pytest.raises(Unsupported, match="float16"):
        make(setup.job(training={"precision": "float16"}), setup.data)
    with pytest.raises(UserError, match="'tf32' needs a GPU"):
        make(setup.job(training={"precision": "tf32"}), setup.data)

"""Sparse training in the stacked engine: the plain trainer's in float64, epoch by epoch from the same states."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode

from zoogen.core import streams
from zoogen.core.recipe import Training
from zoogen.core.records import Job, Resources, Seeds
from zoogen.core.registry import ARCHITECTURES
from zoogen.train.model import Snapshot, TrainedModel
from zoogen.train.optimizers import SGD, Adam, AdamW, RMSprop
from zoogen.train.population.engine import Rows, Unsupported
from zoogen.train.population.stacked.block import Block
from zoogen.train.population.stacked.engine import StackedEngine
from zoogen.train.population.stacked.noise import StackedNoise
from zoogen.train.schedules import Constant, OneCycle
from zoogen.train.sparsify.methods import Magnitude, Random, VariationalDropout
from zoogen.train.sparsify.noise import normal

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
NOISY = VariationalDropout(log_sigma2=-4.0, beta=0.5)
"""More noise, and more weight of the KL term, than the published twins have: a mistake in either shows."""


def never() -> bool:
    return False


class Doubles:
    """The data of the oracle in float64."""

    def __init__(self, data) -> None:
        self._data = data

    def __getattr__(self, name):
        return getattr(self._data, name)

    def prepare(self, inputs: Tensor) -> Tensor:
        prepared = self._data.prepare(inputs)
        return prepared.double() if prepared.is_floating_point() else prepared


def plain_model(job: Job, data) -> TrainedModel:
    """The plain trainer's model, in float64."""
    model = TrainedModel(job, data, CPU, Resources())
    model.module.double()
    return model


def snapshot_of(rows: Rows, m: int, epoch: int) -> Snapshot:
    return Snapshot(
        epoch,
        rows.weights[m],
        {name: side[m] for name, side in rows.side.items()},
        {name: state[m] for name, state in rows.optimizer.items()},
        kept=None if rows.kept is None else rows.kept[m],
    )


def start(models: list[TrainedModel]) -> Rows:
    """The untrained models."""
    taken = [model.snapshot(0, {}) for model in models]
    side = {name: torch.stack([t.side[name] for t in taken]) for name in taken[0].side}
    kept = None if taken[0].kept is None else torch.stack([t.kept for t in taken])
    return Rows(torch.stack([t.weights for t in taken]), side, kept=kept)


@torch.no_grad()
def scores(model: TrainedModel, data) -> Tensor:
    """Losses of the test samples."""
    inputs, targets = data.tensors("test", CPU)
    return data.loss(model.module.eval()(data.prepare(inputs)), targets, 0.1)


def agree(jobs, data, *, epochs=(0, 1), variants=None) -> tuple[StackedEngine, Rows]:
    """Assert that the engine trains and evaluates as the plain trainer does in float64; returns where it came to."""
    data = Doubles(data)
    models = [plain_model(job, data) for job in jobs]
    engine = StackedEngine(jobs[0], data, CPU, variants={"conv1d": "unfold", "conv2d": "unfold"} | (variants or {}))
    rows = start(models)
    for epoch in epochs:
        before = rows
        after, measured = engine.train_epoch(jobs, before, epoch, never)
        rows = replace(after, kept=before.kept)
        losses = engine.evaluate(jobs, rows, "test", -1, [0.1] * len(jobs)).losses
        for m, model in enumerate(models):
            model.load(snapshot_of(before, m, epoch))
            expected = model.train_epoch(epoch, never)
            found = model.snapshot(epoch + 1, expected)
            torch.testing.assert_close(rows.weights[m], found.weights, **CLOSE)
            for name, state in rows.optimizer.items():
                wanted = found.optimizer.get(name, torch.zeros_like(state[m])).double()
                torch.testing.assert_close(state[m].double(), wanted, **CLOSE)
            for name, side in rows.side.items():
                assert torch.equal(side[m], found.side[name])
            for name, value in expected.items():
                assert measured[name][m].item() == pytest.approx(value, rel=1e-9), name
            torch.testing.assert_close(losses[m], scores(model, data), **CLOSE)
    return engine, rows


def images(p: float = 0.0) -> nn.Module:
    """Stride, padding, groups and a batch norm, whose convolution has no bias."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(p),
        nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(),
        nn.Linear(24, 5), nn.Tanh(), nn.Linear(5, 4, bias=False),
    )  # fmt: skip


def sequences(padding_mode: str = "circular") -> nn.Module:
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2, padding_mode=padding_mode), nn.Tanh(),
        nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip


class Tied(nn.Module):
    """A layer in two places, a tensor of two layers, a layer that sees [B, T, F], and one sample by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.again = self.conv
        self.encode, self.decode = nn.Linear(8, 8), nn.Linear(8, 8)
        self.decode.weight = self.encode.weight
        self.out = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.again(torch.tanh(self.conv(x)))) + self.conv(x[0])
        return self.out(self.decode(torch.tanh(self.encode(x))).flatten(1))


OPTIMIZERS = {
    "sgd": [SGD(lr=0.05), SGD(lr=0.02, momentum=0.9), SGD(lr=0.1, weight_decay=0.01)],
    "nesterov": [SGD(lr=0.05, momentum=0.9, nesterov=True), SGD(lr=0.02, momentum=0.5, nesterov=True)],
    "adam": [Adam(lr=0.01), Adam(lr=0.003, weight_decay=0.1)],
    "adamw": [AdamW(lr=0.01, weight_decay=0.1), AdamW(lr=0.003)],
    "rmsprop": [RMSprop(lr=0.003, momentum=0.5), RMSprop(lr=0.001, weight_decay=0.1)],
}
VARIANTS = ["unfold", "grouped", "shifted", "loop"]


# Variational dropout


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", [images, sequences, Tied])
def test_noisy_layers_are_the_plain_trainers_with_every_variant_of_their_products(oracle, make, variant):
    jobs = oracle.jobs(make, [SGD(lr=0.05), SGD(lr=0.02)], sparsify=NOISY)
    agree(jobs, oracle.images(), variants={"conv1d": variant, "conv2d": variant}, epochs=(0, 7))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 2)),
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"),
    ],
    ids=["same", "reflect", "replicate"],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")  # of torch itself, where a border is uneven
def test_borders_of_noisy_convolutions_are_the_plain_trainers(oracle, layer):
    def make() -> nn.Module:
        return nn.Sequential(layer(), nn.Tanh(), nn.Flatten(), nn.Linear(192, 4))

    agree(oracle.jobs(make, [SGD(lr=0.05)], sparsify=NOISY), oracle.images(), epochs=(3,))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_noisy_steps_are_the_plain_trainers_under_every_optimizer(oracle, kind):
    jobs = oracle.jobs(sequences, OPTIMIZERS[kind], sparsify=NOISY)
    agree(jobs, oracle.images(), epochs=(0, 1, 2))


@pytest.mark.parametrize(
    "training",
    [
        {"micro_batch": 4},  # 6 = 4 + 2
        {"micro_batch": 5, "clip_norm": 0.1},
        {"clip_norm": 1e-3},
        {"batch_size": 64},
        {"schedule": OneCycle()},
        {"smoothing": [0.0, 0.2]},
        {"sparsify": replace(NOISY, kl_per_sample=True, beta=20.0)},
        {"sparsify": replace(NOISY, clamp_conv=1.5, clamp_linear=0.5)},  # where the gradient of log alpha ends
    ],
    ids=str,
)
def test_noise_beside_dropout_micro_batches_clipping_and_schedules_is_the_plain_trainers(oracle, training):
    optimizers = [SGD(lr=0.05), SGD(lr=0.02, momentum=0.9)]
    jobs = oracle.jobs(images, optimizers, **{"dropout": [0.3, 0.0], "sparsify": NOISY} | training)
    agree(jobs, oracle.images(augmented=True), epochs=(0, 1))


@pytest.mark.parametrize(("name", "arguments"), [("cnn-s", {"dropout": 0.2}), ("mlp", {"hidden": (12,)})])
def test_the_published_twins_networks_train_as_in_the_plain_trainer(oracle, name, arguments):
    class Images(oracle.images):
        outputs = 10

        def _inputs(self, n, rng):
            return torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=rng)

        def prepare(self, inputs_B):
            return inputs_B.float() / 64 - 2

    recipe = Training(25, 4, Adam(lr=3e-4), Constant(), sparsify=VariationalDropout())
    architecture = ARCHITECTURES.make(name, arguments)
    jobs = [Job(f"m{m}", architecture, oracle.shape((1, 28, 28), 10), recipe, Seeds(m, 4, m, 6)) for m in range(2)]
    agree(jobs, Images(train=8, test=3), epochs=(0, 24))


def test_evaluation_leaves_out_the_weights_beyond_the_threshold(oracle):
    """With much noise some are: losses without them are the plain trainer's, and differ from losses with them."""
    method = replace(NOISY, threshold=1.0)
    jobs = oracle.jobs(images, [SGD(lr=0.05), SGD(lr=0.02)], sparsify=method)
    engine, rows = agree(jobs, oracle.images())
    all_kept = StackedEngine(
        replace(jobs[0], training=replace(jobs[0].training, sparsify=replace(NOISY, threshold=99.0))),
        oracle.images(), CPU, variants={"conv2d": "unfold", "max_pool": "native"},
    )  # fmt: skip
    found, others = (e.evaluate(jobs, rows, "test", -1, [0.0] * 2).losses for e in (engine, all_kept))
    assert (found - others).abs().min() > 1e-3


def test_kl_weights_are_each_models_own_and_follow_the_epoch(oracle):
    """One model's ramp is over 20 epochs, the other's over 4; both see a new weight in every epoch."""
    jobs = oracle.jobs(sequences, [SGD(lr=0.05)] * 2, sparsify=NOISY)
    jobs[1] = replace(jobs[1], training=replace(jobs[1].training, epochs=4))
    agree(jobs, oracle.images(), epochs=(0, 1, 2, 3))


def test_a_model_has_the_same_bytes_alone_and_among_others(oracle):
    jobs = oracle.jobs(images, [Adam(lr=0.01 * (1 + m)) for m in range(5)], sparsify=NOISY, dropout=[0.2])
    data = oracle.images()
    variants = {"conv2d": "unfold", "max_pool": "slices"}
    engine = StackedEngine(jobs[0], data, CPU, variants=variants)
    rows = start([TrainedModel(job, data, CPU, Resources()) for job in jobs])
    together, alone = rows, rows.take([3])
    for epoch in range(2):
        together, _ = engine.train_epoch(jobs, together, epoch, never)
        alone, _ = engine.train_epoch(jobs[3:4], alone, epoch, never)
    assert together.weights.dtype == torch.float32
    assert torch.equal(together.weights[3], alone.weights[0])


def test_noise_under_vmap_is_that_of_each_models_key_and_goes_on_counting():
    keys = [streams.subkey(streams.stream_key(seed, "noise"), 5, 1) for seed in range(3)]
    noise = StackedNoise()
    noise.start_step(torch.tensor(keys)[:, None])
    first = vmap(noise.draw)(torch.zeros(3, 2, 3, 5, dtype=torch.float64))
    second = vmap(noise.draw, in_dims=1)(torch.zeros(4, 3, dtype=torch.float64))  # models on the second axis
    for m, key in enumerate(keys):
        expected = normal(key, 0, 34, torch.float64, "cpu")
        assert torch.equal(first[m].flatten(), expected[:30])
        assert torch.equal(second[m], expected[30:])
    noise.start_step(torch.tensor(keys)[:, None])
    assert torch.equal(vmap(noise.draw)(torch.zeros(3, 2, 3, 5, dtype=torch.float64)), first)


class Watch(TorchDispatchMode):
    """Notes every operation, those of the backward pass too."""

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.operations.add(str(function.overloadpacket))
        return function(*arguments, **keywords or {})


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "lift_fresh", "lift", "item"}


@pytest.mark.parametrize("method", [NOISY, Magnitude(sparsity=0.5)], ids=["noise", "masks"])
def test_a_step_never_waits_for_the_device_and_copies_nothing_to_it(oracle, monkeypatch, method):
    """So it can be recorded as a CUDA graph; keys, masks and weights of the KL term are refilled where they are."""
    watch, places = Watch(), []
    step = Block._step

    def watched(block, size):
        with watch:
            step(block, size)
        own = [*block._tensors.values(), *block._given.values(), *(mask for _, mask in block._masks)]
        places.append([tensor.data_ptr() for tensor in own])

    monkeypatch.setattr(Block, "_step", watched)
    jobs = oracle.jobs(images, [Adam(lr=0.1)] * 3, dropout=[0.3, 0.0], clip_norm=1.0, micro_batch=4, sparsify=method)
    data = oracle.images()
    rows = start([TrainedModel(job, data, CPU, Resources()) for job in jobs])
    engine = StackedEngine(jobs[0], data, CPU, variants={"conv2d": "unfold", "max_pool": "slices"})
    for epoch in (1, 2):
        rows = replace(engine.train_epoch(jobs, rows, epoch, never)[0], kept=rows.kept)
    assert ("aten.cos" in watch.operations) == (method is NOISY)
    assert not watch.operations & {f"aten.{name}" for name in WAITING}
    assert len(places) == 8
    assert all(found == places[0] for found in places)


def test_bfloat16_is_as_far_from_the_plain_trainers_as_that_is_from_float32(setup, small_net):
    """Both round every product to 8 bits, in other orders: their distance is that of two such trajectories."""

    def model(precision):
        training = {"precision": precision, "sparsify": NOISY}
        job = setup.job(architecture=small_net(dropout=0.2), optimizer=SGD(lr=0.05), training=training)
        return TrainedModel(job, setup.data, CPU, Resources())

    def trained(one):
        for epoch in range(2):
            one.train_epoch(epoch, never)
        return one.snapshot(2, {}).weights

    narrow = model("bfloat16")
    rows = start([narrow])
    engine = StackedEngine(narrow.job, setup.data, CPU, variants={"conv2d": "unfold", "max_pool": "slices"})
    for epoch in range(2):
        rows, _ = engine.train_epoch([narrow.job], rows, epoch, never)
    ours, plain, exact = rows.weights[0], trained(narrow), trained(model("float32"))
    rounding = (plain - exact).norm()
    assert 0 < (ours - plain).norm() < 2 * rounding
    assert rounding / 4 < (ours - exact).norm() < 2 * rounding  # ours rounds too


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", [NOISY, Magnitude(sparsity=0.5)], ids=["noise", "masks"])
def test_recorded_steps_on_a_gpu_are_the_cpus(oracle, method):
    """Enough epochs that steps are recorded, replayed, and see weights of the KL term that did not exist then."""
    jobs = oracle.jobs(images, [SGD(lr=0.02), SGD(lr=0.01, momentum=0.9)], dropout=[0.2], sparsify=method)
    data = oracle.images(train=64)
    found = {}
    for device in ("cpu", "cuda"):
        engine = StackedEngine(jobs[0], data, torch.device(device), variants={"conv2d": "unfold", "max_pool": "slices"})
        rows = start([TrainedModel(job, data, torch.device(device), Resources()) for job in jobs])
        for epoch in range(4):
            rows = replace(engine.train_epoch(jobs, rows, epoch, never)[0], kept=rows.kept)
        found[device] = rows.weights.cpu()
    # Forty-four steps of float32, summed in another order.
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=0, atol=1e-3)


def test_a_network_of_other_bounds_or_thresholds_is_not_trained_with_these(oracle):
    jobs = oracle.jobs(sequences, [SGD(lr=0.1)] * 2, sparsify=NOISY)
    data = oracle.images()
    engine = StackedEngine(jobs[0], data, CPU, variants={"conv1d": "unfold"})
    rows = start([TrainedModel(job, data, CPU, Resources()) for job in jobs])
    for method in (replace(NOISY, threshold=2.0), replace(NOISY, clamp_linear=3.0), None):
        other = replace(jobs[1], training=replace(jobs[1].training, sparsify=method))
        with pytest.raises(Unsupported, match="model m1 differs in more than its dropout rates"):
            engine.train_epoch([jobs[0], other], rows, 1, never)


def test_variants_of_noisy_convolutions_are_measured_told_and_pinned(oracle, tmp_path):
    (job,) = oracle.jobs(images, [SGD(lr=0.1)], sparsify=NOISY)
    told = StackedEngine(job, oracle.images(), CPU, cache=tmp_path, models=2).describe()["variants"]
    assert told.keys() == {"0", "4", "6"}
    assert len(list((tmp_path / "choices").iterdir())) == 3
    pinned = StackedEngine(job, oracle.images(), CPU, variants=told | {"4": "loop"})
    assert pinned.describe()["variants"] == told | {"4": "loop"}


# Masks

MASKS = [
    Magnitude(sparsity=0.5),
    Magnitude(sparsity=0.9, scope="layerwise"),
    Magnitude(sparsity=0.6, scope="channels"),
    Random(sparsity=0.8),
]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("training", [{}, {"clip_norm": 0.1, "micro_batch": 4}], ids=str)
def test_masked_steps_are_the_plain_trainers_and_removed_weights_stay_zero(oracle, kind, training):
    optimizers = (OPTIMIZERS[kind] * 2)[:4]
    jobs = oracle.jobs(images, optimizers, dropout=[0.2], **training)
    jobs = [
        replace(job, training=replace(job.training, sparsify=method)) for job, method in zip(jobs, MASKS, strict=False)
    ]
    _, rows = agree(jobs, oracle.images(), epochs=(0, 1, 2))
    places = torch.from_numpy(plain_model(jobs[0], oracle.images()).layout.prunable_places)
    assert rows.kept is not None
    removed = torch.zeros_like(rows.weights, dtype=torch.bool)
    removed[:, places] = ~rows.kept
    assert (rows.weights[removed] == 0).all()
    assert (rows.weights[:, places][rows.kept] != 0).all()
    trained = {name: state for name, state in rows.optimizer.items() if name != "step"}
    for state in trained.values():
        assert (state[removed[:, : state.shape[1]]] == 0).all()


def test_masks_of_the_models_before_do_not_stay_in_the_engine(oracle):
    """The engine keeps a block's tensors for the next one: other masks, no masks, and other masks again."""
    data = Doubles(oracle.images())
    plain = oracle.jobs(sequences, [SGD(lr=0.05, momentum=0.9)] * 2)
    engine = StackedEngine(plain[0], data, CPU, variants={"conv1d": "unfold"})
    for method in (Random(sparsity=0.5), Random(sparsity=0.9), None, Magnitude(sparsity=0.3)):
        jobs = [replace(job, training=replace(job.training, sparsify=method)) for job in plain]
        models = [plain_model(job, data) for job in jobs]
        rows = start(models)
        for epoch in range(2):
            rows = replace(engine.train_epoch(jobs, rows, epoch, never)[0], kept=rows.kept)
            for m, model in enumerate(models):
                model.train_epoch(epoch, never)
                torch.testing.assert_close(rows.weights[m], model.snapshot(1, {}).weights, **CLOSE)

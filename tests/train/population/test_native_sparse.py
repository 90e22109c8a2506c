"""Sparse training in the generated C program against the plain trainer in float64, epoch by epoch from equal states."""

from __future__ import annotations

import ctypes
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoogen.core.recipe import Training
from zoogen.core.records import Job, Resources, Seeds
from zoogen.core.registry import ARCHITECTURES
from zoogen.train.model import Snapshot, TrainedModel
from zoogen.train.optimizers import SGD, Adam, AdamW, RMSprop
from zoogen.train.population.engine import Rows, Unsupported
from zoogen.train.population.native.compiler import load, vector_bytes
from zoogen.train.population.native.engine import NativeEngine
from zoogen.train.population.native.program import prelude, variational_code
from zoogen.train.schedules import Constant, OneCycle
from zoogen.train.sparsify.methods import Magnitude, Random, VariationalDropout
from zoogen.train.sparsify.noise import normal
from zoogen.train.sparsify.variational import log_alpha, variational_layers

NOISY = VariationalDropout(beta=0.5, log_sigma2=-4.0)
"""More noise and more KL than usual, so that a term left out shows; in the networks here some weights are clamped."""


class Doubled:
    """A task whose samples are prepared in float64."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def prepare(self, inputs_B: Tensor) -> Tensor:
        return self._data.prepare(inputs_B).double()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


class Plain(TrainedModel):
    """The plain trainer's model, in float64."""

    def __init__(self, job: Job, data: Any) -> None:
        super().__init__(job, Doubled(data), torch.device("cpu"), Resources())
        self.module.double()
        self._set_mask(self._kept)

    @torch.no_grad()
    def outputs(self, part: str) -> Tensor:
        inputs, _ = self._data.tensors(part, "cpu")
        return self.module.eval()(self._prepare(inputs))


def start(references: list[Plain]) -> Rows:
    """The models as they stand."""
    found = [r.snapshot(0, {}) for r in references]
    side = {name: torch.stack([s.side[name] for s in found]) for name in found[0].side}
    kept = None if found[0].kept is None else torch.stack([s.kept for s in found if s.kept is not None])
    return Rows(torch.stack([s.weights for s in found]), side, kept=kept)


def snapshot(rows: Rows, m: int, epoch: int) -> Snapshot:
    own = rows.take([m])
    side, optimizer = ({n: r[0] for n, r in group.items()} for group in (own.side, own.optimizer))
    return Snapshot(epoch, own.weights[0], side, optimizer, kept=None if own.kept is None else own.kept[0])


def agree(engine: Any, jobs: list[Job], data: Any, *, epochs: int = 3, rtol: float = 1e-9) -> Rows:
    """Assert that the engine trains and evaluates as the plain trainer does, epoch by epoch from its own states."""
    close = {"rtol": rtol, "atol": rtol / 10}
    references = [Plain(job, data) for job in jobs]
    rows = start(references)
    own = engine(jobs[0], data)
    for epoch in range(epochs):
        before = rows
        rows, measured = own.train_epoch(jobs, before, epoch, lambda: False)
        rows = replace(rows, kept=before.kept)
        scores = own.evaluate(jobs, rows, "test", -1, [0.1] * len(jobs))
        for m, reference in enumerate(references):
            reference.load(snapshot(before, m, epoch))
            expected = reference.train_epoch(epoch, lambda: False)
            wanted = reference.snapshot(epoch + 1, expected)
            torch.testing.assert_close(rows.weights[m], wanted.weights, **close)
            for name, state in rows.optimizer.items():
                other = wanted.optimizer.get(name, torch.zeros_like(state[m]))
                torch.testing.assert_close(state[m].double(), other.double(), **close)
            for name, side in rows.side.items():
                assert torch.equal(side[m], wanted.side[name])
            for name, value in expected.items():
                assert measured[name][m].item() == pytest.approx(value, rel=rtol), name
            outputs = reference.outputs("test")
            losses = data.loss(outputs, data.tensors("test", "cpu")[1], 0.1)
            torch.testing.assert_close(scores.losses[m], losses, **close)
            assert torch.equal(scores.predictions[m], outputs.argmax(1))
    return rows


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Makes engines whose programs compute in float64, and are compiled once."""
    kernels = tmp_path_factory.mktemp("kernels")
    return lambda job, data, dtype=torch.float64: NativeEngine(
        job, data, torch.device("cpu"), cache=kernels, dtype=dtype
    )


# Layers


class Forked(nn.Module):
    """One value feeds two convolutions, whose gradients add up, and one weight serves two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3)
        self.left, self.right = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1, bias=False)
        self.a, self.b = nn.Linear(108, 108), nn.Linear(108, 4)
        self.c = nn.Linear(108, 108)
        self.c.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        z = torch.flatten(self.left(y) + self.right(y), 1)
        return self.b(torch.tanh(self.a(z)) + torch.relu(self.c(z)))


def normed() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Tanh()),
        *(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 4)),
    )


def dropping(rate: float = 0.3) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, dilation=2), nn.ReLU(), nn.Dropout(rate)),
        *(nn.Flatten(), nn.Linear(48, 9), nn.Tanh(), nn.Dropout(rate), nn.Linear(9, 4, bias=False)),
    )


def frozen() -> nn.Module:
    network = dropping(0.0)
    network[0].requires_grad_(False)
    return network


NETWORKS: dict[str, Any] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 7), nn.Tanh(), nn.Linear(7, 4, bias=False)),
    "conv": lambda: nn.Sequential(nn.Conv2d(2, 5, 3, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(45, 4)),
    "conv1d": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 5, stride=2), nn.Flatten(), nn.Linear(90, 4)),
    "strided-padded-grouped-normed": normed,
    "forked-and-tied": Forked,
    "dropout": dropping,
    "frozen": frozen,
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_noisy_layer_steps_as_in_the_plain_trainer(oracle, engine, kind):
    """Two steps an epoch; the KL term has weight 0 in the first epoch only."""
    jobs = oracle.jobs(NETWORKS[kind], [SGD(lr=0.05), SGD(lr=0.2)], sparsify=NOISY)
    agree(engine, jobs, oracle.images(10))


def sized_images(oracle: Any, side: int) -> Any:
    class Images(oracle.images):
        def _inputs(self, n: int, rng: torch.Generator) -> Tensor:
            return torch.randint(0, 256, (n, 1, side, side), dtype=torch.uint8, generator=rng)

        def prepare(self, inputs_B: Tensor) -> Tensor:
            return inputs_B.float() * 0.01 - 1.5

    return Images(12, 5)


@pytest.mark.parametrize(
    ("architecture", "side"),
    [("cnn-s", 28), ("mlp", 8)],
)
def test_whole_architectures_train_as_in_the_plain_trainer(oracle, engine, architecture, side):
    made = ARCHITECTURES.make(architecture, {"hidden": (9, 5)} if architecture == "mlp" else {})
    task = oracle.shape((1, side, side))
    training = Training(20, 5, Adam(lr=1e-3), Constant(), sparsify=VariationalDropout())
    jobs = [Job(f"m{m}", made, task, training, Seeds(m, 10 + m, 20 + m, 30 + m)) for m in range(2)]
    agree(engine, jobs, sized_images(oracle, side))


# Recipes

OPTIMIZERS: dict[str, list[Any]] = {
    "sgd": [SGD(lr=0.1), SGD(lr=0.01, weight_decay=0.1)],
    "momentum": [
        SGD(lr=0.1, momentum=0.9, nesterov=True),
        SGD(lr=0.05, momentum=0.5, nesterov=True, weight_decay=0.01),
    ],
    "adam": [Adam(lr=0.01), Adam(lr=0.1, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.1)],
    "adamw": [AdamW(lr=0.01), AdamW(lr=0.1, beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.5)],
    "rmsprop": [RMSprop(lr=0.01, momentum=0.9), RMSprop(lr=0.001, alpha=0.5, eps=1e-3, weight_decay=0.1)],
}


@pytest.mark.parametrize("schedule", [None, OneCycle()], ids=["constant", "one-cycle"])
@pytest.mark.parametrize("method", [NOISY, Magnitude(0.7), Random(0.5)], ids=lambda m: m.registered_name)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_sparse_models_as_the_plain_trainer(oracle, engine, name, method, schedule):
    jobs = oracle.jobs(NETWORKS["linear"], OPTIMIZERS[name], schedule=schedule, sparsify=method, clip_norm=0.5)
    rows = agree(engine, jobs, oracle.images(10), epochs=4)
    if rows.kept is not None:
        places = torch.from_numpy(engine(jobs[0], oracle.images(10))._layout.prunable_places)
        removed = rows.weights[:, places][~rows.kept]
        assert len(removed) == (~rows.kept).sum() > 0
        assert (removed == 0).all()
        for state in (r for n, r in rows.optimizer.items() if n != "step"):
            assert (state[:, places][~rows.kept] == 0).all()


@pytest.mark.parametrize("kind", ["dropout", "strided-padded-grouped-normed"])
@pytest.mark.parametrize("method", [NOISY, Magnitude(0.6, scope="channels")], ids=lambda m: m.registered_name)
@pytest.mark.parametrize("training", [{}, {"micro_batch": 2}, {"clip_norm": 0.05}], ids=str)
def test_epochs_of_several_steps_with_a_smaller_last_batch_agree(oracle, engine, kind, method, training):
    # Not Adam: a bias in front of a batch norm has no gradient but rounding, which Adam scales up to a step.
    jobs = oracle.jobs(
        NETWORKS[kind], [SGD(lr=0.1, momentum=0.9)] * 3, smoothing=[0.0, 0.2], sparsify=method, **training
    )
    agree(engine, jobs, oracle.images(22, augmented=True), epochs=2)


def wide() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 13, (5, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(364, 11), nn.Linear(11, 4))


def test_a_step_of_many_samples_passes_through_in_chunks(oracle, engine):
    jobs = oracle.jobs(wide, [SGD(lr=0.1)], batch_size=64, sparsify=NOISY)
    agree(engine, jobs, oracle.images(150), epochs=2)


def odd() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 5, 2, stride=3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(45, 11), nn.Tanh()),
        nn.Linear(11, 4),
    )


def test_a_micro_batch_may_begin_at_the_second_number_of_a_pair(oracle, engine):
    jobs = oracle.jobs(odd, [SGD(lr=0.1)] * 2, sparsify=NOISY, micro_batch=3)
    agree(engine, jobs, oracle.images(16))


@pytest.mark.parametrize("method", [NOISY, replace(NOISY, kl_per_sample=True, beta=40.0)], ids=["sum", "per-sample"])
def test_the_kl_term_alone_moves_the_noise_of_a_weight_that_sees_nothing(oracle, engine, method):
    """Against the closed form: with inputs of zero only the KL term has a gradient in log sigma2."""

    class Blank(oracle.images):
        def prepare(self, inputs_B: Tensor) -> Tensor:
            return inputs_B.float() * 0

    data = Blank(6, 3)
    jobs = oracle.jobs(lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 4)), [SGD(lr=0.5)], sparsify=method)
    before = start([Plain(job, data) for job in jobs])
    after, _ = engine(jobs[0], data).train_epoch(jobs, before, 7, lambda: False)
    w, s = (before.weights[0, at : at + 512].clone().requires_grad_() for at in (0, 516))
    alpha = log_alpha(w, s, method.clamp_linear)
    divergence = 0.63576 - 0.63576 * torch.sigmoid(1.8732 + 1.48695 * alpha) + 0.5 * torch.log1p(torch.exp(-alpha))
    (method.kl_weight(7, 20, 6) * divergence.sum()).backward()
    torch.testing.assert_close(after.weights[0, :512], (w - 0.5 * w.grad).detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(after.weights[0, 516:], (s - 0.5 * s.grad).detach(), rtol=1e-9, atol=1e-12)
    assert s.grad.abs().max() > 1e-3


# Evaluation


def test_weights_at_or_beyond_the_threshold_and_biases_of_convolutions_count_as_zero(oracle, engine):
    jobs = oracle.jobs(NETWORKS["conv1d"], [SGD(lr=0.1)] * 2, sparsify=NOISY)
    data = oracle.images(6)
    references = [Plain(job, data) for job in jobs]
    for reference in references:
        for layer in variational_layers(reference.module):
            with torch.no_grad():
                for tensor in (layer.log_sigma2, getattr(layer, "log_sigma2_bias", None)):
                    if tensor is not None:
                        tensor.add_(torch.linspace(-6, 6, tensor.numel(), dtype=tensor.dtype).view(tensor.shape))
            removed = torch.cat([(own >= 3).flatten() for own in layer.alphas()])
            assert 0 < removed.sum() < len(removed)
    scores = engine(jobs[0], data).evaluate(jobs, start(references), "test", -1, [0.0, 0.3])
    for m, reference in enumerate(references):
        losses = data.loss(reference.outputs("test"), data.tensors("test", "cpu")[1], [0.0, 0.3][m])
        torch.testing.assert_close(scores.losses[m], losses, rtol=1e-9, atol=1e-10)


def test_a_threshold_is_part_of_what_is_computed(oracle, engine):
    data = oracle.images(6)
    losses = []
    for threshold in (3.0, -20.0):
        jobs = oracle.jobs(NETWORKS["linear"], [SGD(lr=0.1)], sparsify=replace(NOISY, threshold=threshold))
        rows = start([Plain(job, data) for job in jobs])
        losses.append(engine(jobs[0], data).evaluate(jobs, rows, "test", -1, [0.0]).losses)
    assert not torch.equal(*losses)
    torch.testing.assert_close(losses[1], torch.full_like(losses[1], math.log(4)))  # nothing is left, and no bias


# Noise

_PROBE = """
#define TINY ((real)0)
#define K1 ((real)0)
#define K2 ((real)0)
#define K3 ((real)0)
%s
// With mean 0 and variance 1 the draws are the numbers themselves.
void probe(real *out, real *variance, int64_t first, int64_t count, const uint64_t *keys) {
    add_noise((V *)out, (V *)variance, first, count, keys);
}
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("first", [0, 7, 2**33 + 1])
def test_noise_is_that_of_the_plain_trainer(tmp_path, dtype, first):
    """Up to the rounding of logarithm, root, sine and cosine."""
    lanes, count = vector_bytes() // (torch.finfo(dtype).bits // 8), 20_001
    defines = {"LANES": str(lanes)} | ({"DOUBLE": "1"} if dtype == torch.float64 else {})
    library = load(prelude() + _PROBE % variational_code(), defines, tmp_path)
    keys = torch.randint(0, 2**62, (lanes,), generator=torch.Generator().manual_seed(0)) * 2 + 1
    out, variance = torch.zeros(count, lanes, dtype=dtype), torch.ones(count, lanes, dtype=dtype)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (out, variance, keys)]
    library.probe(pointers[0], pointers[1], ctypes.c_int64(first), ctypes.c_int64(count), pointers[2])
    expected = normal(keys[:, None], first, count, dtype, "cpu")
    off = (out.T - expected).abs()
    assert off.max().item() < (2e-6 if dtype == torch.float32 else 1e-13)
    assert off.mean().item() < (1e-7 if dtype == torch.float32 else 1e-15)
    torch.testing.assert_close(variance.T, expected / 2, rtol=1e-6, atol=1e-6)


# Neighbours


@pytest.mark.parametrize("method", [VariationalDropout(), Random(0.5)], ids=lambda m: m.registered_name)
def test_a_model_becomes_the_same_alone_among_three_and_among_twenty_to_the_byte(oracle, engine, method):
    data = oracle.images(16)
    rates = [0.0, 0.3, 0.1, 0.0]
    jobs = oracle.jobs(dropping, [Adam(lr=0.01)] * 20, dropout=rates, sparsify=method)

    def trained(models: list[int]) -> Rows:
        own = [jobs[m] for m in models]
        rows = start([Plain(job, data) for job in own])
        rows = replace(rows, weights=rows.weights.float())
        for epoch in (0, 1):
            after, _ = engine(own[0], data, torch.float32).train_epoch(own, rows, epoch, lambda: False)
            rows = replace(after, kept=rows.kept)
        return rows

    alone, three, twenty = trained([0]), trained([2, 0, 1]), trained([*range(1, 20), 0])
    for other, at in ((three, 1), (twenty, 19)):
        assert other.weights[at].numpy().tobytes() == alone.weights[0].numpy().tobytes()
        for name, state in alone.optimizer.items():
            assert torch.equal(other.optimizer[name][at], state[0])


@pytest.mark.parametrize("kind", ["dropout", "strided-padded-grouped-normed"])
def test_the_bytes_do_not_depend_on_the_width_of_the_machines_vectors(oracle, engine, monkeypatch, kind):
    data = oracle.images(16)
    jobs = oracle.jobs(NETWORKS[kind], [Adam(lr=0.01)] * 3, sparsify=NOISY)
    rows = start([Plain(job, data) for job in jobs])
    rows = replace(rows, weights=rows.weights.float())
    found = []
    for width in (width for width in (8, 16, 32, 64) if width <= vector_bytes()):
        monkeypatch.setattr("zoogen.train.population.native.engine.vector_bytes", lambda width=width: width)
        after, _ = engine(jobs[0], data, torch.float32).train_epoch(jobs, rows, 3, lambda: False)
        found.append(after.weights.numpy().tobytes())
    assert set(found) == {found[0]}


def test_in_float32_models_round_as_little_as_in_the_plain_trainer(oracle, engine):
    """Noise computed in float32 differs from that in float64, for both alike."""
    data = oracle.images(10)
    jobs = oracle.jobs(dropping, [SGD(lr=0.1)] * 6, sparsify=NOISY)
    rows = start([Plain(job, data) for job in jobs])
    exact, _ = engine(jobs[0], data).train_epoch(jobs, rows, 3, lambda: False)
    singles = replace(rows, weights=rows.weights.float())
    found, _ = engine(jobs[0], data, torch.float32).train_epoch(jobs, singles, 3, lambda: False)
    plain = []
    for m, job in enumerate(jobs):
        model = TrainedModel(job, data, torch.device("cpu"), Resources())
        model.load(snapshot(singles, m, 3))
        model.train_epoch(3, lambda: False)
        plain.append(model.snapshot(4, {}).weights)
    ours, theirs, moved = (
        (other.double() - exact.weights).norm() for other in (found.weights, torch.stack(plain), rows.weights)
    )
    assert 0 < ours < 3 * theirs < 1e-3 * moved


# What is refused


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 2, 1), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.conv(torch.tanh(self.conv(x))), 1))


@pytest.mark.parametrize(
    ("make", "method", "reason"),
    [
        (Twice, NOISY, "used twice"),
        (NETWORKS["linear"], replace(NOISY, clamp_linear=200.0), "alpha as large"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.LayerNorm(4)), NOISY, "LayerNorm"),
    ],
)
def test_what_has_no_code_is_refused_by_name(oracle, engine, make, method, reason):
    jobs = oracle.jobs(make, [SGD(lr=0.1)], sparsify=method)
    with pytest.raises(Unsupported, match=reason):
        engine(jobs[0], oracle.images(6))


@pytest.mark.parametrize("optimizer", [Adam(lr=0.01), AdamW(lr=0.01), RMSprop(lr=0.01, momentum=0.5)], ids=repr)
def test_moments_that_began_later_than_the_training_count_from_there(oracle, engine, optimizer):
    """A twin that was sent back to an earlier epoch starts its optimizer anew, in the middle of its training."""
    jobs = oracle.jobs(NETWORKS["linear"], [optimizer, optimizer], sparsify=Magnitude(0.5))
    data = oracle.images(10)
    own = engine(jobs[0], data)
    references = [Plain(job, data) for job in jobs]
    rows = start(references)
    rows = replace(own.train_epoch(jobs, rows, 0, lambda: False)[0], kept=rows.kept)
    rows = replace(own.train_epoch(jobs, rows, 1, lambda: False)[0], kept=rows.kept)
    fresh = {name: torch.stack([state[0], torch.zeros_like(state[1])]) for name, state in rows.optimizer.items()}
    before = replace(rows, optimizer=fresh)
    after, _ = own.train_epoch(jobs, before, 2, lambda: False)
    for m, reference in enumerate(references):
        reference.load(snapshot(before, m, 2))
        reference.train_epoch(2, lambda: False)
        wanted = reference.snapshot(3, {})
        torch.testing.assert_close(after.weights[m], wanted.weights, rtol=1e-9, atol=1e-10)
        for name, state in after.optimizer.items():
            torch.testing.assert_close(state[m].double(), wanted.optimizer[name].double(), rtol=1e-9, atol=1e-10)
    steps = after.optimizer["step"][:, 0]
    assert steps[0] - steps[1] == 2 * jobs[0].training.steps_per_epoch(10)

"""The plain trainer under masks and under variational dropout: the steps of torch, written out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from zoogen.core import streams
from zoogen.core.layout import describe_module
from zoogen.core.records import Resources
from zoogen.train.model import Snapshot, TrainedModel, epoch_order
from zoogen.train.network import build_network
from zoogen.train.optimizers import SGD, Adam, AdamW, RMSprop
from zoogen.train.plain import PlainTrainer
from zoogen.train.sparsify.methods import Magnitude, Random, VariationalDropout
from zoogen.train.sparsify.noise import normal

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
EPOCHS = 3  # of seven steps
KL = (0.63576, 1.8732, 1.48695)


def never() -> bool:
    return False


class Doubles:
    """Small data in float64."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def prepare(self, inputs_B: Tensor) -> Tensor:
        return self._data.prepare(inputs_B).double()


@pytest.fixture
def plain_model(setup):
    """A job's model of the plain trainer, in float64."""

    def make(job):
        model = TrainedModel(job, Doubles(setup.data), CPU, Resources())
        model.module.double()
        return model

    return make


def batches(setup, job, epoch):
    """Inputs and targets of each step of an epoch."""
    inputs, targets = setup.data.tensors("train", CPU)
    order = epoch_order(streams.stream_key(job.seeds.order, "order"), epoch, len(targets))
    for rows in order.split(job.training.batch_size):
        yield Doubles(setup.data).prepare(inputs[rows]), targets[rows]


def torchs(entry: Any, parameters: Any) -> torch.optim.Optimizer:
    """The same optimizer by torch's own defaults."""
    common = {"lr": entry.lr, "weight_decay": entry.weight_decay}
    if isinstance(entry, SGD):
        return torch.optim.SGD(parameters, **common, momentum=entry.momentum, nesterov=entry.nesterov)
    if isinstance(entry, RMSprop):
        return torch.optim.RMSprop(
            parameters, **common, momentum=entry.momentum, alpha=entry.alpha, eps=entry.eps, centered=False
        )
    kind = torch.optim.AdamW if isinstance(entry, AdamW) else torch.optim.Adam
    return kind(parameters, **common, betas=(entry.beta1, entry.beta2), eps=entry.eps)


OPTIMIZERS = [
    SGD(lr=0.1),
    SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    Adam(lr=0.01, weight_decay=0.1),
    AdamW(lr=0.01, weight_decay=0.1),
    RMSprop(lr=0.003, momentum=0.5, weight_decay=0.01),
]


# Masks


@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.registered_name}-{o.lr}")
@pytest.mark.parametrize("method", [Magnitude(sparsity=0.8), Random(sparsity=0.5, scope="layerwise")], ids=str)
def test_survivors_move_as_under_torchs_pruning_and_the_others_stay_zero(
    setup, plain_model, method, optimizer, clip_norm
):
    job = setup.job(optimizer=optimizer, training={"sparsify": method, "clip_norm": clip_norm})
    ours = plain_model(job)
    kept = ours.snapshot(0, {}).kept
    theirs = setup.module(job).double()
    parts = kept.split([e.size for e in ours.layout.prunable])
    for layer, part in zip((theirs.conv, theirs.fc), parts, strict=True):
        torch_prune.custom_from_mask(layer, "weight", part.view(layer.weight.shape))
    steps = torchs(optimizer, theirs.parameters())
    norm = torch.zeros(())
    for epoch in range(EPOCHS):
        measured = ours.train_epoch(epoch, never)
        for inputs, targets in batches(setup, job, epoch):
            steps.zero_grad()
            nn.functional.cross_entropy(theirs(inputs), targets).backward()
            norm = nn.utils.get_total_norm([p.grad for p in theirs.parameters()])
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
            steps.step()
    assert measured["grad_norm"] == pytest.approx(norm.item(), rel=1e-9)
    found = dict(ours.module.named_parameters())
    for name in ("conv", "fc"):
        layer = getattr(theirs, name)
        mask = layer.weight_mask.bool()
        torch.testing.assert_close(found[f"{name}.weight"][mask], layer.weight_orig[mask], **CLOSE)
        assert (found[f"{name}.weight"][~mask] == 0).all()
        torch.testing.assert_close(found[f"{name}.bias"], layer.bias, **CLOSE)
    snapshot = ours.snapshot(EPOCHS, {})
    removed = torch.from_numpy(ours.layout.prunable_places)[~kept]
    for name, state in snapshot.optimizer.items():
        assert name == "step" or (state[removed] == 0).all()
    assert torch.equal(snapshot.kept, kept)


@pytest.mark.parametrize("method", [Magnitude(sparsity=0.9), Random(sparsity=0.5), VariationalDropout(beta=1.0)])
def test_a_sparse_training_that_was_interrupted_goes_on_with_the_same_bytes(setup, same_state, method):
    jobs = [setup.job(seed, optimizer=Adam(lr=0.01), training={"sparsify": method}) for seed in range(2)]
    cohort = replace(setup.cohort(*jobs), layout_id=describe_module(build_network(jobs[0])).layout_id)

    def trainer():
        return PlainTrainer(cohort, setup.data, "cpu")

    whole = trainer()
    whole.train_epoch(never)
    half = whole.state()
    whole.train_epoch(never)
    again = trainer()
    again.restore(half)
    again.train_epoch(never)
    same_state(again.state(), whole.state())
    stored = whole.checkpoint(tuple(job.model_id for job in jobs))
    if method.masked:
        assert half.kept.dtype == bool
        assert np.array_equal(again.state().kept, half.kept)
        assert np.array_equal(stored.kept, half.kept)
        shares = 1 - half.kept.mean(axis=1)
        assert shares == pytest.approx([method.sparsity] * 2, abs=0.5 / half.kept.shape[1] + 1e-9)
    else:
        assert half.kept is None
        assert stored.kept is None


def test_a_mask_that_is_put_in_zeroes_its_weights_and_the_old_one_is_forgotten(setup, plain_model):
    model = plain_model(setup.job(training={"sparsify": Random(sparsity=0.5)}))
    start = model.snapshot(0, {})
    flipped = replace(start, weights=torch.ones_like(start.weights), kept=~start.kept)
    model.load(flipped)
    model.train_epoch(0, never)
    after = model.snapshot(1, {})
    places = torch.from_numpy(model.layout.prunable_places)
    assert (after.weights[places[start.kept]] == 0).all()
    assert (after.weights[places[~start.kept]] != 0).all()


# Variational dropout


def written_out(tensors: dict[str, Tensor], inputs: Tensor, key: int, step: int) -> Tensor:
    """The outputs in training of a small network, conv, tanh, pool, linear."""

    def noisy(product, x, name, number, bound, biased):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]

        def variance(own, log_sigma2):
            return torch.exp((log_sigma2 - 2 * torch.log(own.abs() + 1e-15)).clamp(-bound, bound)) * own**2

        of_bias = variance(bias, tensors[f"{name}.log_sigma2_bias"]) if biased else None
        mean = product(x, weight, bias)
        std = torch.sqrt(1e-15 + product(x**2, variance(weight, tensors[f"{name}.log_sigma2"]), of_bias))
        noise = normal(streams.subkey(key, step, number), 0, mean.numel(), torch.float64, "cpu")
        return mean + std * noise.view(mean.shape)

    def conv(x, weight, bias):
        return nn.functional.conv2d(x, weight, bias, padding=1)

    x = nn.functional.max_pool2d(torch.tanh(noisy(conv, inputs, "conv", 0, 8.0, True)), 2)
    return noisy(nn.functional.linear, x.flatten(1), "fc", 1, 10.0, False)


def divergence(tensors: dict[str, Tensor]) -> Tensor:
    """The KL term of the same network."""
    k1, k2, k3 = KL
    total = torch.zeros((), dtype=torch.float64)
    for name, log_sigma2, bound in (
        ("conv.weight", "conv.log_sigma2", 8.0),
        ("conv.bias", "conv.log_sigma2_bias", 8.0),
        ("fc.weight", "fc.log_sigma2", 10.0),
    ):
        alpha = (tensors[log_sigma2] - 2 * torch.log(tensors[name].abs() + 1e-15)).clamp(-bound, bound)
        total = total - (k1 * torch.sigmoid(k2 + k3 * alpha) - 0.5 * torch.log1p(torch.exp(-alpha)) - k1).sum()
    return total


@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.05, momentum=0.9), Adam(lr=0.01, weight_decay=0.1)], ids=str)
def test_steps_are_those_of_the_published_loss_written_out(setup, plain_model, optimizer, clip_norm):
    """b = beta e / epochs in the epoch after e; what is reported as the training loss is the cross entropy."""
    method = VariationalDropout(log_sigma2=-4.0, beta=0.6)
    job = setup.job(5, optimizer=optimizer, training={"sparsify": method, "clip_norm": clip_norm})
    ours = plain_model(job)
    found = dict(ours.module.named_parameters())
    theirs = {name: tensor.detach().clone().requires_grad_() for name, tensor in found.items()}
    steps = torchs(optimizer, theirs.values())
    key, step = streams.stream_key(job.seeds.dropout, "noise"), 0
    for epoch in range(EPOCHS):
        measured, losses = ours.train_epoch(epoch, never), []
        for inputs, targets in batches(setup, job, epoch):
            steps.zero_grad()
            each = nn.functional.cross_entropy(written_out(theirs, inputs, key, step), targets, reduction="none")
            losses.append(each.detach())
            (each.mean() + 0.6 * epoch / EPOCHS * divergence(theirs)).backward()
            norm = nn.utils.get_total_norm([p.grad for p in theirs.values()])
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
            steps.step()
            step += 1
        assert measured["train_loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-9)
        assert measured["grad_norm"] == pytest.approx(norm.item(), rel=1e-9)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, theirs[name], **CLOSE)


def test_the_kl_term_is_added_once_however_many_micro_batches_there_are(setup, plain_model):
    """Noise positions go on counting, so a batch in pieces is the same batch; so must be its KL term."""
    method = VariationalDropout(log_sigma2=-4.0, beta=0.6)

    def trained(micro):
        model = plain_model(setup.job(training={"sparsify": method, "micro_batch": micro}))
        model.train_epoch(2, never)
        return model.snapshot(3, {}).weights

    torch.testing.assert_close(trained(4), trained(None), **CLOSE)


def test_what_is_noise_only_is_left_out_of_an_evaluation(setup):
    job = setup.job(training={"sparsify": VariationalDropout()})
    model = TrainedModel(job, setup.data, CPU, Resources())
    with torch.no_grad():
        sigma = model.module.fc.log_sigma2
        sigma[:, ::2] = 30.0
    found = model.evaluate("test")
    source = TrainedModel(setup.job(), setup.data, CPU, Resources())
    with torch.no_grad():
        assert (source.module.fc.weight.abs() > math.exp(-6.5)).float().mean() > 0.9
        small = source.module.fc.weight.abs() <= math.exp(-6.5)
        source.module.fc.weight[small] = 0
        source.module.fc.weight[:, ::2] = 0
        for tensor in (source.module.conv.weight, source.module.conv.bias):
            tensor[tensor.abs() <= math.exp(-6.5)] = 0
    assert found.loss == pytest.approx(source.evaluate("test").loss, rel=1e-6)
    assert found.loss != pytest.approx(TrainedModel(setup.job(), setup.data, CPU, Resources()).evaluate("test").loss)


@dataclass(frozen=True)
class Transformer:
    """A layer of torch's that evaluates in one go unless it is told not to."""

    registered_name: ClassVar[str] = "transformer"
    per_model: ClassVar[frozenset[str]] = frozenset()
    runs_code: ClassVar[bool] = False

    def build(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        return nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten(), nn.Linear(64, outputs))


def test_transformer_layers_are_evaluated_without_what_is_removed(setup):
    job = setup.job(architecture=Transformer(), training={"sparsify": VariationalDropout()})
    model = TrainedModel(job, setup.data, CPU, Resources())
    before = model.evaluate("test").loss
    with torch.no_grad():
        model.module[1].linear1.log_sigma2.fill_(30.0)
        model.module[1].linear2.log_sigma2.fill_(30.0)
    removed = model.evaluate("test").loss
    with torch.no_grad():
        model.module[1].linear1.weight.zero_()
        model.module[1].linear2.weight.zero_()
    assert removed == pytest.approx(model.evaluate("test").loss, rel=1e-6)
    assert removed != pytest.approx(before, rel=1e-6)


def test_a_snapshot_of_a_noisy_model_holds_its_noise(setup, plain_model):
    model = plain_model(setup.job(training={"sparsify": VariationalDropout(log_sigma2=-4.0)}))
    model.train_epoch(1, never)
    taken = model.snapshot(2, {})
    assert isinstance(taken, Snapshot)
    places = {e.name: slice(e.offset, e.offset + e.size) for e in model.layout.entries}
    for name in ("conv.log_sigma2", "conv.log_sigma2_bias", "fc.log_sigma2"):
        assert (taken.weights[places[name]] != -4.0).any(), name
    other = plain_model(setup.job(1, training={"sparsify": VariationalDropout(log_sigma2=-4.0)}))
    other.load(taken)
    assert torch.equal(other.snapshot(2, {}).weights, taken.weights)

"""Stored rows of twins are what evaluation computes with: a plain network with the stored weights gives its scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from zoogen.core.errors import UserError
from zoogen.core.layout import describe_module
from zoogen.train.sparsify.methods import Magnitude, VariationalDropout
from zoogen.train.sparsify.variational import convert, kl_term, variational_layers
from zoogen.twins.sparse_rows import SparseRows

METHOD = VariationalDropout(threshold=1.0, clamp_linear=4.0, clamp_conv=2.5)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(),
        nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3, bias=False),
    )  # fmt: skip


def trained(seed: int) -> tuple[nn.Module, nn.Module]:
    """A converted network in the middle of its training (weights of every log alpha), and its plain shape."""
    torch.manual_seed(seed)
    noisy = convert(network(), METHOD)
    with torch.no_grad():
        for name, parameter in noisy.named_parameters():
            if "log_sigma2" in name:
                parameter.uniform_(-8, 1)
        noisy[1].running_mean.normal_()
        noisy[1].running_var.uniform_(0.5, 2)
    return noisy, network()


def rows_of(networks: list[nn.Module]) -> tuple[SparseRows, np.ndarray]:
    training, stored = describe_module(networks[0]), describe_module(network())
    rows = torch.stack([training.flatten(n.state_dict()) for n in networks]).numpy()
    return SparseRows(stored, training, METHOD), rows


def test_a_plain_network_with_the_stored_weights_scores_what_the_noisy_one_scores_in_evaluation():
    noisy = [trained(seed)[0] for seed in range(3)]
    sparse, rows = rows_of(noisy)
    stored = sparse.read(rows, None)
    inputs = torch.randn(7, 1, 6, 6, generator=torch.Generator().manual_seed(9))
    layout = describe_module(network())
    for m, own in enumerate(noisy):
        plain = network()
        plain.load_state_dict(layout.unflatten({"float32": stored.weights[m], "int64": np.zeros(1, np.int64)}))
        assert torch.equal(plain.eval()(inputs), own.eval()(inputs))


def test_a_weight_is_stored_as_zero_where_its_log_alpha_reaches_the_threshold_and_biases_of_linear_layers_never():
    noisy = [trained(seed)[0] for seed in range(3)]
    sparse, rows = rows_of(noisy)
    stored = sparse.read(rows, None)
    layout = describe_module(network())
    assert 0.1 < stored.kept.mean() < 0.9, "this test needs both kinds"
    assert np.array_equal(stored.weights[:, layout.prunable_places] != 0, stored.kept)
    start = 0
    for name in ("0", "3", "5", "7"):
        for m, own in enumerate(noisy):
            layer = own.get_submodule(name)
            alpha = (layer.log_sigma2 - 2 * (layer.weight.abs() + 1e-15).log()).detach().numpy().ravel()
            bound = 2.5 if layer.weight.ndim == 4 else 4.0
            found = stored.log_alpha[m, start : start + alpha.size]
            assert found == pytest.approx(alpha.clip(-bound, bound), abs=1e-5)
            assert np.array_equal(stored.kept[m, start : start + alpha.size], found < 1.0)
        start += alpha.size
    assert start == stored.kept.shape[1]
    bias = next(e for e in layout.entries if e.name == "5.bias")
    for m, own in enumerate(noisy):
        assert stored.weights[m, bias.offset : bias.offset + 5] == pytest.approx(own[5].bias.detach().numpy(), abs=0)


def test_the_divergence_is_that_of_the_training_loss():
    noisy = [trained(seed)[0] for seed in range(3)]
    sparse, rows = rows_of(noisy)
    for m, own in enumerate(noisy):
        assert sparse.read(rows, None).kl[m] == pytest.approx(kl_term(variational_layers(own)).item(), rel=1e-5)


def test_reading_changes_no_row_that_trains():
    sparse, rows = rows_of([trained(0)[0]])
    before = rows.copy()
    sparse.read(rows, None)
    sparse.without_noise(rows)
    sparse.put(rows, np.zeros_like(sparse.weights(rows)))
    assert np.array_equal(rows, before)


def test_without_noise_nothing_is_removed_whatever_the_weights():
    noisy, _ = trained(0)
    sparse, rows = rows_of([noisy])
    weights = sparse.weights(rows)
    weights[:, ::3] = 1e-12
    quiet = sparse.without_noise(sparse.put(rows, weights))
    assert np.array_equal(sparse.weights(quiet), weights)
    stored = sparse.read(quiet, None)
    assert stored.kept.all()
    assert np.array_equal(stored.weights, weights)


def test_a_pruned_row_is_stored_as_it_trains():
    layout = describe_module(network())
    sparse = SparseRows(layout, layout, Magnitude(0.5))
    rows = np.random.default_rng(0).standard_normal((2, layout.parameters)).astype(np.float32)
    kept = np.random.default_rng(1).random((2, len(layout.prunable_places))) < 0.5
    stored = sparse.read(rows, kept)
    assert np.array_equal(stored.weights, rows)
    assert np.array_equal(stored.kept, kept)
    assert (stored.log_alpha, stored.kl) == (None, None)


class Tied(nn.Module):
    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a if whole else nn.Linear(4, 4)
        self.b.weight = self.a.weight


def test_layers_that_share_a_weight_but_not_its_noise_are_refused():
    stored, training = describe_module(Tied(False)), describe_module(convert(Tied(False), METHOD))
    with pytest.raises(UserError, match=r"b\.weight and a\.weight are one tensor.*\n.*magnitude"):
        SparseRows(stored, training, METHOD)
    # One layer used twice has one noise, and pruning knows one mask per tensor.
    SparseRows(describe_module(Tied(True)), describe_module(convert(Tied(True), METHOD)), METHOD)
    SparseRows(stored, stored, Magnitude(0.5))

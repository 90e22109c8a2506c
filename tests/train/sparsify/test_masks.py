"""Masks: those of ``torch.nn.utils.prune`` where no scores are equal; exact counts, ties, rounds and random ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from zoogen.core import streams
from zoogen.core.layout import Layout, describe_module
from zoogen.train.sparsify.masks import first_mask, prune
from zoogen.train.sparsify.methods import Magnitude, Random, VariationalDropout

SPARSITIES = [0.0, 0.1, 0.333, 0.5, 0.75, 0.9, 0.999]
KEY, OTHER = streams.stream_key(7, "mask"), streams.stream_key(8, "mask")
SCOPES = ["global", "layerwise", "channels"]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 2), nn.Flatten(2), nn.Conv1d(5, 4, 3),
        nn.Flatten(), nn.Linear(16, 7), nn.Linear(7, 3),
    )  # fmt: skip


def pruned_layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)]


def row_of(module: nn.Module) -> tuple[Layout, np.ndarray]:
    layout = describe_module(module)
    return layout, layout.flatten(dict(module.named_parameters()) | dict(module.named_buffers())).numpy()


def masked(method, sparsity: float, layout: Layout, weights: np.ndarray, kept=None, key: int = KEY) -> np.ndarray:
    before = np.ones(len(layout.prunable_places), dtype=bool) if kept is None else kept
    return prune(method, sparsity, layout, weights, before, key)


def layers_of(kept_W: np.ndarray, layout: Layout) -> list[np.ndarray]:
    parts = np.split(kept_W, np.cumsum([e.size for e in layout.prunable])[:-1])
    return [part.reshape(e.shape) for part, e in zip(parts, layout.prunable, strict=True)]


def of_torch(module: nn.Module) -> np.ndarray:
    """The masks that torch left on the layers, an untouched layer's all kept."""
    masks = [getattr(layer, "weight_mask", torch.ones(1)).expand(layer.weight.shape) for layer in pruned_layers(module)]
    return torch.cat([m.flatten() for m in masks]).numpy() == 1


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("seed", range(2))
def test_global_masks_are_torchs(sparsity, seed):
    module = network(seed)
    found = masked(Magnitude(sparsity=sparsity), sparsity, *row_of(module))
    tensors = [(layer, "weight") for layer in pruned_layers(module)]
    torch_prune.global_unstructured(tensors, torch_prune.L1Unstructured, amount=sparsity)
    assert np.array_equal(found, of_torch(module))
    assert (~found).sum() == round(sparsity * len(found))


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_layerwise_masks_are_torchs(sparsity):
    module = network()
    layout, weights = row_of(module)
    found = masked(Magnitude(sparsity=sparsity, scope="layerwise"), sparsity, layout, weights)
    for layer in pruned_layers(module):
        torch_prune.l1_unstructured(layer, "weight", amount=sparsity)
    assert np.array_equal(found, of_torch(module))
    for layer in layers_of(found, layout):
        assert (~layer).sum() == round(sparsity * layer.size)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_channel_masks_are_torchs_and_spare_the_classes(sparsity):
    module = network()
    layout, weights = row_of(module)
    found = masked(Magnitude(sparsity=sparsity, scope="channels"), sparsity, layout, weights)
    *layers, last = pruned_layers(module)
    for layer in layers:
        torch_prune.ln_structured(layer, "weight", amount=sparsity, n=2, dim=0)
    assert np.array_equal(found, of_torch(module))
    assert layers_of(found, layout)[-1].all()
    for layer in layers_of(found, layout)[:-1]:
        channels = layer.reshape(len(layer), -1)
        assert (channels.all(axis=1) | ~channels.any(axis=1)).all()
        assert (~channels.any(axis=1)).sum() == round(sparsity * len(channels))
    assert last.weight.shape == (3, 7)


def test_of_equal_weights_the_first_go_first():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    layout, weights = row_of(module)
    weights[layout.prunable_places] = np.tile([0.5, -0.5], 9)
    weights[layout.prunable_places[7]] = 0.1  # and this one before all
    found = masked(Magnitude(sparsity=0.5), 0.5, layout, weights)
    assert np.flatnonzero(~found).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    found = masked(Magnitude(sparsity=0.5, scope="layerwise"), 0.5, layout, weights)
    assert np.flatnonzero(~found).tolist() == [0, 1, 2, 3, 4, 7, 12, 13, 14]
    weights[layout.prunable_places] = 1.0
    found = masked(Magnitude(sparsity=0.4, scope="channels"), 0.4, layout, weights)
    assert np.flatnonzero(~found).tolist() == [0, 1, 2, 3]


def test_a_dead_layers_zeros_do_not_all_fall_together():
    """By threshold they would: ranks keep the count exact."""
    layout, weights = row_of(network())
    weights[layout.prunable_places[:150]] = 0
    found = masked(Magnitude(sparsity=0.2), 0.2, layout, weights)
    removed = round(0.2 * len(found))
    assert removed < 150
    assert np.flatnonzero(~found).tolist() == list(range(removed))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", [Magnitude, Random])
def test_rounds_only_add_to_what_is_removed(scope, kind):
    layout, weights = row_of(network())
    rng = np.random.default_rng(0)
    kept = None
    for sparsity in (0.0, 0.2, 0.45, 0.45, 0.8, 0.97):
        method = kind(sparsity=sparsity, scope=scope)
        after = masked(method, sparsity, layout, weights, kept)
        if kept is not None:
            assert not (after & ~kept).any()
            assert after.sum() <= kept.sum()
        if scope == "global":
            assert (~after).sum() == round(sparsity * len(after))
        # As between two rounds: what was removed is 0, and the rest has moved.
        weights = rng.normal(size=weights.shape).astype(np.float32)
        weights[layout.prunable_places[~after]] = 0
        kept = after


def test_what_was_removed_goes_before_weights_that_are_zero():
    layout, weights = row_of(nn.Linear(10, 1))
    kept = np.ones(10, dtype=bool)
    kept[[6, 9]] = False
    weights[layout.prunable_places] = [1, 0, 1, 0, 1, 1, 0, 1, 1, 0]
    found = masked(Magnitude(sparsity=0.3), 0.3, layout, weights, kept)
    assert np.flatnonzero(~found).tolist() == [1, 6, 9]


def test_biases_and_norms_are_not_among_the_weights():
    layout, weights = row_of(network())
    names = {e.name for e in layout.prunable}
    assert names == {"0.weight", "2.weight", "4.weight", "6.weight", "7.weight"}
    found = masked(Magnitude(sparsity=0.9), 0.9, layout, weights)
    others = weights.copy()
    others[np.setdiff1d(np.arange(len(weights)), layout.prunable_places)] = 0
    assert np.array_equal(masked(Magnitude(sparsity=0.9), 0.9, layout, others), found)


# Random ones


@pytest.mark.parametrize("scope", SCOPES)
def test_random_masks_are_those_of_their_key_whatever_the_weights(scope):
    layout, weights = row_of(network())
    method = Random(sparsity=0.5, scope=scope)
    found = [masked(method, 0.5, layout, weights * scale, key=key) for key, scale in ((KEY, 1), (KEY, -3), (OTHER, 1))]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    counts = [[(~layer).sum() for layer in layers_of(kept, layout)] for kept in found]
    if scope == "layerwise":
        assert counts[0] == counts[2] == [round(0.5 * e.size) for e in layout.prunable]
    elif scope == "global":
        assert sum(counts[0]) == sum(counts[2]) == round(0.5 * len(found[0]))


@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_random_masks_remove_every_weight_equally_often(scope):
    layout, weights = row_of(nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 10)))
    keys = [streams.stream_key(seed, "mask") for seed in range(600)]
    kept_KW = np.stack([masked(Random(sparsity=0.3, scope=scope), 0.3, layout, weights, key=key) for key in keys])
    shares_W = 1 - kept_KW.mean(axis=0)
    # 300 weights: 4.5 standard errors of 600 draws.
    assert np.abs(shares_W - 0.3).max() < 4.5 * (0.3 * 0.7 / 600) ** 0.5
    # No weight goes with its neighbour: products of neighbours as of independent ones, all 299 pairs together.
    together = ((1.0 - kept_KW[:, 1:]) * (1.0 - kept_KW[:, :-1])).mean()
    assert together == pytest.approx(0.09, abs=0.002)


def test_the_first_mask_is_of_the_models_own_stream(setup):
    layout, weights = row_of(setup.module(setup.job()))

    def mask(method, seed=0):
        job = setup.job(seed, training={"sparsify": method})
        return first_mask(job, layout, weights)

    assert mask(None) is None
    assert mask(VariationalDropout()) is None
    chosen = Magnitude(sparsity=0.75, rounds=2)
    first_due = chosen.due(0, setup.epochs)
    assert first_due == pytest.approx(0.5)
    assert np.array_equal(mask(chosen), masked(chosen, 0.5, layout, weights))
    random = Random(sparsity=0.5)
    assert np.array_equal(mask(random), mask(random))
    assert not np.array_equal(mask(random), mask(random, seed=1))
    expected = masked(random, 0.5, layout, weights, key=streams.stream_key(1, "mask"))
    assert np.array_equal(mask(random, seed=1), expected)
    of_init = replace(setup.job(1, training={"sparsify": random}), seeds=setup.job(0).seeds)
    assert np.array_equal(first_mask(of_init, layout, weights), mask(random))

"""Comparisons of twins with their parents, against scikit-learn, scipy's formulas written out, and counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score
from sklearn.metrics.pairwise import cosine_distances

from zoogen.core.layout import Entry, Layout
from zoogen.twins.measures import agreement, cohens_kappa, distances, layer_sparsities

LAYOUT = Layout(
    (
        Entry("a.weight", "weight", "Conv2d", (2, 1, 3, 3), "float32", 0, 0, True),
        Entry("a.bias", "bias", "Conv2d", (2,), "float32", 18, 0, True),
        Entry("b.weight", "weight", "Linear", (3, 4), "float32", 20, 1, True),
        Entry("norm.running_mean", "running_statistic", "BatchNorm1d", (3,), "float32", 32, 2, False),
    )
)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("classes", [2, 10, 200])
def test_agreement_and_kappa_are_scikit_learns(dtype, classes):
    rng = np.random.default_rng(classes)
    parents = rng.integers(0, classes, (5, 300)).astype(dtype)
    own = np.where(rng.random((5, 300)) < 0.7, parents, rng.integers(0, classes, (5, 300))).astype(dtype)
    own[3] = (parents[3].astype(int) + 1) % classes  # never the same: kappa below 0
    own[4] = parents[4]
    kappa = cohens_kappa(own, parents)
    for m in range(5):
        assert agreement(own, parents)[m] == pytest.approx(accuracy_score(parents[m], own[m]), abs=1e-15)
        assert kappa[m] == pytest.approx(cohen_kappa_score(parents[m], own[m]), abs=1e-12)
    assert kappa[3] < 0
    assert kappa[4] == 1


def test_kappa_of_one_class_throughout_is_one_and_of_a_constant_against_others_zero():
    always = np.full((1, 50), 3, np.uint8)
    mixed = np.arange(50, dtype=np.uint8)[None] % 10
    assert cohens_kappa(always, always).tolist() == [1.0]
    assert cohens_kappa(always, mixed)[0] == pytest.approx(cohen_kappa_score(mixed[0], always[0]), abs=1e-12)


def test_without_test_samples_nothing_is_known():
    empty = np.empty((2, 0), np.uint8)
    assert np.isnan(agreement(empty, empty)).tolist() == [True, True]
    assert np.isnan(cohens_kappa(empty, empty)).tolist() == [True, True]


def test_distances_are_of_the_trained_parameters_alone_in_float64():
    rng = np.random.default_rng(1)
    own, parents = rng.standard_normal((2, 3, 35)).astype(np.float32)
    own[0] = parents[0]
    own[1] = -2 * parents[1]
    own[:, 32:] = 1e6  # running statistics
    length, angle = distances(own, parents, LAYOUT)
    for m in range(3):
        difference = own[m, :32].astype(float) - parents[m, :32].astype(float)
        assert length[m] == pytest.approx(math.sqrt(math.fsum(difference**2)), rel=1e-12)
        assert angle[m] == pytest.approx(cosine_distances(own[m : m + 1, :32], parents[m : m + 1, :32])[0, 0], abs=1e-6)
    assert (length[0], angle[0], angle[1]) == (0, pytest.approx(0, abs=1e-15), pytest.approx(2, abs=1e-15))


def test_the_angle_to_nothing_is_unknown_but_the_distance_is_not():
    parents = np.ones((1, 35), np.float32)
    length, angle = distances(np.zeros((1, 35), np.float32), parents, LAYOUT)
    assert length[0] == pytest.approx(math.sqrt(32))
    assert math.isnan(angle[0])


def test_layer_sparsities_are_the_shares_of_removed_weights_of_each_prunable_tensor_exactly():
    rng = np.random.default_rng(2)
    kept = rng.random((6, 30)) < 0.3
    found = layer_sparsities(kept, LAYOUT)
    assert found.shape == (6, 2)
    for m in range(6):
        removed = [18 - int(kept[m, :18].sum()), 12 - int(kept[m, 18:].sum())]
        assert found[m].tolist() == [removed[0] / 18, removed[1] / 12], "the nearest float64 to the share"

"""Methods of sparsification as recipes name them: when and how far is pruned, and what the KL term weighs."""

from __future__ import annotations

import pytest

from zoogen.core.registry import SPARSIFIERS
from zoogen.train.sparsify.methods import Magnitude, Random, VariationalDropout


@pytest.mark.parametrize(("rounds", "epochs"), [(1, 15), (3, 15), (4, 10), (5, 5), (7, 100)])
@pytest.mark.parametrize("schedule", ["geometric", "cubic"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.99])
def test_rounds_are_spread_over_the_epochs_and_end_at_the_sparsity(rounds, epochs, schedule, sparsity):
    method = Magnitude(sparsity=sparsity, schedule=schedule, rounds=rounds)
    found = [method.due(epoch, epochs) for epoch in range(epochs)]
    pruned = [epoch for epoch, due in enumerate(found) if due is not None]
    assert pruned[0] == 0
    assert len(pruned) == rounds
    assert all(abs(epoch - r * epochs / rounds) < 1 for r, epoch in enumerate(pruned))
    due = [s for s in found if s is not None]
    assert due == sorted(due)
    assert due[-1] == sparsity


def test_a_geometric_round_removes_the_same_share_of_what_is_left():
    """Three rounds to 1 - 0.8 ** 3: 20 % of the weights, 20 % of the others, 20 % of the rest."""
    method = Magnitude(sparsity=1 - 0.8**3, rounds=3)
    found = [method.due(epoch, 9) for epoch in (0, 3, 6)]
    assert found == pytest.approx([0.2, 0.36, 0.488])


def test_a_cubic_round_follows_zhu_and_gupta():
    """Their equation 1 from sparsity 0: s_t = s_f - s_f (1 - t / n) ** 3."""
    method = Magnitude(sparsity=0.8, schedule="cubic", rounds=4)
    found = [method.due(epoch, 8) for epoch in (0, 2, 4, 6)]
    assert found == pytest.approx([0.8 - 0.8 * (1 - t / 4) ** 3 for t in (1, 2, 3, 4)])


def test_random_weights_are_removed_once_before_the_first_epoch():
    assert [Random(sparsity=0.7).due(epoch, 4) for epoch in range(5)] == [0.7, None, None, None, None]


def test_the_weight_of_the_kl_term_rises_linearly_from_zero():
    published = [VariationalDropout().kl_weight(epoch, 25, 60000) for epoch in range(25)]
    assert published == pytest.approx([0.0004 * epoch for epoch in range(25)])
    assert published[0] == 0
    assert published[-1] == pytest.approx(0.0096)


def test_the_weight_of_the_kl_term_ends_at_one_and_may_be_per_sample():
    assert [VariationalDropout(beta=2.0).kl_weight(e, 10, 50) for e in (0, 4, 5, 9)] == [0, 0.8, 1, 1]
    per_sample = VariationalDropout(beta=2.0, kl_per_sample=True)
    assert [per_sample.kl_weight(e, 10, 50) for e in (0, 4, 5, 9)] == [0, 0.8 / 50, 1 / 50, 1 / 50]


@pytest.mark.parametrize(
    "method",
    [Magnitude(sparsity=0.3, rounds=2, rewind=1), Random(sparsity=0.2, scope="channels"), VariationalDropout(beta=1.0)],
)
def test_a_method_is_described_and_made_again_by_its_name(method):
    told = SPARSIFIERS.describe(method)
    assert told["name"] == method.registered_name
    assert SPARSIFIERS.make(told["name"], {k: v for k, v in told.items() if k != "name"}) == method


def test_an_epoch_depends_on_their_number_only_where_something_is_spread_over_them():
    assert not Magnitude(sparsity=0.5).shaped_by_epochs
    assert Magnitude(sparsity=0.5, rounds=2).shaped_by_epochs
    assert not Random(sparsity=0.5).shaped_by_epochs
    assert VariationalDropout().shaped_by_epochs

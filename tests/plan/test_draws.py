"""Random draws: distinct, in range, distributed as asked, and untouched by extensions."""

from __future__ import annotations

import numpy as np
import pytest

from zoogen.blueprint import loads
from zoogen.core.errors import UserError
from zoogen.plan import make_plan

TEXT = """
zoo: draws
version: 1
task: {name: digits}
architecture: {name: mlp, hidden: [8], activation: {grid: [relu, tanh]}, dropout: {draw: {uniform: [0.0, 0.5]}}}
training:
  epochs: 1
  batch_size: {draw: {choice: [16, 32, 64]}}
  optimizer: {name: sgd, lr: {draw: {log_uniform: [1.0e-5, 1.0e-1]}}}
draws: 40
seeds: {draw: 3, below: 1000}
"""


def cells(text: str):
    keys = ["architecture.activation", "architecture.dropout", "training.batch_size", "training.optimizer.lr", "seed"]
    return make_plan(loads(text)).table[["model_id", *keys]]


def test_every_grid_point_gets_its_draws_and_every_draw_its_seeds():
    table = cells(TEXT)
    assert len(table) == 2 * 40 * 3
    points = table.groupby(["architecture.dropout", "training.optimizer.lr"])["seed"].nunique()
    assert len(points) == 80
    assert (points == 3).all()


@pytest.mark.parametrize(
    ("before", "after"),
    [("[relu, tanh]", "[sigmoid, relu, tanh]"), ("draws: 40", "draws: 60"), ("draw: 3,", "draw: 7,")],
)
def test_extending_changes_no_existing_draw(before, after):
    assert set(cells(TEXT)["model_id"]) < set(cells(TEXT.replace(before, after))["model_id"])


def test_draws_follow_their_distribution():
    table = cells(TEXT.replace("draws: 40", "draws: 500").replace("draw: 3,", "draw: 1,"))
    lr = np.log10(table["training.optimizer.lr"])
    # Mean of n uniforms on [-5, -1]: standard error 4 / sqrt(12 n) = 0.037 for n = 1000; allow 4.
    assert lr.between(-5, -1).all()
    assert lr.mean() == pytest.approx(-3, abs=0.15)
    assert table["architecture.dropout"].mean() == pytest.approx(0.25, abs=4 * 0.5 / (12 * 1000) ** 0.5)
    shares = table["training.batch_size"].value_counts(normalize=True)
    assert np.allclose(shares, 1 / 3, atol=4 * (2 / 9 / 1000) ** 0.5)
    assert set(shares.index) == {16, 32, 64}


def test_seeds_of_a_point_are_distinct_and_use_the_whole_range():
    table = cells(TEXT.replace("draw: 3, below: 1000", "draw: 5, below: 5").replace("draws: 40", "draws: 4"))
    for _, point in table.groupby(["architecture.dropout", "training.optimizer.lr"]):
        assert sorted(point["seed"]) == [0, 1, 2, 3, 4]


def test_more_distinct_draws_than_there_are_options_is_an_error():
    text = TEXT.replace("{draw: {uniform: [0.0, 0.5]}}", "0.1").replace(
        "{draw: {log_uniform: [1.0e-5, 1.0e-1]}}", "0.1"
    )
    with pytest.raises(UserError, match="only 3"):
        make_plan(loads(text))

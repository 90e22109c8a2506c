"""Splits by the value of a setting against pandas; families stay together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import zoogen
from zoogen.core.errors import IntegrityError, UserError

LR = "training.optimizer.lr"
ACTIVATION = "architecture.activation"


@pytest.fixture
def zoo(small_zoo):
    return zoogen.open(small_zoo)


def test_models_with_the_values_are_apart_from_all_others(zoo, small_zoo):
    plain = pd.read_parquet(small_zoo / "models.parquet").set_index("model_id")
    found = zoo.resplit("lr", test=[0.1], val=1e-3)
    expected = plain[LR].map({0.1: "test", 1e-3: "val", 1e3: "train"})
    assert found.by == LR
    pd.testing.assert_series_equal(found.labels, expected, check_names=False, check_dtype=False, check_index_type=False)
    for side in ("train", "val", "test"):
        assert np.array_equal(found.mask(side), expected == side)


def test_every_state_is_on_the_side_of_its_model(zoo):
    found = zoo.resplit(ACTIVATION, test="relu")
    sides = {side: found.select(side) for side in ("train", "val", "test")}
    assert sum(map(len, sides.values())) == len(zoo.checkpoints)
    assert len(sides["val"]) == 0
    assert set(sides["test"].models[ACTIVATION]) == {"relu"}
    assert set(sides["train"].models[ACTIVATION]) == {"tanh"}


def test_conditions_and_the_stored_split_narrow_a_side(zoo):
    found = zoo.resplit(LR, test=[0.1]).select("train", "dropout == 0", epochs="last", split="train")
    plain = zoo.models.query(f"`{LR}` != 0.1 and `architecture.dropout` == 0 and split == 'train'")
    assert len(plain) > 0
    assert set(found.models["model_id"]) == set(plain["model_id"])
    assert len(found) == len(plain)


def test_the_same_question_has_the_same_answer(small_zoo):
    one, other = (zoogen.open(small_zoo).resplit(LR, test=[0.1]) for _ in range(2))
    assert np.array_equal(one.sides, other.sides)


def test_leaving_one_value_out_takes_each_value_in_turn(zoo):
    found = zoo.leave_one_out("lr")
    assert list(found) == [1e-3, 0.1, 1e3]
    for value, split in found.items():
        assert np.array_equal(split.mask("test"), zoo.models[LR] == value)
        assert np.array_equal(split.mask("train"), zoo.models[LR] != value)


@pytest.mark.parametrize("name", ["magnitude", "variational"])
def test_twins_are_on_the_side_of_their_parents(twin_zoos, name):
    twins = zoogen.open(twin_zoos / name)
    parents = twins.parent.models.set_index("model_id")[ACTIVATION]
    own = twins.resplit("activation", test=["tanh"])
    assert np.array_equal(own.mask("test"), twins.models["parent_id"].map(parents) == "tanh")
    assert 0 < own.mask("test").sum() < len(twins.models)
    given = twins.parent.resplit("activation", test=["tanh"]).of(twins)
    assert np.array_equal(own.sides, given.sides)
    for value, split in twins.leave_one_out("activation").items():
        assert np.array_equal(split.mask("test"), twins.models["parent_id"].map(parents) == value)


def test_values_of_parents_without_twins_make_no_side(few_twins):
    twins = zoogen.open(few_twins)
    parents = twins.parent.models.set_index("model_id")["seed"]
    seeds = twins.models["parent_id"].map(parents).to_numpy()
    assert (set(parents), set(seeds)) == ({0, 1, 2}, {0, 1})
    assert list(twins.leave_one_out("seed")) == [0, 1]
    for arguments in ({"test": [2]}, {"test": [0, 1]}, {"test": [0], "val": [2]}):
        with pytest.raises(UserError, match=r"no model is left for .*: seed has the values 0, 1"):
            twins.resplit("seed", **arguments)
    assert twins.resplit("seed", test=[0, 2]).sides.tolist() == ["test" if s == 0 else "train" for s in seeds]


def test_models_without_the_setting_are_always_training_models(zoo):
    rates = zoo.tables.models[LR].where(zoo.tables.models[LR] != 1e3)  # as of a setting that some optimizers lack
    zoo.tables.models[LR] = rates
    found = zoo.leave_one_out("lr")
    assert list(found) == [1e-3, 0.1]
    assert rates.isna().any()
    assert all((split.sides[rates.isna()] == "train").all() for split in found.values())


def test_twins_are_not_split_by_what_differs_between_twins_of_one_parent(twin_zoos):
    twins = zoogen.open(twin_zoos / "magnitude")
    for ask in (lambda: twins.resplit("sparsity", test=[0.9]), lambda: twins.leave_one_out("sparsity")):
        with pytest.raises(UserError, match="their parent's side"):
            ask()


def test_a_split_is_not_given_to_zoos_that_are_no_twins_of_it(zoo, twin_zoos):
    split = zoo.resplit(LR, test=[0.1])
    with pytest.raises(UserError, match="twins of zoo 'small'"):
        split.of(zoogen.open(twin_zoos / "magnitude"))
    with pytest.raises(UserError, match="started anew"):
        split.of(zoo)


def with_parents(zoo, links):
    """Let models descend from others of the same zoo: row -> row of the parent."""
    ids = zoo.tables.models["model_id"].to_numpy(object)
    column = np.full(len(ids), None, object)
    for child, parent in links.items():
        column[child] = ids[parent] if isinstance(parent, int) else parent
    zoo.tables.models["parent_id"] = pd.array(column, dtype="str")
    return zoo


def test_children_within_a_zoo_follow_the_model_they_go_back_to(zoo):
    rates = zoo.models[LR].to_numpy()
    first, second = np.flatnonzero(rates == 0.1)[:2].tolist()
    other = int(np.flatnonzero(rates == 1e-3)[0])
    third, fourth = np.flatnonzero(rates == 1e3)[:2].tolist()
    # A chain third -> other -> first: both go where first goes; second follows fourth.
    found = with_parents(zoo, {other: first, third: other, second: fourth}).resplit(LR, test=[0.1])
    expected = np.where(rates == 0.1, "test", "train")
    expected[[other, third]] = "test"
    expected[second] = "train"
    assert found.sides.tolist() == expected.tolist()


def test_a_value_that_only_children_have_is_never_left_out(zoo):
    rates = zoo.models[LR].to_numpy()
    children = np.flatnonzero(rates == 1e3).tolist()
    parent = int(np.flatnonzero(rates == 0.1)[0])
    assert list(with_parents(zoo, dict.fromkeys(children, parent)).leave_one_out(LR)) == [1e-3, 0.1]


@pytest.mark.parametrize(
    ("links", "words"), [({1: 2, 2: 1}, "forebears"), ({0: 0}, "forebears"), ({1: "f" * 32}, "not in the")]
)
def test_impossible_descents_are_damage(zoo, links, words):
    with_parents(zoo, links)
    with pytest.raises(IntegrityError, match=words):
        zoo.resplit(LR, test=[0.1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"by": "lrr", "test": [0.1]}, "unknown setting"),
        ({"by": "lr", "test": [0.5]}, "no model has"),
        ({"by": "lr", "test": []}, "left for test"),
        ({"by": "lr", "test": [0.1, 1e-3, 1e3]}, "left for train"),
        ({"by": "lr", "test": [0.1], "val": [0.1, 1e3]}, "on one side"),
        ({"by": "name", "test": ["mlp"]}, "could be any of"),
    ],
    ids=str,
)
def test_splits_that_cannot_be_are_refused(zoo, arguments, words):
    with pytest.raises(UserError, match=words):
        zoo.resplit(**arguments)


def test_a_setting_with_one_value_leaves_nothing_to_train_on(zoo):
    with pytest.raises(UserError, match="two or more"):
        zoo.leave_one_out("weight_decay")


def test_an_unknown_side_is_answered_with_the_known_ones(zoo):
    with pytest.raises(UserError, match="Did you mean 'test'"):
        zoo.resplit("lr", test=[0.1]).select("tests")

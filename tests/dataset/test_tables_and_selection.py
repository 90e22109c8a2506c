"""Tables and selections against plain pandas on the same files."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

import zoogen
from zoogen.core.errors import IntegrityError, UserError
from zoogen.store.read import ShardReader

LR = "training.optimizer.lr"
ACTIVATION = "architecture.activation"


@pytest.fixture
def zoo(small_zoo):
    return zoogen.open(small_zoo)


@pytest.fixture
def plain(small_zoo):
    """Every state with its model's columns, by plain pandas; the model's own scores end in ``_final``."""
    models = pd.read_parquet(small_zoo / "models.parquet")
    states = pd.read_parquet(small_zoo / "checkpoints.parquet")
    return states.merge(models, on="model_id", how="left", suffixes=("", "_final"))


def keys(frame):
    return list(zip(frame["model_id"], frame["epoch"], strict=True))


def test_tables_hold_what_the_files_hold(zoo, small_zoo):
    models = pd.read_parquet(small_zoo / "models.parquet")
    states = pd.read_parquet(small_zoo / "checkpoints.parquet")
    assert zoo.models["model_id"].tolist() == models["model_id"].tolist()
    assert zoo.models[LR].tolist() == models[LR].tolist()
    for name in states.columns:
        if name != "test_acc_per_class":
            pd.testing.assert_series_equal(zoo.checkpoints[name], states[name])
    assert len(zoo) == states["model_id"].nunique()
    assert set(zoo.factors) == {ACTIVATION, "architecture.dropout", LR}
    assert "small" in repr(zoo)
    assert f"{len(zoo)} models" in repr(zoo)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"where": "lr < 0.01"}, lambda t: t[LR] < 0.01),
        ({"where": "lr < 1 and test_acc > 0.3"}, lambda t: (t[LR] < 1) & (t.test_acc > 0.3)),
        ({"where": "final.test_acc > 0.3"}, lambda t: t.test_acc_final > 0.3),
        ({"where": "test_acc >= final.test_acc"}, lambda t: t.test_acc >= t.test_acc_final),
        ({"where": "status == 'diverged'"}, lambda t: t.status == "diverged"),
        ({"where": "ggap > 0"}, lambda t: t.train_acc - t.test_acc > 0),
        ({"activation": "tanh"}, lambda t: t[ACTIVATION] == "tanh"),
        ({"lr": [0.1, 0.001], "activation": "relu"}, lambda t: t[LR].isin([0.1, 0.001]) & (t[ACTIVATION] == "relu")),
        ({LR: 0.1}, lambda t: t[LR] == 0.1),
        ({"lr": np.array([0.1])}, lambda t: t[LR] == 0.1),
        ({"lr": pd.Series([0.1, 0.001], index=[7, 8])}, lambda t: t[LR].isin([0.1, 0.001])),
        ({"diverged_epoch": pd.array([1, None], "Int64")[1:]}, lambda t: t.diverged_epoch.isna()),
        ({"diverged_epoch": None}, lambda t: t.diverged_epoch.isna()),
        ({"diverged_epoch": float("nan")}, lambda t: t.diverged_epoch.isna()),
        ({"epochs": 2}, lambda t: t.epoch == 2),
        ({"epochs": [0, 3]}, lambda t: t.epoch.isin([0, 3])),
        ({"epochs": np.array([0, 3])}, lambda t: t.epoch.isin([0, 3])),
        ({"epochs": range(0, 9, 2)}, lambda t: t.epoch.isin([0, 2])),
        ({"epochs": slice(2, None)}, lambda t: t.epoch >= 2),
        ({"epochs": slice(None, None, 3)}, lambda t: t.epoch % 3 == 0),
        ({"epochs": "first"}, lambda t: t.epoch == t.groupby("model_id").epoch.transform("min")),
        ({"epochs": "last"}, lambda t: t.epoch == t.groupby("model_id").epoch.transform("max")),
        ({"split": "train"}, lambda t: t.split == "train"),
        ({"split": ["val", "test"]}, lambda t: t.split != "train"),
        ({"where": "epoch > 0", "epochs": [0, 1], "seed": 0, "lr": 0.1}, lambda t: (t.epoch == 1) & (t[LR] == 0.1)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_selection_has_the_rows_that_pandas_finds(zoo, plain, arguments, expected):
    rows = plain[expected(plain)]
    selection = zoo.select(**arguments)
    assert len(rows) < len(plain)
    assert keys(selection.checkpoints) == keys(rows)
    assert len(selection) == len(rows)
    assert set(selection.models["model_id"]) == set(rows["model_id"])


def test_the_ids_of_a_table_select_its_models(zoo):
    ids = zoo.models.query("test_acc > 0.3")["model_id"]
    assert 0 < len(ids) < len(zoo.models)
    assert set(zoo.select(model_id=ids).models["model_id"]) == set(ids)
    with pytest.raises(UserError, match="no model has model_id = 'x'"):
        zoo.select(model_id=[*ids, "x"])


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        ([4], {"[4]"}),
        ((4,), {"[4]"}),
        ([[4]], {"[4]"}),
        ("[4]", {"[4]"}),
        ([[4], (6,)], {"[4]", "[6]"}),
        (["[4]", [6]], {"[4]", "[6]"}),
        (np.array([[4], [6]]), {"[4]", "[6]"}),
        ([], set()),
        ([[4, 4]], "values in this zoo: [4], [6]"),
        ([5], "values in this zoo: [4], [6]"),
    ],
    ids=str,
)
def test_a_list_is_a_value_of_settings_that_are_lists(mixed_zoo, hidden, expected):
    zoo = zoogen.open(mixed_zoo)
    if isinstance(expected, str):
        with pytest.raises(UserError) as error:
            zoo.select(hidden=hidden)
        assert expected in str(error.value)
    else:
        assert set(zoo.select(hidden=hidden).models["architecture.hidden"]) == expected


@pytest.mark.parametrize("test", [[4], [[4]], "[4]"], ids=str)
def test_settings_that_are_lists_split_models(mixed_zoo, test):
    zoo = zoogen.open(mixed_zoo)
    split = zoo.resplit("hidden", test=test)
    assert np.array_equal(split.mask("test"), zoo.models["architecture.hidden"] == "[4]")


def test_conditions_may_be_chained_in_any_order(zoo):
    one = zoo.select("test_acc > 0.2").select(epochs="last").select(activation="tanh")
    other = zoo.select(activation="tanh", epochs="last").select("test_acc > 0.2")
    assert len(one) > 0
    assert keys(one.checkpoints) == keys(other.checkpoints)
    assert keys(one.checkpoints) == keys(zoo.select("test_acc > 0.2", epochs="last", activation="tanh").checkpoints)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"where": "activaton == 'tanh'"}, "activation"),
        ({"where": "name == 'mlp'"}, "could be any of"),
        ({"activaton": "tanh"}, "unknown setting 'activaton'"),
        ({"activation": "tan"}, "relu, tanh"),
        ({"lr": 0.5}, "0.001"),
        ({"lr": "0.1"}, "no model has"),
        ({"epochs": 50}, "stored epochs: 0, 1, ..., 3"),
        ({"epochs": [0, 7, 9]}, "7, 9"),
        ({"epochs": range(10, 20)}, "stored epochs"),
        ({"epochs": 1.5}, "whole numbers"),
        ({"epochs": True}, "whole numbers"),
        ({"epochs": "lst"}, "unknown epochs"),
        ({"epochs": slice(-1, None)}, "not negative"),
        ({"split": "training"}, "Did you mean 'train'?"),
        ({"test_acc": 0.5}, 'zoo.select("test_acc > ...")'),
        ({"ggap": 0.0}, 'zoo.select("ggap > ...")'),
        ({"epoch": 3}, "write it as epochs="),
    ],
    ids=str,
)
def test_what_is_not_there_is_named_with_what_is(zoo, arguments, words):
    with pytest.raises(UserError) as error:
        zoo.select(**arguments)
    assert words in str(error.value)


@pytest.mark.parametrize("where", [np.ones(38, bool), pd.Series(["x"]), ["lr > 0"], 3], ids=lambda w: type(w).__name__)
def test_a_condition_that_is_no_text_is_refused(zoo, where):
    with pytest.raises(UserError, match=rf"is text.*got {type(where).__name__}"):
        zoo.select(where)


def test_selecting_opens_no_weights(zoo, monkeypatch):
    opened = []
    original = ShardReader.__init__

    def counting(self, folder):
        opened.append(folder)
        original(self, folder)

    monkeypatch.setattr(ShardReader, "__init__", counting)
    selection = zoo.select(
        "lr < 1 and test_acc > 0.1", activation="tanh", epochs=[1, 2], split=["train", "val", "test"]
    )
    assert len(selection.models)
    assert len(selection.joined("lr"))
    assert not opened
    selection.weights()
    needed = selection.checkpoints["shard_id"].unique()
    assert {folder.name for folder in opened} == set(needed)
    assert len(opened) == len(needed) < zoo.checkpoints["shard_id"].nunique()


def test_joined_columns_are_those_of_each_states_model(zoo, plain):
    joined = zoo.select(epochs=[1, 3]).joined("lr", "final.test_acc")
    expected = plain[plain.epoch.isin([1, 3])].reset_index(drop=True)
    assert joined[LR].tolist() == expected[LR].tolist()
    assert joined["final.test_acc"].tolist() == expected["test_acc_final"].tolist()
    assert joined["test_acc"].tolist() == expected["test_acc"].tolist()


def test_changing_a_table_leaves_the_zoo_as_it_was(zoo):
    table = zoo.models
    table["split"] = "test"
    table.loc[0, "model_id"] = "x"
    assert zoo.models["split"].nunique() > 1
    assert zoo.models["model_id"][0] != "x"


def test_an_empty_selection_says_so_when_weights_are_asked_for(zoo):
    nothing = zoo.select("test_acc > 2")
    assert len(nothing) == 0
    assert nothing.checkpoints.empty
    with pytest.raises(UserError, match="empty"):
        nothing.weights()


def test_states_of_models_that_are_not_listed_yet_are_left_out_with_a_warning(small_zoo, tmp_path, caplog):
    """As after a kill between the two tables."""
    copy = shutil.copytree(small_zoo, tmp_path / "zoo")
    from zoogen.store.tables import read_parquet, write_parquet

    models = read_parquet(copy / "models.parquet")
    write_parquet(copy / "models.parquet", [models.slice(1)], models.schema)
    zoo = zoogen.open(copy)
    gone = models["model_id"][0].as_py()
    assert gone not in set(zoo.checkpoints["model_id"])
    assert "left out" in caplog.text
    whole = zoogen.open(small_zoo).select(f"model_id != '{gone}'")
    assert np.array_equal(zoo.select().weights(), whole.weights())


def test_no_zoo_is_an_error_that_says_where(tmp_path):
    with pytest.raises(UserError, match="no zoo at"):
        zoogen.open(tmp_path / "nothing")


def test_a_damaged_table_or_manifest_is_named(small_zoo, tmp_path):
    copy = shutil.copytree(small_zoo, tmp_path / "zoo")
    data = bytearray((copy / "checkpoints.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "checkpoints.parquet").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"checkpoints\.parquet"):
        _ = zoogen.open(copy).checkpoints
    (copy / "zoo.json").write_text('{"format": "zoogen", "format_version": 1, "name": "x"}')
    with pytest.raises(IntegrityError, match="version"):
        zoogen.open(copy)

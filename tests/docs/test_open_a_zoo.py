"""The page "Open a zoo" runs from top to bottom, and what it computes is what plain h5py and algebra compute."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/open-a-zoo.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the page's names stand for after its last block, on a third of the quickstart's models."""
    from zoogen.build.pipeline import BuildOptions, build
    from zoogen.build.sparsify import SparsifyOptions, sparsify
    from zoogen.schedule import SerialExecutor, StopFlag

    class Silent:
        def begin(self, *_): ...

        def progress(self, *_): ...

        def note(self, *_): ...

    folder = tmp_path_factory.mktemp("home")
    where = "lr > 0.001 and activation in ['tanh', 'relu']"
    options = BuildOptions(ROOT / "blueprints/quickstart.yaml", folder / "zoos/quickstart", where=where)
    outcome = build(options, SerialExecutor(), Silent(), StopFlag())
    assert outcome.trained == 24
    recipe = """\
method: {name: magnitude, sparsity: {grid: [0.5, 0.9]}}
training: {epochs: 1}
parents: {where: "status == 'trained'"}
"""
    out = folder / "zoos/quickstart-magnitude-v1"
    twins = SparsifyOptions(options.out, None, recipe, (), BuildOptions(options.blueprint, out))
    assert sparsify(twins, SerialExecutor(), Silent(), StopFlag()).trained == 48
    found: dict = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, code in enumerate(BLOCKS, start=1):
            exec(compile(code, f"{PAGE.name}, block {number}", "exec"), found)
    return found


def test_the_examples_give_what_they_say(names):
    states = names["states"]
    assert names["w_NP"].shape == (len(states), states.layout.parameters)
    assert names["arrays"]["fc1.bias"].shape == (len(states), 32)
    assert names["mask_N"].sum() < len(names["mask_N"])
    np.testing.assert_allclose(names["w_again_NP"], names["normaliser"].invert(names["z_NP"]))
    assert names["w_MTP"].shape[1] == 11
    assert names["pairs"].before.checkpoints["epoch"].unique().tolist() == [0, 1, 5]
    assert names["pairs"].after.checkpoints["epoch"].unique().tolist() == [1, 5, 10]
    assert names["state"]["epoch"] == names["state"]["batch"] == 2
    assert len(names["rest"]) == len(names["stream"]) - 2
    assert (names["saved"]["epoch"], names["saved"]["batch"]) == (1, len(names["stream"]))
    assert names["dataset"].classes == ("gelu", "relu", "sigmoid", "tanh")  # of all planned models


def test_networks_splits_and_twins_are_as_the_files_have_them(names, monkeypatch):
    monkeypatch.chdir(names["folder"])
    models = pd.read_parquet(names["folder"] / "zoos/quickstart/models.parquet").set_index("model_id")
    assert models.loc[names["best"], "test_acc"] == models["test_acc"].max()
    # float32 sums in another order: of 270 images, one may fall on the other side.
    found = (names["outputs_MBC"].argmax(2) == names["y_B"]).float().mean(1)
    ids = names["part"].checkpoints["model_id"]
    np.testing.assert_allclose(found, models.loc[ids, "test_acc"], atol=1 / 270 + 1e-6)
    trained = models[models["status"] == "trained"]
    assert len(names["table"]) == len(names["noisy_NP"]) == (trained["architecture.activation"] == "tanh").sum()
    assert set(names["train"].models["architecture.activation"]) == {"relu"}
    assert names["train_normaliser"].states == len(names["train"]) == 12
    assert names["rate"] == 0.1
    moved_NP = names["moved_NP"]
    assert len(moved_NP) == 24
    # Nine of ten prunable weights were removed, so they moved by what they had been; biases and the others trained on.
    assert names["kept_NW"].mean() == pytest.approx(0.1, abs=1e-3)
    removed = moved_NP[:, names["sparse"].layout.prunable_places][~names["kept_NW"]]
    before = names["sparse"].parents().weights()[:, names["sparse"].layout.prunable_places][~names["kept_NW"]]
    np.testing.assert_array_equal(removed, -before)


def test_what_the_page_selects_is_what_pandas_selects(names):
    zoo = names["folder"] / "zoos/quickstart"
    models = pd.read_parquet(zoo / "models.parquet")
    t = pd.read_parquet(zoo / "checkpoints.parquet").merge(models, on="model_id", suffixes=("", "_final"))
    lr, momentum, optimizer = (t[f"training.optimizer.{name}"] for name in ("lr", "momentum", "name"))
    last = t.epoch == t.groupby("model_id").epoch.transform("max")
    expected = {
        "high": (t.test_acc > 0.8) & (lr < 0.05) & last,
        "tanh": t["architecture.activation"].isin(["tanh", "relu"]) & t.split.isin(["val", "test"]) & (t.epoch > 0),
        "better": (t.test_acc >= t.test_acc_final) & (t.epoch < 10),
        "plain": momentum.isna() | ~((momentum > 0) & (momentum <= 0.9)),
        "ends": (optimizer == "sgd") & ((t.val_acc > 0.9) | t.epoch.isin([0, 10])),
    }
    for name, rows in expected.items():
        found = names[name].checkpoints
        assert 0 < rows.sum() < len(rows), name
        assert found[["model_id", "epoch"]].to_numpy().tolist() == t[rows][["model_id", "epoch"]].to_numpy().tolist()


@pytest.mark.parametrize("row", re.findall(r"^\| (`x.*) \| (true|false) \|$", PAGE.read_text("utf-8"), re.MULTILINE))
def test_the_table_of_missing_values_holds(row):
    from zoogen.core.predicate import parse

    frame = pd.DataFrame({"x": [np.nan], "y": [1.0]})
    cases = re.findall(r"`([^`]+)`", row[0])
    assert len(cases) >= 2
    assert {str(parse(case).mask(frame)[0]).lower() for case in cases} == {row[1]}


def test_the_probe_has_ten_lines_and_the_score_of_ridge_in_closed_form(names):
    code = BLOCKS[-1]
    assert len([line for line in code.splitlines() if line.strip() and "import" not in line]) <= 10
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
    X, y = zip(*(plain_features(names["folder"] / "zoos/quickstart", side) for side in ("train", "test")), strict=True)
    mean, scale = X[0].mean(axis=0), X[0].std(axis=0)
    A, B = (np.c_[(x - mean) / scale] for x in X)
    alpha = names["probe"][-1].alpha_
    beta = np.linalg.solve(A.T @ A + alpha * np.eye(A.shape[1]), A.T @ (y[0] - y[0].mean()))
    rest = y[1] - (y[0].mean() + B @ beta)
    score = 1 - rest @ rest / np.square(y[1] - y[1].mean()).sum()
    assert names["probe"].score(names["X"]["test"], names["y"]["test"]) == pytest.approx(score, abs=1e-4)


def plain_features(zoo, side):
    """Statistics and accuracies of a side's states, with h5py, pandas and NumPy alone."""
    states = pd.read_parquet(zoo / "checkpoints.parquet").merge(
        pd.read_parquet(zoo / "models.parquet", columns=["model_id", "split"]), on="model_id"
    )
    states = states[(states["split"] == side) & (states["epoch"] > 0)]
    rows = []
    for state in states.itertuples():
        with h5py.File(zoo / "shards" / state.shard_id / "weights.h5", locking=False) as file:
            rows.append(file["weights"][state.row].astype(np.float64))
    rows = np.array(rows)
    kept = np.abs(rows).max(axis=1) <= 3
    ends = np.cumsum([64 * 32, 32, 32 * 16, 16, 16 * 10, 10])[:-1]
    quantiles = [0.01, 0.25, 0.5, 0.75, 0.99]
    parts = [np.c_[w.mean(1), w.var(1), np.quantile(w, quantiles, axis=1).T] for w in np.split(rows[kept], ends, 1)]
    return np.hstack(parts), states["test_acc"].to_numpy()[kept]

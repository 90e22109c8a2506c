"""The report on twins: its numbers against plain loops and scipy, its files, and what is left out."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import zoogen
from zoogen.core.errors import UserError
from zoogen.dataset import Twins
from zoogen.report.style import DISTINCT
from zoogen.report.twins import twins_report
from zoogen.report.twins.numbers import crossings, layers, pairs, pearson, points, spearman
from zoogen.report.twins.page import told
from zoogen.report.twins.rows import TwinRows, read_rows

NAMES = ("accuracy", "agreement", "layers", "correlation")


@pytest.fixture
def parents(twin_zoos):
    return zoogen.open(twin_zoos / "parents")


@pytest.fixture
def rows(parents):
    return read_rows(parents, parents.twins())


@pytest.fixture(scope="module")
def written(twin_zoos, tmp_path_factory):
    """Folder of a report."""
    parents = zoogen.open(twin_zoos / "parents")
    folder = tmp_path_factory.mktemp("report")
    twins_report(parents, parents.twins()).write(folder)
    return folder


def plain(twin_zoos, name):
    """States of trained twins with their model's and their parent's columns, by plain pandas."""
    states = pd.read_parquet(twin_zoos / name / "checkpoints.parquet")
    models = pd.read_parquet(twin_zoos / name / "models.parquet")
    parents = pd.read_parquet(twin_zoos / "parents/checkpoints.parquet").set_index(["model_id", "epoch"])
    table = states.merge(models, on="model_id", suffixes=("", "_final"))
    keys = zip(table["parent_id"], table["parent_epoch"], strict=True)
    return table.assign(parent_acc=[parents.loc[key, "test_acc"] for key in keys])


# --- Numbers ---------------------------------------------------------------------------------------------------------


def test_points_of_pruned_twins_are_medians_of_their_last_states(rows, twin_zoos):
    found = points(rows)
    table = plain(twin_zoos, "magnitude")
    for scope in ("global", "layerwise"):
        for asked in (0.5, 0.9):
            chosen = (table["training.sparsify.scope"] == scope) & (table["training.sparsify.sparsity"] == asked)
            own = table[chosen & (table["epoch"] == 2)]
            (point,) = found[(found["arm"] == f"magnitude, {scope}") & (found["asked"] == asked)].to_dict("records")
            assert (point["models"], point["epoch"], point["last"]) == (6, 2, True)
            for column in ("sparsity", "test_acc", "agreement", "kappa"):
                assert point[column] == pytest.approx(np.median(own[column]))
            assert point["acc_drop"] == pytest.approx(np.median(own["parent_acc"] - own["test_acc"]))
            assert point["test_acc_p05"] == pytest.approx(np.quantile(own["test_acc"], 0.05))
            assert point["kappa_p95"] == pytest.approx(np.quantile(own["kappa"], 0.95))
            assert point["pearson"] == pytest.approx(stats.pearsonr(own["parent_acc"], own["test_acc"]).statistic)
            assert point["spearman"] == pytest.approx(stats.spearmanr(own["parent_acc"], own["test_acc"]).statistic)


def test_every_epoch_of_variational_dropout_is_a_point(rows, twin_zoos):
    found = points(rows)
    own = found[found["arm"] == "variational-dropout"]
    expected = plain(twin_zoos, "variational").groupby("epoch")[["sparsity", "test_acc"]].median()
    assert own["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert own["last"].tolist() == [False] * 4 + [True]
    assert np.allclose(own[["sparsity", "test_acc"]], expected)


def test_layers_are_medians_of_their_column_in_the_order_of_the_network(rows, twin_zoos):
    found = layers(rows)
    table = plain(twin_zoos, "variational")
    for number, name in enumerate(["fc1.weight", "fc2.weight"]):
        own = found[(found["arm"] == "variational-dropout") & (found["layer"] == name)]
        for epoch, value in zip(own["epoch"], own["sparsity"], strict=True):
            states = table[table["epoch"] == epoch]
            assert value == pytest.approx(np.median([layer[number] for layer in states["layer_sparsity"]]))
    assert found["layer"].tolist() == ["fc1.weight", "fc2.weight"] * (len(found) // 2)


def test_layers_of_several_networks_are_put_together_by_name():
    base = {"arm": "magnitude", "asked": 0.5, "epoch": 1}
    states = pd.DataFrame(
        [
            {**base, "layout": 0, "layer_sparsity": [0.1, 0.9]},
            {**base, "layout": 1, "layer_sparsity": [0.3, 0.5, 0.7]},
            {**base, "layout": 1, "layer_sparsity": [0.5, 0.7, 0.8]},
        ]
    )
    found = layers(TwinRows(states, {"magnitude": "magnitude"}, [("a", "c"), ("a", "b", "c")], {}))
    assert found[["layer", "models"]].to_numpy().tolist() == [["a", 3], ["c", 3], ["b", 2]]
    assert found["sparsity"].tolist() == pytest.approx([0.3, 0.8, 0.6])


@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_those_of_scipy_also_with_ties(seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 5, 20) / 5
    b = a + rng.integers(0, 4, 20) / 4
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_correlations_of_two_pairs_or_of_equal_values_are_not_numbers():
    assert np.isnan([pearson(np.array([0.1, 0.2]), np.array([0.3, 0.4])), spearman(np.ones(9), np.arange(9.0))]).all()


def curve(arm, method, sparsity, accuracy):
    return pd.DataFrame(
        {"arm": arm, "method": method, "epoch": range(len(sparsity)), "sparsity": sparsity, "test_acc": accuracy}
    )


MAGNITUDE = ("magnitude", "magnitude", [0.5, 0.8, 0.9], [0.9, 0.9, 0.4])
CASES = {
    # 0.8 everywhere against a line from (0.8, 0.9) to (0.9, 0.4): equal at 0.82.
    "once": ([0.0, 1.0], [0.8, 0.8], [0.82], False, True),
    # Above 0.9 up to 0.6, then 0.8.
    "from above": ([0.0, 0.6, 0.65, 1.0], [0.95, 0.95, 0.8, 0.8], [0.82], True, True),
    "never": ([0.0, 1.0], [0.3, 0.3], [], False, False),
    "always": ([0.0, 1.0], [0.95, 0.95], [], True, True),
    # Equal from 0.6 to 0.7 is not yet above: it overtakes where it leaves the other.
    "along": ([0.5, 0.6, 0.7, 0.8, 0.9], [0.8, 0.9, 0.9, 1.0, 0.1], [0.7], False, False),
    # From 0.1 below to 0.1 above, from 0.5 to 0.6 and from 0.8 to 0.9.
    "twice": ([0.5, 0.6, 0.7, 0.8, 0.9], [0.8, 1.0, 0.8, 0.8, 0.5], [0.55, 0.85], False, True),
}


@pytest.mark.parametrize("case", CASES)
def test_crossings_are_where_straight_lines_meet(case):
    sparsity, accuracy, expected, starts, ends = CASES[case]
    order = np.random.default_rng(0).permutation(len(sparsity))
    upper = curve("vd", "variational-dropout", sparsity, accuracy).iloc[order]
    (found,) = crossings(pd.concat([curve(*MAGNITUDE), upper], ignore_index=True))
    assert (found.over, found.under) == ("vd", "magnitude")
    assert (found.low, found.high) == (0.5, 0.9)
    assert found.at == pytest.approx(expected)
    assert (found.starts_ahead, found.ends_ahead) == (starts, ends)
    assert all(f"{sparsity:.2f}" in told([found])[0] for sparsity in expected)


def test_arms_that_share_no_sparsity_do_not_cross():
    short = curve("vd", "variational-dropout", [0.0, 0.2], [0.9, 0.9])
    (found,) = crossings(pd.concat([curve(*MAGNITUDE), short], ignore_index=True))
    assert found.at == ()
    assert "no sparsity that both reach" in told([found])[0]


# --- What is compared ------------------------------------------------------------------------------------------------


def test_arms_are_named_by_method_and_by_settings_that_differ(rows):
    assert list(rows.arms) == ["magnitude, global", "magnitude, layerwise", "random", "variational-dropout"]
    assert rows.arms["magnitude, layerwise"] == "magnitude"
    assert rows.layers == [("fc1.weight", "fc2.weight")]


def test_twins_that_are_not_trained_are_counted_and_left_out(parents):
    twins = parents.twins()
    first = twins[0].tables.models["model_id"][0]
    twins[0].tables.models.loc[0, "status"] = "diverged"
    found = read_rows(parents, twins)
    assert found.counts == {
        "magnitude": {"trained": 23, "diverged": 1},
        "random": {"trained": 10, "planned": 2},
        "variational": {"trained": 6},
    }
    assert first not in set(found.states["model_id"])
    assert "39 of 42 twins" in str(twins_report(parents, twins))


def test_zoos_that_differ_in_nothing_else_are_arms_by_their_folder(twin_zoos, tmp_path, parents):
    copy = shutil.copytree(twin_zoos / "magnitude", tmp_path / "again")
    twins = parents.twins(twin_zoos / "magnitude", copy)
    with pytest.raises(UserError, match="magnitude, again"):
        read_rows(parents, twins)
    for table in (twins[1].tables.models, twins[1].tables.checkpoints):  # as with another learning rate
        table["model_id"] = "x" + table["model_id"].str[1:]
    found = read_rows(parents, twins)
    assert list(found.arms) == [
        f"magnitude, {s}, in {f}" for s in ("global", "layerwise") for f in ("again", "magnitude")
    ]
    assert points(found)["models"].tolist() == [6] * 8


def test_nothing_to_compare_is_an_error_with_a_way_out(parents, twin_zoos, small_zoo, tmp_path):
    with pytest.raises(UserError, match="zoogen sparsify"):
        twins_report(zoogen.open(small_zoo), Twins())
    twin = zoogen.open(twin_zoos / "magnitude")
    with pytest.raises(UserError, match="holds twins itself"):
        twins_report(twin, parents.twins())
    copy = shutil.copytree(twin_zoos / "magnitude", tmp_path / "begun")
    for name in ("models.parquet", "checkpoints.parquet"):
        (copy / name).unlink()
    shutil.rmtree(copy / "shards")
    with pytest.raises(UserError, match="none of the 24 twins"):
        twins_report(parents, parents.twins(copy))
    report = twins_report(parents, parents.twins(copy, twin_zoos / "variational"))
    assert report.rows.counts["begun"] == {"planned": 24}
    assert list(report.rows.arms) == ["variational-dropout"]


# --- Files -----------------------------------------------------------------------------------------------------------


def test_a_report_has_pictures_their_numbers_and_a_page(written, parents):
    files = {f"{name}{ending}" for name in NAMES for ending in (".png", ".svg", ".parquet")}
    assert {p.name for p in written.iterdir()} == files | {"report.md", "table.parquet"}
    text = (written / "report.md").read_text()
    for name in NAMES:
        assert f"({name}.png)" in text
        assert f"({name}.parquet)" in text
        assert (written / f"{name}.svg").read_text().startswith("<?xml")
    table = pd.read_parquet(written / "table.parquet")
    assert table[["arm", "models"]].to_numpy().tolist()[-1] == ["variational-dropout", 6]
    for row in table.to_dict("records"):
        assert f"| {row['sparsity']:>8.3f} | {row['models']:>6} | {row['test_acc']:>13.3f} |" in text
    assert "overtakes" in text
    assert "38 of" not in text
    assert "40 of 42 twins of 6 models of zoo parents version 2" in text
    assert str(parents.path) not in text


def test_the_numbers_behind_a_picture_are_in_its_table(written, rows):
    accuracy = pd.read_parquet(written / "accuracy.parquet")
    expected = points(rows)
    assert np.allclose(accuracy["test_acc_p95"], expected["test_acc_p95"])
    assert np.allclose(pd.read_parquet(written / "agreement.parquet")["kappa_p05"], expected["kappa_p05"])
    pd.testing.assert_frame_equal(pd.read_parquet(written / "layers.parquet"), layers(rows))
    pd.testing.assert_frame_equal(pd.read_parquet(written / "correlation.parquet"), pairs(rows))
    assert len(pairs(rows)) == 40


def test_the_same_twins_give_the_same_files(written, parents, tmp_path):
    twins_report(parents, parents.twins()).write(tmp_path / "again")
    for file in written.iterdir():
        ours, theirs = (hashlib.sha256((f / file.name).read_bytes()).hexdigest() for f in (written, tmp_path / "again"))
        assert ours == theirs, file.name


def test_pictures_show_every_arm_in_its_colour(written):
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    for name in ("accuracy", "agreement"):
        pixels = imread(written / f"{name}.png")[..., :3]
        assert pixels.shape == (900, 1600, 3)
        for tone in DISTINCT[:4]:
            # The line in the legend alone is some 30 x 5 pixels.
            assert (np.abs(pixels - to_rgb(tone)).max(axis=2) < 0.01).sum() > 300, (name, tone)


def test_json_is_strict_and_has_the_table(parents):
    found = twins_report(parents, parents.twins())
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [row["arm"] for row in told["table"]] == found.table["arm"].tolist()
    assert told["table"][-1]["asked"] is None
    assert told["twins"]["random"] == {"trained": 10, "planned": 2}
    assert {c["under"] for c in told["crossings"]} == {"magnitude, global", "magnitude, layerwise"}
    states = plain_parents(parents)
    assert told["parents"] == pytest.approx(np.median(states))


def plain_parents(parents):
    """Test accuracies of the parents' last states, by plain pandas."""
    table = pd.read_parquet(parents.path / "checkpoints.parquet")
    return table[table["epoch"] == 2]["test_acc"]


def test_a_single_arm_and_a_single_sparsity_are_drawn(parents, twin_zoos, tmp_path):
    twins = parents.twins(twin_zoos / "random")
    chosen = twins[0].tables.models["training.sparsify.sparsity"] == 0.5
    twins[0].tables.models.loc[~chosen, "status"] = "planned"
    page = twins_report(parents, twins).write(tmp_path / "report")
    assert len(pd.read_parquet(tmp_path / "report/table.parquet")) == 1
    assert "overtakes" not in page.read_text()


# --- Card and summary ------------------------------------------------------------------------------------------------


def test_the_summary_of_twins_says_whose_they_are(twin_zoos, parents):
    from zoogen.report import card, summary

    twin = zoogen.open(twin_zoos / "variational")
    found = summary(twin).twins_of
    last = pd.read_parquet(twin_zoos / "variational/checkpoints.parquet").query("epoch == 4")
    assert (found.name, found.version, found.methods) == ("parents", 2, {"variational-dropout": 6})
    assert found.sparsity == pytest.approx(last["sparsity"].median())
    said = f"parents version 2, by variational-dropout (6 models); median sparsity {found.sparsity:.3f}"
    assert f"twins of      {said}" in str(summary(twin))
    assert f"| twins of | {said} |" in card(twin)
    assert "`zoogen sparsify ../parents --recipe blueprint.yaml`" in card(twin)
    assert json.loads(json.dumps(summary(twin).to_json()))["twins_of"]["name"] == "parents"
    assert summary(parents).twins_of is None
    assert "twins of" not in str(summary(parents)) + card(parents)

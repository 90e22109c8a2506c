"""Summary, card and picture of a real small zoo, against plain pandas and the picture's own pixels."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import zoogen
from zoogen.core.errors import UserError
from zoogen.report import card, summary, trajectories_picture
from zoogen.report.levels import explained, levels, titles
from zoogen.report.picture import _palette, choose_factors
from zoogen.store.tables import read_parquet, write_parquet


@pytest.fixture
def zoo(small_zoo):
    return zoogen.open(small_zoo)


def test_a_summary_counts_what_pandas_counts(zoo, small_zoo):
    models = pd.read_parquet(small_zoo / "models.parquet")
    states = pd.read_parquet(small_zoo / "checkpoints.parquet")
    found = summary(zoo)
    assert found.models == len(models)
    assert {k: v for k, v in found.by_status.items() if v} == models["status"].value_counts().to_dict()
    assert (found.states, found.epochs) == (len(states), (0, 3, 4))
    assert found.split == models["split"].value_counts(sort=False).to_dict()
    assert found.weight_bytes == len(states) * 4 * (64 * 8 + 8 + 8 * 10 + 10)
    assert found.architectures == ({"name": "mlp", "parameters": 610, "models": len(models)},)
    assert found.tasks[0] | {"models": 0} == {
        "name": "digits", "train": 1257, "val": 270, "test": 270, "outputs": 10, "models": 0,
    }  # fmt: skip
    by_rate = models.groupby("training.optimizer.lr")["test_acc"].agg(["size", "median", "min", "max"])
    for (_, expected), score in zip(by_rate.iterrows(), found.factors["training.optimizer.lr"].values(), strict=True):
        assert (score.models, score.median, score.min, score.max) == pytest.approx(tuple(expected))


def test_the_text_fits_100_columns_and_the_json_is_strict(zoo, small_zoo, tmp_path):
    text = str(summary(zoo))
    assert max(map(len, text.splitlines())) <= 100
    assert "architecture.activation" in text
    assert json.loads(json.dumps(summary(zoo).to_json(), allow_nan=False))["name"] == "small"
    copy = shutil.copytree(small_zoo, tmp_path / "zoo")
    (copy / "checkpoints.parquet").unlink()  # as while the first build runs, before its first shard
    shutil.rmtree(copy / "shards")
    assert "none yet" in str(summary(zoogen.open(copy)))


def test_the_text_tells_models_with_scores_from_those_that_are_only_planned(zoo, small_zoo, tmp_path):
    path = shutil.copytree(small_zoo, tmp_path / "part") / "models.parquet"
    table = read_parquet(path)
    scores = [None if i < 5 else value for i, value in enumerate(table["test_acc"].to_pylist())]
    place = table.schema.get_field_index("test_acc")
    table = table.set_column(place, table.schema.field(place), pa.array(scores, table["test_acc"].type))
    write_parquet(path, [table], table.schema)
    assert re.search(r"^all models +7 of 12 ", str(summary(zoogen.open(path.parent))), re.MULTILINE)
    assert re.search(r"^all models +12 ", str(summary(zoo)), re.MULTILINE)


def test_the_card_holds_the_blueprint_and_its_example_runs(zoo, small_zoo, monkeypatch):
    text = card(zoo)
    assert (small_zoo / "blueprint.yaml").read_text().strip() in text
    assert str(small_zoo) not in text  # a card travels with the zoo
    example = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(small_zoo)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["weights"].shape == (len(zoo), 610)


def test_a_picture_shows_every_value_of_the_factor_that_matters_most(zoo, tmp_path):
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    path = tmp_path / "picture.png"
    trajectories_picture(zoo, path)
    pixels = imread(path)[..., :3]
    assert pixels.shape == (900, 1600, 3)
    for tone in _palette(levels(zoo.models["training.optimizer.lr"], 6)):
        # A thick line of 3 points and 50 pixels in the legend alone gives 200.
        assert (np.abs(pixels - to_rgb(tone)).max(axis=2) < 0.01).sum() > 200, tone
    svg = tmp_path / "picture.svg"
    trajectories_picture(zoo, svg)
    assert svg.read_text().startswith("<?xml")
    with pytest.raises(UserError, match=r"\.png"):
        trajectories_picture(zoo, tmp_path / "picture.bmp")


def test_a_zoo_without_states_has_no_picture(small_zoo, tmp_path):
    copy = shutil.copytree(small_zoo, tmp_path / "zoo")
    (copy / "checkpoints.parquet").unlink()
    shutil.rmtree(copy / "shards")
    with pytest.raises(UserError, match="no stored"):
        trajectories_picture(zoogen.open(copy), tmp_path / "picture.png")


def test_colour_is_what_explains_most_and_panels_what_adds_most():
    rng = np.random.default_rng(0)
    a, b, noise = (rng.integers(0, n, 400) for n in (3, 2, 6))
    settings = pd.DataFrame({"noise": noise, "b": b, "a": a, "copy_of_a": a * 10, "constant": 1})
    final = 0.3 * a + 0.1 * b + rng.normal(0, 0.02, 400)
    first, second = choose_factors(settings, final)
    assert (first in ("a", "copy_of_a"), second) == (True, "b")
    assert choose_factors(settings[["constant"]], final) == (None, None)


def test_explained_variance_is_one_for_equal_groups_and_nought_for_chance():
    codes = np.repeat([0, 1, 2], 50)
    assert explained(codes * 0.5, codes) == pytest.approx(1)
    rng = np.random.default_rng(1)
    by_chance = [explained(rng.normal(size=150), rng.integers(0, 30, 150)) for _ in range(50)]
    assert np.mean(by_chance) < 0.05  # plain eta squared would be 29 / 149 = 0.19
    assert explained(np.ones(9), np.arange(9) % 3) == 0


def test_levels_keep_values_or_cut_them_into_ranges():
    few = levels(pd.Series([0.1, 0.001, 0.1, np.nan]), most=6)
    assert (few.labels, few.codes.tolist(), few.ordered) == (("0.001", "0.1", "none"), [1, 0, 1, 2], True)
    values = np.random.default_rng(0).permutation(np.linspace(0, 1, 1000))
    many = levels(pd.Series(values), most=5)
    assert np.bincount(many.codes).tolist() == [200] * 5
    low, high = zip(*(map(float, label.split(" to ")) for label in many.labels), strict=True)
    assert all(low[c] <= v <= high[c] for v, c in zip(values, many.codes, strict=True))
    texts = levels(pd.Series(list("aaabbbccdef"), dtype="category"), most=3)
    assert texts.labels == ("a", "b", "4 others")
    assert texts.codes.tolist() == [0] * 3 + [1] * 3 + [2] * 5


def test_titles_are_short_where_that_is_clear():
    keys = ["training.optimizer.lr", "training.optimizer.name", "architecture.name", "task.size", "architecture.size"]
    assert titles(keys) == {
        "training.optimizer.lr": "learning rate",
        "training.optimizer.name": "optimizer",
        "architecture.name": "architecture",
        "task.size": "task.size",
        "architecture.size": "architecture.size",
    }

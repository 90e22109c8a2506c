"""Settings that only some models have keep their type from the blueprint to a selection."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pytest

import zoogen
from zoogen.blueprint import loads
from zoogen.plan import make_plan
from zoogen.store.tables import read_parquet, write_parquet

NESTEROV = "training.optimizer.nesterov"
MOMENTUM = "training.optimizer.momentum"
BLUEPRINT = """\
zoo: gaps
version: 1
task: {name: digits, split_seed: 42}
architecture: {name: mlp, hidden: [4]}
training:
  epochs: 1
  batch_size: 512
  optimizer:
    name: {grid: [adam, sgd]}
    lr: 0.1
    momentum: {by: training.optimizer.name, cases: {sgd: 0.9}}
    nesterov: {by: training.optimizer.name, cases: {sgd: {grid: [true, false]}}}
seeds: {range: [0, 2]}
"""


def command(*arguments):
    """What ``zoogen`` prints, in a process of its own."""
    ran = subprocess.run([sys.executable, "-m", "zoogen", *map(str, arguments)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def build_zoo(folder, blueprint):
    (folder / "blueprint.yaml").write_text(blueprint)
    command("build", folder / "blueprint.yaml", "--out", folder / "zoo", "--executor", "serial")
    return folder / "zoo"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return zoogen.open(build_zoo(tmp_path_factory.mktemp("gaps"), BLUEPRINT))


def test_a_boolean_that_some_models_lack_is_true_false_or_missing(zoo):
    names = zoo.models["training.optimizer.name"].astype("str")
    assert names.value_counts().to_dict() == {"adam": 2, "sgd": 4}
    for table in (zoo.models, make_plan(loads(BLUEPRINT)).table, pd.read_parquet(zoo.path / "plan.parquet")):
        column = table.set_index("model_id")[NESTEROV].loc[zoo.models["model_id"]]
        assert column.isna().tolist() == (names == "adam").tolist()
        assert sorted(column.dropna().tolist()) == [False, False, True, True]
        assert {type(value) for value in column.dropna().tolist()} == {bool}
    assert zoo.models[NESTEROV].dtype == make_plan(loads(BLUEPRINT)).table[NESTEROV].dtype == "boolean"


@pytest.mark.parametrize(
    ("where", "models"),
    [
        ("nesterov == true", 2),
        ("nesterov == false", 2),
        ("nesterov != true", 4),
        ("nesterov is null", 2),
        ("nesterov not in (true, false)", 2),
        ("momentum is not null and nesterov in [false]", 2),
    ],
)
def test_a_predicate_finds_them(zoo, where, models):
    assert len(zoo.select(where).models) == models


def test_a_setting_finds_them(zoo):
    assert set(zoo.select(nesterov=True).models[NESTEROV]) == {True}
    assert set(zoo.select(nesterov=[True, False]).models["training.optimizer.name"]) == {"sgd"}
    assert set(zoo.select(nesterov=None).models["training.optimizer.name"]) == {"adam"}
    assert set(zoo.leave_one_out("nesterov")) == {True, False}


def test_learning_and_looking_take_a_boolean_with_gaps(zoo):
    dataset = zoo.select("nesterov != null").dataset(target="nesterov")
    assert dataset.classes == (False, True)
    about = zoo.select().dataset()[0][1]
    assert NESTEROV in about
    assert zoo.module(zoo.models["model_id"][0]) is not None
    command("verify", zoo.path)
    assert NESTEROV in command("info", zoo.path)


def test_a_zoo_whose_plan_has_it_as_text_is_extended(zoo, tmp_path):
    """As zoogen wrote such columns before."""
    old = shutil.copytree(zoo.path, tmp_path / "zoo")
    for name in ("plan.parquet", "models.parquet"):
        table = read_parquet(old / name)
        place = table.schema.get_field_index(NESTEROV)
        text = table[NESTEROV].to_pandas().map({True: "True", False: "False"}).astype("category")
        table = table.set_column(place, NESTEROV, pa.array(text))
        write_parquet(old / name, [table], table.schema)
    assert len(zoogen.open(old).select("nesterov == 'True'").models) == 2
    command("verify", old)
    build_zoo(tmp_path, BLUEPRINT.replace("[0, 2]", "[0, 3]"))
    extended = zoogen.open(old)
    assert len(extended.select("nesterov == true").models) == 3
    assert set(zoo.models["model_id"]) < set(extended.models["model_id"])

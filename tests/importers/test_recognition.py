"""Which kind of source a folder is, whatever else lies in it."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from preprocessed_zoos import write_dataset
from published_repositories import convolutions, write_model
from published_zoos import Published, config, write_trial

from zoogen.core.errors import UserError
from zoogen.importers.opening import open_source


def kind_of(path):
    with open_source(path) as source:
        return source.registered_name


def dataset(path):
    trial = {"t": (config(), {0: Published(config()).state_dict()}, {0: dict.fromkeys(RESULTS, 0)})}
    return write_dataset(path, {f"{part}set": {f"{part}_{n}": own for n, own in trial.items()} for part in PARTS})


RESULTS, PARTS = ("train_acc", "test_acc", "training_iteration"), ("train", "val", "test")
OTHER_FILES = {
    "a mapping": ("about.json", json.dumps({"licence": "CC-BY 4.0"})),
    "a list": ("about.json", json.dumps([{"licence": "CC-BY 4.0"}])),
    "numbers": ("about.json", "[1, 2]"),
    "a table": ("results.csv", "model,test_acc\na,0.5\n"),
    "nothing": ("empty.csv", ""),
    "no JSON": ("about.json", "{"),
    "no Parquet": ("about.parquet", "PAR1"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_dataset_beside_any_table_is_a_dataset(tmp_path, name):
    dataset(tmp_path / "dataset.pt")
    file, text = OTHER_FILES[name]
    (tmp_path / file).write_text(text)
    assert kind_of(tmp_path) == "modelzoo-pt"


def test_trials_win_over_a_dataset_that_was_made_of_them(tmp_path):
    write_trial(tmp_path / "t1", config(), epochs=0)
    dataset(tmp_path / "dataset.pt")
    (tmp_path / "config.json").write_text("{}")
    assert kind_of(tmp_path) == "ray-tune"
    assert kind_of(Path(shutil.make_archive(f"{tmp_path}", "zip", tmp_path))) == "ray-tune"


@pytest.mark.parametrize("name", OTHER_FILES)
def test_state_dicts_with_a_table_of_files_are_that_beside_other_tables(tmp_path, name):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    pd.DataFrame({"file": ["a.pt"], "lr": [0.1]}).to_csv(tmp_path / "models.csv")
    file, text = OTHER_FILES[name]
    (tmp_path / file).write_text(text)
    with open_source(tmp_path) as source:
        (model,) = source.models()
    assert (source.registered_name, model.settings) == ("torch", {"training.optimizer.lr": 0.1})


def test_state_dicts_with_a_table_of_something_else_are_not_recognised(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    (tmp_path / "results.csv").write_text("model,test_acc\na,0.5\n")
    with pytest.raises(UserError, match="looks like none of them"):
        kind_of(tmp_path)


def test_repositories_are_repositories_beside_any_json(tmp_path):
    write_model(tmp_path / "me/cnn", convolutions(1), {"model_type": "cnn"})
    (tmp_path / "me/cnn/results.json").write_text("[]")
    assert kind_of(tmp_path) == "safetensors"

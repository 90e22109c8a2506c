"""The task of a zoo against the published files and what torch makes of them; other data are refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import zoogen
from zoogen.core.errors import EnvironmentFault, IntegrityError, UserError


@pytest.fixture
def zoo(small_zoo):
    return zoogen.open(small_zoo)


def with_task(path, target, change):
    """A copy of a zoo whose manifest tells something else of its task."""
    copy = shutil.copytree(path, target / "copy")
    manifest = json.loads((copy / "zoo.json").read_text())
    (entry,) = manifest["tasks"].values()
    change(entry)
    (copy / "zoo.json").write_text(json.dumps(manifest))
    return zoogen.open(copy)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_inputs_and_targets_are_the_published_ones_at_the_stored_indices(zoo, small_zoo, part):
    from sklearn.datasets import load_digits

    published = load_digits()
    (file,) = (small_zoo / "splits").iterdir()
    stored = pd.read_parquet(file)
    own = stored["index"][stored["part"] == part].to_numpy()
    task = zoo.task("digits")
    assert np.array_equal(task.split[part], own)
    assert task.size(part) == len(own) == len(task.inputs(part))
    assert task.inputs(part).dtype == torch.uint8
    # 0 to 16 in the files, 0 to 255 as decoded.
    assert np.abs(task.inputs(part)[:, 0].numpy() / 255 - published.images[own] / 16).max() <= 0.5 / 255 + 1e-9
    assert np.array_equal(task.targets(part).numpy(), published.target[own])


def test_prepared_inputs_are_normalised_as_the_transform_says(zoo):
    task = zoo.task()
    inputs = task.inputs("test")
    assert task.transform["normalise"] == "half"
    assert "split_seed" not in task.transform
    assert torch.allclose(task.prepare(inputs), (inputs.float() / 255 - 0.5) / 0.5, atol=1e-6)
    assert "normalise" in repr(task)


def test_data_are_loaded_once_per_open_zoo(zoo):
    assert zoo.task() is zoo.task("digits") is zoo.task(zoo.models["task_id"][0])


def test_twins_were_trained_on_the_data_of_their_parents(twin_zoos):
    twins = zoogen.open(twin_zoos / "magnitude")
    assert twins.task().data.fingerprint == twins.parent.task().data.fingerprint


def test_data_that_the_zoo_was_not_trained_on_are_refused(small_zoo, tmp_path):
    other = with_task(small_zoo, tmp_path, lambda entry: entry.update(split_seed=7))
    with pytest.raises(IntegrityError, match="fingerprint") as error:
        other.task()
    assert "data=DIR" in str(error.value)


def test_a_split_other_than_the_tasks_is_damage(small_zoo, tmp_path):
    from zoogen.store.splits import read_split, write_splits

    copy = shutil.copytree(small_zoo, tmp_path / "copy")
    (file,) = (copy / "splits").iterdir()
    parts = read_split(copy, file.stem)
    parts["val"][[0, 1]] = parts["val"][[1, 0]]
    file.unlink()
    write_splits(copy, {file.stem: parts})
    with pytest.raises(IntegrityError, match=r"samples of val are not"):
        zoogen.open(copy).task()


def test_a_task_version_of_another_zoogen_is_named(small_zoo, tmp_path):
    other = with_task(small_zoo, tmp_path, lambda entry: entry.update(version=99))
    with pytest.raises(UserError, match="version 99 of task 'digits'"):
        other.task()


def test_missing_files_are_named_with_the_place_where_they_belong(small_zoo, tmp_path):
    def mnist(entry):
        facts = {key: entry[key] for key in ("input_shape", "outputs", "sizes")}
        entry.clear()
        entry.update(name="mnist", version=1, **facts)

    other = with_task(small_zoo, tmp_path, mnist)
    with pytest.raises(EnvironmentFault, match="train-images") as error:
        other.task(data=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(error.value)


@pytest.mark.parametrize("change", [{"name": "digit"}, {"vall": 3}], ids=str)
def test_a_task_that_is_not_known_here_is_answered_with_what_is(small_zoo, tmp_path, change):
    other = with_task(small_zoo, tmp_path, lambda entry: entry.update(change))
    with pytest.raises(UserError, match="Did you mean"):
        other.task()


@pytest.mark.parametrize("change", [{"name": 3}, {"val": "many"}, {"val": [1]}], ids=str)
def test_a_damaged_task_is_damage(small_zoo, tmp_path, change):
    with pytest.raises(IntegrityError, match=r"zoo\.json"):
        with_task(small_zoo, tmp_path, lambda entry: entry.update(change)).task()


def test_unknown_names_and_parts_are_answered_with_the_known_ones(zoo):
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        zoo.task("digit")
    with pytest.raises(UserError, match="Did you mean 'train'"):
        zoo.task().inputs("training")

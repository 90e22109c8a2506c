"""Trajectories one by one and pairs of epochs against a pandas shift over the table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import StackDataset

from zoogen.dataset.trajectories import Trajectory


@pytest.mark.parametrize("part_bytes", [1, 20_000, 64 << 20])
def test_one_after_another_gives_every_state_once_in_the_order_of_epochs(
    zoo, small_zoo, stored_rows, part_bytes, monkeypatch
):
    monkeypatch.setattr("zoogen.dataset.trajectories._PART_BYTES", part_bytes)
    selection = zoo.select()
    found = list(selection.iter_trajectories())
    assert all(isinstance(t, Trajectory) for t in found)
    assert [t.model_id for t in found] == selection.models["model_id"].tolist()
    assert len({len(t.epochs) for t in found}) > 1, "some models of the small zoo diverge early"
    for trajectory in found:
        own = zoo.checkpoints.query("model_id == @trajectory.model_id").sort_values("epoch")
        assert trajectory.epochs.tolist() == own["epoch"].tolist()
        assert np.array_equal(trajectory.weights, stored_rows(small_zoo, own))


def test_one_after_another_is_the_array_of_all(zoo):
    selection = zoo.select("status == 'trained'", epochs=[0, 2, 3])
    normaliser = selection.normaliser("layer")
    whole = selection.trajectories("bias", dtype="float16", normaliser=normaliser)
    parts = list(selection.iter_trajectories("bias", dtype="float16", normaliser=normaliser))
    assert np.array_equal(np.stack([p.weights for p in parts]), whole.weights)
    assert whole.weights.dtype == np.float16


def shifted(checkpoints: pd.DataFrame, listed: list[int]) -> pd.DataFrame:
    """(model, epoch, next epoch) among the listed epochs, by pandas."""
    own = checkpoints[checkpoints["epoch"].isin(listed)].sort_values(["model_id", "epoch"])
    following = own.groupby("model_id")["epoch"].shift(-1)
    return own.assign(following=following).dropna(subset="following")[["model_id", "epoch", "following"]]


@pytest.mark.parametrize("listed", [[0, 1, 2, 3], [0, 2], [0, 1, 3]], ids=str)
def test_pairs_are_the_next_listed_epoch_of_the_same_model(zoo, small_zoo, stored_rows, listed):
    pairs = zoo.select(epochs=listed).pairs()
    expected = shifted(pd.read_parquet(small_zoo / "checkpoints.parquet"), listed)
    before, after = pairs.before.checkpoints, pairs.after.checkpoints
    assert before["model_id"].tolist() == after["model_id"].tolist()
    found = zip(before["model_id"], before["epoch"], after["epoch"], strict=True)
    assert set(found) == set(expected.itertuples(index=False, name=None))
    assert len(pairs) == len(expected) > 0
    change = stored_rows(small_zoo, after) - stored_rows(small_zoo, before)
    assert np.array_equal(pairs.updates(), change)
    parts = list(pairs.iter_weights(batch=5))
    assert np.array_equal(np.concatenate([b - a for a, b in parts]), change)


def test_a_state_left_out_in_between_joins_no_pair(zoo):
    """Epochs 1 and 3 of a model without its epoch 2 are not consecutive, as long as others have an epoch 2."""
    trained = zoo.select("status == 'trained'")
    model = trained.models["model_id"][0]
    pairs = trained.select(f"epoch != 2 or model_id != '{model}'").pairs()
    own = pairs.before.checkpoints["model_id"] == model
    assert pairs.before.checkpoints["epoch"][own].tolist() == [0]
    assert len(pairs) == len(trained.pairs()) - 2


def test_pairs_stack_as_torch_datasets(zoo):
    pairs = zoo.select("status == 'trained'", split="train").pairs()
    stacked = StackDataset(pairs.before.dataset("test_acc"), pairs.after.dataset("test_acc"))
    (first, _), (second, accuracy) = stacked[3]
    assert torch.equal(second - first, torch.from_numpy(pairs.updates()[3]))
    assert accuracy.item() == np.float32(pairs.after.checkpoints["test_acc"][3])


def test_one_epoch_has_no_pairs(zoo):
    assert len(zoo.select(epochs=1).pairs()) == 0

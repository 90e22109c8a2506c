"""Weights against a plain h5py read of the same rows."""

from __future__ import annotations

import pickle
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import zoogen
from zoogen.core.errors import EnvironmentFault, IntegrityError, UserError
from zoogen.dataset import reading as reading_module
from zoogen.dataset import shards as shards_module


@pytest.fixture
def zoo(small_zoo):
    return zoogen.open(small_zoo)


def plain_weights(path, checkpoints, name="weights"):
    """Row by row with h5py alone, found by (model, epoch) in the shards, not by the tables' row numbers."""
    found = {}
    for file in sorted((path / "shards").glob("*/weights.h5")):
        with h5py.File(file, locking=False) as shard:  # some tests keep the file open the same way
            for row, (model, epoch) in enumerate(zip(shard["model_id"][:], shard["epoch"][:], strict=True)):
                found[model.decode(), int(epoch)] = shard[name][row]
    return np.stack([found[key] for key in zip(checkpoints["model_id"], checkpoints["epoch"], strict=True)])


@pytest.mark.parametrize(
    "arguments",
    [{}, {"epochs": 2}, {"epochs": "last"}, {"where": "test_acc > 0.12"}, {"activation": "relu", "epochs": [0, 3]}],
    ids=str,
)
def test_weights_are_the_rows_that_h5py_reads(zoo, small_zoo, arguments):
    selection = zoo.select(**arguments)
    weights = selection.weights()
    assert weights.dtype == np.float32
    assert np.array_equal(weights, plain_weights(small_zoo, selection.checkpoints))


def test_parts_are_the_whole(zoo, small_zoo, monkeypatch):
    selection = zoo.select("lr < 1")
    whole = plain_weights(small_zoo, selection.checkpoints)
    parts = list(selection.iter_weights(batch=7))
    assert [len(p) for p in parts[:-1]] == [7] * (len(parts) - 1)
    assert np.array_equal(np.concatenate(parts), whole)
    monkeypatch.setattr(shards_module, "_PIECE_BYTES", 5 * whole.nbytes // len(whole))  # five rows at once
    assert np.array_equal(selection.weights(), whole)


@pytest.mark.parametrize(
    ("columns", "tensors"),
    [
        ("fc1.weight", ["fc1.weight"]),
        (["fc2.bias", "fc1.bias"], ["fc1.bias", "fc2.bias"]),  # always the order of the layout
        ("bias", ["fc1.bias", "fc2.bias"]),
        ("weight", ["fc1.weight", "fc2.weight"]),
        (["weight", "fc1.bias"], ["fc1.weight", "fc1.bias", "fc2.weight"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("gap", [0, 1 << 14])
def test_tensors_are_chosen_by_name_and_role(zoo, small_zoo, monkeypatch, columns, tensors, gap):
    monkeypatch.setattr("zoogen.dataset.columns._GAP", gap)
    selection = zoo.select(epochs=[1, 3])
    whole = plain_weights(small_zoo, selection.checkpoints)
    entries = {e.name: e for e in selection.layout.entries}
    expected = [whole[:, entries[t].offset : entries[t].offset + entries[t].size] for t in tensors]
    assert np.array_equal(selection.weights(columns), np.concatenate(expected, axis=1))


def test_an_unknown_tensor_is_named(zoo):
    with pytest.raises(UserError, match=r"'fc1\.weight'"):
        zoo.select().weights("fc1.weights")


def test_trajectories_are_models_by_epochs(zoo, small_zoo):
    selection = zoo.select("status == 'trained'")
    ids, epochs, weights = selection.trajectories()
    assert ids.tolist() == selection.models["model_id"].tolist()
    assert epochs.tolist() == [0, 1, 2, 3]
    for model, rows in zip(ids, weights, strict=True):
        own = zoo.select(f"model_id == '{model}'").checkpoints.sort_values("epoch")
        assert np.array_equal(rows, plain_weights(small_zoo, own))


def test_trajectories_of_different_lengths_name_the_diverged_models(zoo):
    diverged = zoo.models.query("status == 'diverged'")
    assert len(diverged), "the blueprint of the small zoo should make some models diverge"
    with pytest.raises(UserError) as error:
        zoo.select().trajectories()
    assert re.search(
        rf"{diverged['model_id'].iloc[0][:12]} lacks [\d, ]+; "
        rf"it diverged in epoch {diverged['diverged_epoch'].iloc[0]}",
        str(error.value),
    )
    assert "status == 'trained'" in str(error.value)


def test_trajectories_with_gaps_name_the_epochs_that_the_selection_left_out(zoo):
    whole = zoo.select("status == 'trained'")
    model_id = whole.models["model_id"].iloc[0]
    with pytest.raises(UserError, match=rf"{model_id[:12]} lacks 1, 2\n"):
        whole.select(f"model_id != '{model_id}' or epoch not in [1, 2]").trajectories()


def test_mixed_layouts_have_no_matrix_and_the_error_says_how_to_narrow(mixed_zoo):
    zoo = zoogen.open(mixed_zoo)
    with pytest.raises(UserError) as error:
        zoo.select().weights()
    assert "hidden=[4]" in str(error.value)
    assert "hidden=[6]" in str(error.value)
    advice = str(error.value).rpartition('.select("')[2].removesuffix('")')
    narrowed = zoo.select(advice)
    assert 0 < len(narrowed) < len(zoo.checkpoints)
    assert np.array_equal(narrowed.weights(), plain_weights(mixed_zoo, narrowed.checkpoints))
    assert len(zoo.select(hidden="[6]").weights("fc1.bias")[0]) == 6


def test_predictions_have_the_stored_accuracy(zoo, small_zoo):
    from zoogen.tasks.places import cache_root

    selection = zoo.select("epoch > 0")
    predictions = selection.predictions()
    assert np.array_equal(predictions, plain_weights(small_zoo, selection.checkpoints, "test_predictions"))
    _, targets = digits().load(None, cache_root()).tensors("test", "cpu")
    accuracy = (predictions == targets.numpy()).mean(axis=1)
    assert accuracy == pytest.approx(selection.checkpoints["test_acc"].to_numpy(), abs=1e-12)


def digits():
    from zoogen.core.registry import TASKS

    return TASKS.make("digits", {"split_seed": 42})


def test_predictions_that_were_not_kept_are_an_error(mixed_zoo):
    with pytest.raises(UserError, match="test_predictions"):
        zoogen.open(mixed_zoo).select(hidden="[4]").predictions()
    with pytest.raises(UserError, match="selection is empty"):
        zoogen.open(mixed_zoo).select("test_acc > 2").predictions()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_every_state_with_its_target(zoo, small_zoo, workers):
    selection = zoo.select("lr < 1", split=["train", "val", "test"])
    dataset = selection.dataset(target="test_acc")
    selection.weights()  # files open in this process must not disturb the workers
    batches = list(DataLoader(dataset, batch_size=5, num_workers=workers))
    assert np.array_equal(torch.cat([w for w, _ in batches]), plain_weights(small_zoo, selection.checkpoints))
    expected = selection.checkpoints["test_acc"].to_numpy(np.float32)
    assert np.array_equal(torch.cat([t for _, t in batches]), expected)


def test_a_dataset_survives_pickling_and_counts_classes(zoo, small_zoo):
    selection = zoo.select(epochs="last")
    dataset = selection.dataset(target="activation", columns="bias")
    dataset[0]  # opens a file
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.classes == ("relu", "tanh")
    labels = [copy.classes[int(t)] for _, t in (copy[i] for i in range(len(copy)))]
    assert labels == selection.joined("activation")["architecture.activation"].tolist()
    assert torch.equal(copy[3][0], torch.from_numpy(selection.weights("bias")[3]))
    assert len(pickle.dumps(dataset)) < 50_000
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_without_a_target_comes_what_the_model_is(zoo):
    selection = zoo.select("status == 'trained'", epochs=3)
    _, about = selection.dataset()[2]
    row = selection.joined().iloc[2]
    assert about["model_id"] == row["model_id"]
    assert about["training.optimizer.lr"] == row["training.optimizer.lr"]
    _, batch = next(iter(DataLoader(selection.dataset(), batch_size=4)))
    assert batch["epoch"].tolist() == [3] * 4


def test_a_target_with_gaps_is_refused(zoo):
    with pytest.raises(UserError, match="grad_norm is missing"):
        zoo.select().dataset(target="grad_norm")  # epoch 0 has none
    with pytest.raises(UserError, match="one value"):
        zoo.select().dataset(target="test_acc_per_class")


def test_more_than_the_memory_is_refused_with_another_way(zoo, monkeypatch):
    monkeypatch.setattr(reading_module, "_SMALL", 0)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(EnvironmentFault, match="iter_weights"):
        zoo.select().weights()


def test_a_damaged_shard_is_named(small_zoo, tmp_path):
    copy = shutil.copytree(small_zoo, tmp_path / "zoo")
    zoo = zoogen.open(copy)
    shard = zoo.checkpoints["shard_id"][0]
    file = copy / "shards" / shard / "weights.h5"
    data = bytearray(file.read_bytes())
    row = zoo.select().weights()[5].tobytes()
    data[data.index(row)] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=shard):
        zoogen.open(copy).select().weights()
    file.unlink()
    with pytest.raises(IntegrityError, match=shard):
        zoogen.open(copy).select().weights()


@pytest.mark.parametrize("change", ["row", "model", "escape"])
def test_a_table_that_contradicts_the_shards_is_found(small_zoo, tmp_path, change):
    """A table made by someone else shall not pass one model's weights off as another's, nor leave the folder."""
    import pyarrow as pa

    from zoogen.store.tables import read_parquet, write_parquet

    copy = shutil.copytree(small_zoo, tmp_path / "zoo")
    path = copy / "checkpoints.parquet"
    table = read_parquet(path)
    ids, rows, names = (table[c].to_pylist() for c in ("model_id", "row", "shard_id"))
    if change == "row":
        rows[0] = 10_000
    elif change == "model":
        ids[0], ids[1] = ids[1], ids[0]
    else:
        names[0] = "../../other"
    for name, values in (("model_id", ids), ("row", rows), ("shard_id", names)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    write_parquet(path, [table], table.schema)
    with pytest.raises(IntegrityError):
        zoogen.open(copy).select().weights()


def test_a_name_where_a_normaliser_belongs_is_told(zoo):
    with pytest.raises(UserError, match=r"fit a normaliser first, .* got 'layer'"):
        zoo.select(epochs=0).weights(normaliser="layer")

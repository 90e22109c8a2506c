"""Twins as someone sees them who opens zoos: masks against plain h5py, parents found, tables joined as pandas does."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

import zoogen
from zoogen.core.errors import IntegrityError, UserError
from zoogen.store.read import ShardReader

PRUNABLE = 64 * 8 + 8 * 10


@pytest.fixture
def parents(twin_zoos):
    return zoogen.open(twin_zoos / "parents")


@pytest.fixture
def copies(twin_zoos, tmp_path):
    """The same zoos in another place, to be changed."""
    return shutil.copytree(twin_zoos, tmp_path / "moved")


def change(path, edit):
    manifest = json.loads((path / "zoo.json").read_text())
    edit(manifest)
    (path / "zoo.json").write_text(json.dumps(manifest))


# --- Masks -----------------------------------------------------------------------------------------------------------


def plain_rows(path, checkpoints, name):
    """Rows of a dataset with h5py alone, found by (model, epoch)."""
    found = {}
    for file in sorted((path / "shards").glob("*/weights.h5")):
        with h5py.File(file) as shard:
            for row, key in enumerate(zip(shard["model_id"][:], shard["epoch"][:], strict=True)):
                found[key[0].decode(), int(key[1])] = shard[name][row]
    return np.stack([found[key] for key in zip(checkpoints["model_id"], checkpoints["epoch"], strict=True)])


@pytest.mark.parametrize("name", ["magnitude", "random", "variational"])
@pytest.mark.parametrize("arguments", [{}, {"epochs": "last"}, {"where": "seed != 1", "epochs": [2, 0]}], ids=str)
def test_masks_are_the_bits_that_h5py_reads_and_removed_weights_are_zero(twin_zoos, name, arguments):
    selection = zoogen.open(twin_zoos / name).select(**arguments)
    kept = selection.kept()
    assert (kept.shape, kept.dtype) == ((len(selection), PRUNABLE), np.bool_)
    bits = np.unpackbits(plain_rows(twin_zoos / name, selection.checkpoints, "kept"), axis=1)[:, :PRUNABLE]
    assert np.array_equal(kept, bits)
    weights = selection.weights()[:, selection.layout.prunable_places]
    assert not weights[~kept].any()
    assert weights[kept].all()
    assert np.allclose(1 - kept.mean(axis=1), selection.checkpoints["sparsity"])


def test_layer_sparsities_are_those_of_the_parts_of_a_mask(twin_zoos):
    selection = zoogen.open(twin_zoos / "variational").select()
    start = 0
    for number, entry in enumerate(selection.layout.prunable):
        share = 1 - selection.kept()[:, start : start + entry.size].mean(axis=1)
        assert np.allclose(share, [layers[number] for layers in selection.checkpoints["layer_sparsity"]])
        start += entry.size
    assert start == PRUNABLE


def test_log_alpha_is_what_h5py_reads_and_masks_are_its_threshold(twin_zoos):
    selection = zoogen.open(twin_zoos / "variational").select("sparsity > 0", epochs=[3, 4])
    found = selection.log_alpha()
    assert (found.shape, found.dtype) == ((len(selection), PRUNABLE), np.float32)
    assert np.array_equal(found, plain_rows(twin_zoos / "variational", selection.checkpoints, "log_alpha"))
    assert np.array_equal(selection.kept(), found < 3)


def test_a_keyword_means_the_setting_and_no_score_of_the_same_name(twin_zoos):
    """Measured sparsity differs: whole weights are removed, and after no epoch none is."""
    selection = zoogen.open(twin_zoos / "magnitude").select(sparsity=0.9)
    models = pd.read_parquet(twin_zoos / "magnitude/models.parquet")
    assert (models["sparsity"] != 0.9).all()
    assert set(selection.models["model_id"]) == set(models["model_id"][models["training.sparsify.sparsity"] == 0.9])
    assert len(selection.models) == 12
    with pytest.raises(UserError, match=r"no setting.*sparsity > "):
        zoogen.open(twin_zoos / "variational").select(sparsity=0.9)


def test_zoos_without_masks_or_log_alpha_say_so(parents, twin_zoos):
    with pytest.raises(UserError, match="no sparse twins"):
        parents.select().kept()
    for zoo in (parents, zoogen.open(twin_zoos / "magnitude")):
        with pytest.raises(UserError, match="log_alpha: true"):
            zoo.select().log_alpha()


def test_masks_of_another_number_of_weights_than_the_layout_has_are_damage(twin_zoos):
    shard = next((twin_zoos / "variational/shards").iterdir())
    with ShardReader(shard) as reader:
        assert reader.kept(PRUNABLE, [0]).shape == (1, PRUNABLE)
        for read in (reader.kept, reader.log_alpha):
            with pytest.raises(IntegrityError, match=shard.name):
                read(PRUNABLE + 8)


# --- Parents and twins -----------------------------------------------------------------------------------------------


def test_a_twin_finds_its_parent_also_when_both_were_moved(twin_zoos, copies):
    for folder in (twin_zoos, copies):
        found = zoogen.open(folder / "magnitude").parent
        assert found.path.samefile(folder / "parents")
        assert (found.name, found.version) == ("parents", 2)


def test_a_parent_that_was_moved_alone_is_given(copies, tmp_path):
    (copies / "parents").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"parent=PATH") as error:
        _ = zoogen.open(copies / "magnitude").parent
    assert "'parents' version 2" in str(error.value)
    twin = zoogen.open(copies / "magnitude", parent=tmp_path / "elsewhere")
    assert twin.parent.path == tmp_path / "elsewhere"
    assert len(twin.with_parent()) == len(twin.checkpoints)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: m.update(name="others"), "'others' version 2"),
        (lambda m: m.update(version=3), "version 3"),
    ],
    ids=["name", "version"],
)
def test_another_zoo_where_the_parent_was_is_refused(copies, edit, says):
    change(copies / "parents", edit)
    with pytest.raises(UserError, match=says):
        _ = zoogen.open(copies / "magnitude").parent
    with pytest.raises(UserError, match=says):
        zoogen.open(copies / "magnitude", parent=copies / "parents")


def test_a_parent_with_other_weights_is_refused_and_one_with_more_shards_is_not(copies):
    twin = copies / "magnitude"
    change(twin, lambda m: m["parents"][0]["shards"].popitem())  # as if the parent had got it later
    assert zoogen.open(twin).parent.name == "parents"
    change(twin, lambda m: m["parents"][0]["shards"].update({"c-not-there": "0" * 64}))
    with pytest.raises(UserError, match="no shard c-not-there"):
        _ = zoogen.open(twin).parent
    shard = next((copies / "parents/shards").iterdir()).name
    change(twin, lambda m: m["parents"][0].update(shards={shard: "0" * 64}))
    with pytest.raises(UserError, match="other weights"):
        _ = zoogen.open(twin).parent


def test_a_zoo_that_is_no_twin_has_no_parent(small_zoo):
    with pytest.raises(UserError, match="no twins"):
        _ = zoogen.open(small_zoo).parent
    with pytest.raises(UserError, match="no twins"):
        zoogen.open(small_zoo, parent=small_zoo)


@pytest.mark.parametrize("parents", [[{}], [{"name": 1, "version": 1, "path": "x", "shards": {}}], ["x"], {"a": 1}])
def test_damaged_parents_in_the_manifest_are_an_error_of_ours(copies, parents):
    change(copies / "magnitude", lambda m: m.update(parents=parents))
    with pytest.raises(IntegrityError, match=r"zoo\.json"):
        _ = zoogen.open(copies / "magnitude").parent


def test_a_shard_name_that_leaves_the_folder_is_refused(copies):
    change(copies / "magnitude", lambda m: m["parents"][0].update(shards={"../../other": "0" * 64}))
    with pytest.raises(IntegrityError, match="cannot name a file"):
        _ = zoogen.open(copies / "magnitude").parent


def test_twins_beside_a_zoo_are_found_and_others_left_alone(copies, small_zoo, caplog):
    shutil.copytree(small_zoo, copies / "stranger")
    shutil.copytree(copies / "random", copies / "of-others")
    change(copies / "of-others", lambda m: m["parents"][0].update(version=1))
    shutil.copytree(copies / "random", copies / "damaged")
    (copies / "damaged/zoo.json").write_text("{")
    parents = zoogen.open(copies / "parents")
    found = parents.twins()
    assert [twin.path.name for twin in found] == ["magnitude", "random", "variational"]
    assert all(twin.parent is parents for twin in found)
    assert "damaged" in caplog.text
    assert "of-others" not in caplog.text


def test_twins_are_taken_from_the_paths_given_wherever_the_parent_is(copies, tmp_path):
    (copies / "parents").rename(tmp_path / "elsewhere")
    parents = zoogen.open(tmp_path / "elsewhere")
    assert parents.twins() == ()
    (found,) = parents.twins(copies / "magnitude")
    assert found.parent is parents


def test_a_path_without_twins_of_this_zoo_is_an_error(copies, small_zoo):
    parents = zoogen.open(copies / "parents")
    for path, says in ((small_zoo, "started anew"), (copies, "no zoo at"), (copies / "parents", "started anew")):
        with pytest.raises(UserError, match=says):
            parents.twins(copies / "magnitude", path)
    with pytest.raises(UserError, match="twins of zoo 'parents' version 2"):
        zoogen.open(small_zoo).twins(copies / "magnitude")
    with pytest.raises(UserError, match="given twice"):
        parents.twins(copies / "magnitude", copies / "parents/../magnitude")


# --- Joined tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["magnitude", "variational"])
def test_rows_beside_their_parents_are_those_that_pandas_merges(twin_zoos, name):
    twins = pd.read_parquet(twin_zoos / name / "checkpoints.parquet")
    models = pd.read_parquet(twin_zoos / name / "models.parquet")
    parents = pd.read_parquet(twin_zoos / "parents/checkpoints.parquet")
    links = models[["model_id", "parent_id", "parent_epoch", "training.sparsify.name"]]
    expected = twins.merge(links, on="model_id", how="left", validate="many_to_one").merge(
        parents.add_prefix("parent."),
        left_on=["parent_id", "parent_epoch"],
        right_on=["parent.model_id", "parent.epoch"],
        how="left",
        validate="many_to_one",
    )
    found = zoogen.open(twin_zoos / name).with_parent()
    assert len(found) == len(twins)
    for column in ("model_id", "epoch", "test_acc", "parent_id", "parent_epoch", "parent.test_acc", "parent.val_loss"):
        assert found[column].tolist() == expected[column].tolist(), column
    assert found["method"].tolist() == expected["training.sparsify.name"].tolist()
    assert np.allclose(found["acc_drop"], expected["parent.test_acc"] - expected["test_acc"])
    assert not {"parent.model_id", "parent.epoch", "parent.shard_id", "parent.row"} & set(found)


def test_a_twin_before_its_first_step_with_nothing_removed_drops_nothing(twin_zoos):
    start = zoogen.open(twin_zoos / "variational").select(epochs=0).with_parent()
    # The conversion removes a few small weights, and may change few of 270 predictions.
    assert start["acc_drop"].abs().max() < 0.1
    assert (start["parent_epoch"] == 2).all()


@pytest.mark.parametrize("name", ["magnitude", "variational"])
def test_parents_have_the_weights_that_their_twins_started_from_row_by_row(twin_zoos, stored_rows, name):
    selection = zoogen.open(twin_zoos / name).select(epochs=[2, 0])
    links = pd.read_parquet(twin_zoos / name / "models.parquet")[["model_id", "parent_id", "parent_epoch"]]
    starts = selection.checkpoints[["model_id"]].merge(links, how="left", validate="many_to_one")
    starts = pd.DataFrame({"model_id": starts["parent_id"], "epoch": starts["parent_epoch"]})
    assert starts.duplicated().any()
    parents = selection.parents()
    assert parents.checkpoints[["model_id", "epoch"]].values.tolist() == starts.values.tolist()
    assert np.array_equal(parents.weights(), stored_rows(twin_zoos / "parents", starts))
    stream = parents.stream(7, "test_acc", shuffle=True)
    assert sum(len(w) for w, _ in stream) == len(selection)
    assert len(selection.select("test_acc > 2").parents()) == 0


def test_a_twin_before_its_first_step_is_its_parent_with_weights_removed(twin_zoos):
    selection = zoogen.open(twin_zoos / "magnitude").select(epochs=0)
    expected = selection.parents().weights()
    expected[:, selection.layout.prunable_places] *= selection.kept()
    assert np.array_equal(selection.weights(), expected)


def test_parents_are_on_the_side_of_their_twins(twin_zoos, stored_rows):
    split = zoogen.open(twin_zoos / "magnitude").resplit("activation", test=["tanh"])
    parents = split.select("train", epochs=0).parents()
    assert parents.normaliser().states == len(parents)
    with pytest.raises(UserError, match="training models"):
        split.select("test", epochs=0).parents().normaliser()


def test_zoos_without_parents_have_none_to_give(small_zoo):
    with pytest.raises(UserError, match="no twins"):
        zoogen.open(small_zoo).select().parents()


def test_a_selection_and_named_columns_are_joined_alike(twin_zoos):
    twin = zoogen.open(twin_zoos / "magnitude")
    found = twin.select("sparsity > 0.8", epochs="last").with_parent("scope", "parent_id", "training.optimizer.lr")
    assert len(found) == 12
    assert set(found["training.sparsify.scope"]) == {"global", "layerwise"}
    assert found.columns.is_unique
    assert "seed" not in found
    with pytest.raises(UserError, match="unknown column"):
        twin.with_parent("no_such_thing")


def test_all_twins_in_one_table(parents):
    twins = parents.twins()
    found = twins.joined()
    assert len(found) == sum(len(twin.checkpoints) for twin in twins)
    assert found.groupby("zoo")["method"].unique().map(list).to_dict() == {
        "magnitude": ["magnitude"], "random": ["random"], "variational": ["variational-dropout"],
    }  # fmt: skip
    assert found["parent.test_acc"].notna().all()
    assert found.loc[found["zoo"] == "random", "kl"].isna().all()


def test_no_twins_to_join_is_an_error_with_a_way_out(small_zoo):
    with pytest.raises(UserError, match="zoogen sparsify"):
        zoogen.open(small_zoo).twins().joined()


def test_an_empty_selection_of_twins_is_an_empty_table(twin_zoos):
    found = zoogen.open(twin_zoos / "magnitude").select("test_acc > 2").with_parent()
    assert len(found) == 0
    assert {"parent.test_acc", "acc_drop", "method"} <= set(found)


def test_a_parent_whose_table_lost_a_checkpoint_is_named(copies):
    from zoogen.store.tables import read_parquet, write_parquet

    path = copies / "parents/checkpoints.parquet"
    table = read_parquet(path)
    write_parquet(path, [table.slice(0, table.num_rows - 1)], table.schema)
    with pytest.raises(IntegrityError, match="lack the checkpoint"):
        zoogen.open(copies / "magnitude").with_parent()

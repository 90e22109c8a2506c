"""A zoo that is being built shows every shard that is sealed; what is no zoo, or a newer one, says so."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import zoogen
from zoogen.core.errors import IntegrityError, UserError
from zoogen.store.tables import read_parquet, write_parquet


@pytest.fixture
def copy(small_zoo, tmp_path):
    return shutil.copytree(small_zoo, tmp_path / "zoo")


def without_tables(path):
    for name in ("models.parquet", "checkpoints.parquet"):
        (path / name).unlink()


def test_before_the_first_tables_the_sealed_shards_are_served(small_zoo, copy, stored_rows):
    """As while the first build runs: some shards are sealed, no table is written."""
    shards = sorted(p for p in (copy / "shards").iterdir())
    assert len(shards) > 1
    shutil.rmtree(shards[0])
    without_tables(copy)
    zoo = zoogen.open(copy)
    everything = pd.read_parquet(small_zoo / "checkpoints.parquet")
    expected = everything[everything["shard_id"] != shards[0].name]
    assert set(zoo.checkpoints["shard_id"]) == {p.name for p in shards[1:]}
    pd.testing.assert_frame_equal(zoo.checkpoints[expected.columns], expected.reset_index(drop=True))
    assert np.array_equal(zoo.select().weights(), stored_rows(small_zoo, expected))
    gone = set(everything["model_id"]) - set(expected["model_id"])
    assert set(zoo.models.query("status == 'planned'")["model_id"]) == gone
    assert len(zoo) == len(zoo.models) - len(gone)
    assert not (copy / "models.parquet").exists(), "opening writes nothing"


def test_shards_sealed_since_the_tables_were_made_are_served_too(small_zoo, copy):
    """As while a later build extends the zoo."""
    table = read_parquet(copy / "checkpoints.parquet")
    frame = table.to_pandas()
    last = frame["shard_id"].iloc[-1]
    kept = table.slice(0, int((frame["shard_id"] != last).sum()))
    assert last not in kept["shard_id"].to_pylist()
    write_parquet(copy / "checkpoints.parquet", [kept], table.schema)
    zoo, whole = zoogen.open(copy), zoogen.open(small_zoo)
    pd.testing.assert_frame_equal(zoo.checkpoints, whole.checkpoints)
    pd.testing.assert_frame_equal(zoo.models, whole.models)


def test_a_zoo_that_is_extended_between_opening_and_the_first_look_is_served_as_it_is_then(mixed_zoo, tmp_path):
    """It is opened before the build writes the manifest with further architectures and layouts, and read after."""
    copy = shutil.copytree(mixed_zoo, tmp_path / "zoo")
    whole = (copy / "zoo.json").read_text()
    before = json.loads(whole)
    new = [name for name, entry in before["architectures"].items() if entry["hidden"] == [6]]
    layouts = {before["architectures"].pop(name)["layout"] for name in new}
    for name in layouts:
        del before["layouts"][name]
    before["tasks"] = {}
    (copy / "zoo.json").write_text(json.dumps(before))
    zoo = zoogen.open(copy)
    (copy / "zoo.json").write_text(whole)
    assert [len(part.weights()) for part in zoo.select().by_layout()] == [8, 8]
    assert zoo.module(zoo.select(hidden="[6]").models["model_id"][0]) is not None
    assert len(zoo.evaluate(zoo.select())) == len(zoo.checkpoints)


def test_an_architecture_that_no_manifest_has_is_damage(copy):
    manifest = json.loads((copy / "zoo.json").read_text())
    manifest["architectures"].popitem()
    (copy / "zoo.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="is missing or damaged"):
        zoogen.open(copy).select().weights()


def test_half_written_and_foreign_folders_are_not_served(small_zoo, copy):
    (copy / "shards" / ".tmp-half").mkdir()
    (copy / "shards" / "stranger").mkdir()
    assert len(zoogen.open(copy).checkpoints) == len(zoogen.open(small_zoo).checkpoints)
    without_tables(copy)
    assert len(zoogen.open(copy).checkpoints) == len(zoogen.open(small_zoo).checkpoints)


def test_before_the_first_shard_there_are_models_and_no_states(small_zoo, copy):
    shutil.rmtree(copy / "shards")
    (copy / "shards").mkdir()
    without_tables(copy)
    zoo = zoogen.open(copy)
    assert len(zoo) == 0
    assert len(zoo.models) == len(zoogen.open(small_zoo).models)
    assert zoo.models["status"].unique().tolist() == ["planned"]
    assert len(zoo.select()) == 0
    with pytest.raises(UserError, match="empty"):
        zoo.select().weights()
    with pytest.raises(UserError, match="no stored states"):
        zoo.state_dict(zoo.models["model_id"][0])


def test_a_damaged_table_of_a_new_shard_is_named(copy):
    without_tables(copy)
    shard = sorted((copy / "shards").iterdir())[0]
    file = shard / "checkpoints.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(IntegrityError, match=shard.name):
        _ = zoogen.open(copy).checkpoints


def test_a_folder_that_is_no_zoo_and_a_newer_one_say_so(copy, tmp_path):
    with pytest.raises(UserError, match="no zoo at"):
        zoogen.open(tmp_path)
    manifest = json.loads((copy / "zoo.json").read_text())
    manifest["format_version"] += 1
    (copy / "zoo.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="a newer zoogen may read it"):
        zoogen.open(copy)

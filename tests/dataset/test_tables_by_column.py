"""Tables that are read column by column against whole ones."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import zoogen
from zoogen.core.errors import IntegrityError
from zoogen.store.columns import TableColumns
from zoogen.store.tables import read_parquet, replace_parquet, write_parquet


@pytest.fixture
def copy(small_zoo, tmp_path):
    return shutil.copytree(small_zoo, tmp_path / "zoo")


@pytest.fixture
def read(monkeypatch):
    """Names of the columns that become pandas columns, in order."""
    names = []
    original = TableColumns.frame

    def noting(self, columns, rows=None):
        names.extend(columns)
        return original(self, columns, rows)

    monkeypatch.setattr(TableColumns, "frame", noting)
    return names


def test_a_selection_reads_the_columns_that_it_names_and_each_once(zoo, read):
    assert len(zoo.select(epochs=[0, 1], split=["train", "val", "test"]).states()) > 0
    assert len(zoo.select("model_id != 'x' and lr < 1 and epoch > 0 and final.test_acc >= 0")) > 0
    assert set(read) <= {"epoch", "model_id"}
    read.clear()
    zoo.select("test_acc > 0.2 and lr < 1").select("test_acc > 0.3 or val_acc > 0.3")
    assert sorted(read) == ["test_acc", "val_acc"]
    zoo.select().dataset(target="val_loss")
    assert sorted(read) == ["test_acc", "val_acc", "val_loss"]
    zoo.select("ggap > 0")
    assert sorted(read) == ["test_acc", "test_acc", "train_acc", "val_acc", "val_loss"]


def test_columns_of_few_states_are_those_of_the_whole_table(small_zoo, read):
    few = zoogen.open(small_zoo).select("lr < 1", epochs=2)
    whole = zoogen.open(small_zoo).checkpoints
    rows = whole.take(few.rows).reset_index(drop=True)
    assert 0 < 4 * len(rows) < len(whole)
    read.clear()
    pd.testing.assert_frame_equal(few.checkpoints, rows)
    assert "checkpoints" not in few.zoo.tables.__dict__
    once = list(read)
    changed = few.checkpoints
    changed["test_acc"] = 0.0
    pd.testing.assert_frame_equal(few.checkpoints, rows)
    assert read == once
    many = few.zoo.select("epoch >= 1")
    pd.testing.assert_frame_equal(many.checkpoints, whole.take(many.rows).reset_index(drop=True))
    pd.testing.assert_frame_equal(few.zoo.checkpoints, whole)
    pd.testing.assert_frame_equal(few.zoo.select(epochs=2).checkpoints, rows)


@pytest.mark.parametrize("where", ["ggap > 0", "test_acc > 0.2 and epoch > 0", "model_id > '8'", "epoch == 1"])
def test_it_does_not_matter_what_was_asked_for_before(small_zoo, where):
    fresh, used = zoogen.open(small_zoo), zoogen.open(small_zoo)
    whole = used.checkpoints
    assert np.array_equal(fresh.select(where).rows, used.select(where).rows)
    assert np.array_equal(fresh.select(where).rows, np.flatnonzero(whole.eval(where.replace("and", "&"))))
    pd.testing.assert_frame_equal(fresh.checkpoints, whole)


def test_states_of_models_that_are_not_listed_are_in_no_column(small_zoo, copy):
    models = read_parquet(copy / "models.parquet")
    write_parquet(copy / "models.parquet", [models.slice(1)], models.schema)
    gone = models["model_id"][0].as_py()
    one, whole = zoogen.open(copy), zoogen.open(small_zoo)
    where = f"test_acc > 0.2 and model_id != '{gone}'"
    assert 0 < len(one.select(where)) < len(one.select())
    pd.testing.assert_frame_equal(one.select(where).checkpoints, whole.select(where).checkpoints)
    pd.testing.assert_frame_equal(one.select(where, epochs=1).checkpoints, whole.select(where, epochs=1).checkpoints)
    pd.testing.assert_frame_equal(one.checkpoints, whole.select(f"model_id != '{gone}'").checkpoints)


def test_a_damaged_column_is_an_error_when_it_is_asked_for(copy):
    path = copy / "checkpoints.parquet"
    about = pq.read_metadata(path)
    place = about.schema.to_arrow_schema().get_field_index("test_acc")
    column = about.row_group(0).column(place)
    data = bytearray(path.read_bytes())
    data[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 2] ^= 1
    path.write_bytes(data)
    zoo = zoogen.open(copy)
    assert len(zoo.select("epoch > 0 and train_acc > 0.2").weights()) > 0
    for ask in (
        lambda: zoo.select("test_acc > 0.2"),
        lambda: zoo.select("ggap > 0.2"),
        lambda: zoo.checkpoints,
        lambda: zoo.select(epochs=0).checkpoints,
    ):
        with pytest.raises(IntegrityError, match=r"checkpoints\.parquet"):
            ask()


def test_columns_of_two_tables_do_not_mix(copy):
    """As when a build makes the tables anew while a zoo is open."""
    table = read_parquet(copy / "checkpoints.parquet")
    whole = zoogen.open(copy).checkpoints
    zoo = zoogen.open(copy)
    zoo.select("test_acc > 0.2")
    backwards = table.take(list(range(table.num_rows))[::-1])
    replace_parquet(copy / "checkpoints.parquet", [backwards], table.schema)
    pd.testing.assert_frame_equal(zoo.checkpoints, whole)
    assert zoogen.open(copy).checkpoints["val_acc"].tolist() == whole["val_acc"].tolist()[::-1]


def test_an_open_zoo_goes_to_other_processes(zoo):
    zoo.select("test_acc > 0.2")
    other = pickle.loads(pickle.dumps(zoo))
    pd.testing.assert_frame_equal(other.select("val_acc > 0.2").checkpoints, zoo.select("val_acc > 0.2").checkpoints)

"""Columns read one by one against the whole table, read by pyarrow and pandas."""

from __future__ import annotations

import errno
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from zoogen.core.errors import IntegrityError, UserError
from zoogen.store.check import CHECKPOINT_COLUMNS
from zoogen.store.columns import FileColumns, in_memory
from zoogen.store.tables import read_parquet, replace_parquet, write_parquet
from zoogen.store.zoo import to_frame


def states(rows, seed, gaps=True):
    """A table of every type that columns have, with gaps in all but the keys."""
    rng = np.random.default_rng(seed)

    def holes():
        return rng.random(rows) < 0.2 if gaps else None

    columns = {
        "model_id": pa.array([f"{m:032x}" for m in rng.integers(0, 20, rows)]),
        "epoch": pa.array(rng.integers(0, 5, rows), pa.int32()),
        "shard_id": pa.array([f"shard-{s}" for s in rng.integers(0, 3, rows)]),
        "row": pa.array(rng.integers(0, 999, rows), pa.int32()),
        "score": pa.array(rng.random(rows), mask=holes()),
        "score.of": pa.array(rng.random(rows).astype(np.float32)),  # begins as another one
        "count": pa.array(rng.integers(0, 2**60, rows), mask=holes()),
        "flag": pa.array(rng.random(rows) < 0.5, mask=holes()),
        "text": pa.array(rng.choice(["a", "b", "longer"], rows).tolist(), mask=holes()),
        "list": pa.array([rng.random(n).tolist() for n in rng.integers(0, 4, rows)]),
        "nothing": pa.nulls(rows),
    }
    return pa.table(columns)


# The gaps of a column may lie in one group, and the rows that are asked for in another.
GROUPS = {
    "one group": [states(50, 0)],
    "several": [states(50, 1), states(7, 2, gaps=False), states(30, 3)],
    "gaps in one of them": [states(20, 4, gaps=False), states(20, 5), states(20, 6, gaps=False)],
    "no rows": [],
}


@pytest.fixture(params=["file", "memory"])
def kind(request):
    return request.param


def columns_of(kind, tables, path):
    schema = states(1, 0).schema
    write_parquet(path, tables, schema)
    return FileColumns(path, CHECKPOINT_COLUMNS) if kind == "file" else in_memory(tables, schema, path)


@pytest.mark.parametrize("groups", GROUPS)
def test_some_columns_of_some_rows_are_those_of_the_whole_table(kind, groups, tmp_path):
    path = tmp_path / "checkpoints.parquet"
    found = columns_of(kind, GROUPS[groups], path)
    whole = to_frame(read_parquet(path))
    assert list(found.names) == list(whole)
    assert found.rows == len(whole)
    pd.testing.assert_frame_equal(found.frame(found.names), whole)
    rng = np.random.default_rng(0)
    for count in (0, 1, 3, 200):
        names = rng.permutation(found.names)[:4].tolist()
        rows = rng.integers(0, len(whole), count if len(whole) else 0)  # in any order, some twice
        expected = whole[names].take(rows).reset_index(drop=True)
        pd.testing.assert_frame_equal(found.frame(names, rows), expected)
        pd.testing.assert_frame_equal(found.frame(names), whole[names])


def test_a_column_with_gaps_has_one_type_whichever_rows_are_taken(kind, tmp_path):
    found = columns_of(kind, GROUPS["gaps in one of them"], tmp_path / "checkpoints.parquet")
    first = found.frame(["count", "flag", "epoch"], np.arange(5))
    assert [str(t) for t in first.dtypes] == ["Int64", "boolean", "int32"]


@pytest.mark.parametrize("groups", GROUPS)
def test_keys_are_the_text_that_pandas_reads(kind, groups, tmp_path):
    path = tmp_path / "checkpoints.parquet"
    found = columns_of(kind, GROUPS[groups], path)
    whole = pd.read_parquet(path)
    for name in ("model_id", "shard_id"):
        codes, values = found.codes(name)
        assert codes.dtype == np.int64
        assert values[codes].tolist() == whole[name].tolist()
        assert len(set(values)) == len(values)
    assert found.numbers("epoch").tolist() == whole["epoch"].tolist()


def test_keys_that_do_not_repeat_are_read_too(tmp_path):
    """Parquet gives up its dictionary of a column when that grows too large."""
    path = tmp_path / "checkpoints.parquet"
    one = states(100_000, 0).drop(["list", "text"])
    place = one.schema.get_field_index("model_id")
    table = one.set_column(place, "model_id", pa.array([f"{m * 2**96:032x}" for m in range(100_000)]))
    write_parquet(path, [table, table.slice(5, 10)], table.schema)
    codes, values = FileColumns(path, CHECKPOINT_COLUMNS).codes("model_id")
    assert values[codes].tolist() == pd.read_parquet(path)["model_id"].tolist()


@pytest.mark.parametrize("name", CHECKPOINT_COLUMNS)
def test_a_key_that_is_missing_is_an_error(kind, name, tmp_path):
    table = states(50, 0)
    place = table.schema.get_field_index(name)
    holes = np.arange(50) == 17
    column = pa.array(table[name].to_pylist(), table.schema.field(name).type, mask=holes)
    found = columns_of(kind, [table.set_column(place, name, column)], tmp_path / "checkpoints.parquet")
    read = found.codes if name in ("model_id", "shard_id") else found.numbers
    with pytest.raises(IntegrityError, match=rf"checkpoints\.parquet: {name} is missing in 1 rows"):
        read(name)


def test_columns_of_a_file_that_was_replaced_are_those_of_the_one_that_was_opened(tmp_path):
    path = tmp_path / "checkpoints.parquet"
    found = columns_of("file", [states(50, 0)], path)
    before = to_frame(read_parquet(path))
    first = found.frame(["score"])
    replace_parquet(path, [states(60, 1)], states(1, 0).schema)
    later = found.frame(["count", "text"])
    pd.testing.assert_frame_equal(pd.concat([first, later], axis=1), before[["score", "count", "text"]])
    path.unlink()
    pd.testing.assert_frame_equal(found.frame(["flag"]), before[["flag"]])


def test_a_file_that_was_written_over_is_not_read_on(tmp_path):
    path = tmp_path / "checkpoints.parquet"
    found = columns_of("file", [states(50, 0)], path)
    found.frame(["score"])
    write_parquet(path, [states(60, 1)], states(1, 0).schema)  # into the same file
    with pytest.raises(IntegrityError, match=r"checkpoints\.parquet was written over since .* open it again"):
        found.frame(["count"])


def test_a_file_that_another_host_replaced_is_not_called_damaged(tmp_path, monkeypatch):
    """Network file systems may forget the file that is open here."""
    found = columns_of("file", [states(50, 0)], tmp_path / "checkpoints.parquet")

    class Stale:
        metadata = found._plain.metadata

        def read_row_groups(self, *_, **__):
            raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(found, "_plain", Stale())
    with pytest.raises(UserError, match="was replaced since the zoo was opened; open it again"):
        found.frame(["count"])


def test_a_copy_in_another_process_reads_the_same_file_or_none(tmp_path):
    path = tmp_path / "checkpoints.parquet"
    found = columns_of("file", [states(50, 0)], path)
    told = pickle.dumps(found)
    pd.testing.assert_frame_equal(pickle.loads(told).frame(found.names), found.frame(found.names))
    replace_parquet(path, [states(50, 1)], states(1, 0).schema)
    with pytest.raises(UserError, match=r"checkpoints\.parquet was replaced since the zoo was opened"):
        pickle.loads(told)

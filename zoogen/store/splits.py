"""``splits/<task>.parquet``: which sample of the published files went into which part of a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from zoogen.store.durable import checked_name
from zoogen.store.tables import read_parquet, replace_parquet

_COLUMNS: dict[str, pa.DataType] = {"part": pa.dictionary(pa.int32(), pa.string()), "index": pa.int64()}
_PARTS = ("train", "val", "test")


def write_splits(zoo: Path, splits: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Store the index arrays of tasks (by task id) that the zoo does not have yet."""
    (zoo / "splits").mkdir(exist_ok=True)
    for task, parts in splits.items():
        path = _path(zoo, task)
        if path.exists():
            continue
        codes = np.repeat(np.arange(3, dtype=np.int32), [len(parts[p]) for p in _PARTS])
        column = pa.DictionaryArray.from_arrays(codes, list(_PARTS))
        index = np.concatenate([parts[p] for p in _PARTS]).astype(np.int64)
        schema = pa.schema(_COLUMNS)
        replace_parquet(path, [pa.table({"part": column, "index": index}, schema=schema)], schema)


def read_split(zoo: Path, task: str) -> dict[str, np.ndarray]:
    """int64 indices per part: train and val into the published training files, test into the published test files.

    Raises:
        FileNotFoundError: the zoo has trained no model of this task yet.
        IntegrityError: damaged.
    """
    table = read_parquet(_path(zoo, task), _COLUMNS)
    parts = np.array(table["part"].combine_chunks().dictionary_decode().to_pylist(), dtype=object)
    index = table["index"].to_numpy()
    return {part: index[parts == part] for part in _PARTS}


def _path(zoo: Path, task: str) -> Path:
    return zoo / "splits" / f"{checked_name('task', task)}.parquet"

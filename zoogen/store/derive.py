"""The derived tables: made from the plan and the sealed shards alone, so they can be lost and made again at any time.

Shards are streamed one after another; memory grows with the number of models, not with the number of checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoogen.core.errors import IntegrityError
from zoogen.store.check import CHECKPOINT_COLUMNS, read_shard_checkpoints, read_shard_models
from zoogen.store.cohorts import CohortRecord
from zoogen.store.shard import shards_folder
from zoogen.store.shard_info import CHECKPOINTS_FILE, ShardInfo
from zoogen.store.tables import read_schema, replace_parquet
from zoogen.store.timing import timing_table
from zoogen.store.zoo import CHECKPOINTS_TABLE, MODELS_TABLE, TIMING_TABLE, ZooFolder

_ROWS_PER_GROUP = 1 << 17


def rebuild_tables(folder: ZooFolder, failures: Mapping[str, str]) -> dict[str, int]:
    """Make ``models.parquet``, ``checkpoints.parquet`` and ``timing.parquet`` from plan, shards and logs.

    Args:
        folder: The zoo.
        failures: model_id -> why its last attempt failed, for models that are then ``failed``.

    Returns:
        Number of models by status: ``planned``, ``trained``, ``diverged``, ``failed`` (together all of the plan).

    Raises:
        IntegrityError: a shard or the plan is damaged.
        EnvironmentFault: the disk is full or may not be written.
    """
    records = folder.read_cohorts()
    shards = planned_shards(records, folder.sealed(), shards_folder(folder.path))
    derived = DerivedTables(folder.plan_table(), records, shards, failures)
    schema = derived.checkpoints_schema()
    needed = sum(info.files[CHECKPOINTS_FILE].size for _, info in shards)
    rows = in_groups(derived.checkpoints(schema))
    replace_parquet(folder.path / CHECKPOINTS_TABLE, rows, schema, needed=needed)
    models = derived.models(schema)
    replace_parquet(folder.path / MODELS_TABLE, [models], models.schema, needed=models.nbytes)
    timing = timing_table(folder.path / "logs")
    replace_parquet(folder.path / TIMING_TABLE, [timing], timing.schema, needed=timing.nbytes)
    counts = {told["values"]: told["counts"] for told in pc.value_counts(models["status"]).to_pylist()}
    return {status: counts.get(status, 0) for status in ("planned", "trained", "diverged", "failed")}


@dataclass
class DerivedTables:
    """Both derived tables. Read ``checkpoints`` to its end first: ``models`` needs what passes by.

    Args:
        plan: ``plan.parquet``.
        records: ``cohorts.parquet``.
        shards: Folder and description of every sealed shard that is planned, in planned order.
        failures: model_id -> why its last attempt failed.
    """

    plan: pa.Table
    records: Sequence[CohortRecord]
    shards: Sequence[tuple[Path, ShardInfo]]
    failures: Mapping[str, str]
    _last: list[pa.Table] = field(default_factory=list)
    _ends: list[pa.Table] = field(default_factory=list)

    def checkpoints_schema(self) -> pa.Schema:
        """Key columns, then every metric that some shard has.

        Raises:
            IntegrityError: two shards give a metric different types.
        """
        found: dict[str, pa.DataType] = dict(CHECKPOINT_COLUMNS)
        for folder, _ in self.shards:
            for metric in read_schema(folder / CHECKPOINTS_FILE, CHECKPOINT_COLUMNS)[0]:
                if found.setdefault(metric.name, metric.type) != metric.type:
                    raise IntegrityError(
                        f"{folder / CHECKPOINTS_FILE}: {metric.name} is {metric.type}, elsewhere {found[metric.name]}"
                    )
        return pa.schema(found)

    def checkpoints(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """``checkpoints.parquet``, shard by shard in planned order: one row per (model, epoch)."""
        self._last.clear()
        self._ends.clear()
        for folder, info in self.shards:
            table = read_shard_checkpoints(folder, info)
            ends = read_shard_models(folder, info)
            self._ends.append(ends.filter(pc.is_valid(ends["diverged_epoch"])))
            self._last.append(_last_rows(table, _scalars(schema)))
            yield _with_columns(table, schema)

    def models(self, schema: pa.Schema) -> pa.Table:
        """``models.parquet``: one row per planned model, its plan, status and the scores of its last checkpoint."""
        ids = self.plan["model_id"].combine_chunks()
        count = self.plan.num_rows
        last = _concat(self._last, _last_schema(_scalars(schema)))
        place = pc.index_in(last["model_id"], ids).to_numpy(zero_copy_only=False)
        _refuse_strangers(last, place)
        stored = np.zeros(count, np.int64)
        np.add.at(stored, place.astype(np.int64), last["count"].to_numpy())
        # The rows come in planned order; of several segments the last epoch wins.
        order = np.lexsort((last["epoch"].to_numpy(), place))
        row_of = np.full(count, -1, np.int64)
        row_of[place[order].astype(np.int64)] = order
        picked = last.take(pa.array(row_of, mask=row_of < 0))
        diverged = self._diverged(ids, count)
        trained = (stored > 0) & (stored >= self._expected(ids, count)) & (diverged < 0)
        reasons = [self.failures.get(m) for m in ids.to_pylist()] if self.failures else [None] * count
        failed = np.array([r is not None for r in reasons], bool) & ~trained & (diverged < 0)
        status = np.select([diverged >= 0, trained, failed], ["diverged", "trained", "failed"], "planned")
        columns = {name: self.plan[name] for name in self.plan.column_names}
        columns |= {
            "status": pa.array(status.tolist(), pa.string()),
            "reason": pa.array([r if f else None for r, f in zip(reasons, failed, strict=True)], pa.string()),
            "diverged_epoch": pa.array(diverged, pa.int32(), mask=diverged < 0),
            "last_epoch": picked["epoch"],
        }
        clash = [name for name in [*_scalars(schema), "ggap"] if name in columns]
        if clash:
            raise IntegrityError(f"the plan has columns that are scores: {', '.join(clash)}")
        columns |= {name: picked[name] for name in _scalars(schema)}
        return pa.table(_with_gap(columns))

    def _diverged(self, ids: pa.Array, count: int) -> np.ndarray:
        found = np.full(count, -1, np.int64)
        for ends in self._ends:
            place = pc.index_in(ends["model_id"], ids).to_numpy(zero_copy_only=False)
            found[place.astype(np.int64)] = ends["diverged_epoch"].to_numpy()
        return found

    def _expected(self, ids: pa.Array, count: int) -> np.ndarray:
        expected = np.zeros(count, np.int64)
        models = pa.array([m for r in self.records for m in r.model_ids], pa.string())
        rows = [sum(len(r.epochs_of(s)) for s in r.segments) for r in self.records for _ in r.model_ids]
        place = pc.index_in(models, ids)
        known = pc.is_valid(place).to_numpy(zero_copy_only=False)
        np.add.at(expected, place.drop_null().to_numpy(), np.array(rows, np.int64)[known])
        return expected


def planned_shards(
    records: Sequence[CohortRecord], sealed: Mapping[str, ShardInfo], folder: Path
) -> list[tuple[Path, ShardInfo]]:
    """Sealed shards that belong to a planned segment, in planned order."""
    planned = [s.shard_id for r in records for s in r.segments]
    return [(folder / shard_id, sealed[shard_id]) for shard_id in planned if shard_id in sealed]


def in_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables into some of about 130,000 rows, a size that Parquet reads and compresses well."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(t.num_rows for t in waiting) >= _ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _scalars(schema: pa.Schema) -> list[str]:
    return [f.name for f in schema if f.name not in CHECKPOINT_COLUMNS and pa.types.is_floating(f.type)]


def _last_schema(metrics: Sequence[str]) -> pa.Schema:
    return pa.schema(
        {"model_id": pa.string(), "epoch": pa.int32(), "count": pa.int64(), **dict.fromkeys(metrics, pa.float64())}
    )


def _last_rows(table: pa.Table, metrics: Sequence[str]) -> pa.Table:
    """The last row of each model (rows are ordered by epoch) and how many it has."""
    ids = table["model_id"].to_numpy()[::-1]
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    picked = table.take(pa.array(table.num_rows - 1 - first, pa.int64())).append_column("count", pa.array(counts))
    return _with_columns(picked, _last_schema(metrics))


def _with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of ``schema``; what was not measured is missing (NaN for numbers, as where a metric is not)."""
    columns = []
    for kind in schema:
        if kind.name in table.column_names:
            columns.append(table[kind.name])
        elif pa.types.is_floating(kind.type):
            columns.append(pa.array(np.full(table.num_rows, np.nan), kind.type))
        else:
            columns.append(pa.nulls(table.num_rows, kind.type))
    return pa.table(columns, schema=schema)


def _concat(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()


def _refuse_strangers(last: pa.Table, place: np.ndarray) -> None:
    unknown = np.isnan(place.astype(np.float64))
    if unknown.any():
        names = last["model_id"].filter(pa.array(unknown)).slice(0, 3).to_pylist()
        raise IntegrityError(f"shards hold models that the plan does not have: {', '.join(names)}")


def _with_gap(columns: dict[str, pa.ChunkedArray]) -> dict[str, pa.ChunkedArray]:
    """Add ``ggap``, train minus test accuracy; an evaluated train accuracy counts more than the running mean."""
    if "train_acc" in columns and "test_acc" in columns:
        train = columns["train_acc"]
        if "train_eval_acc" in columns:
            measured = columns["train_eval_acc"]
            known = pc.fill_null(pc.invert(pc.is_nan(measured)), False)
            train = pc.if_else(known, measured, train)
        columns["ggap"] = pc.subtract(train, columns["test_acc"])
    return columns

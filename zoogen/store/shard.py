"""Sealing: a cohort's checkpoints of one segment become a shard that exists whole or not at all, and never changes."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from zoogen.core.errors import IntegrityError
from zoogen.core.layout import Layout
from zoogen.core.records import Checkpoint, Cohort, CohortState, Segment
from zoogen.store.check import problems_of
from zoogen.store.compact import PLACES, VALUES, moved_left, places
from zoogen.store.durable import TEMPORARY, checked_name, disk_faults, sha256, sync, write_file
from zoogen.store.fence import check_token
from zoogen.store.rows import Rows
from zoogen.store.shard_info import (
    CHECKPOINTS_FILE,
    MODELS_FILE,
    OPTIMIZER_FILE,
    SHARD_FILE,
    WEIGHTS_FILE,
    FileInfo,
    ShardInfo,
    read_shard_info,
    software,
)
from zoogen.store.stacks import Stack, write_stacks
from zoogen.store.tables import write_parquet

log = logging.getLogger(__name__)


def shards_folder(zoo: Path) -> Path:
    """``<zoo>/shards``."""
    return zoo / "shards"


def seal_shard(
    zoo: Path,
    shard_id: str,
    cohort: Cohort,
    layout: Layout,
    checkpoints: Sequence[Checkpoint],
    *,
    state: CohortState,
    token: str,
) -> ShardInfo:
    """Write one segment of a cohort as ``<zoo>/shards/<shard_id>``.

    Equal input gives equal bytes. A shard that is there already is checked and kept.

    Args:
        zoo: The zoo's folder.
        shard_id: One of the cohort's segments.
        cohort: Names the models and the order of their rows.
        layout: Of the cohort's models.
        checkpoints: At least the segment's rows, in any order: every planned epoch of every model, for a model that
            diverged up to its last finite epoch (that one included, planned or not). Rows of other segments are left
            aside, so all rows not sealed yet may be passed.
        state: Of the cohort, at the end of the segment or later; says who diverged.
        token: Of the current build (``fence.new_token``), or ``<token>-<suffix>``.

    Raises:
        ValueError: the rows are not those of the segment (an incomplete shard is never sealed).
        Incomplete: a newer build owns the zoo.
        EnvironmentFault: the disk is full; nothing is left behind.
        IntegrityError: a shard of this id is there and is damaged.
    """
    segment = next((s for s in cohort.segments if s.shard_id == shard_id), None)
    if segment is None or layout.layout_id != cohort.layout_id:
        raise ValueError(f"shard {shard_id} or layout {layout.layout_id} is not of cohort {cohort.cohort_id}")
    diverged = {m: e for m, e in state.diverged.items() if e <= segment.last and m in cohort.model_ids}
    last_finite = {m: state.last_finite[m] for m in diverged}
    # What shows as divergence in this segment may leave its last finite state just before it.
    late = {(m, last_finite[m]) for m, e in diverged.items() if segment.first <= e and last_finite[m] < segment.first}
    rows = Rows(cohort, checkpoints, lambda m, e: segment.first <= e <= segment.last or (m, e) in late)
    rows.check_complete(segment, last_finite)
    final = shards_folder(zoo) / checked_name("shard", shard_id)
    temporary = final.with_name(f"{TEMPORARY}{shard_id}-{checked_name('token', token)}")
    check_token(zoo, token)
    with disk_faults(f"shard {shard_id}", zoo, sum(c.weights.nbytes for c in checkpoints) * 11 // 10):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            info = _write(temporary, shard_id, cohort, segment, layout, rows, diverged, last_finite)
            check_token(zoo, token)
            return _publish(temporary, final, info)
        except FileNotFoundError:
            check_token(zoo, token)  # a newer build cleans up after its predecessors
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(
    folder: Path,
    shard_id: str,
    cohort: Cohort,
    segment: Segment,
    layout: Layout,
    rows: Rows,
    diverged: Mapping[str, int],
    last_finite: Mapping[str, int],
) -> ShardInfo:
    width = max(len(m) for m in cohort.model_ids)
    stacks = {**_weights(rows, layout), **rows.keys(width)}
    for dtype in layout.side_dtypes:
        stacks[f"side/{dtype}"] = rows.stack(_entry("side", dtype), dtype, layout.row_size(dtype))
    predicted = {
        (c.predictions.dtype.name, c.predictions.shape[1]) for c in rows.checkpoints if c.predictions is not None
    }
    for dtype, samples in predicted:
        stacks["test_predictions"] = rows.stack(lambda c: c.predictions, dtype, samples, deflate=True)
    prunable = len(layout.prunable_places)
    if any(c.kept is not None for c in rows.checkpoints):
        stacks["kept"] = rows.stack(_packed, "uint8", -(-prunable // 8), deflate=True)
    if any(c.log_alpha is not None for c in rows.checkpoints):
        stacks["log_alpha"] = rows.stack(lambda c: c.log_alpha, "float32", prunable, deflate=True)
    write_stacks(folder / WEIGHTS_FILE, stacks, rows.per_epoch())
    datasets = {WEIGHTS_FILE: _describe(stacks, len(rows))}
    kept = rows.of([c for c in rows.checkpoints if c.optimizer])
    if len(kept):
        stacks = {**_optimizer_stacks(kept), **kept.keys(width)}
        write_stacks(folder / OPTIMIZER_FILE, stacks, kept.per_epoch())
        datasets[OPTIMIZER_FILE] = _describe(stacks, len(kept))
    models = _models_table(cohort, diverged, last_finite)
    write_parquet(folder / MODELS_FILE, [models], models.schema)
    table = _checkpoints_table(rows, shard_id)
    write_parquet(folder / CHECKPOINTS_FILE, [table], table.schema)
    names = [WEIGHTS_FILE, *([OPTIMIZER_FILE] if OPTIMIZER_FILE in datasets else []), MODELS_FILE, CHECKPOINTS_FILE]
    info = ShardInfo(
        shard_id=shard_id,
        cohort_id=cohort.cohort_id,
        layout_id=layout.layout_id,
        first=segment.first,
        last=segment.last,
        epochs=rows.epochs(),
        models=len(cohort.jobs),
        states=len(rows),
        parameters=layout.parameters,
        diverged=len(diverged),
        files={name: FileInfo((folder / name).stat().st_size, sha256(folder / name)) for name in names},
        datasets=datasets,
        software=software(),
    )
    write_file(folder / SHARD_FILE, info.to_bytes())
    return info


def _publish(temporary: Path, final: Path, info: ShardInfo) -> ShardInfo:
    try:
        os.rename(temporary, final)  # noqa: PTH104 - the step everything else leads to; fails when the shard is there
    except OSError:
        if not (final / SHARD_FILE).exists():
            raise
        damage = problems_of(final)
        if damage:
            listed = "; ".join(f"{file}: {problem}" for file, problem in damage)
            raise IntegrityError(f"shard {final} is damaged ({listed}); move it aside and build again") from None
        stored = read_shard_info(final)
        if stored.digest != info.digest:
            log.warning("shard %s was computed again with other bytes; the stored one is kept", final.name)
        return stored
    sync(final.parent)
    return info


def _weights(rows: Rows, layout: Layout) -> dict[str, Stack]:
    """As they are, or, for sparse twins, so that they compress."""
    if all(c.kept is None for c in rows.checkpoints):
        return {"weights": rows.stack(lambda c: c.weights, "float32", layout.parameters)}
    moved = rows.stack(lambda c: moved_left(c.weights), "float32", layout.parameters, deflate=True)
    bits = rows.stack(lambda c: places(c.weights), "uint8", -(-layout.parameters // 8), deflate=True)
    return {VALUES: moved, PLACES: bits}


def _entry(part: str, name: str) -> Callable[[Checkpoint], np.ndarray | None]:
    return lambda checkpoint: getattr(checkpoint, part).get(name)


def _packed(checkpoint: Checkpoint) -> np.ndarray | None:
    """The mask as bits, the first weight's the highest of the first byte: uint8 [rows, ceil(W / 8)]."""
    return None if checkpoint.kept is None else np.packbits(checkpoint.kept, axis=1)


def _optimizer_stacks(rows: Rows) -> dict[str, Stack]:
    stacks = {}
    for name, first in rows.checkpoints[0].optimizer.items():
        checked_name("optimizer state", name)
        stacks[name] = rows.stack(_entry("optimizer", name), first.dtype.name, first.shape[1])
    if any(set(c.optimizer) != set(stacks) for c in rows.checkpoints):
        raise ValueError("checkpoints of one shard keep different optimizer states")
    return stacks


def _describe(stacks: Mapping[str, Stack], states: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {name: (stack.dtype, (states, *stack.row_shape)) for name, stack in stacks.items()}


def _models_table(cohort: Cohort, diverged: Mapping[str, int], last_finite: Mapping[str, int]) -> pa.Table:
    ids = list(cohort.model_ids)
    return pa.table(
        {
            "model_id": pa.array(ids, pa.string()),
            "status": pa.array(["diverged" if m in diverged else "trained" for m in ids], pa.string()),
            "diverged_epoch": pa.array([diverged.get(m) for m in ids], pa.int32()),
            "last_finite_epoch": pa.array([last_finite[m] if m in diverged else None for m in ids], pa.int32()),
        }
    )


def _checkpoints_table(rows: Rows, shard_id: str) -> pa.Table:
    columns = {
        "model_id": pa.array(rows.model_ids(), pa.string()),
        "epoch": pa.array(rows.epoch_column(), pa.int32()),
        "shard_id": pa.array([shard_id] * len(rows), pa.string()),
        "row": pa.array(range(len(rows)), pa.int32()),
    }
    for name in dict.fromkeys(name for c in rows.checkpoints for name in c.metrics):
        values = rows.column(name)
        if values.ndim == 1:
            columns[name] = pa.array(values, pa.float64())
        else:
            columns[name] = pa.array(list(values), pa.list_(pa.float64()))
    return pa.table(columns)

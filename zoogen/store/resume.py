"""The state to continue a cohort from when its work folder is gone: out of its sealed shards."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

import numpy as np

from zoogen.core.layout import Layout
from zoogen.core.records import Cohort, CohortState, Segment
from zoogen.store.check import read_shard_models
from zoogen.store.read import ShardReader
from zoogen.store.shard import shards_folder
from zoogen.store.shard_info import DISK_DTYPES, SHARD_FILE


def is_sealed(zoo: Path, shard_id: str) -> bool:
    """Whether the shard has its name, and so is complete."""
    return (shards_folder(zoo) / shard_id / SHARD_FILE).is_file()


def sealed_run(zoo: Path, cohort: Cohort) -> list[Segment]:
    """The cohort's segments before the first that is not sealed; later ones may be sealed all the same.

    An earlier shard may have been damaged and moved aside.
    """
    return list(takewhile(lambda segment: is_sealed(zoo, segment.shard_id), cohort.segments))


def read_state(zoo: Path, shard_id: str, cohort: Cohort, layout: Layout, *, stateless: bool) -> CohortState | None:
    """The cohort's state at the end of a sealed segment, as far as it was kept.

    Args:
        zoo: The zoo's folder.
        shard_id: A sealed segment of ``cohort``, and every segment before it is sealed too.
        cohort: Whose state.
        layout: Of its models.
        stateless: The optimizer keeps nothing between steps, so that weights are enough.

    Returns:
        None where the weights of that epoch, or an optimizer state that is needed, were not kept.

    Raises:
        IntegrityError: the shard is damaged.
    """
    segments = cohort.segments[: [s.shard_id for s in cohort.segments].index(shard_id) + 1]
    with ShardReader(shards_folder(zoo) / shard_id) as shard:
        status = {row["model_id"]: row for row in read_shard_models(shard.folder, shard.info).to_pylist()}
        diverged = {m: row["diverged_epoch"] for m, row in status.items() if row["diverged_epoch"] is not None}
        last_finite = {m: status[m]["last_finite_epoch"] for m in diverged}
        living = [m for m in cohort.model_ids if m not in diverged]
        epoch = segments[-1].last
        optimizer = {} if stateless or not living else shard.optimizer(living, epoch)
        if optimizer is None:
            return None
    weights = np.zeros((len(cohort.jobs), layout.parameters), np.float32)
    side = {
        d: np.zeros((len(cohort.jobs), layout.row_size(d)), np.bool_ if d == "bool" else DISK_DTYPES[d])
        for d in layout.side_dtypes
    }
    wanted = {(m, last_finite.get(m, epoch)): row for row, m in enumerate(cohort.model_ids)}
    copied = sum(_copy_rows(shards_folder(zoo) / s.shard_id, wanted, weights, side) for s in segments)
    if copied < len(wanted):
        return None
    rows = [row for row, m in enumerate(cohort.model_ids) if m not in diverged]
    spread = {name: _spread(values, rows, len(cohort.jobs)) for name, values in optimizer.items()}
    return CohortState(epoch, cohort.model_ids, weights, side, spread, diverged, last_finite)


def _copy_rows(
    folder: Path, wanted: Mapping[tuple[str, int], int], weights: np.ndarray, side: Mapping[str, np.ndarray]
) -> int:
    """Fill in the rows that this shard has of ``wanted``; returns how many."""
    with ShardReader(folder) as shard:
        keys = zip(shard.model_ids(), shard.epochs().tolist(), strict=True)
        found = [(place, wanted[key]) for place, key in enumerate(keys) if key in wanted]
        if found:
            places, rows = map(list, zip(*found, strict=True))
            weights[rows] = shard.weights(places)
            for dtype, values in side.items():
                values[rows] = shard.side(dtype, places)
        return len(found)


def _spread(values: np.ndarray, rows: list[int], models: int) -> np.ndarray:
    """Values of the living models among zeros for the others, which stand still."""
    full = np.zeros((models, *values.shape[1:]), values.dtype)
    full[rows] = values
    return full

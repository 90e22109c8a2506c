"""``cohorts.parquet``: which models are trained together, and which epochs each shard holds; fixed by the plan.

Together with ``plan.parquet`` it is what ``verify`` holds the shards against. Write it before the plan that refers to
it: a cohort that no planned model names yet does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from zoogen.core.errors import IntegrityError
from zoogen.core.records import Segment
from zoogen.store.durable import checked_name
from zoogen.store.tables import read_parquet, replace_parquet


@dataclass(frozen=True)
class CohortRecord:
    """A planned cohort as it is stored.

    Attributes:
        cohort_id: Content-derived.
        layout_id: Layout of its shards, described in ``zoo.json``.
        model_ids: In the order of the shards' rows.
        epochs: Length of the training.
        checkpoint_epochs: Epochs of every planned checkpoint, ascending.
        segments: Its shards. A (model, epoch) belongs to one segment of one record.
        settings: JSON-able rest: what is kept, resources, pinned choices; not interpreted here.
    """

    cohort_id: str
    layout_id: str
    model_ids: tuple[str, ...]
    epochs: int
    checkpoint_epochs: tuple[int, ...]
    segments: tuple[Segment, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def epochs_of(self, segment: Segment) -> tuple[int, ...]:
        """The checkpoint epochs that lie in a segment."""
        return tuple(e for e in self.checkpoint_epochs if segment.first <= e <= segment.last)


_COLUMNS: dict[str, pa.DataType] = {
    "cohort_id": pa.string(),
    "layout_id": pa.string(),
    "model_ids": pa.list_(pa.string()),
    "epochs": pa.int32(),
    "checkpoint_epochs": pa.list_(pa.int32()),
    "shard_ids": pa.list_(pa.string()),
    "first_epochs": pa.list_(pa.int32()),
    "last_epochs": pa.list_(pa.int32()),
    "settings": pa.string(),
}


def write_cohorts(path: Path, records: Sequence[CohortRecord]) -> None:
    """Replace the table in one step.

    Raises:
        EnvironmentFault: the disk is full or may not be written.
    """
    columns = {
        "cohort_id": [r.cohort_id for r in records],
        "layout_id": [r.layout_id for r in records],
        "model_ids": [r.model_ids for r in records],
        "epochs": [r.epochs for r in records],
        "checkpoint_epochs": [r.checkpoint_epochs for r in records],
        "shard_ids": [[s.shard_id for s in r.segments] for r in records],
        "first_epochs": [[s.first for s in r.segments] for r in records],
        "last_epochs": [[s.last for s in r.segments] for r in records],
        "settings": [json.dumps(r.settings, sort_keys=True) for r in records],
    }
    schema = pa.schema(_COLUMNS)
    replace_parquet(path, [pa.table(columns, schema=schema)], schema)


def read_cohorts(path: Path) -> list[CohortRecord]:
    """Every planned cohort in stored order; an empty list before the first plan.

    Raises:
        IntegrityError: the file is damaged or of an unknown format.
    """
    if not path.exists():
        return []
    table = read_parquet(path, _COLUMNS)
    records = []
    for row in zip(*(table[name].to_pylist() for name in _COLUMNS), strict=True):
        cohort_id, layout_id, models, epochs, checkpoints, shards, firsts, lasts, settings = row
        try:
            checked_name("cohort", cohort_id)
            segments = tuple(
                Segment(checked_name("shard", shard), first, last)
                for shard, first, last in zip(shards, firsts, lasts, strict=True)
            )
            told = json.loads(settings)
            if not isinstance(told, dict):
                raise ValueError("its settings are no mapping")
            known = CohortRecord(cohort_id, layout_id, tuple(models), epochs, tuple(checkpoints), segments, told)
        except (TypeError, ValueError, RecursionError) as error:
            raise IntegrityError(f"{path}: the row of cohort {cohort_id!r} is damaged ({error})") from error
        records.append(known)
    return records

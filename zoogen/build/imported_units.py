"""One unit of an import: models that are read, checked and sealed together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import IntegrityError
from zoogen.core.layout import Layout
from zoogen.core.records import Checkpoint, Cohort, CohortState, Job, Recording, Segment
from zoogen.importers.records.plausible import plausible
from zoogen.importers.records.settings import plain
from zoogen.importers.source import Skipped, Source, SourceModel, State, Unusable
from zoogen.importers.tensors.views import row_of
from zoogen.store.cohorts import CohortRecord
from zoogen.store.durable import checked_name, disk_faults, read_json, write_file
from zoogen.store.shard import seal_shard
from zoogen.store.shard_info import DISK_DTYPES
from zoogen.twins.measures import layer_sparsities

MODELS = 64
BYTES = 256 << 20
"""At most this many models, and about this many bytes of checkpoints, are in memory at once (or one checkpoint)."""

_MOST_OUTCOME = 1 << 26  # bytes
_NOT_FINITE = "holds NaN or infinite numbers"
_NO_STATE = "has results that are of no stored state"


@dataclass(frozen=True)
class Unit:
    """Some epochs of models that share layout and epochs."""

    models: tuple[SourceModel, ...]
    epochs: tuple[int, ...]
    unit_id: str


@dataclass(frozen=True)
class Past:
    """What earlier units hold of models whose later epochs come in this one.

    Attributes:
        diverged: model_id -> epoch of divergence.
        last: model_id -> last stored epoch.
    """

    diverged: Mapping[str, int]
    last: Mapping[str, int]


@dataclass(frozen=True)
class Outcome:
    """What came of a unit: its cohorts; what was left out; models that diverged, and in which epoch."""

    records: tuple[CohortRecord, ...]
    skipped: tuple[Skipped, ...]
    diverged: Mapping[str, int]

    def to_bytes(self) -> bytes:
        records = [
            [r.cohort_id, r.layout_id, list(r.model_ids), list(r.checkpoint_epochs), r.segments[0].shard_id]
            for r in self.records
        ]
        skipped = [[s.key, s.epoch, s.reason] for s in self.skipped]
        return json.dumps({"records": records, "skipped": skipped, "diverged": dict(self.diverged)}).encode()


def read_outcome(path: Path) -> Outcome | None:
    """What ``to_bytes`` wrote, or None: the unit is still to be read (then its shards are found to be there).

    The folder may be another's: its ids become parts of paths.
    """
    try:
        told = read_json(path, at_most=_MOST_OUTCOME)
        records = tuple(_told_record(*parts) for parts in told["records"])
        skipped = tuple(Skipped(*parts) for parts in told["skipped"])
        diverged = dict(told["diverged"])
    except (OSError, IntegrityError, ValueError, TypeError, KeyError):
        return None
    plain = all(type(s.key) is type(s.reason) is str and type(s.epoch) in (int, type(None)) for s in skipped)
    return Outcome(records, skipped, diverged) if plain and _are(int, diverged.values()) else None


def _told_record(
    cohort_id: str, layout_id: str, model_ids: list[str], epochs: list[int], shard_id: str
) -> CohortRecord:
    if not epochs or not _are(int, epochs) or not _are(str, model_ids):
        raise TypeError("models or epochs are of another type")
    names = {"cohort": cohort_id, "layout": layout_id, "shard": shard_id}
    cohort_id, layout_id, shard_id = (checked_name(kind, name) for kind, name in names.items())
    return _record(cohort_id, layout_id, tuple(model_ids), tuple(epochs), shard_id)


def _are(kind: type, values: Iterable[Any]) -> bool:
    return all(type(value) is kind for value in values)


@dataclass
class _Row:
    """A checkpoint as rows of a shard."""

    weights: np.ndarray
    side: Mapping[str, np.ndarray]
    kept: np.ndarray | None


@dataclass
class _Found:
    """What was read of one model."""

    model: SourceModel
    model_id: str
    rows: dict[int, _Row] = field(default_factory=dict)
    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    last: int | None = None  # last finite epoch
    diverged: int | None = None
    skipped: list[Skipped] = field(default_factory=list)
    unstored: list[Mapping[str, float]] = field(default_factory=list)  # measured where no state is stored


def units_of(models: Sequence[SourceModel]) -> list[Unit]:
    """Models that share layout and epochs, at most 64 of them and 256 MB of checkpoints each."""
    groups: dict[Any, list[SourceModel]] = {}
    for model in models:
        epochs = tuple(s.epoch for s in model.checkpoints)
        groups.setdefault((model.layout.layout_id, model.sparse, epochs), []).append(model)
    units = []
    for (_, _, epochs), alike in groups.items():
        largest = max(max(s.size, 1) for m in alike for s in m.checkpoints)
        height = max(1, min(MODELS, BYTES // largest))
        length = max(1, BYTES // (largest * min(height, len(alike))))
        for first in range(0, len(alike), height):
            part = tuple(alike[first : first + height])
            for start in range(0, len(epochs), length):
                own = epochs[start : start + length]
                listed = [[m.key, [[s.file, s.epoch] for s in m.checkpoints if s.epoch in own]] for m in part]
                units.append(Unit(part, own, digest(canonical_json(listed))))
    return units


def seal_unit(
    unit: Unit,
    source: Source,
    ids: Mapping[str, str],
    past: Past,
    zoo: Path,
    token: str,
    publish: Callable[[Sequence[CohortRecord]], None],
) -> Outcome:
    """Read a unit and seal its shards; models that lack different checkpoints come into different ones.

    Args:
        unit, source, ids: What to read, and the model id of every key.
        past: Of units before this one.
        zoo, token: Where to.
        publish: Is given the cohorts before their shards appear.
    """
    found = [_read(source, m, ids[m.key], unit.epochs, past) for m in unit.models]
    groups: dict[Any, list[_Found]] = {}
    for one in found:
        # A model that diverged between two units has no rows here, and its end is told here.
        if one.rows or one.diverged is not None:
            end = unit.epochs[-1] if one.diverged is None else one.diverged - 1
            gaps = tuple(e for e in unit.epochs if e <= end and e not in one.rows)
            groups.setdefault(gaps, []).append(one)
    parts = []
    for gaps, alike in groups.items():
        epochs = tuple(e for e in unit.epochs if e not in gaps)
        layout = alike[0].model.layout
        members = tuple(f.model_id for f in alike)
        cohort_id = digest(canonical_json([unit.unit_id, layout.layout_id, members, epochs]))
        record = _record(cohort_id, layout.layout_id, members, epochs, digest(f"shard {cohort_id}".encode()))
        parts.append((record, layout, alike))
    _write_unstored(zoo, unit, found)
    publish([record for record, _, _ in parts])
    for record, layout, alike in parts:
        _seal(record, layout, alike, zoo, token)
    return Outcome(
        tuple(record for record, _, _ in parts),
        tuple(s for f in found for s in f.skipped),
        {f.model_id: f.diverged for f in found if f.diverged is not None},
    )


def _write_unstored(zoo: Path, unit: Unit, found: Sequence[_Found]) -> None:
    """What was measured at epochs that have no state here, or that are not known: it has no row in any table."""
    lines = [
        {"model_id": one.model_id, "key": one.model.key, **{name: plain(value) for name, value in told.items()}}
        for one in found
        for told in one.unstored
    ]
    if lines:
        place = zoo / "logs" / "results" / f"{unit.unit_id}.jsonl"
        with disk_faults(str(zoo), zoo, 1 << 16):
            place.parent.mkdir(parents=True, exist_ok=True)
        write_file(place, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _record(
    cohort_id: str, layout_id: str, model_ids: tuple[str, ...], epochs: tuple[int, ...], shard_id: str
) -> CohortRecord:
    segment = Segment(shard_id, epochs[0], epochs[-1])
    return CohortRecord(cohort_id, layout_id, model_ids, epochs[-1], epochs, (segment,), {"imported": True})


def _read(source: Source, model: SourceModel, model_id: str, epochs: Sequence[int], past: Past) -> _Found:
    found = _Found(model, model_id)
    dead, last = past.diverged.get(model_id), past.last.get(model_id)
    infinite: list[int] = []
    for stored in model.checkpoints:
        if stored.epoch not in epochs:
            continue
        try:
            if dead is not None:
                raise Unusable(f"comes after epoch {dead}, in which the model diverged")
            row = _row(model.layout, source.state(model, stored))
        except Unusable as error:
            found.skipped.append(Skipped(model.key, stored.epoch, str(error)))
            continue
        if row is None:
            infinite.append(stored.epoch)
            found.skipped.append(Skipped(model.key, stored.epoch, _NOT_FINITE))
        else:
            found.rows[stored.epoch] = row
    # Numbers that are not finite and stay so are a divergence; between finite ones they are damage.
    tail = [e for e in infinite if e > max(found.rows, default=-1)]
    found.last = max(found.rows, default=last)
    if tail and found.last is not None:
        found.diverged = tail[0]
    first = epochs[0] == model.checkpoints[0].epoch
    measured = plausible(source.measured(model))
    found.metrics = measured.by_epoch
    listed = {s.epoch for s in model.checkpoints}
    for epoch, told in measured.by_epoch.items():
        if (epoch in epochs and epoch not in found.rows) or (first and epoch not in listed):
            found.unstored.append({"epoch": epoch, **told})
    if first:
        found.unstored += measured.others
        found.skipped += [Skipped(model.key, None, note) for note in measured.notes]
    if found.unstored:
        found.skipped.append(Skipped(model.key, None, f"{_NO_STATE} ({len(found.unstored):,}, kept in logs/results/)"))
    return found


def _row(layout: Layout, state: State) -> _Row | None:
    """The rows of a state; None where a number is not finite.

    Raises:
        Unusable: a tensor is of a dtype that is not stored.
    """
    import torch

    for dtype in layout.side_dtypes:
        if dtype not in DISK_DTYPES:
            name = next(e.name for e in layout.entries if e.dtype == dtype)
            raise Unusable(f"holds {name}, which is {dtype}; such tensors are not stored")
    weights = row_of(layout, state.tensors)
    if not np.isfinite(weights).all():
        return None
    side = {}
    for dtype in layout.side_dtypes:
        flat = layout.flatten(state.tensors, dtype)
        if flat.is_floating_point() and not torch.isfinite(flat.double()).all():
            return None
        kind = DISK_DTYPES[dtype]
        # Types that NumPy does not have are stored as integers of the same bits.
        bits = flat.view(getattr(torch, kind.name)) if kind.name != dtype and dtype != "bool" else flat
        side[dtype] = bits.numpy().copy()
    kept = None
    if state.kept is not None:
        masks = [state.kept.get(e.name, torch.ones(e.shape, dtype=torch.bool)).reshape(-1) for e in layout.prunable]
        kept = torch.cat(masks).numpy() if masks else np.zeros(0, bool)
    return _Row(weights, side, kept)


def _seal(record: CohortRecord, layout: Layout, found: Sequence[_Found], zoo: Path, token: str) -> None:
    diverged = {f.model_id: f.diverged for f in found if f.diverged is not None}
    # The last finite state lies in an earlier unit where this one has no row of the model.
    last = {f.model_id: cast(int, f.last) for f in found if f.diverged is not None}
    # The store asks of a job no more than its id: nothing here is trained.
    jobs = tuple(Job(f.model_id, None, None, cast(Any, None), cast(Any, None)) for f in found)
    recording = Recording(record.checkpoint_epochs, optimizer="none")
    cohort = Cohort(record.cohort_id, jobs, record.epochs, recording, record.segments, record.layout_id)
    state = CohortState(record.epochs, record.model_ids, np.empty((len(found), 0), np.float32), {}, {}, diverged, last)
    checkpoints = [c for e in record.checkpoint_epochs if (c := _checkpoint(e, layout, found)) is not None]
    shard_id = record.segments[0].shard_id
    seal_shard(zoo, shard_id, cohort, layout, checkpoints, state=state, token=token)


def _checkpoint(epoch: int, layout: Layout, found: Sequence[_Found]) -> Checkpoint | None:
    there = [f for f in found if epoch in f.rows]
    if not there:
        return None
    rows = [f.rows[epoch] for f in there]
    told = [f.metrics.get(epoch, {}) for f in there]
    names = dict.fromkeys(name for metrics in told for name in metrics)
    metrics = {n: np.array([m.get(n, np.nan) for m in told], np.float64) for n in names}
    kept = None
    if rows[0].kept is not None:
        kept = np.stack([cast(np.ndarray, r.kept) for r in rows])
        if kept.shape[1]:
            metrics["sparsity"] = (~kept).mean(axis=1)
            metrics["layer_sparsity"] = layer_sparsities(kept, layout)
    return Checkpoint(
        epoch=epoch,
        model_ids=tuple(f.model_id for f in there),
        weights=np.stack([r.weights for r in rows]),
        side={dtype: np.stack([r.side[dtype] for r in rows]) for dtype in layout.side_dtypes},
        metrics=metrics,
        kept=kept,
    )

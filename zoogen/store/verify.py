"""Proof from files alone: every planned checkpoint is stored exactly once, every byte is the one that was sealed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.records import Segment
from zoogen.core.words import counted
from zoogen.store.check import problems_of, read_shard_checkpoints, read_shard_models
from zoogen.store.cohorts import CohortRecord
from zoogen.store.derive import DerivedTables, in_groups, planned_shards
from zoogen.store.shard import shards_folder
from zoogen.store.shard_info import WEIGHTS_FILE, ShardInfo, read_shard_info
from zoogen.store.tables import opened_parquet, read_parquet, read_schema
from zoogen.store.zoo import (
    CHECKPOINTS_TABLE,
    COHORTS_FILE,
    MANIFEST_FILE,
    MODELS_TABLE,
    PLAN_FILE,
    ZooFolder,
    layout_of,
)


@dataclass(frozen=True)
class Damage:
    """Something on disk that is not what was stored. ``file`` is relative to the zoo."""

    file: str
    problem: str
    shard_id: str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


@dataclass(frozen=True)
class Missing:
    """Planned checkpoints that are not stored: a shard that is not there, or rows that it lacks."""

    shard_id: str
    cohort_id: str
    models: int
    epochs: tuple[int, ...]

    def __str__(self) -> str:
        first, last = self.epochs[0], self.epochs[-1]
        models = counted(self.models, "model")
        return f"shard {self.shard_id} (cohort {self.cohort_id}): {models}, epochs {first} to {last}"


@dataclass
class Report:
    """What ``verify`` found.

    Attributes:
        damaged: Broken, strange or contradicting files.
        missing: Planned checkpoints of scheduled models that are not stored.
        stale: Derived tables that do not agree with the shards; ``rebuild_tables`` makes them anew.
        counts: planned, scheduled, models (with rows), diverged, shards, states, bytes.
    """

    damaged: list[Damage] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every scheduled model is stored whole, once and undamaged, and the tables say so."""
        return not (self.damaged or self.missing or self.stale)

    def damaged_shards(self) -> list[str]:
        """Ids to hand to ``ZooFolder.remove_damaged``."""
        return sorted({d.shard_id for d in self.damaged if d.shard_id is not None})


def verify(path: Path, deep: bool = True) -> Report:
    """Check a zoo against its plan and its digests; nothing is written and no code of the zoo runs.

    Args:
        path: The zoo's folder.
        deep: Read every byte. Without it sizes, structure and completeness are checked, but no digest.

    Raises:
        UserError: there is no zoo.
    """
    folder = ZooFolder(path)
    report = Report()
    try:
        manifest = folder.manifest()
    except IntegrityError as error:
        report.damaged.append(Damage(MANIFEST_FILE, str(error)))
        manifest = {}
    plan, records = _plan(folder, report)
    if plan is None:
        return report
    sealed = _shards(folder, manifest, records, deep, report)
    places = _Places(plan, records, sealed, shards_folder(folder.path), report)
    places.compare()
    _derived(folder, plan, records, sealed, report)
    report.counts = {
        "planned": plan.num_rows,
        "scheduled": len({m for r in records for m in r.model_ids}),
        "models": places.stored_models,
        "diverged": len(places.last_finite),
        "shards": len(sealed),
        "states": sum(i.states for i in sealed.values()),
        "bytes": sum(f.size for i in sealed.values() for f in i.files.values()),
    }
    return report


def _plan(folder: ZooFolder, report: Report) -> tuple[pa.Table | None, list[CohortRecord]]:
    try:
        plan = folder.plan_table()
    except (UserError, IntegrityError) as error:
        if isinstance(error, UserError) and not folder.shard_folders():
            report.stale.append(f"{PLAN_FILE}: not written yet")  # a first build was killed before
        else:
            report.damaged.append(Damage(PLAN_FILE, str(error)))
        return None, []
    try:
        records = folder.read_cohorts()
    except IntegrityError as error:
        report.damaged.append(Damage(COHORTS_FILE, str(error)))
        return None, []
    # A build killed between writing the cohorts and the plan leaves cohorts of models that are not planned yet.
    ids = set(plan["model_id"].to_pylist())
    known = [r for r in records if ids.issuperset(r.model_ids)]
    report.damaged += [
        Damage(COHORTS_FILE, f"cohort {r.cohort_id} mixes planned models with others")
        for r in records
        if not ids.issuperset(r.model_ids) and not ids.isdisjoint(r.model_ids)
    ]
    if "cohort_id" in plan.column_names:
        members = {(m, r.cohort_id) for r in known for m in r.model_ids}
        named = zip(plan["model_id"].to_pylist(), plan["cohort_id"].to_pylist(), strict=True)
        lost = [f"{m} of cohort {c}" for m, c in named if c is not None and (m, c) not in members]
        if lost:
            problem = f"{len(lost)} models are in no cohort record, among them {lost[0]}"
            report.damaged.append(Damage(PLAN_FILE, problem))
    return plan, known


def _shards(
    folder: ZooFolder, manifest: Mapping[str, Any], records: Sequence[CohortRecord], deep: bool, report: Report
) -> dict[str, ShardInfo]:
    """Intact, planned shards; the rest goes into the report."""
    planned = {s.shard_id: (r, s) for r in records for s in r.segments}
    sealed = {}
    for place in folder.shard_folders():
        problems = problems_of(place, deep=deep)
        if not problems:
            info = read_shard_info(place)
            if place.name not in planned:
                problems = [("", "is not in the plan")]
            else:
                problems = list(_against_plan(folder, manifest, place, info, *planned[place.name]))
            if not problems:
                sealed[place.name] = info
        for file, problem in problems:
            name = "/".join(filter(None, ("shards", place.name, file)))
            report.damaged.append(Damage(name, problem, place.name))
    return sealed


def _against_plan(
    folder: ZooFolder, manifest: Mapping[str, Any], place: Path, info: ShardInfo, record: CohortRecord, segment: Segment
) -> Iterator[tuple[str, str]]:
    told = (info.cohort_id, info.layout_id, info.first, info.last)
    if told != (record.cohort_id, record.layout_id, segment.first, segment.last):
        yield "shard.json", "its cohort, layout or epochs are not those of the plan"
    try:
        models = read_shard_models(place, info)["model_id"].to_pylist()
        if tuple(models) != record.model_ids:
            yield "models.parquet", "its models are not those of the plan"
    except IntegrityError as error:
        yield "models.parquet", str(error)
    if manifest:
        try:
            layout = layout_of(manifest, info.layout_id, folder.path)
        except IntegrityError as error:
            yield "shard.json", str(error)
            return
        side = {n.removeprefix("side/") for n in info.datasets[WEIGHTS_FILE] if n.startswith("side/")}
        if info.parameters != layout.parameters or side != set(layout.side_dtypes):
            yield WEIGHTS_FILE, "its tensors are not those of its layout"


class _Places:
    """Planned and stored (model, epoch), as sorted integers, so that millions are compared in seconds."""

    def __init__(
        self,
        plan: pa.Table,
        records: Sequence[CohortRecord],
        sealed: Mapping[str, ShardInfo],
        shards: Path,
        report: Report,
    ) -> None:
        self._ids = plan["model_id"].combine_chunks()
        self._records = records
        self._report = report
        self.last_finite: dict[int, int] = {}
        self._stored = self._read(sealed, shards)
        self.stored_models = len(np.unique(self._stored >> 32))

    def compare(self) -> None:
        """Put what is missing, stored twice or never planned into the report."""
        keys, counts = np.unique(self._stored, return_counts=True)
        if (counts > 1).any():
            self._damage("stored more than once", keys[counts > 1])
        broken = set(self._report.damaged_shards())
        ends = np.array([_key(m, e) for m, e in self.last_finite.items()], np.int64)
        parts = [
            (record, segment, self._keys(record.model_ids, record.epochs_of(segment)))
            for record in self._records
            for segment in record.segments
        ]
        planned, times = np.unique(np.concatenate([ends[:0], *(needed for _, _, needed in parts)]), return_counts=True)
        if (times > 1).any():
            self._damage("planned in two shards", planned[times > 1], COHORTS_FILE)
        strange = keys[~(_within(keys, planned) | _within(keys, np.sort(ends)))]
        if len(strange):
            self._damage("stored but not planned", strange)
        lost = ends[~_within(ends, keys)]
        if len(lost) and not broken:
            self._damage("the last finite state of a diverged model, not stored", lost)
        for record, segment, needed in parts:
            if segment.shard_id not in broken:
                self._missing(record, segment, needed[~_within(needed, keys)])

    def _read(self, sealed: Mapping[str, ShardInfo], shards: Path) -> np.ndarray:
        found = [np.empty(0, np.int64)]
        for shard_id, info in sealed.items():
            table = read_shard_checkpoints(shards / shard_id, info)
            ends = read_shard_models(shards / shard_id, info)
            ends = ends.filter(pc.is_valid(ends["diverged_epoch"]))
            found.append(_key(self._index(table["model_id"]), table["epoch"].to_numpy().astype(np.int64)))
            self.last_finite |= dict(
                zip(self._index(ends["model_id"]).tolist(), ends["last_finite_epoch"].to_pylist(), strict=True)
            )
        return np.concatenate(found)

    def _index(self, ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
        return pc.index_in(ids, self._ids).to_numpy(zero_copy_only=False).astype(np.int64)

    def _keys(self, model_ids: Sequence[str], epochs: Sequence[int]) -> np.ndarray:
        """Of these models at these epochs, without what lies behind a divergence."""
        models = self._index(pa.array(model_ids, pa.string()))
        ends = np.array([self.last_finite.get(m, 1 << 31) for m in models.tolist()], np.int64)
        epochs_T = np.array(epochs, np.int64)
        return _key(models[:, None], epochs_T)[epochs_T <= ends[:, None]]

    def _missing(self, record: CohortRecord, segment: Segment, keys: np.ndarray) -> None:
        if len(keys):
            epochs = tuple(np.unique(keys & 0xFFFFFFFF).tolist())
            models = len(np.unique(keys >> 32))
            self._report.missing.append(Missing(segment.shard_id, record.cohort_id, models, epochs))

    def _damage(self, what: str, keys: np.ndarray, file: str = "shards") -> None:
        model = self._ids[int(keys[0] >> 32)].as_py()
        example = f"model {model} at epoch {int(keys[0] & 0xFFFFFFFF)}"
        self._report.damaged.append(Damage(file, f"{len(keys)} checkpoints are {what}, among them {example}"))


def _within(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of ``keys`` are in ``known``, which is sorted; np.isin would sort it anew for every shard."""
    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def _key(model: Any, epoch: Any) -> Any:
    return model << 32 | epoch


def _derived(
    folder: ZooFolder,
    plan: pa.Table,
    records: Sequence[CohortRecord],
    sealed: Mapping[str, ShardInfo],
    report: Report,
) -> None:
    if report.damaged:
        return  # the tables may be right about a shard that is not
    models, checkpoints = folder.path / MODELS_TABLE, folder.path / CHECKPOINTS_TABLE
    absent = [path.name for path in (checkpoints, models) if not path.is_file()]
    if absent:
        report.stale += absent
        return
    try:
        told = read_parquet(models, {"model_id": pa.string(), "reason": pa.string()}, nullable=("reason",))
        reasons = zip(told["model_id"].to_pylist(), told["reason"].to_pylist(), strict=True)
        failures = {m: r for m, r in reasons if r is not None}
        derived = DerivedTables(plan, records, planned_shards(records, sealed, shards_folder(folder.path)), failures)
        schema = derived.checkpoints_schema()
        if not _same_stream(derived.checkpoints(schema), checkpoints, schema):
            report.stale.append(CHECKPOINTS_TABLE)
        elif not same_table(derived.models(schema), told):
            report.stale.append(MODELS_TABLE)
    except IntegrityError as error:
        report.stale.append(str(error))


def _same_stream(tables: Iterator[pa.Table], path: Path, schema: pa.Schema) -> bool:
    found, _ = read_schema(path)
    if not found.equals(schema):
        for _ in tables:
            pass
        return False
    same = True
    with opened_parquet(path) as file:
        groups = iter(range(file.num_row_groups))
        for expected in in_groups(tables):
            group = next(groups, None)
            same &= group is not None and same_table(expected, file.read_row_group(group))
        return same and next(groups, None) is None


def same_table(one: pa.Table, other: pa.Table) -> bool:
    """Equal schema and values; NaN equals NaN."""
    if not one.schema.equals(other.schema) or one.num_rows != other.num_rows:
        return False
    pairs = zip(one.combine_chunks().columns, other.combine_chunks().columns, strict=True)
    return all(_same_column(a, b) for a, b in pairs)


def _same_column(a: pa.ChunkedArray, b: pa.ChunkedArray) -> bool:
    if pa.types.is_list(a.type):
        return pc.list_value_length(a).equals(pc.list_value_length(b)) and _same_column(
            pc.list_flatten(a), pc.list_flatten(b)
        )
    if pa.types.is_dictionary(a.type):
        return a.cast(a.type.value_type).equals(b.cast(b.type.value_type))
    if pa.types.is_floating(a.type):
        blank = pc.is_null(a).equals(pc.is_null(b))
        return blank and np.array_equal(a.to_numpy(), b.to_numpy(), equal_nan=True)
    return a.equals(b)

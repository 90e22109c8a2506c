"""Holds a new plan against what a zoo already has: what is kept, what is extended, what is left to train.

A zoo may only grow: every stored model must be in the new plan, stored cohorts keep their shards, further epochs extend
them, further cells form new cohorts. Anything else is refused with a diff, before a file changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.core.errors import UserError
from zoogen.core.records import Cohort, Recording, Resources
from zoogen.plan import Plan
from zoogen.plan.cohorts import bytes_per_epoch, extend_cohort
from zoogen.store.cohorts import CohortRecord

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Reconciled:
    """Cohorts of the zoo after this plan, in stored order; a cell belongs to at most one *current* cohort.

    Attributes:
        cohorts: Every cohort, finished ones included. Trimmed parents of split cohorts come before their halves.
        current: Position in ``cohorts`` of each cell's cohort, -1 where it has none yet (int32 [cells]).
    """

    cohorts: tuple[Cohort, ...]
    current: np.ndarray

    def with_new(self, plan: Plan, selected: np.ndarray) -> Reconciled:
        """Put the selected cells (bool [cells]) that have no cohort yet into new cohorts."""
        new = plan.cohorts(np.flatnonzero(selected & (self.current < 0)))
        cells = cell_numbers(plan, [m for cohort in new for m in cohort.model_ids])
        current = self.current.copy()
        sizes = [len(cohort.jobs) for cohort in new]
        current[cells] = np.repeat(np.arange(len(new)) + len(self.cohorts), sizes)
        return Reconciled(self.cohorts + tuple(new), current)

    def pending(self, selected: np.ndarray, sealed: set[str]) -> list[Cohort]:
        """Cohorts with a selected cell and an unsealed segment, in order."""
        wanted = np.unique(self.current[selected & (self.current >= 0)]).tolist()
        return _unfinished((self.cohorts[number] for number in wanted), sealed)

    def unfinished(self, sealed: set[str]) -> list[Cohort]:
        """Cohorts with an unsealed segment, selected or not."""
        return _unfinished(self.cohorts, sealed)

    def cohort_ids(self) -> np.ndarray:
        """Each cell's cohort id, None where it has none (object [cells])."""
        names = np.array([*(c.cohort_id for c in self.cohorts), None], dtype=object)
        return names[self.current]


def _unfinished(cohorts: Iterable[Cohort], sealed: set[str]) -> list[Cohort]:
    return [cohort for cohort in cohorts if any(s.shard_id not in sealed for s in cohort.segments)]


def reconcile(plan: Plan, records: Sequence[CohortRecord], sealed: set[str], stored_plan: pd.DataFrame) -> Reconciled:
    """Carry the stored cohorts over to ``plan``.

    Raises:
        UserError: the plan contradicts what is stored; the message shows the difference.
    """
    known = {name.decode() for name in plan.ids.tolist()} if records else set()
    _refuse_missing(plan, records, sealed, known, stored_plan)
    cohorts: list[Cohort] = []
    current = np.full(len(plan), -1, dtype=np.int32)
    for record in records:
        stored = any(s.shard_id in sealed for s in record.segments)
        if not stored and not known.issuperset(record.model_ids):
            continue  # planned once, never trained, not wanted any more
        cells = cell_numbers(plan, record.model_ids)
        cohort = to_cohort(record, plan, cells)
        if not record.settings.get("trimmed"):
            try:
                cohort = _carried_over(cohort, plan, cells)
            except UserError:
                if stored:
                    raise
                continue  # nothing of it is stored: it is planned anew
        current[cells] = len(cohorts)
        cohorts.append(cohort)
    return Reconciled(tuple(cohorts), current)


def cell_numbers(plan: Plan, model_ids: Sequence[str]) -> np.ndarray:
    """Cell numbers of these models; all are in the plan."""
    order = plan.order
    wanted = np.array(model_ids, dtype="S32")
    return order[np.searchsorted(plan.ids, wanted, sorter=order)]


def _carried_over(cohort: Cohort, plan: Plan, cells: np.ndarray) -> Cohort:
    """The cohort under the new plan: resources as now written, further epochs appended."""
    number, _ = plan.place(int(cells[0]))
    group, layout = plan.groups[number], plan.layouts[number]
    kinds = {(plan.groups[plan.place(int(c))[0]].training.epochs) for c in cells}
    if len(kinds) > 1:
        raise UserError(
            f"models that were trained together would now get different numbers of epochs: {sorted(kinds)}\n"
            "give them one number of epochs, or build a new zoo (--out DIR)"
        )
    resources = replace(cohort.resources, cpus=group.resources.cpus, gpus=group.resources.gpus)
    wanted = replace(cohort, epochs=group.training.epochs, recording=group.recording)
    if wanted.epochs == cohort.epochs and wanted.recording == cohort.recording:
        return replace(cohort, resources=resources)
    extended = extend_cohort(cohort, wanted, bytes_per_epoch(group, layout, len(cells)))
    if _cannot_go_on(cohort, wanted, group.training) and not group.parents:  # twins are trained from the start again
        raise UserError(
            f"cannot train on from epoch {cohort.epochs}: the zoo kept no optimizer state of its models "
            f"(checkpoints.optimizer: none)\n"
            f"put training.epochs back to {cohort.epochs}, or build a new zoo (--out DIR)"
        )
    return replace(extended, resources=resources)


def _cannot_go_on(cohort: Cohort, wanted: Cohort, training: Any) -> bool:
    """Whether further epochs need an optimizer state that was not kept."""
    longer = wanted.epochs > cohort.epochs
    return longer and cohort.recording.optimizer == "none" and training.optimizer.state_tensors > 0


def to_cohort(record: CohortRecord, plan: Plan, cells: np.ndarray) -> Cohort:
    """A stored cohort with the jobs of the plan."""
    settings = record.settings
    recording = Recording(record.checkpoint_epochs, **settings["recording"])
    return Cohort(
        record.cohort_id,
        tuple(plan.job(int(cell)) for cell in cells),
        record.epochs,
        recording,
        record.segments,
        record.layout_id,
        Resources(**settings["resources"]),
        settings["stored_through"],
    )


def to_record(cohort: Cohort, *, trimmed: bool = False) -> CohortRecord:
    """A cohort as the zoo keeps it; ``trimmed`` marks the sealed part of a cohort that was split later."""
    recording = {k: v for k, v in asdict(cohort.recording).items() if k != "epochs"}
    settings = {
        "recording": recording,
        "resources": asdict(cohort.resources),
        "stored_through": cohort.stored_through,
        "trimmed": trimmed,
    }
    return CohortRecord(
        cohort.cohort_id,
        cohort.layout_id,
        cohort.model_ids,
        cohort.epochs,
        cohort.recording.epochs,
        cohort.segments,
        settings,
    )


def _refuse_missing(
    plan: Plan, records: Sequence[CohortRecord], sealed: set[str], known: set[str], stored_plan: pd.DataFrame
) -> None:
    """Every stored model must be in the new plan."""
    stored = {m for r in records if any(s.shard_id in sealed for s in r.segments) for m in r.model_ids}
    gone = stored - known
    if gone:
        raise UserError(
            f"this contradicts the zoo: {len(gone)} of {len(stored)} stored models are not in the new plan\n"
            + "\n".join(difference(stored_plan[stored_plan["model_id"].isin(gone)], plan.table))
            + "\nput blueprint or recipe back (a zoo may gain values, seeds and epochs, never lose or change them), "
            "or build a new zoo (--out DIR)"
        )


def difference(gone: pd.DataFrame, now: pd.DataFrame, *, most: int = 8) -> list[str]:
    """One line per setting whose values among the ``gone`` models are not (all) planned ``now``."""
    lines = []
    for name in gone.columns:
        if name in ("model_id", "split", "group", "cohort_id", "architecture_id", "task_id"):
            continue
        before = set(gone[name].astype(object).where(gone[name].notna(), None))
        after = set(now[name].astype(object).where(now[name].notna(), None)) if name in now.columns else set()
        if not before <= after:
            lines.append(
                f"  - {name}: {_values(before)}\n  + {name}: {_values(after) if after else '(no such setting)'}"
            )
    if len(lines) > most:
        lines = [*lines[:most], f"  ... and {len(lines) - most} more settings"]
    return lines or ["  (the same values, in other combinations)"]


def _values(values: set[Any]) -> str:
    shown = sorted(map(str, values))
    return ", ".join(shown[:6]) + (f", ... ({len(shown)} values)" if len(shown) > 6 else "")

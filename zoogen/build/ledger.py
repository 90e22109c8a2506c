"""The zoo's own record of a build: cohorts and plan on disk, kept in step with what the scheduler decides."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from zoogen.build.manifest import architecture_id, task_id
from zoogen.build.reconcile import Reconciled, cell_numbers, to_record
from zoogen.core.errors import IntegrityError
from zoogen.core.records import Cohort
from zoogen.plan import Plan
from zoogen.plan.cohorts import split_cohort
from zoogen.store.durable import read_json, write_file
from zoogen.store.resume import is_sealed, sealed_run
from zoogen.store.zoo import ZooFolder

_MOST_BYTES = 1 << 28


class Ledger:
    """Cohorts of a zoo under one plan; every change is on disk before training goes on."""

    def __init__(self, folder: ZooFolder, plan: Plan, reconciled: Reconciled) -> None:
        self._folder = folder
        self._plan = plan
        self.reconciled = reconciled
        self._trimmed = {r.cohort_id for r in folder.read_cohorts() if r.settings.get("trimmed")}

    def write(self) -> None:
        """Store cohorts and plan; the cohorts first, since the plan names them."""
        cohorts = self.reconciled.cohorts
        self._folder.write_cohorts([to_record(c, trimmed=c.cohort_id in self._trimmed) for c in cohorts])
        self._folder.write_plan(self._plan.table.assign(cohort_id=self.reconciled.cohort_ids(), **self._descriptions()))

    def _descriptions(self) -> dict[str, np.ndarray]:
        """Where the manifest describes each cell's architecture and task (object [cells])."""
        plan = self._plan
        pairs = list(zip(plan.groups, plan.layouts, strict=True))
        architectures = np.array([architecture_id(g.architecture, g.task, at) for g, at in pairs], dtype=object)
        tasks = np.array([task_id(g.task) for g in plan.groups], dtype=object)
        sizes = np.diff(plan.starts)
        return {"architecture_id": np.repeat(architectures, sizes), "task_id": np.repeat(tasks, sizes)}

    def split(self, cohort: Cohort) -> tuple[Cohort, Cohort] | None:
        """Replace a failing cohort by two halves, which store what its sealed shards lack; None for one model.

        Where an earlier shard was lost, the halves make everything from there on anew, and the shards behind the gap
        are moved aside, else their rows would be stored twice.
        """
        sealed = sealed_run(self._folder.path, cohort)
        stored_through = sealed[-1].last if sealed else cohort.stored_through
        halves = split_cohort(cohort, stored_through)
        if halves is None:
            return None
        for segment in cohort.segments[len(sealed) :]:
            if is_sealed(self._folder.path, segment.shard_id):
                self._folder.remove_damaged(segment.shard_id)
        cohorts = list(self.reconciled.cohorts)
        place = next(i for i, c in enumerate(cohorts) if c.cohort_id == cohort.cohort_id)
        current = self.reconciled.current.copy()
        for half in halves:
            current[cell_numbers(self._plan, half.model_ids)] = len(cohorts)
            cohorts.append(half)
        if sealed:  # what is sealed of the cohort stays planned
            kept = tuple(e for e in cohort.recording.epochs if e <= stored_through)
            trimmed = replace(cohort.recording, epochs=kept)
            cohorts[place] = replace(cohort, recording=trimmed, segments=tuple(sealed), epochs=stored_through)
            self._trimmed.add(cohort.cohort_id)
        else:
            del cohorts[place]
            current[current > place] -= 1
        self.reconciled = Reconciled(tuple(cohorts), current)
        self.write()
        return halves


class Failures:
    """Models that failed and why: ``logs/failures.json``; a model leaves it when a later attempt succeeds."""

    def __init__(self, zoo: Path) -> None:
        self._path = zoo / "logs" / "failures.json"
        self.reasons: dict[str, str] = _read_reasons(self._path)

    def add(self, model_ids: Iterable[str], reason: str) -> None:
        self.reasons |= dict.fromkeys(model_ids, reason)
        self._write()

    def clear(self, model_ids: Iterable[str]) -> None:
        gone = set(model_ids) & self.reasons.keys()
        if gone:
            self.reasons = {m: r for m, r in self.reasons.items() if m not in gone}
            self._write()

    def keep_only(self, unfinished: Iterable[str]) -> None:
        """Forget all models but these."""
        if self.reasons:
            self.clear(self.reasons.keys() - set(unfinished))

    def _write(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        write_file(self._path, json.dumps(self.reasons, indent=1, sort_keys=True).encode())


def _read_reasons(path: Path) -> dict[str, str]:
    try:
        found = read_json(path, at_most=_MOST_BYTES)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict) or not all(isinstance(reason, str) for reason in found.values()):
        raise IntegrityError(f"{path}: not a list of failed models; it may be deleted: they are tried again")
    return found


def selected_cells(plan: Plan, where: np.ndarray | None, sample: int | None) -> np.ndarray:
    """bool [cells]: those that the predicate's mask keeps, of these the ``sample`` with the smallest ids.

    Ids are digests, so the smallest are a uniform sample, and the same ones in every build.
    """
    chosen = np.ones(len(plan), dtype=bool) if where is None else where.copy()
    if sample is not None and sample < chosen.sum():
        order = plan.order[chosen[plan.order]]
        chosen[order[sample:]] = False
    return chosen

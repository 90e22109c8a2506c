"""The whole way on one page: blueprint -> plan -> what is missing -> schedule -> train -> sealed shards -> tables."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from zoogen.blueprint import Blueprint, load
from zoogen.build.ledger import Failures, Ledger, selected_cells
from zoogen.build.manifest import make_manifest, record_data, record_parent, task_id
from zoogen.build.programs import Settlement, Wish, kinds_of
from zoogen.build.reconcile import cell_numbers, reconcile
from zoogen.build.storing import Note, Progress
from zoogen.build.worker import CohortWorker
from zoogen.core.errors import EnvironmentFault, UserError
from zoogen.core.predicate import parse
from zoogen.core.records import Cohort
from zoogen.core.words import in_bytes
from zoogen.dataset import open_zoo
from zoogen.plan import Plan, make_plan
from zoogen.plan.cohorts import optimizer_bytes, state_bytes
from zoogen.report import card
from zoogen.schedule import Executor, Failed, Finished, Message, Retried, Split, StopFlag, run_all
from zoogen.store.derive import rebuild_tables
from zoogen.store.durable import disk_faults, write_file
from zoogen.store.fence import work_folder
from zoogen.store.splits import write_splits
from zoogen.store.work import keep_only_work_of
from zoogen.store.zoo import PLAN_FILE, ZooFolder
from zoogen.tasks.places import cache_root, data_root

if TYPE_CHECKING:
    from zoogen.build.parents import ParentZoo


@dataclass(frozen=True)
class BuildOptions:
    """What a run of ``zoogen build`` was asked for; none of it changes what a model is.

    Attributes:
        blueprint: The file.
        out: The zoo's folder; None: ``zoos/<name>-v<version>``.
        overrides: ``key=value`` on top of the blueprint.
        where: Predicate on the plan's columns: build only these models now.
        sample: Build only this many models now.
        until: Stop every model at this epoch, resumably.
        data: Folder of the task data.
        download: Fetch missing data.
        device: ``auto``, ``cpu`` or ``cuda``.
        wish: Which trainer and kernels to use where the zoo has not settled that.
    """

    blueprint: Path
    out: Path | None = None
    overrides: Sequence[str] = ()
    where: str | None = None
    sample: int | None = None
    until: int | None = None
    data: Path | None = None
    download: bool = False
    device: str = "auto"
    wish: Wish = field(default_factory=Wish)


@dataclass
class Outcome:
    """How a build ended: model counts by status (they add up to ``planned``), and what was done in this run."""

    path: Path
    planned: int
    trained: int
    diverged: int
    open: int  # neither results nor failed yet
    failed: dict[str, str]
    model_steps: int
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 complete, 1 some models failed, 3 resumable (design, section 8)."""
        return 1 if self.failed else 3 if self.open else 0


class Reporter(Protocol):
    """Told what happens; the command line shows it."""

    def begin(self, path: Path, plan: Plan, models: int, done: int, model_steps: int) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class _Run:
    """What one build has at hand once the zoo is locked."""

    options: BuildOptions
    plan: Plan
    folder: ZooFolder
    ledger: Ledger
    pending: list[Cohort]
    failures: Failures
    parent: Path | None = None  # the zoo that twins are made of
    steps: int = 0
    began: float = field(default_factory=time.monotonic)


def build(options: BuildOptions, executor: Executor, reporter: Reporter, stop: StopFlag) -> Outcome:
    """Train every model the blueprint describes and store its checkpoints; what is stored already is kept.

    Raises:
        UserError: the blueprint is wrong, contradicts the zoo, or another build holds the zoo.
        EnvironmentFault: data, disk or Ray are missing; what is stored so far is valid.
        IntegrityError: data or shards are not what they were.
        Incomplete: stopped by a signal; the same command goes on.
    """
    blueprint = load(options.blueprint, options.overrides)
    with executor:  # a local Ray starts while the plan is made
        executor.start()
        return grow(make_plan(blueprint), options, executor, reporter, stop)


def grow(
    plan: Plan,
    options: BuildOptions,
    executor: Executor,
    reporter: Reporter,
    stop: StopFlag,
    *,
    parent: tuple[ParentZoo, Mapping[str, Any]] | None = None,
) -> Outcome:
    """Train and store what a plan lacks; ``build`` says what it raises.

    Args:
        plan: Of models, or of twins.
        executor: Started.
        parent: For twins: the zoo they are made of, and how their manifest describes it.
    """
    chosen = _selection(plan, options)
    folder = ZooFolder(options.out or Path("zoos") / f"{plan.blueprint.name}-v{plan.blueprint.version}")
    with _locked(folder):
        run = _prepare(options, plan, folder, chosen, parent)
        _announce(run, reporter)
        try:
            if run.pending:
                _train(run, executor, reporter, stop)
        finally:
            # Fences off workers that were lost from sight, and removes what those that died left half written.
            folder.clean_leftovers(folder.new_token())
            tables = rebuild_tables(folder, run.failures.reasons)
            write_file(folder.path / "README.md", card(open_zoo(folder.path)).encode())
        return Outcome(
            folder.path,
            len(plan),
            tables["trained"],
            tables["diverged"],
            tables["planned"],
            run.failures.reasons,
            run.steps,
            time.monotonic() - run.began,
        )


def _selection(plan: Plan, options: BuildOptions) -> np.ndarray:
    where = None if options.where is None else parse(options.where).mask(plan.table)
    return selected_cells(plan, where, options.sample)


@contextmanager
def _locked(folder: ZooFolder) -> Iterator[None]:
    """Hold the zoo; where nothing came of a new one, leave no trace of it.

    Raises:
        UserError: a file is in the way, or another build holds the zoo.
    """
    for place in (folder.path, *folder.path.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"{place} is a file, not a folder\nchoose another place for the zoo (--out DIR)")
    made = [p for p in (work_folder(folder.path), folder.path, *folder.path.parents) if not p.exists()]
    with disk_faults(str(folder.path), folder.path.parent, 1 << 16), folder.lock():
        try:
            yield
        finally:
            if made and not folder.exists():
                shutil.rmtree(made[0], ignore_errors=True)
                for parent in made[1:]:
                    with suppress(OSError):  # somebody has put something there
                        parent.rmdir()


def _prepare(
    options: BuildOptions,
    plan: Plan,
    folder: ZooFolder,
    chosen: np.ndarray,
    parent: tuple[ParentZoo, Mapping[str, Any]] | None,
) -> _Run:
    """Find what is left to train, check data and disk, and write the plan; nothing is written before all is checked."""
    stored = folder.manifest() if folder.exists() else {}
    manifest = make_manifest(plan, stored)
    record_parent(manifest, stored, parent and parent[0].manifest, parent and parent[1])
    sealed = set(folder.sealed())
    records = folder.read_cohorts()
    # A first build killed between writing the cohorts and the plan leaves the cohorts alone.
    stored_plan = folder.read_plan() if (folder.path / PLAN_FILE).exists() else plan.table
    carried = reconcile(plan, records, sealed, stored_plan)
    ledger = Ledger(folder, plan, carried.with_new(plan, chosen))
    pending = ledger.reconciled.pending(chosen, sealed)
    settlement = Settlement(folder.path, pending, sealed, options.wish, options.device)
    settlement.check()
    splits = {}
    for task in {task_id(c.jobs[0].task): c.jobs[0].task for c in pending}.values():
        data = task.load(data_root(options.data), cache_root(), download=options.download)
        record_data(manifest, task, data)
        splits[task_id(task)] = data.split()
    _check_disk(folder.path, plan, pending, sealed)
    if not stored:
        folder.create(manifest)
    write_splits(folder.path, splits)
    folder.write_manifest(manifest)
    write_file(folder.path / "blueprint.yaml", _as_given(plan.blueprint).encode())
    settlement.carry_out()
    ledger.write()
    failures = Failures(folder.path)
    # A build killed right after a cohort's last seal has neither forgotten its failures nor dropped its work.
    unfinished = ledger.reconciled.unfinished(sealed)
    failures.keep_only(m for cohort in unfinished for m in cohort.model_ids)
    keep_only_work_of(folder.path, {cohort.cohort_id for cohort in unfinished})
    return _Run(options, plan, folder, ledger, pending, failures, parent and parent[0].path)


def _as_given(blueprint: Blueprint) -> str:
    """The file as given; values that came from the command line are named above it, since it is not whole without."""
    overrides = "".join(f"# with --set {override}\n" for override in blueprint.overrides)
    return overrides + blueprint.text


def _check_disk(path: Path, plan: Plan, pending: Sequence[Cohort], sealed: set[str]) -> None:
    """Refuse what cannot fit: the states still to store, and the work copies of cohorts being trained."""
    needed = 0
    largest = 0
    first_cells = cell_numbers(plan, [cohort.model_ids[0] for cohort in pending])
    for cohort, cell in zip(pending, first_cells.tolist(), strict=True):
        group, _ = plan.place(cell)
        layout = plan.layouts[group]
        open_epochs = [e for e in cohort.recording.epochs if _segment_open(cohort, e, sealed)]
        per_state = state_bytes(layout)
        kept = optimizer_bytes(plan.groups[group], layout)
        states = len(cohort.jobs) * len(open_epochs)
        needed += states * per_state + len(cohort.jobs) * kept
        largest = max(largest, states * per_state + 2 * len(cohort.jobs) * (per_state + kept))
    needed = int(needed * 1.05) + 2 * largest
    at = next(p for p in (path, *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(at).free
    if needed > free:
        raise EnvironmentFault(
            f"the zoo does not fit: {len(pending)} cohorts need {in_bytes(needed)}, "
            f"{at} has {in_bytes(free)} free\n"
            "store fewer checkpoints (checkpoints.every, checkpoints.last), build a part (--where, --sample), "
            "or choose another disk (--out DIR)"
        )


def _segment_open(cohort: Cohort, epoch: int, sealed: set[str]) -> bool:
    return any(s.first <= epoch <= s.last and s.shard_id not in sealed for s in cohort.segments)


def _announce(run: _Run, reporter: Reporter) -> None:
    last = run.options.until
    steps = 0
    for cohort in run.pending:
        job = cohort.jobs[0]
        epochs = cohort.epochs if last is None else min(last, cohort.epochs)
        steps += len(cohort.jobs) * epochs * job.training.steps_per_epoch(job.task.sizes[0])
    models = sum(len(c.jobs) for c in run.pending)
    reporter.begin(run.folder.path, run.plan, models, len(run.plan) - models, steps)


def _train(run: _Run, executor: Executor, reporter: Reporter, stop: StopFlag) -> None:
    """Let the executor work through the pending cohorts and keep account of what happens."""
    token = run.folder.new_token()
    run.folder.clean_leftovers(token)
    options = run.options
    factory = partial(
        CohortWorker,
        run.folder.path.absolute(),
        token,
        data_root(options.data).absolute(),
        cache_root().absolute(),
        options.device,
        options.until,
        options.wish,
        kinds_of(run.plan, options.device),
        run.parent and run.parent.absolute(),
    )
    noted = set()
    for event in run_all(executor, factory, run.pending, run.ledger.split, stop):
        if isinstance(event, Message) and isinstance(event.payload, Note):
            if event.payload.text not in noted:  # several workers may find the same
                noted.add(event.payload.text)
                reporter.note(event.payload.text)
        elif isinstance(event, Message):
            run.steps += event.payload.model_steps
            reporter.progress(event.payload)
        elif isinstance(event, Finished):
            run.failures.clear(event.item.model_ids)
        elif isinstance(event, (Retried, Split, Failed)):
            _log_failure(run, event, reporter)
            if isinstance(event, Failed):
                run.failures.add(event.item.model_ids, event.failure.reason)


def _log_failure(run: _Run, event: Retried | Split | Failed, reporter: Reporter) -> None:
    cohort: Cohort = event.item
    what = {"Retried": "is tried again", "Split": "is halved", "Failed": "is given up"}[type(event).__name__]
    models = f"model {cohort.model_ids[0]}" if len(cohort.jobs) == 1 else f"{len(cohort.jobs)} models"
    reporter.note(f"cohort {cohort.cohort_id[:8]} ({models}) {what}: {event.failure.reason}")
    line = {"event": "failure", "what": what, "reason": event.failure.reason, "details": event.failure.details}
    logs = run.folder.path / "logs"
    logs.mkdir(exist_ok=True)  # a worker may be lost before it has logged anything
    with (logs / f"{cohort.cohort_id}.jsonl").open("a") as file:
        file.write(json.dumps({"time": round(time.time(), 3), "cohort_id": cohort.cohort_id} | line) + "\n")

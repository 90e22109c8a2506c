"""Published zoos into the store: source -> units of at most 64 models -> sealed shards -> tables.

A unit is read, checked and sealed as a whole, so memory holds one unit; its shards and its outcome (what was stored,
what was left out) are on disk before the next one is begun, which is all that a resume needs.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoogen.build.imported_kin import Root, find_kin, roots_of
from zoogen.build.imported_summary import summed_up
from zoogen.build.imported_table import (
    VERSION,
    described,
    described_id,
    import_factors,
    import_id,
    import_plan,
    setting_columns,
)
from zoogen.build.imported_task import Check, Trained, check_accuracies, with_settings
from zoogen.build.imported_units import Outcome, Past, Unit, read_outcome, seal_unit, units_of
from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import IntegrityError, UserError, ZoogenError
from zoogen.core.words import counted
from zoogen.dataset import open_zoo
from zoogen.importers.containers.files import Files, archives_in, named_archives
from zoogen.importers.opening import open_source
from zoogen.importers.relatives import Kin
from zoogen.importers.source import Skipped, Source, SourceModel
from zoogen.report import card
from zoogen.store.cohorts import CohortRecord
from zoogen.store.derive import rebuild_tables
from zoogen.store.durable import disk_faults, write_file
from zoogen.store.fence import work_folder
from zoogen.store.shard import shards_folder
from zoogen.store.shard_info import software
from zoogen.store.zoo import ZooFolder

log = logging.getLogger(__name__)

_RECORDS = (".json", ".csv", ".csv.gz", ".parquet")
_MOST_RECORDS = 2 << 30  # characters


@dataclass(frozen=True)
class Imported:
    """How an import ended.

    Attributes:
        path: Of the zoo.
        models, states: Stored.
        diverged: Models whose last checkpoints were not finite.
        check: Accuracies that were computed again, where a task was named.
        skipped: What was left out, of all runs, and why.
    """

    path: Path
    models: int
    states: int
    diverged: int
    check: Check | None = None
    skipped: tuple[Skipped, ...] = field(default_factory=tuple)

    def __str__(self) -> str:
        """A line for what is there, and some for what is not."""
        diverged = f" ({self.diverged:,} diverged)" if self.diverged else ""
        lines = [f"{self.path}: {counted(self.models, 'model')}{diverged}, {counted(self.states, 'state')}"]
        if self.check is not None:
            lines.append(f"  {self.check}")
        lines += [f"  {line}" for line in summed_up(self.skipped)]
        return "\n".join(lines) + (f"\n  each with its reason: {_log(self.path)}" if self.skipped else "")


@dataclass
class _Import:
    """What one run has at hand once the source is listed and the zoo is locked."""

    folder: ZooFolder
    source: Source
    models: list[SourceModel]
    ids: dict[str, str]
    skipped: list[Skipped]
    tell: Callable[[str], None]
    trained: Trained | None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    kin: Mapping[str, Kin] = field(default_factory=dict)
    roots: Mapping[str, Root] = field(default_factory=dict)


def import_zoo(
    path: Path, kind: str | None, out: Path, tell: Callable[[str], None], trained: Trained | None = None
) -> Imported:
    """Read the models of a published zoo into a zoo of ours; the same command goes on where it was interrupted.

    Args:
        path: Folder, archive, file or list.
        kind: Of the source (``zoogen.importers.source.SOURCES``); None: recognised.
        out: Folder of the zoo.
        tell: Is told what happens.
        trained: The task of its models; None: not known.

    Raises:
        UserError: there is no such source, it holds nothing that can be read, its models do not score on the task what
            their records say, or ``out`` holds something else.
        IntegrityError: the source is hostile or damaged, or a stored shard is.
        EnvironmentFault: the disk is full; what is stored is valid.
    """
    input_shape = None if trained is None else tuple(trained.task.input_shape)
    with open_source(path, kind, input_shape) as source, _blamed(path, source.registered_name):
        models, skipped = _listed(path, source)
        archives = archives_in(path, source.files)
        if not models:
            _refuse_nothing(path, skipped, archives)
        tell(f"{source.registered_name}: {counted(len(models), 'model')}")
        skipped += [Skipped(name, None, "is not read in a folder; import it by itself", "archive") for name in archives]
        check = None
        if trained is not None:
            check = check_accuracies(trained, source, models)
        with _locked(out) as folder:
            ids = {m.key: import_id(source.registered_name, m) for m in models}
            run = _Import(folder, source, models, ids, skipped, tell, trained)
            return replace(_grow(run, _manifest(run, path)), check=check)


def _listed(path: Path, source: Source) -> tuple[list[SourceModel], list[Skipped]]:
    """All models, and what is left out of them. Their records are in memory together, so that there is a bound."""
    models: list[SourceModel] = []
    skipped: list[Skipped] = []
    left = _MOST_RECORDS
    for found in source.models():
        if isinstance(found, Skipped):
            skipped.append(found)
            continue
        models.append(found)
        skipped += [Skipped(found.key, None, note) for note in found.notes]
        left -= len(found.original)
        if left < 0:
            raise IntegrityError(
                f"{path}: the records of its models have more than {_MOST_RECORDS:,} characters; nothing is imported\n"
                "get the source from its publisher; if it is whole, import parts of it"
            )
    return models, skipped


def _grow(run: _Import, manifest: dict[str, Any]) -> Imported:
    folder = run.folder
    units = units_of(run.models)
    stored = folder.manifest() if folder.exists() else None
    _check_same(folder.path, stored, manifest)
    if stored is None:
        folder.create(manifest)
    if stored is not None:  # data may be at hand by now that were not before
        tasks = {task_id: {**manifest["tasks"][task_id], **told} for task_id, told in stored["tasks"].items()}
        manifest = {**stored, "tasks": tasks}
    run.kin = find_kin(run.source, run.models, folder.path, manifest["imported"]["digest"], run.tell)
    run.roots = roots_of(run.models, run.ids, run.kin)
    if rare := setting_columns(run.models)[1]:
        run.tell(f"{counted(rare, 'setting')} of fewest models: no columns of their own, only in source.record")
    run.outcomes = {u.unit_id: o for u in units if (o := _stored_outcome(folder, u)) is not None}
    if len(run.outcomes) == len(units):
        run.tell(f"{folder.path}: complete already")
    others = {r.cohort_id: r for r in folder.read_cohorts()}
    _write_plan(run, units, others)
    token = folder.new_token()
    folder.clean_leftovers(token)
    try:
        _seal_units(run, units, others, token)
    finally:
        rebuild_tables(folder, {})
    records = [r for u in units for r in run.outcomes[u.unit_id].records]
    if not records:
        if not folder.shard_folders():
            shutil.rmtree(folder.path)
        _refuse_nothing(folder.path, _skips(run, units))
    folder.write_cohorts(records)
    table = _write_plan(run, units, {})
    counts = rebuild_tables(folder, {})
    folder.write_manifest({**manifest, "factors": import_factors(table)})
    skipped = _skips(run, units)
    _write_log(folder.path, run, skipped)
    opened = open_zoo(folder.path)
    write_file(folder.path / "README.md", card(opened).encode())
    models = counts["trained"] + counts["diverged"]
    return Imported(folder.path, models, len(opened.checkpoints), counts["diverged"], None, tuple(skipped))


def _seal_units(run: _Import, units: Sequence[Unit], others: dict[str, CohortRecord], token: str) -> None:
    """Read and seal every unit that no earlier run has."""
    dead: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, unit in enumerate(units, start=1):
        outcome = run.outcomes.get(unit.unit_id)
        if outcome is None:

            def publish(records: Sequence[CohortRecord]) -> None:
                """Cohorts stand in the plan before their shards have a name."""
                others.update({r.cohort_id: r for r in records})
                run.folder.write_cohorts(list(others.values()))

            outcome = seal_unit(unit, run.source, run.ids, Past(dead, last), run.folder.path, token, publish)
            with disk_faults(str(run.folder.path), run.folder.path, 1 << 16):
                _place(run.folder, unit).parent.mkdir(parents=True, exist_ok=True)
            write_file(_place(run.folder, unit), outcome.to_bytes())
            run.outcomes[unit.unit_id] = outcome
            states = sum(len(r.model_ids) * len(r.checkpoint_epochs) for r in outcome.records)
            run.tell(f"unit {number} of {len(units)}: {counted(len(unit.models), 'model')}, {counted(states, 'state')}")
        dead |= outcome.diverged
        last |= {m: r.checkpoint_epochs[-1] for r in outcome.records for m in r.model_ids}


def _write_plan(run: _Import, units: Sequence[Unit], others: dict[str, CohortRecord]) -> Any:
    """The plan: every model that has, or may still have, a usable checkpoint."""
    records = [*others.values(), *(r for o in run.outcomes.values() for r in o.records)]
    cohort_of: dict[str, str] = {}
    for record in records:
        for model_id in record.model_ids:
            cohort_of.setdefault(model_id, record.cohort_id)
    waiting = {run.ids[m.key] for u in units if u.unit_id not in run.outcomes for m in u.models}
    planned = [m for m in run.models if run.ids[m.key] in cohort_of.keys() | waiting]
    task_id = None
    if (trained := run.trained) is not None:
        planned, task_id = [with_settings(m, trained) for m in planned], trained.task_id
    table = import_plan(planned, run.ids, run.roots, cohort_of, task_id, run.kin)
    run.folder.write_plan(table)
    return table


def _manifest(run: _Import, path: Path) -> dict[str, Any]:
    architectures = {described_id(m): described(m) for m in run.models}
    kind = run.source.registered_name
    return {
        "name": run.folder.path.absolute().name,
        "version": 1,
        "description": f"Imported from {path.resolve().name} ({kind}).",
        "factors": [],
        "axes": {},
        "parents": [],
        "architectures": architectures,
        "tasks": {} if run.trained is None else {run.trained.task_id: run.trained.described()},
        "layouts": {m.layout.layout_id: m.layout.to_json() for m in run.models},
        "blueprints": [],
        "imported": {"kind": kind, "source": path.resolve().name, "version": VERSION, "digest": _listing(run, path)},
        "software": software(),
    }


def _listing(run: _Import, path: Path) -> str:
    """Digest of which models and checkpoints the source lists, and of its records by name and size."""
    listed = [[run.ids[m.key], [[s.epoch, s.size] for s in m.checkpoints]] for m in run.models]
    own, root = run.folder.path.resolve(), path.resolve()
    within = f"{own.relative_to(root).as_posix()}/" if own.is_relative_to(root) else None
    records = [record for record in _records(run.source.files) if within is None or not record[0].startswith(within)]
    return digest(canonical_json([listed, records]))


def _records(files: Files) -> list[tuple[str, int]]:
    """Files with settings or results, and their sizes."""
    links: Mapping[str, str] = getattr(files, "links", {})
    sizes = {**files.sizes, **{name: files.sizes[target] for name, target in links.items() if target in files.sizes}}
    return sorted((name, size) for name, size in sizes.items() if name.endswith(_RECORDS))


def _check_same(path: Path, stored: dict[str, Any] | None, manifest: dict[str, Any]) -> None:
    if stored is None:
        return
    known, given = stored.get("imported"), manifest["imported"]
    if known is None:
        raise UserError(f"{path} holds a zoo that was not imported\nchoose another folder: --out DIR")
    if stored["tasks"].keys() != manifest["tasks"].keys():
        named = " and ".join(repr(task["name"]) for task in stored["tasks"].values())
        what = f"whose task is {named}" if named else "without a task"
        raise UserError(f"{path} holds an import {what}\ngive the same --task, or choose another folder: --out DIR")
    if {k: known.get(k) for k in ("kind", "version", "digest")} != {k: given[k] for k in ("kind", "version", "digest")}:
        raise UserError(
            f"{path} holds an import of {known.get('source')!r} ({known.get('kind')}), whose models, checkpoints or "
            f"records are not those of {given['source']!r} ({given['kind']}) as it is now\n"
            "choose another folder: --out DIR"
        )


@contextmanager
def _locked(out: Path) -> Iterator[ZooFolder]:
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"{place} is a file, not a folder\nchoose another place for the zoo: --out DIR")
    folder = ZooFolder(out)
    if out.is_dir() and not folder.exists() and any(p.name != ".work" for p in out.iterdir()):
        folder.create({})  # says what is in the way
    with disk_faults(str(out), out.parent, 1 << 16), folder.lock():
        try:
            yield folder
        except Exception:
            if out.is_dir() and not folder.exists():  # nothing was begun that could be gone on with
                shutil.rmtree(out)
            raise


@contextmanager
def _blamed(path: Path, kind: str) -> Iterator[None]:
    """What no reader of foreign files expected ends as an error of that file, not as a traceback."""
    try:
        yield
    except (ZoogenError, OSError, MemoryError):
        raise
    except Exception as error:
        log.debug("while %s was read", path, exc_info=True)
        raise IntegrityError(
            f"{path}: cannot be read as {kind} ({type(error).__name__}: {str(error)[:300]})\n"
            "if the source is whole, this is a mistake of zoogen: please report it with this message"
        ) from error


def _place(folder: ZooFolder, unit: Unit) -> Path:
    return work_folder(folder.path) / "import" / f"{unit.unit_id}.json"


def _stored_outcome(folder: ZooFolder, unit: Unit) -> Outcome | None:
    """What an earlier run made of a unit; None where it did not come that far, or a shard was moved away since."""
    found = read_outcome(_place(folder, unit))
    if found is None or not all((shards_folder(folder.path) / r.segments[0].shard_id).is_dir() for r in found.records):
        return None
    return found


def _skips(run: _Import, units: Sequence[Unit]) -> list[Skipped]:
    return [*run.skipped, *(s for u in units for s in run.outcomes[u.unit_id].skipped)]


def _log(path: Path) -> Path:
    return path / "logs" / "import.jsonl"


def _write_log(path: Path, run: _Import, skipped: Sequence[Skipped]) -> None:
    """A line for all that was left out."""
    lines = [
        {"event": "skipped", "key": s.key, "model_id": run.ids.get(s.key), "epoch": s.epoch, "reason": s.reason}
        for s in skipped
    ]
    _log(path).parent.mkdir(exist_ok=True)
    write_file(_log(path), "".join(json.dumps(line) + "\n" for line in lines).encode())


def _refuse_nothing(path: Path, skipped: Sequence[Skipped], archives: Sequence[str] = ()) -> None:
    told = "".join(f"\n  {s.key}: {s.reason}" for s in skipped[:5])
    told += f"\n{named_archives(path, archives)}" if archives else ""
    raise UserError(f"{path} holds no model that can be imported{told or ': there is nothing of that kind in it'}")

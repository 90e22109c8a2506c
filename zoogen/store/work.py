"""Unfinished cohorts: after every epoch the state to continue from, and the checkpoints that no shard holds yet.

``<zoo>/.work/cohorts/<cohort_id>.<token>/`` holds safetensors files and ``current.json``, which names the files that
belong together with their digests; replacing it is the one step that makes an epoch count. Whatever is damaged, torn or
missing is found by its digest and the cohort starts again from its last shard: it costs time, never a wrong number.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import Incomplete, IntegrityError
from zoogen.core.records import Checkpoint, Cohort, CohortState
from zoogen.core.regular import open_regular
from zoogen.store import FORMAT_VERSION
from zoogen.store.durable import TEMPORARY, checked_name, disk_faults, read_json, sync
from zoogen.store.fence import work_folder

log = logging.getLogger(__name__)

# A power cut loses what was not synced. Syncing every epoch would make tiny cohorts wait for the disk; so the files are
# synced when this many seconds have passed. A killed process loses nothing either way.
SYNC_SECONDS = 5.0

_CURRENT = "current.json"


class Work:
    """The work folder of one cohort, held by one worker."""

    def __init__(self, folder: Path, cohort: Cohort) -> None:
        self.folder = folder
        self._cohort = cohort
        self._unsynced: set[Path] = set()
        self._synced_at = time.monotonic()

    @classmethod
    def claim(cls, zoo: Path, cohort: Cohort, token: str) -> Work:
        """Take over the cohort's folder, or make one.

        The folder carries the token in its name: renaming it is the fence. A worker that held it before finds its
        folder gone at its next write and stops with ``Incomplete``; it never makes it anew.

        Raises:
            EnvironmentFault: the folder cannot be made.
        """
        parent = work_folder(zoo) / "cohorts"
        folder = parent / f"{checked_name('cohort', cohort.cohort_id)}.{checked_name('token', token)}"
        with disk_faults(str(folder), zoo, 4096):
            parent.mkdir(parents=True, exist_ok=True)
            found = sorted(parent.glob(f"{cohort.cohort_id}.*"), key=_newest, reverse=True)
            if folder not in found:
                for other in found[:1]:
                    other.rename(folder)
                folder.mkdir(exist_ok=True)
            for other in found:
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
        work = cls(folder, cohort)
        work._tidy()
        return work

    def save(self, state: CohortState, checkpoints: Sequence[Checkpoint]) -> None:
        """Keep the state after an epoch and the checkpoints made since the last save.

        Raises:
            Incomplete: another worker has taken the cohort over.
            EnvironmentFault: the disk is full.
        """
        size = state.weights.nbytes * 3 + sum(c.weights.nbytes for c in checkpoints)
        with self._fenced(size):
            files = dict(self._current()["files"]) if (self.folder / _CURRENT).exists() else {}
            old_states = [name for name in files if name.startswith("state-")]
            for name in old_states:
                del files[name]
            if checkpoints:
                name = f"rows-{state.epoch:06d}.safetensors"
                files[name] = self._write(name, _pack_checkpoints(checkpoints))
            name = f"state-{state.epoch:06d}.safetensors"
            files[name] = self._write(name, _pack_state(state, self._cohort.layout_id))
            self._commit(files)
            for old in old_states:
                if old not in files:
                    (self.folder / old).unlink(missing_ok=True)

    def load(self) -> tuple[CohortState, list[Checkpoint]] | None:
        """The last state that was saved whole, with every checkpoint not dropped yet, oldest first.

        Returns:
            None when there is none, or when any of its files is damaged or belongs to another cohort (a warning says
            which); the cohort then starts again from its last sealed shard or from its initial state.
        """
        if not (self.folder / _CURRENT).exists():
            return None
        try:
            return self._load()
        except (OSError, IntegrityError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning(
                "cohort %s: its resume state cannot be used (%s); it starts again from its last sealed shard",
                self._cohort.cohort_id,
                error,
            )
            self._keep_only(set())  # else what is saved next would be tied to damaged files
            return None

    def drop_through(self, epoch: int) -> None:
        """Forget checkpoints saved at or before ``epoch``, which a shard now holds.

        Raises:
            Incomplete: another worker has taken the cohort over.
        """
        with self._fenced(4096):
            if not (self.folder / _CURRENT).exists():
                if not self.folder.exists():
                    raise FileNotFoundError(self.folder)
                return
            files = dict(self._current()["files"])
            sealed = [n for n in files if n.startswith("rows-") and int(n[5:11]) <= epoch]
            for name in sealed:
                del files[name]
            if sealed:
                self._commit(files)
            for name in sealed:
                (self.folder / name).unlink(missing_ok=True)

    def finish(self) -> None:
        """Remove the folder: everything of this cohort is sealed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self) -> tuple[CohortState, list[Checkpoint]]:
        files = self._current()["files"]
        state: CohortState | None = None
        checkpoints: list[Checkpoint] = []
        for name in sorted(files):
            data = (self.folder / checked_name("work file", name.removesuffix(".safetensors"))).with_suffix(
                ".safetensors"
            )
            with open_regular(data) as file:
                content = file.read()
            if hashlib.sha256(content).hexdigest() != files[name]:
                raise IntegrityError(f"{data} is damaged")
            if name.startswith("rows-"):
                checkpoints += _unpack_checkpoints(content)
            else:
                state = _unpack_state(content, self._cohort)
        if state is None:
            raise IntegrityError(f"{self.folder / _CURRENT} names no state")
        return state, checkpoints

    def _current(self) -> dict[str, Any]:
        current = read_json(self.folder / _CURRENT, at_most=1 << 24)
        if current["format_version"] != FORMAT_VERSION:
            raise IntegrityError(f"{self.folder / _CURRENT} has format version {current['format_version']}")
        if current["digest"] != digest(canonical_json(current["files"])):
            raise IntegrityError(f"{self.folder / _CURRENT} is damaged")
        return current

    def _write(self, name: str, data: bytes) -> str:
        temporary = self.folder / f"{TEMPORARY}{name}"
        temporary.write_bytes(data)
        temporary.replace(self.folder / name)
        self._unsynced.add(self.folder / name)
        return hashlib.sha256(data).hexdigest()

    def _commit(self, files: dict[str, str]) -> None:
        data = {"format_version": FORMAT_VERSION, "files": files, "digest": digest(canonical_json(files))}
        due = time.monotonic() - self._synced_at >= SYNC_SECONDS
        if due:
            for path in self._unsynced & {self.folder / name for name in files}:
                sync(path)
            self._unsynced.clear()
        temporary = self.folder / f"{TEMPORARY}{_CURRENT}"
        temporary.write_text(json.dumps(data))
        if due:
            sync(temporary)
        temporary.replace(self.folder / _CURRENT)
        if due:
            sync(self.folder)
            self._synced_at = time.monotonic()

    def _tidy(self) -> None:
        """Remove what a killed worker left half done."""
        try:
            kept = {_CURRENT, *self._current()["files"]} if (self.folder / _CURRENT).exists() else set()
        except (IntegrityError, KeyError, TypeError):
            return  # ``load`` reports it
        self._keep_only(kept)

    def _keep_only(self, names: set[str]) -> None:
        for path in self.folder.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)

    @contextmanager
    def _fenced(self, size: int) -> Iterator[None]:
        try:
            with disk_faults(f"the state of cohort {self._cohort.cohort_id}", self.folder.parent, size):
                yield
        except FileNotFoundError as error:
            if self.folder.exists():
                raise
            raise Incomplete(
                f"fenced: {self.folder.name} was taken over by another worker, so this one stops"
            ) from error


def _newest(folder: Path) -> int:
    try:
        return (folder / _CURRENT).stat().st_mtime_ns
    except OSError:
        return 0


_PARTS = ("side", "metrics", "optimizer")
_WHERE_KEPT = ("predictions", "kept", "log_alpha")
_STATE_PARTS = ("side", "optimizer", "training_metrics")


def _pack_checkpoints(checkpoints: Sequence[Checkpoint]) -> bytes:
    tensors: dict[str, np.ndarray] = {}
    described = []
    for i, checkpoint in enumerate(checkpoints):
        about: dict[str, Any] = {"epoch": checkpoint.epoch, "model_ids": list(checkpoint.model_ids)}
        tensors[f"{i}/weights"] = checkpoint.weights
        for part in _PARTS:
            arrays = getattr(checkpoint, part)
            about[part] = list(arrays)  # safetensors sorts its tensors; the order of the columns is kept here
            tensors |= {f"{i}/{part}/{name}": array for name, array in arrays.items()}
        for name in _WHERE_KEPT:
            if (array := getattr(checkpoint, name)) is not None:
                tensors[f"{i}/{name}"] = array
        described.append(about)
    return _pack(tensors, {"checkpoints": described})


def _unpack_checkpoints(data: bytes) -> list[Checkpoint]:
    tensors, about = _unpack(data)
    return [
        Checkpoint(
            epoch=one["epoch"],
            model_ids=tuple(one["model_ids"]),
            weights=tensors[f"{i}/weights"],
            predictions=tensors.get(f"{i}/predictions"),
            kept=tensors.get(f"{i}/kept"),
            log_alpha=tensors.get(f"{i}/log_alpha"),
            **{part: {name: tensors[f"{i}/{part}/{name}"] for name in one[part]} for part in _PARTS},
        )
        for i, one in enumerate(about["checkpoints"])
    ]


def _pack_state(state: CohortState, layout_id: str) -> bytes:
    tensors = {"weights": state.weights}
    about = {
        "epoch": state.epoch,
        "model_ids": list(state.model_ids),
        "layout_id": layout_id,
        "diverged": dict(state.diverged),
        "last_finite": dict(state.last_finite),
    }
    for part in _STATE_PARTS:
        about[part] = list(getattr(state, part))
        tensors |= {f"{part}/{name}": array for name, array in getattr(state, part).items()}
    if state.kept is not None:
        tensors["kept"] = state.kept
    return _pack(tensors, about)


def _unpack_state(data: bytes, cohort: Cohort) -> CohortState:
    tensors, about = _unpack(data)
    if tuple(about["model_ids"]) != cohort.model_ids or about["layout_id"] != cohort.layout_id:
        raise IntegrityError("it was saved for other models")
    return CohortState(
        epoch=about["epoch"],
        model_ids=cohort.model_ids,
        weights=tensors["weights"],
        diverged=about["diverged"],
        last_finite=about["last_finite"],
        kept=tensors.get("kept"),
        **{part: {name: tensors[f"{part}/{name}"] for name in about[part]} for part in _STATE_PARTS},
    )


def _pack(tensors: dict[str, np.ndarray], about: dict[str, Any]) -> bytes:
    # np.asarray(order="C") and not ascontiguousarray, which would make a scalar an array of one.
    return save({k: np.asarray(v, order="C") for k, v in tensors.items()}, metadata={"about": json.dumps(about)})


def _unpack(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    length = int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + length])["__metadata__"]["about"]
    # Copies: a trainer writes into the arrays it is given.
    return {name: array.copy() for name, array in load(data).items()}, json.loads(about)


def keep_only_work_of(zoo: Path, cohort_ids: Collection[str]) -> None:
    """Remove the work folders of all other cohorts: finished, split or not planned any more. Needs the lock."""
    for folder in (work_folder(zoo) / "cohorts").glob("*"):
        if folder.name.partition(".")[0] not in cohort_ids:
            shutil.rmtree(folder, ignore_errors=True)


def unfinished_epochs(zoo: Path) -> dict[str, int]:
    """cohort_id -> epoch reached, of every cohort with kept work; reads names of files only."""
    found: dict[str, int] = {}
    for current in (work_folder(zoo) / "cohorts").glob(f"*/{_CURRENT}"):
        names = [path.stem.removeprefix("state-") for path in current.parent.glob("state-*.safetensors")]
        if states := [int(name) for name in names if name.isdecimal()]:
            found[current.parent.name.partition(".")[0]] = max(states)
    return found

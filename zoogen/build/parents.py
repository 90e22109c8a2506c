"""The zoo that twins are made of: checked before anything is planned, read when a cohort starts, never written."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoogen.blueprint import loads
from zoogen.blueprint.twins import ParentKeys
from zoogen.build.imported_parents import Untrainable, plan_of_import
from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.predicate import parse
from zoogen.core.records import Cohort
from zoogen.dataset import open_zoo
from zoogen.plan import Plan, make_plan
from zoogen.plan.twins import ChosenParents
from zoogen.store.check import problems_of, read_shard_checkpoints
from zoogen.store.read import ShardReader
from zoogen.store.shard import shards_folder
from zoogen.store.shard_info import read_shard_info
from zoogen.store.zoo import ZooFolder
from zoogen.twins.origin import Origin


class ParentZoo:
    """A zoo whose models get twins.

    Args:
        path: Its folder.
        allow: Import paths whose code may run, for architectures that are made by such.

    Raises:
        UserError: there is no zoo, or it holds twins itself.
        IntegrityError: its manifest is damaged.
    """

    def __init__(self, path: Path, allow: Collection[str] = ()) -> None:
        self.path = path
        self.folder = ZooFolder(path)
        self.manifest = self.folder.manifest()
        if self.manifest.get("parents"):
            raise UserError(
                f"{path} is a twin zoo itself; make further twins of its parent {self.manifest['parents'][0]['name']!r}"
            )
        self._allow = allow
        self._zoo = open_zoo(path)
        if "imported" in self.manifest and "sparsity" in self._zoo.tables.state_names:
            raise UserError(f"{path} holds sparse twins already; make further ones of the dense models they came from")

    @property
    def plan(self) -> Plan:
        """The zoo's own plan: made again from the blueprint that it keeps, or from the records it was imported with.

        Raises:
            UserError: the blueprint runs code that is not allowed, or the zoo was imported without its task.
            IntegrityError: the blueprint no longer gives the stored models.
        """
        return self._imported[0] if "imported" in self.manifest else self._built

    @cached_property
    def _imported(self) -> tuple[Plan, Mapping[str, Untrainable]]:
        return plan_of_import(self._zoo)

    @cached_property
    def _built(self) -> Plan:
        given = self.manifest["blueprints"][-1]
        blueprint = loads(given["text"], f"{self.path}/blueprint.yaml", given["overrides"])
        for stratum in blueprint.strata:
            if stratum.architecture.runs_code and stratum.architecture.path not in self._allow:
                name = stratum.architecture.path
                raise UserError(
                    f"the models of {self.path} are made by code that the zoo names: {name}\n"
                    f"if you trust that code, allow it: --allow {name}"
                )
        plan = make_plan(blueprint)
        gone = set(self._zoo.tables.ids) - {name.decode() for name in plan.ids.tolist()}
        if gone:
            raise IntegrityError(
                f"{self.path}: its blueprint no longer gives {len(gone)} of its models, among them {min(gone)}\n"
                "use the version of zoogen that built it (zoo.json, software)"
            )
        return plan

    def choose(self, wanted: ParentKeys) -> ChosenParents:
        """The parents and their checkpoints.

        Raises:
            UserError: a wrong predicate, or one that selects nothing; a model that is not trained, or whose record says
                too little; an epoch that is not stored; ``best`` without validation scores.
        """
        tables = self._zoo.tables
        models = tables.models
        chosen = np.ones(len(models), dtype=bool) if wanted.where is None else parse(wanted.where).mask(models)
        if not chosen.any():
            raise UserError(f"--where {wanted.where!r} selects none of the {len(models)} models of {self.path}")
        status = models["status"].to_numpy()
        unfinished = chosen & ~np.isin(status, ("trained", "diverged"))
        if unfinished.any():
            raise UserError(
                f"{self.path} is unfinished: {unfinished.sum()} of the {chosen.sum()} chosen models are "
                f"{' or '.join(sorted(set(status[unfinished])))}\nrun its `zoogen build` again, or choose others: "
                "--where 'status == \"trained\"'"
            )
        chosen &= status == "trained"
        if not chosen.any():
            raise UserError(f"all chosen models of {self.path} have diverged; there is nothing to make twins of")
        rows = np.flatnonzero(chosen)
        epochs = self._epochs(rows, wanted.epoch)
        names = models["model_id"].to_numpy()[rows].tolist()
        self._check_recorded(names)
        ids = np.array(names, dtype="S32")
        order = self.plan.order
        cells = order[np.searchsorted(self.plan.ids, ids, sorter=order)]
        ascending = np.argsort(cells)
        return ChosenParents(cells[ascending], epochs[ascending])

    def _check_recorded(self, names: Sequence[str]) -> None:
        unusable = self._imported[1] if "imported" in self.manifest else {}
        if open_ones := [name for name in names if name in unusable]:
            first, advice = open_ones[0], "choose others with --where"
            if len(open_ones) == len(names):
                advice = "\n".join(dict.fromkeys(unusable[name].remedy for name in open_ones))
            raise UserError(
                f"{len(open_ones)} of the {len(names)} chosen models of {self.path} cannot be trained on, among them "
                f"{first}: {unusable[first].reason}\n{advice}"
            )

    def _epochs(self, rows: np.ndarray, epoch: int | Literal["last", "best"]) -> np.ndarray:
        tables = self._zoo.tables
        if epoch == "last":
            return tables.last_epoch[rows]
        if epoch == "best":
            return self._best(rows)
        stored = set(tables.model_of[tables.epochs == epoch].tolist())
        missing = [row for row in rows.tolist() if row not in stored]
        if missing:
            raise self._not_stored(missing, int(epoch))
        return np.full(len(rows), int(epoch))

    def _not_stored(self, rows: Sequence[int], epoch: int) -> UserError:
        tables = self._zoo.tables
        known = sorted(set(tables.epochs[np.isin(tables.model_of, rows)].tolist()))
        shown = ", ".join(map(str, known if len(known) <= 12 else [*known[:6], "...", *known[-3:]]))
        return UserError(
            f"epoch {epoch} of {len(rows)} chosen models is not stored in {self.path}\nstored epochs: {shown}"
        )

    def _best(self, rows: np.ndarray) -> np.ndarray:
        """Epoch with the best validation accuracy of each model, the earliest of equals."""
        tables = self._zoo.tables
        scores = np.full(len(tables.epochs), np.nan)
        if "val_acc" in tables.state_names:
            scores = tables.state_columns(["val_acc"])["val_acc"].to_numpy(float)
        found = np.full(len(tables.models), -1)
        known = np.flatnonzero(np.isfinite(scores))
        order = known[np.lexsort((-tables.epochs[known], scores[known]))]
        found[tables.model_of[order]] = tables.epochs[order]  # the last one written wins: best, then earliest
        if (found[rows] < 0).any():
            raise UserError(
                f"--from-epoch best needs validation scores, and {(found[rows] < 0).sum()} of the chosen models of "
                f"{self.path} have none\nuse --from-epoch last, or build a zoo with a validation part (task.val)"
            )
        return found[rows]

    def shards_of(self, needed: Mapping[str, Collection[int]]) -> list[str]:
        """Ids of the shards that hold the checkpoints ``needed`` (model id -> epochs), sorted.

        Raises:
            UserError: a checkpoint is not stored (of an epoch to rewind to, say).
        """
        tables = self._zoo.tables
        ids, epochs, codes = tables.ids[tables.model_of], tables.epochs, tables.shards[0]
        places = {(m, e): i for i, (m, e) in enumerate(zip(ids.tolist(), epochs.tolist(), strict=True)) if m in needed}
        wanted = [(model_id, epoch) for model_id, epochs_of in needed.items() for epoch in epochs_of]
        if gone := [key for key in wanted if key not in places]:
            epoch = gone[0][1]
            models = [model_id for model_id, at in gone if at == epoch]
            raise self._not_stored(np.flatnonzero(np.isin(tables.ids, models)).tolist(), epoch)
        return sorted({tables.shard_names[codes[places[key]]] for key in wanted})

    def check(self, needed: Mapping[str, Collection[int]]) -> dict[str, str]:
        """Digests by id of these shards, all of them read and found whole.

        Raises:
            UserError: as ``shards_of``.
            IntegrityError: a shard is damaged.
        """
        found = {}
        for shard_id in self.shards_of(needed):
            place = shards_folder(self.path) / shard_id
            if damage := problems_of(place):
                file, problem = damage[0]
                raise IntegrityError(
                    f"the parent zoo is damaged: {place / file}: {problem}\n"
                    f"`zoogen verify {self.path}` lists all damage and how to mend it"
                )
            found[shard_id] = read_shard_info(place).digest
        return found

    def described(self, shards: Mapping[str, str], beside: Path) -> dict[str, Any]:
        """The entry ``parents`` of the twins' manifest, for twins in the folder ``beside``."""
        where = os.path.relpath(self.path.absolute(), beside.absolute())
        return {
            "name": self.manifest["name"],
            "version": self.manifest["version"],
            "path": Path(where).as_posix(),
            "shards": dict(shards),
        }


def read_origin(zoo: Path, cohort: Cohort) -> Origin:
    """The parents' checkpoints that a cohort of twins starts from.

    Raises:
        IntegrityError: a shard of the parent zoo is damaged, or a checkpoint is no longer there.
    """
    origins = [(job.parents[0].model_id, job.parents[0].epoch) for job in cohort.jobs]
    told = [next((p for p in job.parents if p.role == "rewind"), None) for job in cohort.jobs]
    rewinds = [(p.model_id, p.epoch) if p else origins[m] for m, p in enumerate(told)]
    found = _read(zoo, {*origins, *rewinds})
    weights, side, scores = _stacked(found, origins)
    back, back_side, _ = _stacked(found, rewinds) if any(told) else (None, {}, None)
    return Origin(weights, side, scores[:, 0], scores[:, 1], back, back_side)


_Row = tuple[np.ndarray, dict[str, np.ndarray], tuple[float, float]]


def _read(zoo: Path, wanted: Collection[tuple[str, int]]) -> dict[tuple[str, int], _Row]:
    """Weights, side rows and test scores of some checkpoints."""
    opened = open_zoo(zoo)
    imported = "imported" in opened.manifest
    tables = opened.tables
    mine = np.flatnonzero(np.isin(tables.ids, [m for m, _ in wanted])[tables.model_of])
    found: dict[tuple[str, int], _Row] = {}
    for shard_id in sorted({tables.shard_names[code] for code in np.unique(tables.shards[0][mine])}):
        with ShardReader(shards_folder(zoo) / shard_id) as shard:
            table = read_shard_checkpoints(shard.folder, shard.info)
            keys = zip(table["model_id"].to_pylist(), table["epoch"].to_pylist(), strict=True)
            rows = [(row, key) for row, key in enumerate(keys) if key in wanted]
            if not rows:
                continue
            places = [row for row, _ in rows]
            weights = shard.weights(places)
            dtypes = [n.removeprefix("side/") for n in shard.info.datasets["weights.h5"] if n.startswith("side/")]
            side = {dtype: shard.side(dtype, places) for dtype in dtypes}
            losses, accuracies = (
                table[name].to_numpy() if name in table.column_names else np.full(len(table), np.nan)
                for name in ("test_loss", "test_acc")
            )
            if imported:  # how others average a loss over batches is not known
                losses = np.full(len(table), np.nan)
            for i, (row, key) in enumerate(rows):
                own = {dtype: values[i] for dtype, values in side.items()}
                found[key] = weights[i], own, (float(losses[row]), float(accuracies[row]))
    if gone := set(wanted) - found.keys():
        model_id, epoch = min(gone)
        raise IntegrityError(
            f"{zoo}: the parent's checkpoint of model {model_id} at epoch {epoch} is not there any more"
        )
    return found


def _stacked(
    found: Mapping[tuple[str, int], _Row], keys: Sequence[tuple[str, int]]
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    rows = [found[key] for key in keys]
    side = {dtype: np.stack([own[dtype] for _, own, _ in rows]) for dtype in rows[0][1]}
    return np.stack([weights for weights, _, _ in rows]), side, np.array([scores for *_, scores in rows])

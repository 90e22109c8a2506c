"""Twin zoos and their parents: one found from the other, and their tables side by side."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.core.errors import IntegrityError, UserError, ZoogenError
from zoogen.store.durable import checked_name
from zoogen.store.shard import shards_folder
from zoogen.store.shard_info import SHARD_FILE, read_shard_info
from zoogen.store.zoo import CHECKPOINTS_TABLE, MANIFEST_FILE, MODELS_TABLE

if TYPE_CHECKING:
    import pandas as pd

    from zoogen.dataset.selection import Selection
    from zoogen.dataset.zoo import Zoo

log = logging.getLogger(__name__)

METHOD = "training.sparsify.name"
_LINKS = ["parent_id", "parent_epoch"]
_PLACES = frozenset({"model_id", "epoch", "shard_id", "row"})


@dataclass(frozen=True)
class Recorded:
    """The zoo that twins were made of, as their manifest names it.

    Attributes:
        name, version: Of that zoo.
        path: Where it was, seen from the folder of the twins.
        shards: Shards that the twins started from, with their digests.
    """

    name: str
    version: int
    path: str
    shards: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name!r} version {self.version}"


class Twins(tuple["Zoo", ...]):
    """Twin zoos of one parent; made by ``Zoo.twins``."""

    __slots__ = ()

    def joined(self, *columns: str) -> pd.DataFrame:
        """``Zoo.with_parent`` of all of them, one below the other, with the folder's name of each as ``zoo``.

        Columns that only some of them have are missing (NaN) in the rows of the others.

        Raises:
            UserError: there are none, or as ``Zoo.with_parent``.
        """
        import pandas as pd

        if not self:
            raise UserError("there are no twins to join; `zoogen sparsify` makes them, zoo.twins(PATH) finds them")
        tables = [zoo.with_parent(*columns) for zoo in self]
        for zoo, table in zip(self, tables, strict=True):
            table.insert(0, "zoo", zoo.path.resolve().name)
        return pd.concat(tables, ignore_index=True)


def origin_of(zoo: Zoo) -> Recorded | None:
    """The zoo that ``zoo`` holds twins of, or None where its models started anew.

    Raises:
        IntegrityError: the manifest is damaged.
        UserError: it has several parents.
    """
    entries = zoo.manifest.get("parents") or []
    if not entries:
        return None
    try:
        found = [_recorded(entry) for entry in entries]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{zoo.path / MANIFEST_FILE}: its parents are damaged ({error!r})") from error
    if len(found) > 1:
        raise UserError(f"the models of {zoo.path} were made of {len(found)} zoos: {', '.join(map(str, found))}")
    return found[0]


def _recorded(entry: Mapping[str, Any]) -> Recorded:
    shards = {checked_name("shard", shard_id): str(digest) for shard_id, digest in entry["shards"].items()}
    found = Recorded(entry["name"], entry["version"], entry["path"], shards)
    if not (type(found.name) is type(found.path) is str and type(found.version) is int):
        raise TypeError("name and path are text, the version is a number")
    return found


def open_parent(twin: Zoo, given: Path | None) -> Zoo:
    """The zoo that ``twin`` holds twins of, at ``given``, or else where the manifest says.

    Raises:
        UserError: ``twin`` holds no twins, or that zoo is not there.
        IntegrityError: a manifest is damaged.
    """
    from zoogen.dataset.zoo import open_zoo

    origin = origin_of(twin)
    if origin is None:
        raise UserError(f"zoo {twin.name!r} at {twin.path} holds no twins, so it has no parent")
    path = twin.path / origin.path if given is None else given
    path = path.resolve() if path.exists() else path
    advice = f"if it was moved, say where it is: zoogen.open({str(twin.path)!r}, parent=PATH)"
    if not (path / MANIFEST_FILE).is_file():
        raise UserError(f"the parent of zoo {twin.name!r}, zoo {origin}, is not at {path}\n{advice}")
    parent = open_zoo(path)
    if other := difference(parent, origin):
        raise UserError(f"{path} is not the zoo that the twins in {twin.path} were made of: {other}\n{advice}")
    return parent


def difference(zoo: Zoo, origin: Recorded) -> str | None:
    """Why ``zoo`` is not the one that ``origin`` names, or None: it is. Shards that were added since do not matter.

    Raises:
        IntegrityError: a description of a shard is damaged.
    """
    if (zoo.name, zoo.version) != (origin.name, origin.version):
        return f"it is zoo {zoo.name!r} version {zoo.version}, they are of zoo {origin}"
    for shard_id, digest in origin.shards.items():
        folder = shards_folder(zoo.path) / shard_id
        if not (folder / SHARD_FILE).is_file():
            return f"it has no shard {shard_id}"
        if read_shard_info(folder).digest != digest:
            return f"its shard {shard_id} holds other weights than the one they started from"
    return None


def find_twins(parent: Zoo, paths: Sequence[str | os.PathLike[str]]) -> Twins:
    """See ``Zoo.twins``."""
    if not paths:
        return _beside(parent)
    folders = [Path(p) for p in paths]
    places = [folder.resolve() for folder in folders]
    if twice := [str(f) for f, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise UserError(f"a twin zoo is given twice: {', '.join(twice)}")
    return Twins(_as_twin(folder, parent) for folder in folders)


def _as_twin(folder: Path, parent: Zoo) -> Zoo:
    from zoogen.dataset.zoo import open_zoo

    twin = open_zoo(folder)
    origin = origin_of(twin)
    other = "its models started anew, they are no twins" if origin is None else difference(parent, origin)
    if other:
        raise UserError(_no_twins(folder, parent, origin, other))
    twin.parent = parent
    return twin


def _no_twins(folder: Path, parent: Zoo, origin: Recorded | None, other: str) -> str:
    said = f"{folder} holds no twins of zoo {parent.name!r} at {parent.path}"
    if origin is None:
        return f"{said}: {other}\n`zoogen sparsify {parent.path}` makes twins of it"
    if (parent.name, parent.version) != (origin.name, origin.version):
        return f"{said}: they are twins of zoo {origin}\ngive that zoo instead, or other twins"
    return f"{said}, but of another zoo of that name: here, {other}\ngive the zoo that they were made of"


def _beside(parent: Zoo) -> Twins:
    from zoogen.dataset.zoo import open_zoo

    own = parent.path.resolve()
    found = []
    for manifest in sorted(own.parent.glob(f"*/{MANIFEST_FILE}")):
        if manifest.parent == own:
            continue
        try:
            origin = origin_of(open_zoo(manifest.parent))
            if origin is None or (origin.name, origin.version) != (parent.name, parent.version):
                continue
            found.append(_as_twin(manifest.parent, parent))
        except ZoogenError as error:  # a neighbour is not what was asked for
            log.warning("left out: %s", error)
    return Twins(found)


def read_kept(selection: Selection) -> np.ndarray:
    """See ``Selection.kept``."""
    with selection.zoo.shards as shards:
        found = shards.kept(selection.states(), len(selection.layout.prunable_places))
    if found is None:
        raise UserError(
            f"zoo {selection.zoo.name!r} holds no sparse twins, so its states have no masks\n"
            f"`zoogen sparsify {selection.zoo.path}` makes twins of it"
        )
    return found


def read_log_alpha(selection: Selection) -> np.ndarray:
    """See ``Selection.log_alpha``."""
    with selection.zoo.shards as shards:
        found = shards.log_alpha(selection.states(), len(selection.layout.prunable_places))
    if found is None:
        raise UserError(
            "some of these states have no log alpha\n"
            "recipes of variational dropout with `checkpoints: {log_alpha: true}` keep it"
        )
    return found


def with_parent(selection: Selection, columns: Sequence[str]) -> pd.DataFrame:
    """See ``Selection.with_parent``."""
    import pandas as pd

    twin = selection.zoo
    places = _starts(selection)
    _check_columns(twin, METHOD)
    model_of = twin.tables.model_of[selection.rows]
    table = selection.joined(*columns)
    parent = twin.parent.tables
    own = twin.tables.models[_LINKS].assign(method=twin.tables.models[METHOD].astype("str"))[["method", *_LINKS]]
    theirs = parent.state_columns([n for n in parent.state_names if n not in _PLACES], places).add_prefix("parent.")
    added = [own.take(model_of).reset_index(drop=True), theirs]
    table = pd.concat([table.drop(columns=[n for n in _LINKS if n in table]), *added], axis=1)
    if "test_acc" in table and "parent.test_acc" in table:
        table["acc_drop"] = table["parent.test_acc"] - table["test_acc"]
    return table


def parents_of(selection: Selection) -> Selection:
    """See ``Selection.parents``."""
    from zoogen.dataset.selection import Selection as Selected

    rows, twin = _starts(selection), selection.zoo
    if selection.sides is None:
        return Selected(twin.parent, rows)
    # A twin is on its parent's side, so parents are on their twins'.
    sides = np.full(len(twin.parent.tables.models), None, object)
    sides[twin.parent.tables.model_of[rows]] = selection.sides[twin.tables.model_of[selection.rows]]
    return Selected(twin.parent, rows, sides)


def _starts(selection: Selection) -> np.ndarray:
    """int64 [states]: where each twin started, as a row of the checkpoints of the parent zoo.

    Raises:
        UserError: the zoo holds no twins, or its parent is not where it was.
        IntegrityError: the parent zoo lacks the checkpoint of a twin, or a column is missing.
    """
    import pandas as pd

    twin = selection.zoo
    parent = twin.parent.tables
    model_of = twin.tables.model_of[selection.rows]
    _check_columns(twin, *_LINKS)
    origins = twin.tables.models[_LINKS]
    keys = pd.MultiIndex.from_arrays([parent.model_of, parent.epochs])
    if not keys.is_unique:
        raise IntegrityError(f"{twin.parent.path / CHECKPOINTS_TABLE}: a state stands twice")
    # Once per model: its states share a parent.
    parents = parent.ids.get_indexer(pd.Index(origins["parent_id"]))
    places = keys.get_indexer(pd.MultiIndex.from_arrays([parents, origins["parent_epoch"]]))[model_of]
    if (places < 0).any():
        lost = origins.iloc[model_of[places < 0][0]]
        raise IntegrityError(
            f"{twin.parent.path}: the tables lack the checkpoint of model {lost['parent_id']} at epoch "
            f"{lost['parent_epoch']}, from which a twin in {twin.path} started\n`zoogen verify` says why"
        )
    return places


def _check_columns(twin: Zoo, *names: str) -> None:
    if missing := set(names) - set(twin.tables.models.columns):
        raise IntegrityError(f"{twin.path / MODELS_TABLE}: columns {', '.join(sorted(missing))} are missing")

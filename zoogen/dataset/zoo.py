"""An open zoo: what it holds as tables, and the way to its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.layout import Layout
from zoogen.dataset.filters import Epochs
from zoogen.dataset.selection import Selection, expect_selection
from zoogen.dataset.shards import Shards
from zoogen.dataset.tables import Tables, read_tables
from zoogen.dataset.twins import Twins, find_twins, open_parent
from zoogen.store.splits import read_split
from zoogen.store.zoo import MANIFEST_FILE, ZooFolder, layout_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from zoogen.core.contracts import PartName
    from zoogen.dataset.functional import Functional, Stacked
    from zoogen.dataset.splits import Resplit
    from zoogen.dataset.task import ZooTask

_MANIFEST = {"name": str, "version": int, "factors": list, "architectures": dict, "tasks": dict, "layouts": dict}
_SHORTEST_PREFIX = 6


def open_zoo(path: str | os.PathLike[str], *, parent: str | os.PathLike[str] | None = None) -> Zoo:
    """``zoogen.open``: the zoo in the folder ``path``; ``parent`` says where the zoo is that its twins were made of.

    Raises:
        UserError: there is no zoo; or its twins were not made of the zoo at ``parent``.
        IntegrityError: its manifest is damaged or of an unknown format.
    """
    folder = ZooFolder(Path(path))
    zoo = Zoo(folder, folder.manifest())
    if parent is not None:
        zoo.parent = open_parent(zoo, Path(parent))
    return zoo


class Zoo:
    """A population of trained models on disk. Tables are read when first used, weights when asked for.

    ``len`` is the number of models with stored states. A zoo that is still being built shows what was sealed when its
    tables were last made; open it again to see more.

    Attributes:
        path: Its folder.
        manifest: ``zoo.json``: blueprints, architectures, tasks, layouts, software.
        shards: Readers of its weights.
    """

    def __init__(self, folder: ZooFolder, manifest: Mapping[str, Any]) -> None:
        self.path = folder.path
        self.manifest = _checked(folder, manifest)
        self.shards = Shards(folder.path)
        self._layouts: dict[str, Layout] = {}
        self._tasks: dict[tuple[str, Path | None], ZooTask] = {}

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def version(self) -> int:
        return self.manifest["version"]

    @property
    def factors(self) -> tuple[str, ...]:
        """Dotted keys of the settings that differ between models (the seed apart); columns of ``models``."""
        return tuple(self.manifest["factors"])

    @cached_property
    def tables(self) -> Tables:
        """Both tables and the links between them."""
        folder = ZooFolder(self.path)
        tables = read_tables(folder)
        for column, section in (("architecture_id", "architectures"), ("task_id", "tasks")):
            if not set(tables.models[column].dropna().unique()) <= self.manifest[section].keys():
                # The zoo was extended since it was opened; a build writes the manifest before the tables.
                self.manifest = _checked(folder, folder.manifest())
        return tables

    @property
    def models(self) -> pd.DataFrame:
        """One row per planned model: id, settings, status, and the scores of its last checkpoint."""
        return self.tables.models.copy(deep=False)

    @property
    def checkpoints(self) -> pd.DataFrame:
        """One row per stored state: model, epoch, losses, scores, norms, and where its weights lie."""
        return self.tables.checkpoints.copy(deep=False)

    def __len__(self) -> int:
        return int((self.tables.last_epoch >= 0).sum())

    def __repr__(self) -> str:
        planned = len(self.tables.models)
        models = f"{len(self):,} models" if len(self) == planned else f"{len(self):,} of {planned:,} planned models"
        factors = ", ".join(self.factors) or "none"
        states = f"{len(self.tables.epochs):,} states"
        return f"<zoo {self.name!r} version {self.version} at {self.path}: {models}, {states}; factors: {factors}>"

    def select(
        self,
        where: str | None = None,
        *,
        epochs: Epochs | None = None,
        split: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> Selection:
        """Stored states that fulfil every condition; conditions of further ``select`` calls add to them.

        ::

            zoo.select("lr < 0.01 and test_acc > 0.9", epochs="last", split="train")
            zoo.select(activation=["tanh", "relu"], epochs=range(0, 51, 10))

        Args:
            where: Predicate on columns of checkpoints and models. A name means the state's own column where there is
                one (``test_acc`` at that epoch); ``final.test_acc`` is that of its model's last checkpoint. Grammar
                and missing values: "Selecting" in ``docs/open-a-zoo.md``.
            epochs: One epoch, several, a range or slice of epochs, or each model's "first" or "last" stored one.
            split: Side of the model split: "train", "val", "test", or several.
            **settings: Values of the models' settings, one or several (a list, an array, a column of ``models``); the
                unique end of a dotted name will do. Scores are no settings: ``where`` takes conditions on them.

        Raises:
            UserError: an unknown column, value, epoch or split.
        """
        everything = Selection(self, np.arange(len(self.tables.epochs)))
        return everything.select(where, epochs=epochs, split=split, **settings)

    @cached_property
    def parent(self) -> Zoo:
        """The zoo that these twins were made of, found where it was then, as seen from this folder.

        Raises:
            UserError: this zoo holds no twins; or its parent is not there, and ``zoogen.open(path, parent=...)`` can
                say where it is.
            IntegrityError: a manifest is damaged.
        """
        return open_parent(self, None)

    def twins(self, *paths: str | os.PathLike[str]) -> Twins:
        """Twin zoos of this zoo: those at ``paths``, or, without any, those in the folders beside it.

        ::

            zoo.twins().joined()                  # every twin's checkpoints beside their parent's
            zoo.twins("zoos/small-magnitude-v1")[0].select("sparsity > 0.8", epochs="last").kept()

        Raises:
            UserError: one of ``paths`` holds no zoo, or no twins of this one.
            IntegrityError: a manifest is damaged.
        """
        return find_twins(self, paths)

    def with_parent(self, *columns: str) -> pd.DataFrame:
        """Every twin checkpoint with the parent's beside it; see ``Selection.with_parent``."""
        return self.select().with_parent(*columns)

    def state_dict(self, model_id: str, epoch: int | Literal["first", "last"] = "last") -> dict[str, Tensor]:
        """The tensors of one stored state by name, as ``nn.Module.load_state_dict`` takes them.

        Args:
            model_id: Its id, or the first 6 or more digits of it.
            epoch: A stored epoch of this model, or its first or last one.

        Raises:
            UserError: no such model or epoch is stored.
            IntegrityError: its shard is damaged.
        """
        from zoogen.dataset.modules import state_dict

        selection = self._state(self._model(model_id), epoch)
        with self.shards as shards:
            return state_dict(shards, selection.states(), selection.layout)

    def module(
        self, model_id: str, epoch: int | Literal["first", "last"] = "last", *, allow: Sequence[str] = ()
    ) -> nn.Module:
        """The network of one stored state, in eval mode, on the CPU: normalised inputs to class scores.

        Args:
            model_id, epoch: As for ``state_dict``.
            allow: Import paths (``package.module:factory``) whose code may run, for models that are made by such.

        Raises:
            UserError: no such state; its code is not allowed; or the architecture here is not the stored one.
            IntegrityError: shard or manifest are damaged.
        """
        from zoogen.dataset.modules import build_network, restore_architecture

        model = self._model(model_id)
        row = {str(name): value for name, value in self.tables.models.iloc[model].items()}
        described = self.architecture(row["architecture_id"])
        architecture = restore_architecture(described, row)
        layout = self.layout(described["layout"])
        state = self.state_dict(row["model_id"], epoch)
        own = row.get("seeds.init")
        seed = int(row["seed"] if own is None or own != own else own)
        return build_network(architecture, described, layout, state, seed, allow)

    def split_indices(self, task: str | None = None) -> dict[str, np.ndarray]:
        """int64 sample indices per part: train and val into a task's training files, test into its test files.

        Args:
            task: Name or id; may be left out where the zoo has one task.

        Raises:
            UserError: no such task, several, or nothing is trained on it yet.
        """
        from zoogen.dataset.task import find_task_id

        task_id = find_task_id(self, task)
        try:
            return read_split(self.path, task_id)
        except FileNotFoundError:
            raise UserError(f"no model of task {task or task_id!r} is trained yet, so it has no split") from None

    def task(
        self, name: str | None = None, data: str | os.PathLike[str] | None = None, *, download: bool = False
    ) -> ZooTask:
        """The data that the zoo was trained on, with their transform and split, checked to be the same.

        Args:
            name: Name or id of the task; may be left out where the zoo has one.
            data: Folder of the source files, as of ``zoogen build --data``; None: ``$ZOOGEN_DATA`` or the cache.
            download: Fetch missing files.

        Raises:
            UserError: no such task, several, or one that this zoogen does not know.
            EnvironmentFault: files are missing; the message says what to place where.
            IntegrityError: the data are others than those the zoo was trained on.
        """
        from zoogen.dataset.task import find_task_id, load_task

        key = (find_task_id(self, name), None if data is None else Path(data))
        if key not in self._tasks:
            self._tasks[key] = load_task(self, *key, download)
        return self._tasks[key]

    def functional(self, name: str, *, allow: Sequence[str] = ()) -> Functional:
        """(function, template): a network as ``function(params, buffers, x) -> outputs``, for ``torch.func``.

        Args:
            name: Id of an architecture (``Selection.architecture_id``), or of a model, whose last state fills the
                template.
            allow: As for ``module``; so are the errors.
        """
        from zoogen.dataset.functional import make_functional

        return make_functional(self, name, allow)

    def stacked(self, selection: Selection, device: str = "cpu") -> Stacked:
        """(params, buffers) of the states of a selection by name, [n, ...] each, as ``functional`` takes them.

        Raises:
            UserError: they are of several architectures; ``Selection.by_architecture`` takes them apart.
            UserError, IntegrityError, EnvironmentFault: as ``Selection.weights``.
        """
        from zoogen.dataset.devices import usable_device
        from zoogen.dataset.functional import stack_states

        return stack_states(expect_selection(selection), usable_device(device))

    def evaluate(
        self,
        selection: Selection,
        part: PartName = "test",
        *,
        task: ZooTask | None = None,
        predictions: bool = False,
        device: str = "cpu",
        allow: Sequence[str] = (),
    ) -> pd.DataFrame:
        """Loss (nats) and accuracy of stored states, computed anew: one row per state, in the order of the selection.

        They are the stored scores up to float32 rounding, where precision and kind of device are those of training.

        Args:
            selection: The states; several architectures and tasks will do.
            part: "train" (without augmentation), "val" or "test".
            task: Other data; None: those the models were trained on, as ``task()`` finds them.
            predictions: Also the predicted class of each sample, as arrays [N].
            device, allow: Where it is computed; code that may run, as for ``module``.

        Raises:
            UserError, EnvironmentFault, IntegrityError: as ``task``, ``module`` and ``Selection.weights``.
        """
        from zoogen.dataset.evaluate import evaluate

        expect_selection(selection)
        return evaluate(self, selection, part, task=task, predictions=predictions, device=device, allow=allow)

    def evaluate_weights(
        self,
        weights: np.ndarray | Tensor,
        like: str | None = None,
        part: PartName = "test",
        *,
        task: ZooTask | None = None,
        predictions: bool = False,
        device: str = "cpu",
        allow: Sequence[str] = (),
    ) -> pd.DataFrame:
        """``evaluate`` for any weights, float [n, P] as ``Selection.weights`` gives them: generated ones, say.

        Args:
            weights: One row per network; where its outputs are not finite, loss and accuracy are not either (NaN).
            like: Id of their architecture, or of a model of it; may be left out where the zoo has one architecture.
                Tensors that a row does not hold (counters, indices) are those of that model.
        """
        from zoogen.dataset.evaluate import evaluate_weights

        return evaluate_weights(
            self, weights, like, part, task=task, predictions=predictions, device=device, allow=allow
        )

    def resplit(self, by: str, test: Any, val: Any = ()) -> Resplit:
        """Another model split than the stored one: models with some values of a setting apart from all others.

        Twins, and models that descend from others, are on the side of the model they go back to; imported relatives
        whose root is not in the zoo are on that of the first of them.

        ::

            zoo.resplit("lr", test=[0.1]).select("train", epochs="last")

        Args:
            by: Setting of the models, or its unique end.
            test, val: Values of it that go to the test and the validation side; the rest is "train", also the models
                that lack the setting.

        Raises:
            UserError: no such setting or value, a value on two sides, or a side without models.
        """
        from zoogen.dataset.splits import resplit

        return resplit(self, by, test, val)

    def leave_one_out(self, by: str) -> dict[Any, Resplit]:
        """``resplit`` once for each value of a setting, which is the test side: value -> split.

        Models that lack the setting are training models every time; they are never tested.

        Raises:
            UserError: no such setting, or one with fewer than two values here.
        """
        from zoogen.dataset.splits import leave_one_out

        return leave_one_out(self, by)

    def architecture(self, architecture_id: str) -> Mapping[str, Any]:
        """How the manifest describes an architecture on a task: name, arguments, input shape, outputs, layout.

        Raises:
            IntegrityError: it does not.
        """
        found = self.manifest["architectures"].get(architecture_id)
        if not isinstance(found, dict) or not {"name", "input_shape", "outputs", "layout"} <= found.keys():
            raise IntegrityError(f"{self.path / MANIFEST_FILE}: architecture {architecture_id!r} is missing or damaged")
        return found

    def layout(self, layout_id: str) -> Layout:
        """A layout of the manifest, checked.

        Raises:
            IntegrityError: it is missing or damaged.
        """
        if layout_id not in self._layouts:
            self._layouts[layout_id] = layout_of(self.manifest, layout_id, self.path)
        return self._layouts[layout_id]

    def bytes_on_disk(self) -> int:
        """Bytes of all files but the work of unfinished cohorts."""
        work = self.path / ".work"
        return sum(p.stat().st_size for p in self.path.rglob("*") if work not in p.parents and p.is_file())

    def _model(self, model_id: str) -> int:
        """Row in ``models`` of an id or the beginning of one."""
        ids = self.tables.ids
        if model_id in ids:
            return int(np.flatnonzero(ids == model_id)[0])
        if not isinstance(model_id, str) or len(model_id) < _SHORTEST_PREFIX:
            raise UserError(f"model id {model_id!r} is too short; give at least {_SHORTEST_PREFIX} of its digits")
        fitting = np.flatnonzero(ids.str.startswith(model_id.lower()))
        if len(fitting) == 1:
            return int(fitting[0])
        if len(fitting):
            raise UserError(f"{len(fitting)} models begin with {model_id!r}: {', '.join(ids[fitting[:5]])}")
        raise UserError(f"no model {model_id!r} in zoo {self.name!r}; zoo.models lists all of them")

    def _state(self, model: int, epoch: int | str) -> Selection:
        rows = np.flatnonzero(self.tables.model_of == model)
        stored = self.tables.epochs[rows]
        row = self.tables.models.iloc[model]
        if not len(rows):
            why = f": {row['reason']}" if row["status"] == "failed" else ""
            raise UserError(f"model {row['model_id']} has no stored states; it is {row['status']}{why}")
        if isinstance(epoch, str):
            if epoch not in ("first", "last"):
                raise UserError(f"unknown epoch {epoch!r}; give a number, 'first' or 'last'")
            epoch = int(stored.min() if epoch == "first" else stored.max())
        if epoch not in stored:
            diverged = f" (it diverged in epoch {row['diverged_epoch']})" if row["status"] == "diverged" else ""
            shown = ", ".join(map(str, sorted(stored.tolist())))
            raise UserError(f"model {row['model_id']} has no state of epoch {epoch}{diverged}\nstored epochs: {shown}")
        return Selection(self, rows[stored == epoch][:1])


def _checked(folder: ZooFolder, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest, if it has what every zoo's has.

    Raises:
        IntegrityError: something is missing or of another type.
    """
    for key, kind in _MANIFEST.items():
        if not isinstance(manifest.get(key), kind):
            raise IntegrityError(f"{folder.path / MANIFEST_FILE}: {key!r} is missing or no {kind.__name__}")
    return manifest

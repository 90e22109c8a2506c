"""A selection of stored states: which ones is decided from the tables; weights are read when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoogen.core.errors import EnvironmentFault, UserError
from zoogen.core.layout import Layout
from zoogen.dataset import filters
from zoogen.dataset.columns import positions
from zoogen.dataset.shards import States

if TYPE_CHECKING:
    import pandas as pd

    from zoogen.dataset.torch_dataset import StatesDataset
    from zoogen.dataset.zoo import Zoo

_SMALL = 1 << 30  # bytes that are allocated without looking at the free memory first


class Trajectories(NamedTuple):
    """Weights of M models at T epochs each.

    Attributes:
        model_ids: str [M].
        epochs: int64 [T], ascending.
        weights: float32 [M, T, P].
    """

    model_ids: np.ndarray
    epochs: np.ndarray
    weights: np.ndarray


class Selection:
    """Some of a zoo's stored states, in the order of its checkpoints table; made by ``Zoo.select``.

    ``len`` is the number of states. Everything that comes back has its rows in the order of ``checkpoints``.
    """

    def __init__(self, zoo: Zoo, rows: np.ndarray) -> None:
        self.zoo = zoo
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<selection of {len(self):,} states of {len(self._models):,} models from {self.zoo.name!r}>"

    def select(
        self,
        where: str | None = None,
        *,
        epochs: filters.Epochs | None = None,
        split: str | Sequence[str] | None = None,
        **settings: Any,
    ) -> Selection:
        """The states of this selection that also fulfil these conditions; see ``Zoo.select``."""
        tables = self.zoo.tables
        masks = []
        if where is not None:
            masks.append(filters.predicate_rows(tables, where))
        if epochs is not None:
            masks.append(filters.epoch_rows(tables, epochs))
        if split is not None:
            masks.append(filters.split_rows(tables, split))
        masks += [filters.value_rows(tables, name, value) for name, value in settings.items()]
        if not masks:
            return self
        return Selection(self.zoo, self.rows[np.logical_and.reduce(masks)[self.rows]])

    @cached_property
    def _models(self) -> np.ndarray:
        return np.unique(self.zoo.tables.model_of[self.rows])

    @property
    def models(self) -> pd.DataFrame:
        """Rows of ``Zoo.models`` that have a state in the selection, in their order."""
        return self.zoo.tables.models.take(self._models).reset_index(drop=True)

    @property
    def checkpoints(self) -> pd.DataFrame:
        """Rows of ``Zoo.checkpoints``: one per state, in the order of the weights."""
        return self.zoo.tables.checkpoints.take(self.rows).reset_index(drop=True)

    def joined(self, *columns: str) -> pd.DataFrame:
        """``checkpoints`` with columns of their models joined: the ones named, else the zoo's factors, seed and split.

        Names may be ends (``lr``). A model's column that checkpoints have too is named ``final.<column>``.

        Raises:
            UserError: no such column.
        """
        tables = self.zoo.tables
        own = list(tables.checkpoints.columns)
        known = [f"{filters.FINAL}{c}" if c in own else c for c in tables.models.columns]
        wanted = [filters.resolve(c, [*own, *known]) for c in columns or (*self.zoo.factors, "seed", "split")]
        return filters.state_columns(tables, dict.fromkeys([*own, *wanted]), self.rows)

    def with_parent(self, *columns: str) -> pd.DataFrame:
        """``joined`` for twins, with what each started from: one row per twin state.

        Adds ``method``, ``parent_id``, ``parent_epoch``, every column of the parent's checkpoint as
        ``parent.<column>``, and ``acc_drop``, the parent's test accuracy minus the twin's.

        Args:
            *columns: As for ``joined``.

        Raises:
            UserError: the zoo holds no twins, its parent is not where it was, or there is no such column.
            IntegrityError: the parent zoo lacks the checkpoint of a twin.
        """
        from zoogen.dataset.twins import with_parent

        return with_parent(self, columns)

    @property
    def layout(self) -> Layout:
        """How the rows of ``weights`` are divided into tensors.

        Raises:
            UserError: the selection holds models of several layouts, or none.
        """
        return self.zoo.layout(self._layout_id)

    def weights(self, columns: str | Sequence[str] | None = None) -> np.ndarray:
        """float32 [states, P]: one row per state, in the order of ``checkpoints``.

        Args:
            columns: Names or roles of tensors to read instead of all; they keep the order of the layout.

        Raises:
            UserError: models of several layouts, or an unknown tensor.
            IntegrityError: a shard is damaged; the message names it.
            EnvironmentFault: the memory does not hold them; ``iter_weights`` reads them part by part.
        """
        return self._read(self.rows, columns)

    def iter_weights(self, batch: int = 1024, columns: str | Sequence[str] | None = None) -> Iterator[np.ndarray]:
        """``weights`` in parts of at most ``batch`` states: float32 [batch, P] each."""
        if batch < 1:
            raise UserError(f"a batch has at least one state, got {batch}")
        for start in range(0, len(self), batch):
            yield self._read(self.rows[start : start + batch], columns)

    def trajectories(self, columns: str | Sequence[str] | None = None) -> Trajectories:
        """Weights as models x epochs, models in the order of ``models``.

        Raises:
            UserError: some model lacks an epoch that another one has; the message says which, and why.
        """
        tables = self.zoo.tables
        model_of, epochs = tables.model_of[self.rows], tables.epochs[self.rows]
        own = np.unique(epochs)
        if len(self) != len(self._models) * len(own):
            raise UserError(self._ragged(own))
        order = np.lexsort((epochs, model_of))
        weights = self._read(self.rows[order], columns)
        ids = tables.models["model_id"].to_numpy(object)[self._models]
        return Trajectories(ids, own, weights.reshape(len(ids), len(own), weights.shape[1]))

    def predictions(self) -> np.ndarray:
        """uint8 [states, N_test]: the predicted class of each test sample.

        Raises:
            UserError: the zoo kept none, or the models are of several tasks.
        """
        tasks = self.zoo.tables.models["task_id"].take(self._models).unique()
        if len(tasks) != 1:
            raise UserError(f"predictions are of one task, this selection has {len(tasks)}; select by task.name")
        with self.zoo.shards as shards:
            found = shards.predictions(self.states())
        if found is None:
            raise UserError(
                "some of these states have no predictions; "
                "blueprints with `checkpoints: {test_predictions: true}` keep them"
            )
        return found

    def kept(self) -> np.ndarray:
        """bool [states, W]: which prunable weights each twin has left.

        The W weights are the elements of ``layout.prunable`` in their order, at ``layout.prunable_places`` of a row of
        ``weights``.

        Raises:
            UserError: the zoo holds no twins, or models of several layouts.
            IntegrityError: a shard is damaged; the message names it.
        """
        from zoogen.dataset.twins import read_kept

        return read_kept(self)

    def log_alpha(self) -> np.ndarray:
        """float32 [states, W]: log alpha of every prunable weight, of twins by variational dropout; as ``kept``.

        Raises:
            UserError: it was not kept, or models of several layouts.
            IntegrityError: a shard is damaged; the message names it.
        """
        from zoogen.dataset.twins import read_log_alpha

        return read_log_alpha(self)

    def dataset(self, target: str | None = None, columns: str | Sequence[str] | None = None) -> StatesDataset:
        """A ``torch.utils.data.Dataset`` of (weights float32 [P], target), or of (weights, metadata as a dict).

        It reads from the shards on access, in whatever process; numbers become float32 targets, other values the
        position (int64) in its ``classes``.

        Args:
            target: A column of checkpoints or models, e.g. ``test_acc`` or ``activation``.
            columns: As in ``weights``.

        Raises:
            UserError: models of several layouts, an unknown column, or one with missing values.
        """
        from zoogen.dataset.torch_dataset import make_dataset

        return make_dataset(self, target, positions(self.layout, columns))

    def states(self, rows: np.ndarray | None = None) -> States:
        """Where the states (or those of some rows of the checkpoints table) lie.

        Raises:
            UserError: models of several layouts.
        """
        tables = self.zoo.tables
        rows = self.rows if rows is None else rows
        codes, places = tables.shards
        ids = tables.models["model_id"].to_numpy(object)[tables.model_of[rows]]
        return States(self._layout_id, tables.shard_names, codes[rows], places[rows], ids, tables.epochs[rows])

    def _read(self, rows: np.ndarray, columns: str | Sequence[str] | None) -> np.ndarray:
        found = positions(self.layout, columns)
        width = self.layout.parameters if found is None else len(found)
        _check_memory(len(rows), width)
        with self.zoo.shards as shards:
            return shards.weights(self.states(rows), found, width)

    @cached_property
    def _layout_id(self) -> str:
        names = self.zoo.tables.models["architecture_id"].take(self._models).unique().tolist()
        layouts = {self.zoo.architecture(name)["layout"] for name in names}
        if len(layouts) == 1:
            return layouts.pop()
        if not layouts:
            raise UserError("this selection is empty, so it has no weights")
        raise UserError(
            f"these states are of {len(layouts)} different layouts, which no one matrix holds:\n"
            + "\n".join(sorted({f"  {self._described(name)}" for name in names}))
            + "\n"
            + self._advice()
        )

    def _described(self, architecture_id: str) -> str:
        entry = self.zoo.architecture(architecture_id)
        rest = {k: v for k, v in entry.items() if k not in ("name", "input_shape", "outputs", "layout")}
        arguments = ", ".join(f"{k}={v}" for k, v in rest.items())
        return f"{entry['name']}({arguments}): {self.zoo.layout(entry['layout']).parameters:,} parameters"

    def _advice(self) -> str:
        models = self.zoo.tables.models.take(self._models)
        differing = [
            key for key in models.columns
            if key.startswith(("architecture.", "task.")) and models.groupby("architecture_id")[key].nunique().max() < 2
            and models[key].nunique() > 1
        ]  # fmt: skip
        key = "architecture.name" if "architecture.name" in differing else (differing or ["architecture_id"])[0]
        value = models[key].iloc[0]
        shown = repr(value.item() if hasattr(value, "item") else value)
        return f'narrow the selection, e.g. .select("{key} == {shown}")'

    def _ragged(self, epochs: np.ndarray) -> str:
        tables = self.zoo.tables
        counts = np.bincount(tables.model_of[self.rows], minlength=len(tables.models))[self._models]
        short = tables.models.take(self._models[counts < len(epochs)])
        shown = []
        for row in short.head(5).to_dict("records"):
            diverged = row["status"] == "diverged"
            why = f"diverged in epoch {row['diverged_epoch']}" if diverged else f"is {row['status']}"
            shown.append(f"  {row['model_id'][:12]} {why}")
        more = f"\n  ... and {len(short) - 5} more" if len(short) > 5 else ""
        some_diverged = (short["status"] == "diverged").any()
        advice = "\"status == 'trained'\"" if some_diverged else "epochs=[...]"
        return (
            f"trajectories differ in length: {len(short)} of {len(self._models)} models lack some of the "
            f"{len(epochs)} epochs\n" + "\n".join(shown) + more + f"\nnarrow the selection, e.g. .select({advice})"
        )


def _check_memory(states: int, width: int) -> None:
    needed = 4 * states * width
    if needed < _SMALL:
        return
    import psutil

    free = psutil.virtual_memory().available
    if needed > free:
        raise EnvironmentFault(
            f"{states:,} states of {width:,} parameters take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free\n"
            "read them part by part with iter_weights(), or select fewer epochs, models or tensors"
        )

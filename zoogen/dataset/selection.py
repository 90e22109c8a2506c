"""A selection of stored states: which ones is decided from the tables; weights are read when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.core.errors import UserError
from zoogen.core.layout import Layout
from zoogen.dataset import filters
from zoogen.dataset.columns import entries
from zoogen.dataset.layouts import layouts_of, only_architecture, only_layout
from zoogen.dataset.reading import Reading, reading
from zoogen.dataset.shards import Shards, States
from zoogen.dataset.trajectories import (
    Pairs,
    Trajectories,
    Trajectory,
    all_trajectories,
    each_trajectory,
    pairs_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from zoogen.dataset.normaliser import Kind, Normaliser
    from zoogen.dataset.stream import StateStream
    from zoogen.dataset.torch_dataset import StatesDataset
    from zoogen.dataset.zoo import Zoo


Columns = str | Sequence[str] | None


class Selection:
    """Some of a zoo's stored states, in the order of its checkpoints table; made by ``Zoo.select``.

    ``len`` is the number of states. Everything that comes back has its rows in the order of ``checkpoints``.
    """

    def __init__(self, zoo: Zoo, rows: np.ndarray, sides: np.ndarray | None = None) -> None:
        self.zoo = zoo
        self.rows = rows
        self.sides = sides  # of the Resplit that it was taken from: "train", "val" or "test" of each model

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
        if not (where is None or isinstance(where, str)):
            raise UserError(
                f'a condition is text, e.g. select("test_acc > 0.9"), got {type(where).__name__}\n'
                "models of a table are selected by their ids: select(model_id=table.model_id)"
            )
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
        return self._at(np.logical_and.reduce(masks)[self.rows])

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
        if self._few is not None:
            return self._few.copy(deep=False)
        return self.zoo.tables.state_columns(self.zoo.tables.state_names, self.rows)

    @cached_property
    def _few(self) -> pd.DataFrame | None:
        """``checkpoints`` of few states: kept here, since the tables do not keep what they are taken from."""
        tables = self.zoo.tables
        return tables.state_columns(tables.state_names, self.rows) if tables.are_few(self.rows) else None

    def joined(self, *columns: str) -> pd.DataFrame:
        """``checkpoints`` with columns of their models joined: the ones named, else the zoo's factors, seed and split.

        Names may be ends (``lr``). A model's column that checkpoints have too is named ``final.<column>``.

        Raises:
            UserError: no such column.
        """
        tables = self.zoo.tables
        own = list(tables.state_names)
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

    def parents(self) -> Selection:
        """The states of the parent zoo that these twins started from: one row per twin state, so some stand repeatedly.

        ``twins.parents().weights()`` has the rows of ``twins.weights()``, before anything was removed.

        Raises:
            UserError, IntegrityError: as ``with_parent``.
        """
        from zoogen.dataset.twins import parents_of

        return parents_of(self)

    @property
    def architecture_id(self) -> str:
        """The architecture of its models.

        Raises:
            UserError: the selection holds models of several architectures, or none.
        """
        return only_architecture(self.zoo, self._models)

    @property
    def layout(self) -> Layout:
        """How the rows of ``weights`` are divided into tensors.

        Raises:
            UserError: the selection holds models of several layouts, or none.
        """
        return self.zoo.layout(self._layout_id)

    def by_layout(self) -> list[Selection]:
        """One selection per layout: states whose weights fit one matrix."""
        return [part for _, part in self.layout_parts()]

    def by_architecture(self) -> list[Selection]:
        """One selection per architecture: states of networks that compute the same function of their weights."""
        import pandas as pd

        architectures = self.zoo.tables.models["architecture_id"].take(self.zoo.tables.model_of[self.rows])
        codes, names = pd.factorize(architectures)
        return [self._at(codes == code) for code in range(len(names))]

    def weights(self, columns: Columns = None, *, dtype: Any = "float32", normaliser: Normaliser | None = None) -> Any:
        """float32 [states, P]: one row per state, in the order of ``checkpoints``.

        Args:
            columns: Names or roles of tensors to read instead of all; they keep the order of the layout.
            dtype: ``float32``, ``float16``, or ``bfloat16``, which comes as a torch tensor because NumPy lacks it.
            normaliser: Standardises the weights (before they are rounded to ``dtype``).

        Raises:
            UserError: models of several layouts, an unknown tensor, a weight too large for ``dtype``.
            IntegrityError: a shard is damaged; the message names it.
            EnvironmentFault: the memory does not hold them; ``iter_weights`` reads them part by part.
        """
        return self.read(self.rows, reading(self.layout, columns, dtype, normaliser))

    def iter_weights(
        self,
        batch: int = 1024,
        columns: Columns = None,
        *,
        dtype: Any = "float32",
        normaliser: Normaliser | None = None,
    ) -> Iterator[Any]:
        """``weights`` in parts of at most ``batch`` states: float32 [batch, P] each."""
        if batch < 1:
            raise UserError(f"a batch has at least one state, got {batch}")
        how = reading(self.layout, columns, dtype, normaliser)
        with Shards(self.zoo.path) as shards:  # not the zoo's: others may close those meanwhile
            for start in range(0, len(self), batch):
                yield how.weights(shards, self.states(self.rows[start : start + batch]))

    def arrays(
        self, columns: Columns = None, *, dtype: Any = "float32", normaliser: Normaliser | None = None
    ) -> dict[str, Any]:
        """``weights`` as one array per tensor, by name: float32 [states, ...] each, views of one matrix."""
        layout = self.layout
        whole = self.weights(columns, dtype=dtype, normaliser=normaliser)
        found, start = {}, 0
        for entry in entries(layout, columns):
            found[entry.name] = whole[:, start : start + entry.size].reshape(len(whole), *entry.shape)
            start += entry.size
        return found

    def is_finite(self, max_abs: float | None = None) -> np.ndarray:
        """bool [states]: whether all float32 weights of a state are finite, and none is beyond ``max_abs``.

        Reads every weight once, part by part. Layouts may differ.

        Args:
            max_abs: The largest absolute value that may occur.

        Raises:
            UserError: ``max_abs`` is negative.
            IntegrityError: a shard is damaged; the message names it.
        """
        from zoogen.dataset.finite import finite_rows

        return finite_rows(self, max_abs)

    def finite(self, max_abs: float | None = None) -> Selection:
        """The states of this selection for which ``is_finite`` holds."""
        return self._at(self.is_finite(max_abs))

    def normaliser(self, kind: Kind = "parameter") -> Normaliser:
        """Shift and scale of the weights, fitted on the training models of this selection and no others.

        They are those of the stored split or, in a selection that ``Resplit.select`` made, of that split. Reads their
        weights once, part by part. Hand it to ``weights``, ``dataset`` or ``stream`` of any selection of the same
        layout.

        Args:
            kind: "parameter": mean 0 and standard deviation 1 of every parameter over the states; "layer": the same
                of all weights and biases of a layer together; "minmax": every layer from -1 to 1. A running
                statistic is a layer of its own. What does not vary is only shifted.

        Raises:
            UserError: no training models, models of several layouts, or weights that are not finite.
        """
        from zoogen.dataset.normaliser import fit

        return fit(self, kind)

    def trajectories(
        self, columns: Columns = None, *, dtype: Any = "float32", normaliser: Normaliser | None = None
    ) -> Trajectories:
        """Weights as models x epochs, models in the order of ``models``.

        Raises:
            UserError: some model lacks an epoch that another one has; the message says which, and why.
        """
        return all_trajectories(self, reading(self.layout, columns, dtype, normaliser))

    def iter_trajectories(
        self, columns: Columns = None, *, dtype: Any = "float32", normaliser: Normaliser | None = None
    ) -> Iterator[Trajectory]:
        """(model_id, epochs [T], weights [T, P]) of one model after another; T may differ. Memory does not grow."""
        return each_trajectory(self, reading(self.layout, columns, dtype, normaliser))

    def pairs(self) -> Pairs:
        """Consecutive states (t, t+1) of each model, where t+1 is the next epoch of those the selection holds.

        ``zoo.select(epochs=[0, 5, 10]).pairs()`` pairs 0 with 5 and 5 with 10. Where a condition left out a model's
        state between two others, these two are no pair.
        """
        return pairs_of(self)

    def predictions(self) -> np.ndarray:
        """uint8 [states, N_test]: the predicted class of each test sample.

        Raises:
            UserError: the zoo kept none, or the models are of several tasks.
        """
        if not len(self):
            raise UserError("this selection is empty, so it has no predictions")
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

    def dataset(
        self,
        target: str | None = None,
        columns: Columns = None,
        *,
        dtype: Any = "float32",
        normaliser: Normaliser | None = None,
    ) -> StatesDataset:
        """A ``torch.utils.data.Dataset`` of (weights float32 [P], target), or of (weights, metadata as a dict).

        It reads from the shards on access, in whatever process; numbers become float32 targets, other values the
        position (int64) in its ``classes``. Metadata are model id, epoch, factors, seed and split; a factor that a
        model lacks is NaN or, where it is text, "".

        Args:
            target: A column of checkpoints or models, e.g. ``test_acc`` or ``activation``.
            columns, dtype, normaliser: As in ``weights``.

        Raises:
            UserError: models of several layouts, an unknown column, or one with missing values.
        """
        from zoogen.dataset.torch_dataset import make_dataset

        return make_dataset(self, target, reading(self.layout, columns, dtype, normaliser))

    def stream(
        self,
        batch: int = 256,
        target: str | None = None,
        columns: Columns = None,
        *,
        dtype: Any = "float32",
        normaliser: Normaliser | None = None,
        shuffle: bool = False,
        seed: int = 0,
        buffer: int | None = None,
        drop_last: bool = False,
        device: Any = "cpu",
    ) -> StateStream:
        """A ``torch.utils.data.IterableDataset`` of batches (weights [batch, P], target), read in large pieces.

        The fast way through a large zoo. It gives whole batches, so a data loader around it takes
        ``batch_size=None``; it can also be iterated as it is. ``state_dict`` and ``load_state_dict`` stop and go on
        within an epoch.

        Args:
            batch: States per batch.
            target, columns, dtype, normaliser: As in ``dataset``; metadata come as lists and tensors of a batch.
            shuffle: Another order in every epoch, by seed and epoch alone: blocks of neighbouring states (about
                1.3 MB) in random order, then states within a buffer. Every state comes once; a batch mixes states from
                all blocks of its buffer.
            seed: Of the shuffling.
            buffer: States that are shuffled together; by default those of about 48 MB. Two buffers are in memory.
            drop_last: Leave out an incomplete last batch.
            device: Where the batches go, if no workers are used.

        Raises:
            UserError: as ``dataset``; or fewer states than a batch with ``drop_last``.
            EnvironmentFault: there is no such GPU.
        """
        from zoogen.dataset.stream import make_stream
        from zoogen.dataset.windows import Order

        how = reading(self.layout, columns, dtype, normaliser)
        order = Order(self.states(), how.width, batch, shuffle, seed, buffer, drop_last)
        return make_stream(self, target, how, order, device)

    def _at(self, places: np.ndarray) -> Selection:
        """Some states of this one, by place or mask."""
        return Selection(self.zoo, self.rows[places], self.sides)

    def training(self) -> Selection:
        """The states of training models: of the split that the selection was taken from, else of the stored one."""
        if self.sides is None:
            return self.select(split="train")
        return self._at(self.sides[self.zoo.tables.model_of[self.rows]] == "train")

    def states(self, rows: np.ndarray | None = None) -> States:
        """Where the states (or those of some rows of the checkpoints table) lie.

        Raises:
            UserError: models of several layouts.
        """
        tables = self.zoo.tables
        rows = self.rows if rows is None else rows
        codes, places = tables.shards
        columns = (codes[rows], places[rows], tables.model_of[rows], tables.epochs[rows])
        return States(self._layout_id, tables.shard_names, *columns, tables.numbers)

    def read(self, rows: np.ndarray, how: Reading) -> Any:
        """Weights of some rows of the checkpoints table: [rows, width], read as ``how`` says."""
        how.check_memory(len(rows))
        with self.zoo.shards as shards:
            return how.weights(shards, self.states(rows))

    def layout_parts(self) -> Iterator[tuple[np.ndarray, Selection]]:
        """Each layout's states: their places in this selection, and a selection of them."""
        model_of = self.zoo.tables.model_of[self.rows]
        found, codes = layouts_of(self.zoo, model_of)
        for code in range(len(found)):
            places = np.flatnonzero(codes == code)
            yield places, self._at(places)

    @cached_property
    def _layout_id(self) -> str:
        return only_layout(self.zoo, self._models)


def expect_selection(given: Any) -> Selection:
    """What was given, if it is a selection.

    Raises:
        UserError: it is something else: ids, say, or a zoo.
    """
    if not isinstance(given, Selection):
        raise UserError(f"this takes a selection, e.g. zoo.select(model_id=[...]), got {type(given).__name__}")
    return given

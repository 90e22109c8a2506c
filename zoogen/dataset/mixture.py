"""States of several zoos in one stream, with explicit weights: each batch is of one zoo and of one layout.

Which source a step takes, and which of its batches, follow from seed, epoch and step alone; every source is streamed
through again and again, in a new order each time, so that none runs out before another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from copy import copy
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from zoogen.core.errors import UserError
from zoogen.core.streams import stream_key, uniform
from zoogen.dataset.resumable import Resumable
from zoogen.dataset.selection import Selection
from zoogen.dataset.stream import StateStream
from zoogen.dataset.targets import recounted

if TYPE_CHECKING:
    import pandas as pd

    from zoogen.dataset.zoo import Zoo


_MOST_BYTES = 1 << 30  # of the windows of all parts together: about ten parts keep theirs


class MixedBatch(NamedTuple):
    """States of one layout from one source.

    Attributes:
        source: Number of the source, in the order in which they were given.
        layout_id: Of the rows of ``weights``.
        weights: [batch, P] as the source gives them.
        target: [batch], or metadata as a dict.
    """

    source: int
    layout_id: str
    weights: torch.Tensor
    target: Any


class Mixture(Resumable):
    """Batches of several sources; made by ``zoogen.mix``. ``len`` is the number of batches per epoch.

    Attributes:
        classes: Values that int64 targets count, the same for all sources.
    """

    def __init__(
        self,
        selections: list[Selection | None],
        parts: list[tuple[int, StateStream, float]],
        seed: int,
        batches: int | None,
    ) -> None:
        super().__init__()
        self._selections = selections
        self._sources = [source for source, _, _ in parts]
        self._streams = [copy(stream) for _, stream, _ in parts]
        shares = np.array([share for _, _, share in parts])
        self._ends = np.cumsum(shares / shares.sum())
        self._seed = seed
        self._length = sum(map(len, self._streams)) if batches is None else batches
        self._before: dict[int, np.ndarray] = {0: np.zeros(len(parts), np.int64)}
        self._known: tuple[int, np.ndarray, np.ndarray] | None = None
        self._used: dict[int, None] = {}  # parts that may hold windows, the one used last at the end
        self.classes = _count_alike(self._streams)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_selections": [None]}  # their tables need not go to workers

    def __len__(self) -> int:
        return self._length

    @property
    def models(self) -> pd.DataFrame:
        """Models of all sources, one row each, with the number of their source in front.

        What a zoo does not record is missing in its rows. A model that two sources hold has a row for each.

        Raises:
            UserError: this is a copy in another process, or made of copies.
        """
        return self._joined("models")

    @property
    def checkpoints(self) -> pd.DataFrame:
        """States of all sources, as ``models``: ``source``, ``model_id`` and ``epoch`` say which one a row is."""
        return self._joined("checkpoints")

    def _joined(self, table: Literal["models", "checkpoints"]) -> pd.DataFrame:
        import pandas as pd

        tables: list[pd.DataFrame] = []
        for selection in self._selections:
            if selection is None:
                raise UserError("a copy of a stream or of a mixture has no tables; ask the first one")
            tables.append(getattr(selection, table))
            tables[-1].insert(0, "source", len(tables) - 1)
        return pd.concat(tables, ignore_index=True)

    def batch(self, epoch: int, number: int) -> MixedBatch:
        """Batch ``number`` of an epoch; the errors are those of ``StateStream.batch``."""
        if self._known is None or self._known[0] != epoch:
            self._known = (epoch, *self._plan(epoch))
        _, picked, places = self._known
        part, place = int(picked[number]), int(places[number])
        stream = self._streams[part]
        made = MixedBatch(self._sources[part], stream.layout_id, *stream.batch(*divmod(place, len(stream))))
        self._make_room(part)
        return made

    def fingerprint(self) -> str:
        told = [stream.fingerprint() for stream in self._streams]
        settings = (self._sources, self._ends.tolist(), self._seed, self._length, told)
        return hashlib.blake2b(repr(settings).encode(), digest_size=16).hexdigest()

    def _make_room(self, part: int) -> None:
        """Let parts that were not used for long give their windows back: memory does not grow with the parts."""
        self._used.pop(part, None)
        self._used[part] = None
        held = sum(self._streams[other].held for other in self._used)
        for other in list(self._used)[:-1]:
            if held <= _MOST_BYTES:
                break
            held -= self._streams[other].held
            self._streams[other].release()
            del self._used[other]

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each step of an epoch: the part it takes, and how many batches that part gave before."""
        picked = self._picked(epoch)
        places = np.empty(len(picked), np.int64)
        for part, before in enumerate(self._counts_before(epoch)):
            own = np.flatnonzero(picked == part)
            places[own] = before + np.arange(len(own))
        return picked, places

    def _counts_before(self, epoch: int) -> np.ndarray:
        latest = max(known for known in self._before if known <= epoch)
        while latest < epoch:
            counts = np.bincount(self._picked(latest), minlength=len(self._streams))
            self._before[latest + 1] = self._before[latest] + counts
            latest += 1
        return self._before[epoch]

    def _picked(self, epoch: int) -> np.ndarray:
        steps = torch.arange(epoch * self._length, (epoch + 1) * self._length)
        drawn = uniform(stream_key(self._seed, "mixture"), steps).double().numpy()
        # The last end may be rounded to below 1.
        return np.minimum(np.searchsorted(self._ends, drawn, side="right"), len(self._ends) - 1)


def mix(
    sources: Mapping[Zoo | Selection | StateStream, float],
    *,
    batch: int = 256,
    target: str | None = None,
    seed: int = 0,
    batches: int | None = None,
    device: Any = "cpu",
) -> Mixture:
    """See ``zoogen.mix``."""
    if not isinstance(sources, Mapping):
        raise UserError(
            f"sources have explicit weights: zoogen.mix({{zoo: 0.5, other: 0.5}}), got {type(sources).__name__}"
        )
    if not sources:
        raise UserError("nothing to mix; give at least one zoo, e.g. zoogen.mix({zoo: 1.0})")
    if batches is not None and batches < 1:
        raise UserError(f"an epoch has at least one batch, got batches={batches}")
    selections: list[Selection | None] = []
    parts: list[tuple[int, StateStream, float]] = []
    for number, (source, weight) in enumerate(sources.items()):
        # Real: NumPy's numbers too.
        if not (isinstance(weight, Real) and math.isfinite(weight) and weight > 0):
            raise UserError(f"mixture weights are positive numbers, source {number} ({source!r}) has {weight!r}")
        weight = float(weight)
        if isinstance(source, StateStream):
            selections.append(source.selection)
            parts.append((number, source, weight))
            continue
        if not hasattr(source, "select"):
            raise UserError(f"zoos, selections and streams can be mixed, source {number} is {source!r}")
        selection = source if isinstance(source, Selection) else source.select()
        selections.append(selection)
        streams = _streams(selection, batch, target, seed, device)
        parts += [(number, stream, weight * share) for stream, share in streams]
    return Mixture(selections, parts, seed, batches)


def _streams(
    selection: Selection, batch: int, target: str | None, seed: int, device: Any
) -> list[tuple[StateStream, float]]:
    """Streams of a selection, one per layout, with their share of its batches.

    A stream that gives every state once has ``len`` batches, so by that share all states of a source are equally
    frequent, also those of a layout that has too few for a whole batch.
    """
    if not len(selection):
        raise UserError(f"{selection!r} is empty, so nothing of it can be mixed in")
    streams = [part.stream(batch, target, shuffle=True, seed=seed, device=device) for part in selection.by_layout()]
    total = sum(map(len, streams))
    return [(stream, len(stream) / total) for stream in streams]


def _count_alike(streams: list[StateStream]) -> tuple[Any, ...]:
    """Make all streams count the classes of all: the same value has the same number wherever it comes from.

    Raises:
        UserError: some targets are numbers and others classes.
    """
    if len({bool(stream.classes) for stream in streams}) > 1:
        raise UserError("the targets of some of these sources are numbers, those of others are classes")
    classes = tuple(sorted({value for stream in streams for value in stream.classes}))
    for stream in streams:
        stream.targets = recounted(stream.targets, classes)
        stream.classes = stream.targets.classes
    return classes

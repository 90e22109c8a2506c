"""Standardised weights: shift and scale of every parameter, fitted on training models only, invertible, kept as JSON.

One pass over the states; memory is a few numbers per parameter, however many states there are. Means and variances are
merged part by part (Chan, Golub & LeVeque 1983, Am. Stat. 37, eq. 2.1) in float64.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from zoogen.core.errors import IntegrityError, UserError, suggest
from zoogen.core.layout import Entry, Layout
from zoogen.dataset.columns import positions
from zoogen.store.durable import read_json, write_file

if TYPE_CHECKING:
    from zoogen.dataset.selection import Selection

Kind = Literal["parameter", "layer", "minmax"]

_FORMAT, _VERSION = "zoogen-normaliser", 1
_MOST_BYTES = 1 << 32
_PART_BYTES = 16 << 20  # float32 rows that are taken in at once
_OF_A_LAYER = frozenset({"weight", "bias", "norm_scale", "norm_shift", "parameter"})


@dataclass(frozen=True, eq=False)
class Normaliser:
    """``(w - shift) / scale`` and back; made by ``Selection.normaliser`` or read by ``Normaliser.load``.

    Attributes:
        kind: How it was fitted.
        layout: Of the rows it fits.
        states: Number of training states it was fitted on.
        shift, scale: float64 [P]; the scale of what never varied is 1.
    """

    kind: Kind
    layout: Layout
    states: int
    shift: np.ndarray
    scale: np.ndarray

    def __repr__(self) -> str:
        return f"<normaliser by {self.kind}, fitted on {self.states:,} states of {len(self.shift):,} parameters>"

    def apply(self, weights: Any, columns: str | Sequence[str] | None = None) -> Any:
        """Standardise.

        Args:
            weights: [..., P], a NumPy array or a torch tensor (differentiable, on its device).
            columns: Tensors that ``weights`` holds, where they are not all, as for ``Selection.weights``.

        Returns:
            Of the same kind and type.

        Raises:
            UserError: ``weights`` has another width.
        """
        shift, scale = self._like(weights, columns)
        return _as((weights - shift) / scale, weights)

    def invert(self, standardised: Any, columns: str | Sequence[str] | None = None) -> Any:
        """The weights that ``apply`` was given, up to rounding; as ``apply``."""
        shift, scale = self._like(standardised, columns)
        return _as(standardised * scale + shift, standardised)

    def check(self, layout: Layout) -> None:
        """Refuse rows of another layout.

        Raises:
            UserError: this normaliser was fitted on another one.
        """
        if layout.layout_id != self.layout.layout_id:
            raise UserError(
                f"this normaliser was fitted on layout {self.layout.layout_id[:12]} ({self.layout.parameters:,} "
                f"parameters), these states have layout {layout.layout_id[:12]} ({layout.parameters:,} parameters)\n"
                "fit one on them: selection.normaliser()"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON; ``load`` gives exactly the same numbers.

        Raises:
            EnvironmentFault: the disk is full or may not be written.
        """
        data = {
            "format": _FORMAT,
            "format_version": _VERSION,
            "kind": self.kind,
            "states": self.states,
            "layout": self.layout.to_json(),
            "tensors": {e.name: self._told(e) for e in _float_entries(self.layout)},
        }
        write_file(Path(path), json.dumps(data, allow_nan=False).encode() + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Normaliser:
        """The normaliser that ``save`` wrote.

        Raises:
            UserError: there is no such file.
            IntegrityError: it is damaged, no normaliser, or of an unknown version.
        """
        try:
            data = read_json(Path(path), at_most=_MOST_BYTES)
        except FileNotFoundError:
            raise UserError(f"no normaliser at {path}") from None
        try:
            if (data["format"], data["format_version"]) != (_FORMAT, _VERSION):
                raise ValueError(f"format {data['format']!r} version {data['format_version']}")
            return _parse(data)
        except (KeyError, TypeError, ValueError, AttributeError, IntegrityError) as error:
            raise IntegrityError(f"{path}: not a normaliser that this zoogen reads ({error!r})") from error

    def _told(self, entry: Entry) -> dict[str, Any]:
        part = slice(entry.offset, entry.offset + entry.size)
        numbers = {"shift": self.shift[part].tolist(), "scale": self.scale[part].tolist()}
        return numbers if self.kind == "parameter" else {name: found[0] for name, found in numbers.items() if found}

    def _like(self, weights: Any, columns: str | Sequence[str] | None) -> tuple[Any, Any]:
        """Shift and scale of some columns: float64 for an array, on device and in at least float32 for a tensor."""
        found = positions(self.layout, columns)
        shift, scale = (self.shift, self.scale) if found is None else (self.shift[found], self.scale[found])
        if weights.shape[-1:] != shift.shape:
            raise UserError(
                f"this normaliser is for rows of {len(shift):,} parameters, got shape {tuple(weights.shape)}"
            )
        if isinstance(weights, np.ndarray):
            return shift, scale
        import torch

        kind = torch.promote_types(weights.dtype, torch.float32)
        return tuple(torch.as_tensor(part).to(weights.device, kind) for part in (shift, scale))  # type: ignore[return-value]


def fit(selection: Selection, kind: Kind) -> Normaliser:
    """See ``Selection.normaliser``."""
    if kind not in get_args(Kind):
        raise UserError(f"unknown kind of normaliser {kind!r}\n{suggest(str(kind), get_args(Kind))}")
    training = selection.training()
    if len(selection) and not len(training):
        some = 'zoo.select(split="train")' if selection.sides is None else 'split.select("train")'
        raise UserError(
            "a normaliser is fitted on training models, and this selection has none\n"
            f"fit it on a selection that has some, e.g. {some}.normaliser()"
        )
    layout = training.layout
    moments = Moments(layout.parameters)
    for part in training.iter_weights(max(1, _PART_BYTES // max(1, 4 * layout.parameters))):
        moments.add(part)
    if not (np.isfinite(moments.low).all() and np.isfinite(moments.high).all()):
        raise UserError(
            "some of these training states have weights that are not finite, which have no mean\n"
            "leave them out: selection.finite().normaliser()"
        )
    shift, scale = _by_kind(moments, kind, layout)
    return Normaliser(kind, layout, len(training), shift, scale)


class Moments:
    """Count, mean, sum of squared differences from the mean, minimum and maximum of every column."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self.squares = np.zeros(width)
        self.low = np.full(width, np.inf)
        self.high = np.full(width, -np.inf)

    def add(self, rows: np.ndarray) -> None:
        """Take in float32 [n, width]."""
        with np.errstate(invalid="ignore"):  # what is not finite is found in low and high
            n = len(rows)
            mean = rows.mean(axis=0, dtype=np.float64)
            squares = np.square(rows - mean).sum(axis=0)
            step = mean - self.mean
            total = self.count + n
            self.mean = self.mean + step * (n / total)
            self.squares = self.squares + squares + np.square(step) * (self.count * n / total)
            self.count = total
            self.low = np.minimum(self.low, rows.min(axis=0))
            self.high = np.maximum(self.high, rows.max(axis=0))


def _by_kind(moments: Moments, kind: Kind, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale, float64 [P]."""
    if kind == "parameter":
        varied = moments.high > moments.low
        return moments.mean, np.where(varied, np.sqrt(moments.squares / moments.count), 1.0)
    shift, scale = np.zeros(layout.parameters), np.ones(layout.parameters)
    for places in _layers(layout):
        low, high = moments.low[places].min(), moments.high[places].max()
        if kind == "minmax":
            shift[places], spread = (low + high) / 2, (high - low) / 2
        else:
            mean = moments.mean[places].mean()
            # Variance over states and parameters: within each parameter, and between their means.
            within = moments.squares[places].sum() / moments.count
            between = np.square(moments.mean[places] - mean).sum()
            shift[places], spread = mean, np.sqrt((within + between) / len(places))
        scale[places] = spread if high > low else 1.0
    return shift, scale


def _layers(layout: Layout) -> Iterable[np.ndarray]:
    """Positions of each layer: weights and bias of a module together, each running statistic or buffer by itself."""
    found: dict[str, list[np.ndarray]] = {}
    for e in _float_entries(layout):
        if e.size:
            name = e.name.rpartition(".")[0] + "." if e.role in _OF_A_LAYER else e.name
            found.setdefault(name, []).append(np.arange(e.offset, e.offset + e.size))
    return [np.concatenate(parts) for parts in found.values()]


def _float_entries(layout: Layout) -> list[Entry]:
    return [e for e in layout.entries if e.dtype == "float32"]


def _as(result: Any, like: Any) -> Any:
    return result.astype(like.dtype, copy=False) if isinstance(like, np.ndarray) else result.to(like.dtype)


def _parse(data: Mapping[str, Any]) -> Normaliser:
    layout = Layout.from_json(data["layout"])
    numbers = {"shift": np.zeros(layout.parameters), "scale": np.ones(layout.parameters)}
    if data["kind"] not in get_args(Kind) or type(data["states"]) is not int:
        raise ValueError(f"kind {data['kind']!r}, {data['states']!r} states")
    for e in _float_entries(layout):
        for name, found in numbers.items():
            if e.size:
                told = np.asarray(data["tensors"][e.name][name])
                if told.dtype.kind not in "if" or told.shape not in ((), (e.size,)):
                    raise ValueError(f"{name} of {e.name}: {told.dtype} of shape {told.shape}")
                found[e.offset : e.offset + e.size] = told
    if not (
        np.isfinite(numbers["shift"]).all() and (numbers["scale"] > 0).all() and np.isfinite(numbers["scale"]).all()
    ):
        raise ValueError("shifts are finite and scales positive")
    return Normaliser(data["kind"], layout, data["states"], **numbers)

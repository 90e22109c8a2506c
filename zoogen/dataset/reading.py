"""How weights are handed out: which columns of a row, standardised or not, in which floating-point type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoogen.core.errors import EnvironmentFault, UserError, suggest
from zoogen.core.layout import Layout
from zoogen.dataset.columns import positions
from zoogen.dataset.shards import Shards, States

if TYPE_CHECKING:
    from torch import Tensor

    from zoogen.dataset.normaliser import Normaliser

Weights = Any
"""NumPy array, or a torch tensor where NumPy lacks the type (bfloat16)."""

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_LARGEST = {"float32": 3.40282e38, "float16": 65504, "bfloat16": 3.38953e38}
_SMALL = 1 << 30  # bytes that are allocated without looking at the free memory first
_PART_BYTES = 16 << 20  # float32 rows that are converted at once


@dataclass(frozen=True)
class Reading:
    """What becomes of a stored row; made by ``reading``.

    Attributes:
        columns: int64 positions in a row, or None for all of it.
        width: Numbers per state.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        shift, scale: float64 [width], ``(w - shift) / scale`` is handed out; None where rows stay as stored.
    """

    columns: np.ndarray | None
    width: int
    dtype: str
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None

    def weights(self, shards: Shards, states: States, out: Weights | None = None) -> Weights:
        """[states, width], in the order of ``states``; in ``out``, of what it would give, if there is one.

        Raises:
            IntegrityError: a shard is damaged, or is not what the tables say.
            UserError: a finite weight is too large for the type.
        """
        if self.dtype == "float32" and self.shift is None:
            return shards.weights(states, self.columns, self.width, out)
        out = self.empty(len(states)) if out is None else out
        height = max(1, _PART_BYTES // max(1, 4 * self.width))
        for start in range(0, len(states), height):
            part = slice(start, start + height)
            out[part] = self._converted(shards.weights(states.take(part), self.columns, self.width))
        return out

    def tensor(self, shards: Shards, states: States) -> Tensor:
        """``weights`` as a torch tensor on the CPU."""
        import torch

        return torch.as_tensor(self.weights(shards, states))

    def check_memory(self, states: int) -> None:
        """Refuse what the memory does not hold.

        Raises:
            EnvironmentFault: more bytes are needed than are free.
        """
        needed = _BYTES[self.dtype] * states * self.width
        if needed < _SMALL:
            return
        import psutil

        free = psutil.virtual_memory().available
        if needed > free:
            raise EnvironmentFault(
                f"{states:,} states of {self.width:,} parameters take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
                "free\nread them part by part with iter_weights(), or select fewer epochs, models or tensors"
            )

    def empty(self, states: int) -> Weights:
        """[states, width], not filled, as ``weights`` takes it."""
        return self.seen(self.memory(states))

    def memory(self, states: int) -> np.ndarray:
        """[states, width] of numbers of the size of ``dtype``, not filled."""
        return np.empty((states, self.width), "int16" if self.dtype == "bfloat16" else self.dtype)

    def seen(self, memory: np.ndarray) -> Weights:
        """``memory`` as numbers of ``dtype``, no copy."""
        if self.dtype != "bfloat16":
            return memory
        import torch

        return torch.from_numpy(memory).view(torch.bfloat16)

    def _converted(self, rows: np.ndarray) -> Weights:
        if self.shift is not None:
            rows = self._rounded((rows - self.shift) / self.scale, "float32")
        return rows if self.dtype == "float32" else self._rounded(rows, self.dtype)

    def _rounded(self, rows: np.ndarray, dtype: str) -> Weights:
        """``rows`` in a smaller type; a number that it does not hold is an error."""
        if dtype == "bfloat16":
            import torch

            found: Weights = torch.from_numpy(rows).bfloat16()
            infinite = found.isinf().numpy()
        else:
            with np.errstate(over="ignore"):  # looked for below
                found = rows.astype(dtype)
            infinite = np.isinf(found)
        if infinite.any() and np.isfinite(large := rows[infinite]).any():
            what = "a weight" if self.shift is None else "a standardised weight"
            # What a weight was before it was standardised is another number.
            bound = _LARGEST[dtype] if self.shift is None else "..."
            others = [name for name in _BYTES if _LARGEST[name] > _LARGEST[dtype]]
            raise UserError(
                f"{what} of {np.abs(large[np.isfinite(large)]).max():.6g} does not fit {dtype}\n"
                f"leave such states out with .finite(max_abs={bound})"
                + (f", or read {' or '.join(others)}" if others else "")
            )
        return found


def reading(
    layout: Layout,
    columns: str | Sequence[str] | None = None,
    dtype: Any = "float32",
    normaliser: Normaliser | None = None,
) -> Reading:
    """How to read rows of this layout.

    Args:
        layout: Of the states.
        columns: Names or roles of tensors; None for all.
        dtype: ``float32``, ``float16``, ``bfloat16``, as text or as the type of NumPy or torch.
        normaliser: Standardises them, if given.

    Raises:
        UserError: an unknown tensor or type, or a normaliser of another layout.
    """
    if not layout.parameters:
        other = ", ".join(sorted({entry.dtype for entry in layout.entries})) or "none"
        raise UserError(
            f"these models have no float32 weights (their tensors are {other}), so there is no matrix of them\n"
            "zoo.state_dict(model_id) gives every tensor in its own type"
        )
    if normaliser is not None and not hasattr(normaliser, "check"):
        raise UserError(f"fit a normaliser first, by selection.normaliser(), and give it; got {normaliser!r:.60}")
    found = positions(layout, columns)
    width = layout.parameters if found is None else len(found)
    name = _dtype_name(dtype)
    if normaliser is None:
        return Reading(found, width, name)
    normaliser.check(layout)
    every = slice(None) if found is None else found
    return Reading(found, width, name, normaliser.shift[every], normaliser.scale[every])


def _dtype_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    if not isinstance(dtype, str) and isinstance(dtype, (type, np.dtype)):
        name = np.dtype(dtype).name
    if name not in _BYTES:
        raise UserError(f"weights come as float32, float16 or bfloat16, not as {name!r}\n{suggest(name, _BYTES)}")
    return name

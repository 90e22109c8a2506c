"""Tensors that lie in the bytes of a file, made only when one is asked for; a whole row of them comes without.

Making ten tensors and joining them takes longer than all else that is done with a small checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from zoogen.core.layout import Layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Run = tuple[int, int]


@dataclass(frozen=True)
class View:
    """A tensor in a file: its first element's place, counted in elements, and how it goes on."""

    dtype: torch.dtype
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Form:
    """What files of one kind have in common: where which tensor lies."""

    views: Mapping[str, View]
    _renamed: dict[tuple[tuple[str, str], ...], Form] = field(default_factory=dict, repr=False)
    _runs: dict[str, tuple[Run, ...] | None] = field(default_factory=dict, repr=False)

    def renamed(self, pairs: tuple[tuple[str, str], ...]) -> Form:
        """The same places under other names, given as (new, old)."""
        if pairs not in self._renamed:
            self._renamed[pairs] = Form({new: self.views[old] for new, old in pairs})
        return self._renamed[pairs]

    def runs(self, layout: Layout) -> tuple[Run, ...] | None:
        """Float32 elements from ... to ..., which in this order are the layout's row; None: it is no such row.

        It is none where the tensors are not exactly those of the layout, or one is not contiguous.
        """
        if layout.layout_id not in self._runs:
            self._runs[layout.layout_id] = self._find_runs(layout)
        return self._runs[layout.layout_id]

    def _find_runs(self, layout: Layout) -> tuple[Run, ...] | None:
        import torch

        if self.views.keys() != {e.name for e in layout.entries}:
            return None
        runs = []
        for entry in layout.entries:
            view = self.views[entry.name]
            told = (view.shape, str(view.dtype).removeprefix("torch."))
            if told != (entry.shape, entry.dtype):
                return None
            if view.dtype is torch.float32:
                if not torch.empty_strided(view.shape, view.strides, device="meta").is_contiguous():
                    return None
                runs.append((view.start, view.start + entry.size))
        return tuple(runs)


class Views(Mapping[str, "Tensor"]):
    """The tensors of one file, in memory of their own."""

    def __init__(self, data: bytes, form: Form) -> None:
        self._data = data
        self.form = form

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.form.views)

    def __len__(self) -> int:
        return len(self.form.views)

    def renamed(self, pairs: tuple[tuple[str, str], ...]) -> Views:
        return Views(self._data, self.form.renamed(pairs))

    def row(self, layout: Layout) -> np.ndarray | None:
        """The float32 row; None where it is not made of these tensors as they lie."""
        runs = self.form.runs(layout)
        if not runs:
            return None
        numbers = np.frombuffer(self._data, "<f4", len(self._data) // 4)
        return np.concatenate([numbers[start:end] for start, end in runs])

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        import torch

        memory = bytearray(self._data)
        views = self.form.views
        whole = {
            dtype: torch.frombuffer(memory, dtype=dtype, count=len(memory) // dtype.itemsize)
            for dtype in {view.dtype for view in views.values()}
        }
        return {name: whole[v.dtype].as_strided(v.shape, v.strides, v.start) for name, v in views.items()}


def fits(layout: Layout, tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are known to be exactly the tensors of ``layout``."""
    return isinstance(tensors, Views) and tensors.form.runs(layout) is not None


def row_of(layout: Layout, tensors: Mapping[str, Tensor]) -> np.ndarray:
    """The float32 row of a state, [P], in memory of its own.

    Raises:
        ValueError: a tensor is missing or has another shape than the layout says.
    """
    row = tensors.row(layout) if isinstance(tensors, Views) else None
    return layout.flatten(tensors).numpy() if row is None else row

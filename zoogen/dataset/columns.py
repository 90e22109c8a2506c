"""Columns of a weight matrix by what they are: tensor names and roles, and how to read them in few pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from zoogen.core.errors import UserError, suggest
from zoogen.core.layout import Entry, Layout, TensorRole

# Columns that are not wanted are read along when they lie in so small a gap: one read costs more than 64 kB.
_GAP = 1 << 14


def entries(layout: Layout, wanted: str | Sequence[str] | None) -> list[Entry]:
    """The float32 tensors asked for, in the order of the layout; None: all of them.

    Args:
        layout: Of the row.
        wanted: Names of tensors, roles of tensors (``weight``, ``norm_scale``, ...), or a mix.

    Raises:
        UserError: a word is neither name nor role of a float32 tensor of this layout.
    """
    found = [e for e in layout.entries if e.dtype == "float32"]
    if wanted is None:
        return found
    words = [wanted] if isinstance(wanted, str) else list(wanted)
    names = {e.name for e in found} | layout.aliases.keys()
    for word in words:
        if word not in names and word not in get_args(TensorRole):
            raise UserError(
                f"no tensor or role {word!r} here\n{suggest(str(word), {*names, *(e.role for e in found)})}"
            )
    asked = {layout.aliases.get(word, word) for word in words}
    return [e for e in found if e.name in asked or e.role in asked]


def positions(layout: Layout, wanted: str | Sequence[str] | None) -> np.ndarray | None:
    """int64 positions in a float32 row of the tensors of ``entries``; None: all of the row.

    Raises:
        UserError: as ``entries``.
    """
    if wanted is None:
        return None
    return np.concatenate([np.arange(0), *(np.arange(e.offset, e.offset + e.size) for e in entries(layout, wanted))])


def pieces(found: np.ndarray | None) -> list[tuple[slice | None, np.ndarray | None]]:
    """What to read for some positions: (columns to read, positions within them), None for all."""
    if found is None:
        return [(None, None)]
    if not len(found):
        return []
    parts = np.split(found, np.flatnonzero(np.diff(found) > _GAP) + 1)
    return [(slice(int(p[0]), int(p[-1]) + 1), None if len(p) == p[-1] - p[0] + 1 else p - p[0]) for p in parts]

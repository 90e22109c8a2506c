"""Which states are fit to learn from: every weight finite, none larger than a bound. Read part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zoogen.core.errors import UserError

if TYPE_CHECKING:
    from zoogen.dataset.selection import Selection

_PART_BYTES = 16 << 20


def finite_rows(selection: Selection, max_abs: float | None) -> np.ndarray:
    """See ``Selection.is_finite``."""
    if max_abs is not None and not max_abs >= 0:
        raise UserError(f"max_abs is the largest absolute weight to keep, so not negative, got {max_abs}")
    # The largest finite float32 when no bound is given; comparisons with NaN are false.
    bound = np.finfo(np.float32).max if max_abs is None else max_abs
    found = np.empty(len(selection), np.bool_)
    for places, part in selection.layout_parts():
        height = max(1, _PART_BYTES // max(1, 4 * part.layout.parameters))
        good = [
            (rows.min(axis=1, initial=0) >= -bound) & (rows.max(axis=1, initial=0) <= bound)
            for rows in part.iter_weights(height)
        ]
        found[places] = np.concatenate(good)
    return found

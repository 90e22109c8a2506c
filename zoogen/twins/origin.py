"""What a cohort of twins starts from: checkpoints of their parents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Origin:
    """Parents' checkpoints; row m of every array is that of the cohort's m-th twin.

    Attributes:
        weights: float32 [M, P], in the parents' layout.
        side: Rows of other dtypes.
        test_loss, test_acc: float64 [M], as the parents' zoo recorded them; NaN: not recorded, or not in a way that
            can be compared.
        rewind: Weights of the epoch that pruned twins go back to, where a twin asks for it (else its ``weights``).
        rewind_side: Likewise.
    """

    weights: np.ndarray
    side: Mapping[str, np.ndarray]
    test_loss: np.ndarray
    test_acc: np.ndarray
    rewind: np.ndarray | None = None
    rewind_side: Mapping[str, np.ndarray] = field(default_factory=dict)

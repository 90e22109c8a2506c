"""Which published samples form the train, validation and test part of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from zoogen.core.contracts import PartName


def cut_validation(n_train: int, n_val: int, n_test: int, seed: int) -> dict[PartName, np.ndarray]:
    """Cut a validation part from ``n_train`` published training samples; the published test part stays as it is.

    Returns:
        int64 indices: train [n_train - n_val] and val [n_val] into the training file, test [n_test] into the test file.
    """
    # Nothing to cut: the order of the file stays, so that the training part needs no copy of the mapped data.
    order = _permutation(n_train, seed) if n_val else np.arange(n_train)
    return {"train": order[: n_train - n_val], "val": order[n_train - n_val :], "test": np.arange(n_test)}


def cut_pool(n: int, n_val: int, n_test: int, seed: int) -> dict[PartName, np.ndarray]:
    """Cut all three parts from ``n`` samples of a data set that is published in one piece; indices into that."""
    train, val, test = np.split(_permutation(n, seed), [n - n_val - n_test, n - n_test])
    return {"train": train, "val": val, "test": test}


def _permutation(n: int, seed: int) -> np.ndarray:
    """The order in which ``torch.utils.data.random_split`` hands out samples: the first part takes the first ones."""
    import torch

    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()

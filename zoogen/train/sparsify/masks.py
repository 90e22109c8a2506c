"""Which weights pruning keeps: masks over the prunable weights of a row, with exact counts, ties broken by rank.

Shape suffixes: P a row's parameters, W its prunable weights (``Layout.prunable``, in that order).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from zoogen.core import streams
from zoogen.core.layout import Entry, Layout
from zoogen.train.sparsify.methods import Magnitude, Random


def prune(
    method: Magnitude | Random, sparsity: float, layout: Layout, weights_P: np.ndarray, kept_W: np.ndarray, key: int
) -> np.ndarray:
    """Prune further, to ``sparsity``; what was removed stays removed.

    Counts are those of ``torch.nn.utils.prune`` (``round(sparsity * n)``); of equal scores the first weight goes first.

    Args:
        weights_P: float32 row of the model.
        kept_W: bool, which weights are left so far.
        key: Of the model's ``mask`` stream, for random pruning.

    Returns:
        bool [W], which are left now.
    """
    if isinstance(method, Magnitude):
        scores_W = np.abs(weights_P[layout.prunable_places])
    else:
        drawn = streams.bits(key, torch.arange(len(kept_W), dtype=torch.int64)).numpy()
        scores_W = (drawn >> 11).astype(np.float64) + 2.0**53  # positive, as many different ones as float64 has
    if method.scope == "channels":
        return _channels(layout, sparsity, scores_W.astype(np.float64), kept_W)
    scores_W = np.where(kept_W, scores_W, -1)  # what is gone goes first
    found_W = np.ones(len(kept_W), dtype=bool)
    blocks = [slice(0, len(kept_W))] if method.scope == "global" else [place for _, place in _slices(layout)]
    for block in blocks:
        found_W[block] = _largest(scores_W[block], sparsity)
    return found_W


def _largest(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """All but the smallest share, by rank: bool."""
    kept = np.ones(len(scores), dtype=bool)
    kept[np.argsort(scores, kind="stable")[: round(sparsity * len(scores))]] = False
    return kept


def _channels(layout: Layout, sparsity: float, scores_W: np.ndarray, kept_W: np.ndarray) -> np.ndarray:
    """Whole output channels by the L2 norm of their scores; the last layer's are the classes, and stay."""
    last = max(e.order for e in layout.prunable)
    found_W = kept_W.copy()
    for entry, place in _slices(layout):
        if entry.order == last:
            continue
        rows = scores_W[place].reshape(entry.shape[0], -1)
        alive = kept_W[place].reshape(entry.shape[0], -1)
        norms = np.where(alive.any(axis=1), np.sqrt((rows**2 * alive).sum(axis=1)), -1)
        found_W[place] = np.repeat(_largest(norms, sparsity), rows.shape[1])
    return found_W


def _slices(layout: Layout) -> Iterator[tuple[Entry, slice]]:
    """Each prunable tensor and its part of [W]."""
    start = 0
    for entry in layout.prunable:
        yield entry, slice(start, start + entry.size)
        start += entry.size


def first_mask(job: Any, layout: Layout, weights_P: np.ndarray) -> np.ndarray | None:
    """The mask a model starts with: bool [W], or None for a job that is not pruned."""
    method = job.training.sparsify
    if method is None or not method.masked:
        return None
    kept_W = np.ones(len(layout.prunable_places), dtype=bool)
    sparsity = method.due(0, job.training.epochs)
    assert sparsity is not None
    return prune(method, sparsity, layout, weights_P, kept_W, streams.stream_key(job.seeds.init, "mask"))

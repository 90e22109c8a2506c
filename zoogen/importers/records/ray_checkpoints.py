"""Which checkpoint a result of Ray Tune belongs to.

Ray named checkpoints after the training_iteration until 2.6; since then it counts them from 0 while iterations are
counted from 1, and only some results name their checkpoint. Where that stays open no metric is better than a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from zoogen.importers.records.numbers import number, one_each
from zoogen.importers.records.ray_results import Result
from zoogen.importers.records.settings import RESULT, column
from zoogen.importers.source import METRICS

_METRICS = {**{name: name for name in METRICS}, "validation_loss": "val_loss", "validation_acc": "val_acc"}


def by_checkpoint(
    results: Sequence[Result | None], checkpoints: Collection[int], notes: list[str]
) -> tuple[dict[int, dict[str, float]], list[dict[str, float]]]:
    """Metrics by the number of the checkpoint they belong to (of two of one number the later counts), and those of
    which that is not known.

    Args:
        results: As ``results_of`` gives them.
        checkpoints: Numbers of all checkpoints.
        notes: Is told where it cannot be known which result is whose.
    """
    known = [result for result in results if result is not None]
    # Where some results name their checkpoint, the others have none.
    named = any(result.names_checkpoints for result in known)
    shift = None if named else _shift(results, checkpoints)
    if shift is None and not named and known:
        notes.append("does not tell which result is of which checkpoint (training_iteration is counted otherwise)")
    found: dict[int, dict[str, float]] = {}
    others: list[dict[str, float]] = []
    for result in known:
        match = re.fullmatch(r"checkpoint_(\d{1,9})", result.checkpoint or "")
        metrics = _metrics(result.numbers, notes)
        if match:
            found[int(match[1])] = metrics
        elif shift is not None and result.iteration is not None:
            found[result.iteration - shift] = metrics
        else:
            others.append(metrics)
    return found, others


def _shift(results: Sequence[Result | None], checkpoints: Collection[int]) -> int | None:
    """training_iteration minus number of the checkpoint: 0 or 1; None where both, or neither, may be."""
    iterations = {r.iteration for r in results if r is not None and r.iteration is not None}
    if 0 in iterations or any(r is not None and r.counts_alike for r in results):
        return 0  # counted from 0 as the zoos of 2022 do, or written by a Ray that names by iteration
    iterations |= _unread(results)
    # Checkpoint 0, the untrained network, may have no result.
    alike, later = set(checkpoints) - {0}, {number + 1 for number in checkpoints}
    for fits in (set.__eq__, set.__le__):
        if fits(alike, iterations) != fits(later, iterations):
            return 0 if fits(alike, iterations) else 1
    return None


def _unread(results: Sequence[Result | None]) -> set[int]:
    """Iterations of lines that could not be read, where those around them tell."""
    known = [(place, r.iteration) for place, r in enumerate(results) if r is not None and r.iteration is not None]
    if not known:
        return set()
    (first, start), (last, end) = known[0], known[-1]
    found = set(range(start - first, start)) | set(range(end + 1, end + len(results) - last))
    for (before, lower), (after, upper) in pairwise(known):
        if upper - lower == after - before:
            found |= set(range(lower + 1, upper))
    return found


def _metrics(numbers: Mapping[str, int | float], notes: list[str]) -> dict[str, float]:
    told = ((_METRICS.get(name) or RESULT + column(name), number(value)) for name, value in numbers.items())
    return one_each(((name, value) for name, value in told if value is not None), notes)

"""Cohorts and segments: which models train together, and which of their epochs are sealed as one shard.

Both depend on the plan only, never on time or machine, so that a resumed build seals the same shards as an
uninterrupted one. Once chosen they are stored with the zoo; later builds keep them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import UserError
from zoogen.core.layout import Layout
from zoogen.core.records import Cohort, Recording, Segment
from zoogen.plan.cells import Group

SHARD_BYTES = 512 * 2**20
"""A shard is sealed before its states exceed this; a tiny cohort seals once, ResNet-50 every few checkpoints."""

_BYTES = {"int64": 8, "float64": 8, "complex64": 8, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}


def cohort_size(group: Group, layout: Layout) -> int:
    """Models per cohort: the blueprint's number, else as many as one program trains well.

    On a core that is 16 tiny models (two vectors of 8, and one HDF5 chunk of states) or 4 small ones; a GPU needs
    hundreds at once before it is busy. How many of them are computed at a time is measured when they train; large
    models train alone.
    """
    if group.cohort_size is not None:
        return group.cohort_size
    on_gpu = group.resources.gpus > 0
    if layout.parameters <= 100_000:
        return 1024 if on_gpu else 16
    if layout.parameters <= 1_000_000:
        return 64 if on_gpu else 4
    return 1


def state_bytes(layout: Layout) -> int:
    """Raw bytes of one stored state: float32 row and side rows, without optimizer state."""
    return 4 * layout.parameters + sum(_BYTES.get(d, 1) * layout.row_size(d) for d in layout.side_dtypes)


def optimizer_bytes(group: Group, layout: Layout) -> int:
    """Bytes of one model's optimizer state."""
    return 4 * layout.trainable * group.training.optimizer.state_tensors


def kept_optimizer_states(recording: Recording) -> int:
    """Optimizer states kept per model."""
    return {"none": 0, "last": 1, "all": len(recording.epochs)}[recording.optimizer]


def make_cohorts(group: Group, cells: np.ndarray, layout: Layout) -> list[Cohort]:
    """Cohorts of the group's ``cells`` (indices, ascending), in order; the last one may be smaller."""
    size = cohort_size(group, layout)
    return [make_cohort(group, cells[start : start + size], layout) for start in range(0, len(cells), size)]


def make_cohort(group: Group, cells: Sequence[int] | np.ndarray, layout: Layout) -> Cohort:
    """One cohort of these cells."""
    jobs = tuple(group.job(int(cell)) for cell in cells)
    # The epochs belong to the id: unfinished work that kept other checkpoints must not be continued by mistake.
    facts = {"models": [job.model_id for job in jobs], "checkpoints": list(group.recording.epochs)}
    cohort_id = digest(canonical_json(facts))
    segments = make_segments(cohort_id, group.recording.epochs, bytes_per_epoch(group, layout, len(jobs)))
    return Cohort(cohort_id, jobs, group.training.epochs, group.recording, segments, layout.layout_id, group.resources)


def bytes_per_epoch(group: Group, layout: Layout, models: int) -> int:
    """Raw bytes of one checkpoint epoch of a cohort of ``models``."""
    kept = optimizer_bytes(group, layout) if group.recording.optimizer == "all" else 0
    return models * (state_bytes(layout) + kept)


def make_segments(cohort_id: str, epochs: Sequence[int], bytes_per_epoch: int, after: int = -1) -> tuple[Segment, ...]:
    """Divide the checkpoint ``epochs`` beyond ``after`` into runs of at most SHARD_BYTES, at least one epoch each."""
    wanted = [e for e in epochs if e > after]
    length = max(1, SHARD_BYTES // max(1, bytes_per_epoch))
    segments = []
    first = after + 1
    for start in range(0, len(wanted), length):
        last = wanted[min(start + length, len(wanted)) - 1]
        segments.append(make_segment(cohort_id, first, last))
        first = last + 1
    return tuple(segments)


def make_segment(cohort_id: str, first: int, last: int) -> Segment:
    """A segment whose shard id follows from its cohort and epochs."""
    return Segment(digest(canonical_json({"cohort": cohort_id, "first": first, "last": last})), first, last)


def split_cohort(cohort: Cohort, stored_through: int) -> tuple[Cohort, Cohort] | None:
    """Two halves of a failing cohort, or None for a single model.

    The halves train again from the start, for the state that failed may be why, but store only what is missing: the
    checkpoints after ``stored_through``, in segments of the same epochs.
    """
    if len(cohort.jobs) < 2:
        return None
    middle = len(cohort.jobs) // 2
    recording = replace(cohort.recording, epochs=tuple(e for e in cohort.recording.epochs if e > stored_through))
    halves = []
    for jobs in (cohort.jobs[:middle], cohort.jobs[middle:]):
        cohort_id = digest(canonical_json({"models": [j.model_id for j in jobs], "parted_from": cohort.cohort_id}))
        segments = tuple(make_segment(cohort_id, s.first, s.last) for s in cohort.segments if s.last > stored_through)
        halves.append(
            replace(
                cohort,
                cohort_id=cohort_id,
                jobs=jobs,
                recording=recording,
                segments=segments,
                stored_through=stored_through,
            )
        )
    return halves[0], halves[1]


def extend_cohort(stored: Cohort, wanted: Cohort, bytes_per_epoch: int) -> Cohort:
    """The stored cohort with the further epochs of a longer blueprint; its segments so far stay as they are.

    Raises:
        UserError: the blueprint now asks for checkpoints inside the epochs that were trained without keeping them, or
            for fewer epochs than are stored.
    """
    kept = set(stored.recording.epochs)
    if wanted.epochs < stored.epochs:
        raise UserError(
            f"the zoo holds models of {stored.epochs} epochs, the blueprint asks for {wanted.epochs}\n"
            f"stored epochs are never removed: put training.epochs back to {stored.epochs} or more"
        )
    missing = [e for e in wanted.recording.epochs if stored.stored_through < e <= stored.epochs and e not in kept]
    if missing:
        raise UserError(
            f"checkpoints of epochs {_short(missing)} were not kept when these models were trained to epoch "
            f"{stored.epochs}\nput `checkpoints` back as it was for those epochs, or build a new zoo (--out DIR)"
        )
    further = tuple(e for e in wanted.recording.epochs if e > stored.epochs)
    recording = replace(wanted.recording, epochs=stored.recording.epochs + further)
    last = stored.segments[-1].last if stored.segments else -1
    segments = stored.segments + make_segments(stored.cohort_id, further, bytes_per_epoch, after=last)
    return replace(stored, jobs=wanted.jobs, epochs=wanted.epochs, recording=recording, segments=segments)


def _short(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return f"{shown}, ... ({len(numbers)} epochs)" if len(numbers) > 5 else shown

"""Cohorts and segments: who trains together, what a shard holds, and how both survive extension and failure."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from zoogen.blueprint import loads
from zoogen.core.errors import UserError
from zoogen.plan import make_plan
from zoogen.plan.cohorts import SHARD_BYTES, extend_cohort, make_segments, split_cohort

TEXT = """
zoo: cohorts
version: 1
task: {name: digits}
architecture: {name: mlp, hidden: [8], activation: {grid: [relu, tanh]}, dropout: {grid: [0.0, 0.5]}}
training:
  epochs: 4
  batch_size: {grid: [32, 64]}
  optimizer: {name: sgd, lr: {grid: [0.1, 0.2]}, momentum: 0.9}
seeds: {range: [0, 9]}
"""


def test_a_cohort_mixes_rates_and_seeds_but_neither_shapes_nor_programs():
    plan = make_plan(loads(TEXT))
    cohorts = plan.cohorts(np.arange(len(plan)))
    assert sorted(itertools.chain(*(c.model_ids for c in cohorts))) == sorted(plan.ids.astype(str))
    for cohort in cohorts:
        assert len(cohort.jobs) <= 16
        assert len({(j.architecture.activation, j.training.batch_size) for j in cohort.jobs}) == 1
    assert max(len({j.training.optimizer.lr for j in c.jobs}) for c in cohorts) == 2
    assert len({c.cohort_id for c in cohorts}) == len(cohorts) == plan.summary.cohorts


@pytest.mark.parametrize(
    ("hidden", "resources", "size"),
    [
        ("[8]", "{}", 16),
        ("[8]", "{gpus: 1}", 1024),
        ("[8]", "{gpus: 1, cohort: 40}", 40),
        ("[1000, 200]", "{}", 4),
        ("[1000, 200]", "{gpus: 0.5}", 64),
        ("[1000, 1000]", "{gpus: 1}", 1),
    ],
)
def test_a_cohort_is_as_large_as_its_device_trains_well(hidden, resources, size):
    text = TEXT.replace("[8]", hidden).replace("grid: [32, 64]", "grid: [32]").replace("[0, 9]", "[0, 1100]")
    plan = make_plan(loads(f"{text}resources: {resources}\n".replace("dropout: {grid: [0.0, 0.5]}", "dropout: 0.0")))
    assert max(len(cohort.jobs) for cohort in plan.cohorts(np.arange(len(plan)))) == size


def test_cohorts_depend_on_the_chosen_cells_only():
    plan = make_plan(loads(TEXT))
    cells = np.arange(0, len(plan), 3)
    again = make_plan(loads(TEXT))
    assert plan.cohorts(cells) == again.cohorts(cells)


@pytest.mark.parametrize(("bytes_per_epoch", "length"), [(1, 51), (SHARD_BYTES // 20, 20), (SHARD_BYTES * 3, 1)])
def test_segments_cover_every_epoch_once_and_stay_below_the_shard_size(bytes_per_epoch, length):
    segments = make_segments("c", range(51), bytes_per_epoch)
    assert [e for s in segments for e in range(s.first, s.last + 1)] == list(range(51))
    assert {s.last - s.first + 1 for s in segments[:-1]} <= {length}
    assert len({s.shard_id for s in segments}) == len(segments)


def test_sparse_checkpoints_leave_no_gap_between_segments():
    segments = make_segments("c", [0, 10, 20, 50], SHARD_BYTES // 2)
    assert [(s.first, s.last) for s in segments] == [(0, 10), (11, 50)]


def test_halves_of_a_cohort_store_only_what_its_sealed_segments_lack():
    plan = make_plan(loads(TEXT))
    (cohort, *_) = plan.cohorts(np.arange(len(plan)))
    first, second = split_cohort(cohort, stored_through=1)
    assert first.model_ids + second.model_ids == cohort.model_ids
    assert first.recording.epochs == second.recording.epochs == (2, 3, 4)
    assert first.stored_through == 1
    assert len({first.cohort_id, second.cohort_id, cohort.cohort_id}) == 3
    alone, _ = split_cohort(first, -1)
    while split_cohort(alone, -1) is not None:
        alone, _ = split_cohort(alone, -1)
    assert len(alone.jobs) == 1


def test_a_longer_run_appends_segments_and_a_shorter_one_or_a_denser_past_is_refused():
    plan = make_plan(loads(TEXT))
    longer = make_plan(loads(TEXT.replace("epochs: 4", "epochs: 7")))
    denser = make_plan(loads(TEXT.replace("seeds:", "checkpoints: {every: 2}\nseeds:")))
    (old, *_), (new, *_), (thin, *_) = (p.cohorts(np.arange(len(p))) for p in (plan, longer, denser))
    extended = extend_cohort(old, new, bytes_per_epoch=1)
    assert extended.cohort_id == old.cohort_id
    assert extended.segments[: len(old.segments)] == old.segments
    assert [(s.first, s.last) for s in extended.segments] == [(0, 4), (5, 7)]
    assert extended.recording.epochs == tuple(range(8))
    with pytest.raises(UserError, match="never removed"):
        extend_cohort(new, old, 1)
    with pytest.raises(UserError, match=r"epochs 1, 3 were not kept"):
        extend_cohort(thin, old, 1)

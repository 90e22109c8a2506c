"""Model ids: what they depend on, what they do not, and that they never change (golden)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from zoogen.blueprint import load, loads
from zoogen.plan import make_plan
from zoogen.plan.identity import identity

BASE = """
zoo: ids
version: 1
task: {name: digits}
architecture: {name: mlp, hidden: [16], dropout: {grid: [0.0, 0.25]}, init: {grid: [normal, kaiming_uniform]}}
training:
  epochs: 3
  batch_size: {grid: [32, 64]}
  optimizer: {name: adam, lr: {grid: [1.0e-3, 0.01]}}
seeds: {range: [0, 3]}
"""

BLUEPRINTS = Path(__file__).parents[2] / "blueprints"
# Made by zoogen 0.1. They may never change: zoos on disk are found by their ids.
GOLDEN = json.loads((Path(__file__).parent / "golden_ids.json").read_text())


def ids_of(text: str) -> set[str]:
    return set(make_plan(loads(text)).ids.astype(str).tolist())


def test_the_id_of_every_cell_is_the_digest_of_the_canonical_json_of_its_identity():
    plan = make_plan(loads(BASE))
    assert len(plan) == 2 * 2 * 2 * 2 * 3
    for cell in range(len(plan)):
        job = plan.job(cell)
        full = identity(job.architecture, job.task, job.training, job.seeds)
        text = json.dumps(full, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        assert job.model_id == hashlib.blake2b(text, digest_size=16).hexdigest() == plan.ids[cell].decode()


def test_the_table_says_of_each_cell_what_its_job_is():
    plan = make_plan(loads(BASE))
    for cell in (0, 7, 23, 47):
        job, row = plan.job(cell), plan.table.iloc[cell]
        assert row["model_id"] == job.model_id
        assert row["architecture.dropout"] == job.architecture.dropout
        assert row["architecture.init"] == job.architecture.init
        assert row["training.batch_size"] == job.training.batch_size
        assert row["training.optimizer.lr"] == job.training.optimizer.lr
        assert row["seed"] == job.seeds.init == job.seeds.order == job.seeds.dropout == job.seeds.augment


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{range: [0, 3]}", "{range: [0, 5]}"),
        ("{grid: [32, 64]}", "{grid: [16, 32, 64]}"),
        ("{grid: [0.0, 0.25]}", "{grid: [0.0, 0.1, 0.25]}"),
        ("epochs: 3", "epochs: 9"),  # the schedule is constant: a longer run is the same model, continued
        ("zoo: ids", "zoo: other"),
        ("seeds:", "checkpoints: {every: 2, optimizer: all}\nseeds:"),
        ("seeds:", "resources: {cpus: 2, cohort: 3}\nseeds:"),
    ],
)
def test_an_id_does_not_depend_on_other_cells_length_checkpoints_or_machine(before, after):
    assert before in BASE
    assert ids_of(BASE) <= ids_of(BASE.replace(before, after))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{name: digits}", "{name: digits, split_seed: 1}"),
        ("hidden: [16]", "hidden: [17]"),
        ("name: adam,", "name: adamw, weight_decay: 0.0,"),
        ("lr: {grid: [1.0e-3, 0.01]}", "lr: {grid: [2.0e-3, 0.02]}"),
        ("{range: [0, 3]}", "{range: [3, 6]}"),
        ("{range: [0, 3]}", "{range: [0, 3], init: 8}"),
        ("epochs: 3", "epochs: 3\n  label_smoothing: 0.1"),
        ("epochs: 3", "epochs: 3\n  clip_norm: 1.0"),
        ("epochs: 3", "epochs: 3\n  schedule: {name: one_cycle}"),
    ],
)
def test_an_id_depends_on_everything_that_determines_the_weights(before, after):
    assert before in BASE
    assert not ids_of(BASE) & ids_of(BASE.replace(before, after))


def test_epochs_belong_to_the_id_where_the_schedule_is_shaped_by_them():
    cycle = BASE.replace("epochs: 3", "epochs: 3\n  schedule: {name: one_cycle}")
    assert not ids_of(cycle) & ids_of(cycle.replace("epochs: 3", "epochs: 4"))


def test_a_fixed_value_and_a_grid_of_one_are_the_same_model_and_so_is_a_written_default():
    fixed = BASE.replace("{grid: [1.0e-3, 0.01]}", "0.001")
    assert ids_of(fixed) == ids_of(BASE.replace("{grid: [1.0e-3, 0.01]}", "{grid: [0.001]}")) < ids_of(BASE)
    assert ids_of(fixed) == ids_of(fixed.replace("lr: 0.001", "lr: 0.001, beta2: 0.999"))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_ids(name):
    """Of every shipped blueprint: the ids of the first and the last cell, and a digest of all."""
    assert fingerprint(name) == GOLDEN[name]


def fingerprint(name: str) -> dict[str, str]:
    ids = make_plan(load(BLUEPRINTS / name)).ids.astype(str).tolist()
    every = hashlib.sha256(" ".join(sorted(ids)).encode()).hexdigest()
    return {"first": ids[0], "last": ids[-1], "all": every}


def test_two_cells_that_are_the_same_model_are_refused():
    from zoogen.core.errors import UserError

    twice = BASE + "coupled:\n  twice: [{training: {epochs: 3}}, {training: {epochs: 4}}]\n"
    with pytest.raises(UserError, match="same model"):
        make_plan(loads(twice))


def test_model_split_shares_and_stability():
    plan = make_plan(loads(BASE.replace("{range: [0, 3]}", "{range: [0, 2000]}")))
    split = plan.table.set_index("model_id")["split"].astype(str)
    counts = split.value_counts(normalize=True)
    # 32,000 models: 4 standard errors of a share p are 4 sqrt(p (1 - p) / n) < 0.011.
    assert np.allclose([counts["train"], counts["val"], counts["test"]], [0.7, 0.15, 0.15], atol=0.011)
    few = make_plan(loads(BASE)).table.set_index("model_id")["split"].astype(str)
    assert (split[few.index] == few).all()

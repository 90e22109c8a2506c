"""Plans of twins: what each inherits, what its id depends on, and that ids never change (golden)."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from zoogen.blueprint import loads
from zoogen.blueprint.twins import loads_recipe
from zoogen.core.errors import UserError
from zoogen.core.records import Parent, Resources
from zoogen.plan import make_plan
from zoogen.plan.plan import Plan
from zoogen.plan.twins import ChosenParents, parents_of, plan_twins

PARENTS = """
zoo: parents
version: 2
task: {name: digits}
architecture: {name: mlp, hidden: [8], dropout: {grid: [0.0, 0.25]}, init: {grid: [normal, kaiming_uniform]}}
training:
  epochs: 4
  batch_size: {grid: [32, 64]}
  optimizer: {name: {grid: [sgd, adam]}, lr: {grid: [1.0e-3, 0.01]}, weight_decay: {grid: [0.0, 0.1]}}
  schedule: {name: one_cycle}
seeds: {range: [0, 3], order: 5}
model_split: {train: 0.6, val: 0.2, test: 0.2}
resources: {cpus: 2, cohort: 7}
"""
ONE = """
zoo: one
version: 1
task: {name: digits, split_seed: 42}
architecture: {name: mlp, hidden: [16]}
training: {epochs: 3, batch_size: 32, optimizer: {name: adam, lr: 0.001}}
seeds: {range: [0, 1]}
"""
HALF = "method: {name: magnitude, sparsity: 0.5}\n"


def everyone(parent: Plan, epoch: int = 4) -> ChosenParents:
    return ChosenParents(np.arange(len(parent)), np.full(len(parent), epoch))


def twins(recipe: str = HALF, parents: str = PARENTS, epoch: int = 4) -> Plan:
    parent = make_plan(loads(parents))
    return plan_twins(loads_recipe(recipe), parent, everyone(parent, epoch))


def ids(plan: Plan) -> set[str]:
    return set(plan.ids.astype(str).tolist())


@pytest.mark.parametrize("schedule", ["constant", "parent"])
def test_each_twin_inherits_everything_of_its_own_parent_but_length_rate_scale_and_schedule(schedule):
    parent = make_plan(loads(PARENTS))
    jobs = {parent.job(cell).model_id: parent.job(cell) for cell in range(len(parent))}
    text = f"{HALF}training: {{epochs: 6, lr_scale: 0.5, schedule: {schedule}}}"
    plan = plan_twins(loads_recipe(text), parent, everyone(parent))
    assert len(plan) == len(parent) == 2**6 * 3
    seen = set()
    for cell in range(len(plan)):
        twin = plan.job(cell)
        (origin,) = twin.parents
        own = jobs[origin.model_id]
        seen.add(origin.model_id)
        assert origin == Parent(own.model_id, 4, "origin")
        assert (twin.architecture, twin.task, twin.seeds) == (own.architecture, own.task, own.seeds)
        optimizer = dataclasses.replace(own.training.optimizer, lr=own.training.optimizer.lr * 0.5)
        assert twin.training.optimizer == optimizer
        assert twin.training.schedule.registered_name == ("one_cycle" if schedule == "parent" else "constant")
        assert (twin.training.epochs, twin.training.batch_size) == (6, own.training.batch_size)
        rest = {"epochs", "optimizer", "schedule", "sparsify"}
        for field in dataclasses.fields(twin.training):
            if field.name not in rest:
                assert getattr(twin.training, field.name) == getattr(own.training, field.name)
    assert seen == set(jobs)


def test_the_table_says_of_each_twin_what_its_job_is_and_who_its_parent_is():
    plan = twins("method: {name: magnitude, sparsity: {grid: [0.5, 0.9]}, scope: {grid: [global, channels]}}")
    for cell in range(0, len(plan), 13):
        job, row = plan.job(cell), plan.table.iloc[cell]
        assert row["model_id"] == job.model_id
        assert (row["parent_id"], row["parent_epoch"]) == (job.parents[0].model_id, 4)
        assert row["training.sparsify.sparsity"] == job.training.sparsify.sparsity
        assert row["training.sparsify.scope"] == job.training.sparsify.scope
        assert row["training.sparsify.name"] == "magnitude"
        assert row["training.optimizer.lr"] == job.training.optimizer.lr
        assert row["training.optimizer.weight_decay"] == job.training.optimizer.weight_decay
        assert row["architecture.dropout"] == job.architecture.dropout
        assert row["seed"] == job.seeds.init


def test_a_twin_is_on_its_parents_side_of_the_model_split():
    parent = make_plan(loads(PARENTS))
    sides = dict(zip(parent.table["model_id"], parent.table["split"], strict=True))
    assert set(sides.values()) == {"train", "val", "test"}
    plan = twins("method: {name: random, sparsity: {grid: [0.1, 0.9]}}")
    assert plan.blueprint.model_split == parent.blueprint.model_split
    found = list(zip(plan.table["parent_id"], plan.table["split"], strict=True))
    assert len(found) == 2 * len(sides)
    assert [p for p, side in found if side != sides[p]] == []


def test_an_id_does_not_depend_on_other_twins_parents_or_what_is_stored():
    before = ids(twins())
    assert before < ids(twins(HALF.replace("0.5", "{grid: [0.9, 0.5]}")))
    assert before < ids(twins(parents=PARENTS.replace("[0, 3]", "[0, 4]")))
    assert before < ids(twins(parents=PARENTS.replace("{grid: [0.0, 0.25]}", "{grid: [0.0, 0.1, 0.25]}")))
    for further in (
        "training: {epochs: 99}",
        "checkpoints: {every: 3}",
        "resources: {cpus: 9}",
        "twins: else",
        "version: 8",
    ):
        assert before == ids(twins(f"{HALF}{further}\n")), further
    parent = make_plan(loads(PARENTS))
    some = ChosenParents(np.arange(3, len(parent), 5), np.full(len(range(3, len(parent), 5)), 4))
    assert ids(plan_twins(loads_recipe(HALF), parent, some)) < before


@pytest.mark.parametrize(
    "other",
    [
        "method: {name: random, sparsity: 0.5}",
        "method: {name: magnitude, sparsity: 0.6}",
        "method: {name: magnitude, sparsity: 0.5, scope: layerwise}",
        "method: {name: magnitude, sparsity: 0.5, schedule: cubic}",
        "method: {name: magnitude, sparsity: 0.5, rounds: 2}",
        "method: {name: magnitude, sparsity: 0.5, rewind: 1}",
        "method: {name: variational-dropout}",
        "method: {name: variational-dropout, beta: 1}",
        HALF + "training: {lr_scale: 0.5}",
        HALF + "training: {schedule: parent}",
    ],
)
def test_an_id_depends_on_the_method_its_settings_and_how_the_twin_trains(other):
    assert not ids(twins()) & ids(twins(other))


def test_an_id_depends_on_the_parent_and_on_its_epoch():
    assert len(ids(twins())) == len(twins())
    assert not ids(twins()) & ids(twins(epoch=3))
    # Two parents that differ in nothing a twin trains with (the first weights) have different twins.
    plan = twins()
    own = [tuple(plan.job(c).parents) for c in range(len(plan))]
    assert len(set(own)) == len(plan)


@pytest.mark.parametrize("method", ["{name: magnitude, sparsity: 0.5, rounds: 2}", "{name: variational-dropout}"])
def test_the_length_belongs_to_the_id_where_it_shapes_the_epochs(method):
    assert not ids(twins(f"method: {method}\ntraining: {{epochs: 5}}")) & ids(
        twins(f"method: {method}\ntraining: {{epochs: 6}}")
    )


# Made by zoogen 0.1. They may never change: zoos on disk are found by their ids.
ITERATIVE = "method: {name: magnitude, sparsity: 0.8, scope: layerwise, rounds: 3, rewind: 1}"
GOLDEN = {
    "method: {name: magnitude, sparsity: 0.5}": "a12664e7709bcaba87c98a33ed6b65e2",
    ITERATIVE: "e757fe72d31e3105177eda5a5c1830a5",
    "method: {name: random, sparsity: 0.5}": "a47ce7c9f395eed9e68e33694e06c80f",
    "method: {name: variational-dropout}": "4423eae57e24e4a2640c7b4caed8f3cf",
}


@pytest.mark.parametrize("method", GOLDEN)
def test_golden_ids(method):
    (parent,) = make_plan(loads(ONE)).ids.astype(str).tolist()
    assert parent == "21d142cc8a11467798ba859c0fb79ce6"
    (found,) = twins(method, ONE, epoch=3).ids.astype(str).tolist()
    assert found == GOLDEN[method]


def test_methods_that_differ_in_their_masks_alone_share_a_cohort_with_all_that_their_parents_may_differ_in():
    grid = "{name: magnitude, sparsity: {grid: [0.5, 0.9]}, scope: {grid: [global, channels]}}"
    plan = twins(f"method: {grid}\nresources: {{cohort: 1000}}")
    cohorts = plan.cohorts(np.arange(len(plan)))
    assert len(cohorts) == 4, "one for each optimizer and batch size"
    for cohort in cohorts:
        assert {(j.training.sparsify.sparsity, j.training.sparsify.scope) for j in cohort.jobs} == {
            (s, scope) for s in (0.5, 0.9) for scope in ("global", "channels")
        }
        assert len({j.architecture.dropout for j in cohort.jobs}) == 2
    apart = twins("method: {name: variational-dropout, beta: {grid: [0.01, 1]}}")
    for cohort in apart.cohorts(np.arange(len(apart))):
        assert len({j.training.sparsify for j in cohort.jobs}) == 1


def test_resources_and_cohorts_are_the_parents_unless_the_recipe_says_other():
    plan = twins()
    assert {group.resources for group in plan.groups} == {Resources(cpus=2)}
    assert max(len(cohort.jobs) for cohort in plan.cohorts(np.arange(len(plan)))) == 7
    plan = twins(HALF + "resources: {gpus: 1, cohort: 3}")
    assert {group.resources for group in plan.groups} == {Resources(gpus=1)}
    assert max(len(cohort.jobs) for cohort in plan.cohorts(np.arange(len(plan)))) == 3


def test_name_and_version_follow_from_the_parent_unless_the_recipe_says_other():
    assert (twins().blueprint.name, twins().blueprint.version) == ("parents-magnitude", 2)
    named = twins(HALF + "twins: else\nversion: 7").blueprint
    assert (named.name, named.version) == ("else", 7)


def test_every_checkpoint_that_is_read_is_named():
    parent = make_plan(loads(ONE)).ids.astype(str)[0]
    assert parents_of(twins(HALF, ONE, epoch=3)) == {parent: {3}}
    rewound = "method: {name: magnitude, sparsity: {grid: [0.5, 0.9]}, rewind: {grid: [1, null]}}"
    assert parents_of(twins(rewound, ONE, epoch=3)) == {parent: {1, 3}}


def test_twins_of_an_architecture_without_anything_to_remove_are_refused():
    linear = ONE.replace("[16]", "[]")
    with pytest.raises(UserError, match=r"'mlp' has one layer.*\n.*method\.scope: global"):
        twins("method: {name: magnitude, sparsity: 0.5, scope: channels}", linear)
    assert len(twins(HALF, linear)) == 1


def test_the_id_is_the_digest_of_what_a_twin_is_written_out():
    told = {
        "architecture.hidden": [16],
        "architecture.name": "mlp",
        "parents": [{"epoch": 3, "id": "21d142cc8a11467798ba859c0fb79ce6", "role": "origin"}],
        "recipe": 1,
        "seeds": [0, 0, 0, 0],
        "task.name": "digits",
        "task.source": "3b1e306f4f2cfabdf44474eeee91f91a",
        "task.version": 1,
        "training.batch_size": 32,
        "training.optimizer.lr": 0.001,
        "training.optimizer.name": "adam",
        "training.schedule.name": "constant",
        "training.sparsify.name": "magnitude",
        "training.sparsify.sparsity": 0.5,
    }
    text = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
    assert ids(twins(HALF, ONE, epoch=3)) == {hashlib.blake2b(text, digest_size=16).hexdigest()}

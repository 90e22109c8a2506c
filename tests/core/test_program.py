"""A program is plain JSON, and what is not one is refused."""

import json
from dataclasses import replace

import pytest

from zoogen.core.program import Program, describe_kind
from zoogen.core.recipe import Training
from zoogen.core.records import Job, Resources, Seeds
from zoogen.core.registry import ARCHITECTURES, OPTIMIZERS, SCHEDULES, TASKS

PLAIN = Program("plain", reason="asked for")
POPULATION = Program("population", "stacked", 64, {"conv1": "unfold"}, "fast", 1.5e-4)


@pytest.mark.parametrize("program", [PLAIN, POPULATION], ids=str)
def test_a_program_survives_json(program):
    assert Program.from_json(json.loads(json.dumps(program.to_json()))) == program


@pytest.mark.parametrize(
    "change",
    [
        {"trainer": "fast"},
        {"engine": None},
        {"engine": 3},
        {"block": 0},
        {"block": True},
        {"variants": {"conv1": 1}},
        {"variants": []},
        {"reason": None},
        {"seconds_per_step": "1"},
        {"more": 1},
    ],
    ids=str,
)
def test_what_is_not_a_program_is_refused(change):
    with pytest.raises(ValueError, match="program"):
        Program.from_json(POPULATION.to_json() | change)
    for wrong in (None, [], "plain", {}):
        with pytest.raises(ValueError, match="program"):
            Program.from_json(wrong)


def job(architecture=None, optimizer=None, **training):
    task = TASKS.make("digits", {})
    recipe = {
        "epochs": 3,
        "batch_size": 16,
        "optimizer": OPTIMIZERS.make("sgd", {"lr": 0.1} | (optimizer or {})),
        "schedule": SCHEDULES.make("constant", {}),
    }
    return Job(
        "m", ARCHITECTURES.make("mlp", architecture or {}), task, Training(**{**recipe, **training}), Seeds(0, 0, 0, 0)
    )


ONE_CORE = Resources()


def kind(own, layout="l", resources=ONE_CORE):
    return describe_kind(own, layout, resources)


def test_a_kind_is_the_same_for_all_models_of_a_cohort_and_any_number_of_cores():
    first = kind(job())
    for other in (
        job({"dropout": 0.5}),
        job(optimizer={"lr": 0.3, "momentum": 0.9, "weight_decay": 0.1}),
        job(label_smoothing=0.1),
        job(epochs=9),
        replace(job(), seeds=Seeds(4, 4, 4, 4)),
    ):
        assert kind(other) == first
    assert kind(job(), resources=Resources(cpus=4, gpus=1)) == first
    json.dumps(first)


def test_another_program_is_another_kind():
    first = kind(job())
    others = [
        kind(job({"hidden": (7,)})),
        kind(job(batch_size=8)),
        kind(job(micro_batch=4)),
        kind(job(precision="bfloat16")),
        kind(job(optimizer={"momentum": 0.9, "nesterov": True})),
        kind(job(), layout="m"),
        kind(job(), resources=Resources(compile=True)),
        kind(job(), resources=Resources(channels_last=True)),
    ]
    assert all(other != first for other in others)
    assert len({json.dumps(other) for other in others}) == len(others)

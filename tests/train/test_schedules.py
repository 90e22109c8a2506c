import random
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torch_schedules

from zoogen.train.schedules import Constant, Cosine, OneCycle, Step

STEPS_PER_EPOCH = 7


def optimizer(kind: str) -> torch.optim.Optimizer:
    parameter = [nn.Parameter(torch.zeros(1))]
    if kind == "adam":
        return torch.optim.Adam(parameter, lr=0.3, betas=(0.9, 0.98))
    if kind == "rmsprop":
        return torch.optim.RMSprop(parameter, lr=0.3)
    return torch.optim.SGD(parameter, lr=0.3, momentum=0.9)


def settings(opt: torch.optim.Optimizer) -> tuple[float, float]:
    group = opt.param_groups[0]
    return group["lr"], group["betas"][0] if "betas" in group else group["momentum"]


def torch_trajectory(opt: torch.optim.Optimizer, schedule, total: int) -> list[tuple[float, float]]:
    found = []
    for _ in range(total):
        found.append(settings(opt))
        opt.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule.step()
    return found


def our_trajectory(opt: torch.optim.Optimizer, entry, total: int) -> list[tuple[float, float]]:
    """In random order: a closed form needs no step before it."""
    applied = entry.build(opt, total, STEPS_PER_EPOCH)
    found = {}
    for step in random.Random(0).sample(range(total), total):
        applied.apply(step)
        found[step] = settings(opt)
    return [found[step] for step in range(total)]


@pytest.mark.parametrize("kind", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("epochs", [1, 3, 30])
def test_one_cycle_is_torchs_at_every_step(kind, epochs):
    total = epochs * STEPS_PER_EPOCH
    ours, theirs = optimizer(kind), optimizer(kind)
    expected = torch_trajectory(theirs, torch_schedules.OneCycleLR(theirs, max_lr=0.3, total_steps=total), total)
    assert our_trajectory(ours, OneCycle(), total) == expected
    assert max(lr for lr, _ in expected) > 0.25


def test_one_cycle_takes_torchs_options():
    options = {"pct_start": 0.15, "div_factor": 4.0, "final_div_factor": 10.0}
    ours, theirs = optimizer("sgd"), optimizer("sgd")
    reference = torch_schedules.OneCycleLR(
        theirs, max_lr=0.3, total_steps=50, base_momentum=0.5, max_momentum=0.7, **options
    )
    expected = torch_trajectory(theirs, reference, 50)
    assert our_trajectory(ours, OneCycle(base_momentum=0.5, max_momentum=0.7, **options), 50) == expected


def test_one_cycle_leaves_momentum_alone_if_told_so():
    found = our_trajectory(optimizer("sgd"), OneCycle(cycle_momentum=False), 20)
    assert {momentum for _, momentum in found} == {0.9}


@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_of_a_few_steps_is_torchs(total):
    ours, theirs = optimizer("sgd"), optimizer("sgd")
    expected = torch_trajectory(theirs, torch_schedules.OneCycleLR(theirs, 0.3, total_steps=total), total)
    assert our_trajectory(ours, OneCycle(), total) == expected


@pytest.mark.parametrize("share", [0.0, 1.0, 0.1])
def test_one_cycle_is_defined_at_the_borders_of_pct_start(share):
    # torch divides by zero for some of these; the peak must still be the highest value, and all are finite.
    found = [OneCycle(pct_start=share).at(step, 0.3, 10, 5).lr for step in range(10)]
    assert all(0 < lr <= 0.3 + 1e-12 for lr in found)


def test_cosine_is_torchs_closed_form():
    ours, theirs = optimizer("adam"), optimizer("adam")
    reference = torch_schedules.CosineAnnealingLR(theirs, T_max=70, eta_min=0.01)
    expected = torch_trajectory(theirs, reference, 70)
    found = our_trajectory(ours, Cosine(min_lr=0.01), 70)
    # torch multiplies its way from step to step, which rounds.
    assert [lr for lr, _ in found] == pytest.approx([lr for lr, _ in expected], rel=1e-9)
    assert {beta1 for _, beta1 in found} == {0.9}


def test_cosine_warms_up_linearly_first():
    warmup, total = 2 * STEPS_PER_EPOCH, 70
    ours, theirs = optimizer("sgd"), optimizer("sgd")
    reference = torch_schedules.SequentialLR(
        theirs,
        [
            torch_schedules.LinearLR(theirs, 1 / warmup, 1.0, total_iters=warmup - 1),
            torch_schedules.CosineAnnealingLR(theirs, T_max=total - warmup),
        ],
        milestones=[warmup],
    )
    expected = [lr for lr, _ in torch_trajectory(theirs, reference, total)]
    found = [lr for lr, _ in our_trajectory(ours, Cosine(warmup_epochs=2), total)]
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_warm_up_as_long_as_the_training_never_ends():
    found = [Cosine(warmup_epochs=3).at(step, 0.3, 3, 1).lr for step in range(3)]
    assert found == pytest.approx([0.1, 0.2, 0.3])


def test_steps_fall_after_the_epochs_listed():
    ours, theirs = optimizer("sgd"), optimizer("sgd")
    reference = torch_schedules.MultiStepLR(theirs, milestones=[2 * STEPS_PER_EPOCH, 5 * STEPS_PER_EPOCH], gamma=0.2)
    expected = [lr for lr, _ in torch_trajectory(theirs, reference, 8 * STEPS_PER_EPOCH)]
    found = [lr for lr, _ in our_trajectory(ours, Step(epochs=(5, 2), gamma=0.2), 8 * STEPS_PER_EPOCH)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_constant_stays():
    assert set(our_trajectory(optimizer("sgd"), Constant(), 20)) == {(0.3, 0.9)}


@pytest.mark.parametrize("entry", [Constant(), Step(epochs=(2,)), OneCycle(), Cosine(), Cosine(warmup_epochs=1)])
def test_a_schedule_not_shaped_by_epochs_is_the_same_for_every_length(entry):
    alike = all(entry.at(s, 0.3, 70, 7) == entry.at(s, 0.3, 140, 7) for s in range(70))
    assert alike is not entry.shaped_by_epochs

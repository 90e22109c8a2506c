"""Twins in training against a loop written by hand with torch.optim and torch.nn.utils.prune."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from torch import nn
from torch.nn.utils import prune

from zoogen.blueprint import loads
from zoogen.blueprint.twins import loads_recipe
from zoogen.core import streams
from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.layout import describe_module
from zoogen.core.modules import build_model
from zoogen.core.records import Cohort
from zoogen.plan import make_plan
from zoogen.plan.twins import ChosenParents, plan_twins
from zoogen.train.model import epoch_order
from zoogen.train.network import build_network
from zoogen.train.plain import PlainTrainer
from zoogen.twins.origin import Origin
from zoogen.twins.trainer import TwinTrainer

PARENTS = """
zoo: parents
version: 1
task: {name: digits}
architecture: {name: mlp, hidden: [12]}
training: {epochs: 1, batch_size: 200, optimizer: OPTIMIZER}
seeds: {range: [0, 2]}
"""
OPTIMIZERS = {
    "sgd": "{name: sgd, lr: 0.05, momentum: 0.9, nesterov: true, weight_decay: 0.01}",
    "adam": "{name: adam, lr: 0.005, weight_decay: 0.01}",
    "adamw": "{name: adamw, lr: 0.005, weight_decay: 0.1}",
}
MAKE = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.005, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.005, weight_decay=0.1),
}


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def _one_thread():
    """As a worker trains."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    plan = make_plan(loads(PARENTS.replace("OPTIMIZER", "{name: sgd, lr: 0.1}")))
    return plan.job(0).task.load(None, tmp_path_factory.mktemp("cache"))


def cohort_of(method: str, optimizer: str = "{name: sgd, lr: 0.1}") -> Cohort:
    """The twins of all parents."""
    parent = make_plan(loads(PARENTS.replace("OPTIMIZER", optimizer)))
    chosen = ChosenParents(np.arange(len(parent)), np.full(len(parent), 1))
    plan = plan_twins(loads_recipe(f"method: {method}\ntraining: {{epochs: 2}}"), parent, chosen)
    (cohort,) = plan.cohorts(np.arange(len(plan)))
    return cohort


def network(cohort: Cohort, m: int) -> nn.Module:
    """The parent of the m-th twin at the epoch it starts from."""
    job = cohort.jobs[m]
    torch.manual_seed(int(job.parents[0].model_id[:8], 16))
    module = build_model(job.architecture, job.task.input_shape, job.task.outputs, 0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def evaluate(module: nn.Module, data) -> tuple[float, float, np.ndarray]:
    inputs, targets = data.tensors("test", "cpu")
    with torch.no_grad():
        scores = module.eval()(data.prepare(inputs))
    loss = nn.functional.cross_entropy(scores, targets).item()
    return loss, (scores.argmax(1) == targets).double().mean().item(), scores.argmax(1).numpy()


def origin_of(cohort: Cohort, data, rewind: list[nn.Module] | None = None) -> Origin:
    modules = [network(cohort, m) for m in range(len(cohort.jobs))]
    layout = describe_module(modules[0])
    scores = [evaluate(module, data) for module in modules]
    rows = [
        torch.stack([layout.flatten(n.state_dict()) for n in own]).numpy() for own in (modules, rewind or []) if own
    ]
    losses, accuracies = (np.array([s[i] for s in scores]) for i in (0, 1))
    return Origin(rows[0], {}, losses, accuracies, rows[1] if rewind else None)


def trainer_of(cohort: Cohort, data, origin: Origin) -> TwinTrainer:
    job = cohort.jobs[0]
    stored = describe_module(build_model(job.architecture, job.task.input_shape, job.task.outputs, 0))
    training = describe_module(build_network(job))
    return TwinTrainer(cohort, stored, training, lambda own: PlainTrainer(own, data, "cpu"), origin)


def layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def prune_to(module: nn.Module, sparsity: float, scope: str) -> None:
    """What torch removes for this sparsity of all weights; further than before where it has pruned already."""
    every = layers(module)
    for group in [[layer] for layer in every] if scope == "layerwise" else [every]:
        parts = [(layer, "weight") for layer in group]
        count = round(sparsity * sum(layer.weight.numel() for layer in group))
        gone = sum(int((layer.weight_mask == 0).sum()) for layer in group if hasattr(layer, "weight_mask"))
        prune.global_unstructured(parts, prune.L1Unstructured, amount=count - gone)


def train_by_hand(module: nn.Module, optimizer, order_seed: int, epoch: int, data) -> None:
    inputs, targets = data.tensors("train", "cpu")
    order = epoch_order(streams.stream_key(order_seed, "order"), epoch, len(targets))
    module.train()
    for batch in order.split(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(data.prepare(inputs[batch])), targets[batch]).backward()
        optimizer.step()


def row(module: nn.Module) -> np.ndarray:
    return np.concatenate([t.detach().numpy().ravel() for layer in layers(module) for t in (layer.weight, layer.bias)])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("scope", "schedule", "rounds", "sparsities"),
    [
        ("global", "geometric", 1, {0: 0.7}),
        ("layerwise", "geometric", 1, {0: 0.7}),
        ("global", "geometric", 2, {0: 1 - 0.3**0.5, 1: 0.7}),
        ("layerwise", "cubic", 2, {0: 0.7 * (1 - 0.5**3), 1: 0.7}),
    ],
    ids=["global", "layerwise", "geometric", "cubic"],
)
def test_a_twin_is_what_torch_prune_and_torch_optim_make_of_its_parent(
    data, optimizer, scope, schedule, rounds, sparsities
):
    method = f"{{name: magnitude, sparsity: 0.7, scope: {scope}, schedule: {schedule}, rounds: {rounds}}}"
    cohort = cohort_of(method, OPTIMIZERS[optimizer])
    trainer = trainer_of(cohort, data, origin_of(cohort, data))
    oracles = [network(cohort, m) for m in range(len(cohort.jobs))]
    steps = [MAKE[optimizer](oracle.parameters()) for oracle in oracles]
    for epoch in range(3):
        if epoch:
            trainer.train_epoch(never)
        found = trainer.checkpoint(cohort.model_ids)
        for m, (job, oracle) in enumerate(zip(cohort.jobs, oracles, strict=True)):
            if epoch == 0:
                prune_to(oracle, sparsities[0], scope)
                steps[m] = MAKE[optimizer](oracle.parameters())  # of the parameters that torch.nn.utils.prune makes
            else:
                if epoch == 2 and 1 in sparsities:
                    prune_to(oracle, sparsities[1], scope)
                train_by_hand(oracle, steps[m], job.seeds.order, epoch - 1, data)
            oracle(torch.zeros(1, 1, 8, 8))  # the hook of torch.nn.utils.prune applies the mask
            compare(found, m, oracle, network(cohort, m), data)


def compare(found, m: int, oracle: nn.Module, parent: nn.Module, data) -> None:
    """The m-th row of a checkpoint with what was trained by hand."""
    expected = row(oracle)
    # Fused and plain optimizer steps round differently; 14 steps of 0.05 at most.
    assert found.weights[m] == pytest.approx(expected, abs=2e-5)
    kept = np.concatenate([layer.weight_mask.numpy().ravel() for layer in layers(oracle)]) != 0
    assert np.array_equal(found.kept[m], kept)
    assert not found.weights[m][expected == 0].any(), "removed weights are exactly 0"
    assert found.metrics["sparsity"][m] == (~kept).sum() / len(kept)
    loss, accuracy, classes = evaluate(oracle, data)
    predicted = evaluate(parent, data)[2]
    one_sample = 1 / len(classes) + 1e-9
    assert found.metrics["test_loss"][m] == pytest.approx(loss, rel=1e-4)
    assert found.metrics["test_acc"][m] == pytest.approx(accuracy, abs=one_sample)
    assert found.metrics["agreement"][m] == pytest.approx((classes == predicted).mean(), abs=one_sample)
    assert found.metrics["kappa"][m] == pytest.approx(cohen_kappa_score(classes, predicted), abs=2 * one_sample)
    assert found.metrics["distance"][m] == pytest.approx(np.linalg.norm(expected - row(parent)), rel=1e-4)
    assert found.metrics["weight_norm"][m] == pytest.approx(np.linalg.norm(expected), rel=1e-4)


def test_after_a_rewinding_round_survivors_start_anew_from_the_earlier_epoch_with_a_fresh_optimizer(data):
    cohort = cohort_of("{name: magnitude, sparsity: 0.7, rounds: 2, rewind: 0}", OPTIMIZERS["adam"])
    early = [build_model(j.architecture, j.task.input_shape, j.task.outputs, j.seeds.init + 50) for j in cohort.jobs]
    trainer = trainer_of(cohort, data, origin_of(cohort, data, early))
    oracles = []
    for m, _ in enumerate(cohort.jobs):
        oracle = network(cohort, m)
        prune_to(oracle, 1 - 0.3**0.5, "global")
        back_to(oracle, early[m])
        oracles.append(oracle)
    for epoch in range(3):
        found = trainer.checkpoint(cohort.model_ids)
        for m, oracle in enumerate(oracles):
            assert found.weights[m] == pytest.approx(row(oracle), abs=2e-5)
            assert found.metrics["distance"][m] == pytest.approx(np.linalg.norm(row(oracle) - row(network(cohort, m))))
        if epoch == 2:
            break
        trainer.train_epoch(never)
        for m, (job, oracle) in enumerate(zip(cohort.jobs, oracles, strict=True)):
            if epoch == 1:
                prune_to(oracle, 0.7, "global")
                back_to(oracle, early[m])
            train_by_hand(oracle, MAKE["adam"](oracle.parameters()), job.seeds.order, epoch, data)
            oracle(torch.zeros(1, 1, 8, 8))


def back_to(module: nn.Module, early: nn.Module) -> None:
    with torch.no_grad():
        for own, other in zip(layers(module), layers(early), strict=True):
            own.weight_orig.copy_(other.weight)
            own.bias.copy_(other.bias)
    module(torch.zeros(1, 1, 8, 8))


def test_rewinding_to_the_epoch_a_twin_starts_from_changes_nothing_of_one_shot_pruning(data):
    plain, back = (cohort_of(f"{{name: magnitude, sparsity: 0.7{text}}}") for text in ("", ", rewind: 1"))
    origin = origin_of(plain, data)
    found = [trainer_of(plain, data, origin), trainer_of(back, data, replace(origin, rewind=origin.weights))]
    for trainer in found:
        trainer.train_epoch(never)
    assert np.array_equal(found[0].state().weights, found[1].state().weights)


@pytest.mark.parametrize(
    "method",
    [
        "{name: magnitude, sparsity: {grid: [0.2, 0.9]}, rounds: 2}",
        "{name: random, sparsity: 0.5}",
        "{name: variational-dropout, beta: 1}",
    ],
)
def test_a_twin_restored_from_any_epoch_goes_on_bit_for_bit(data, method):
    cohort = cohort_of(method, OPTIMIZERS["adam"])
    origin = origin_of(cohort, data)
    through = trainer_of(cohort, data, origin)
    states, checkpoints = [], []
    for _ in range(3):
        states.append(through.state())
        checkpoints.append(through.checkpoint(cohort.model_ids))
        if through.epoch < 2:
            through.train_epoch(never)
    for start in (0, 1):
        again = trainer_of(cohort, data, origin)
        again.restore(states[start])
        while again.epoch < 2:
            again.train_epoch(never)
        last = again.checkpoint(cohort.model_ids)
        assert np.array_equal(again.state().weights, states[2].weights)
        assert np.array_equal(last.kept, checkpoints[2].kept)
        for name, values in checkpoints[2].metrics.items():
            assert np.array_equal(values, last.metrics[name], equal_nan=True), name


def test_random_masks_follow_from_the_seed_with_exact_counts_and_leave_biases_alone(data):
    cohort = cohort_of("{name: random, sparsity: {grid: [0.25, 0.75]}}")
    origin = origin_of(cohort, data)
    found = trainer_of(cohort, data, origin).checkpoint(cohort.model_ids)
    again = trainer_of(cohort, data, origin).checkpoint(cohort.model_ids)
    assert np.array_equal(found.kept, again.kept)
    size = found.kept.shape[1]
    masks: dict[int, list[np.ndarray]] = {}
    for m, job in enumerate(cohort.jobs):
        assert (~found.kept[m]).sum() == round(job.training.sparsify.sparsity * size)
        masks.setdefault(job.seeds.init, []).append(found.kept[m])
    assert not np.array_equal(masks[0][0], masks[1][0]), "another seed, another mask"
    for few, many in masks.values():
        few, many = sorted((few, many), key=lambda kept: -kept.sum())
        assert not (many & ~few).any(), "more sparsity removes more of the same order"
    # Random, not by size: the kept weights are as large as the removed ones.
    layout = describe_module(network(cohort, 0))
    sizes = np.abs(origin.weights[:, layout.prunable_places])
    assert sizes[found.kept].mean() == pytest.approx(sizes[~found.kept].mean(), rel=0.15)
    biases = np.setdiff1d(np.arange(layout.parameters), layout.prunable_places)
    assert np.array_equal(found.weights[:, biases], origin.weights[:, biases])


def test_a_converted_twin_begins_as_its_parent(data):
    cohort = cohort_of("{name: variational-dropout}")
    origin = origin_of(cohort, data)
    found = trainer_of(cohort, data, origin).checkpoint(cohort.model_ids)
    layout = describe_module(network(cohort, 0))
    # log alpha = -10 - 2 log|w| >= 3 where |w| <= exp(-6.5).
    expected = np.abs(origin.weights[:, layout.prunable_places]) > np.exp(-6.5)
    assert np.array_equal(found.kept, expected)
    assert not expected.all(), "a weight that small belongs to this test"
    kept = origin.weights.copy()
    kept[:, layout.prunable_places] *= expected
    assert np.array_equal(found.weights, kept)
    assert found.metrics["test_loss"] == pytest.approx(origin.test_loss, rel=1e-2)
    assert found.metrics["agreement"].min() > 0.98
    assert np.isfinite(found.metrics["kl"]).all()


@pytest.mark.parametrize(("what", "factor"), [("test_loss", 1.002), ("test_acc", 1.05)])
@pytest.mark.parametrize("method", ["{name: random, sparsity: 0.5}", "{name: variational-dropout}"])
def test_a_parent_that_scores_other_than_its_zoo_recorded_is_refused(data, method, what, factor):
    cohort = cohort_of(method)
    origin = origin_of(cohort, data)
    wrong = getattr(origin, what).copy()
    wrong[1] = wrong[1] * factor + (0.05 if what == "test_acc" else 0)
    with pytest.raises(IntegrityError, match=f"parent {cohort.jobs[1].parents[0].model_id} has a {what}"):
        trainer_of(cohort, data, replace(origin, **{what: wrong}))


def test_noise_that_drowns_the_parent_before_training_is_refused_with_a_way_out(data):
    cohort = cohort_of("{name: variational-dropout, log_sigma2: 0}")
    with pytest.raises(UserError, match=r"method\.log_sigma2 below 0"):
        trainer_of(cohort, data, origin_of(cohort, data))


def test_a_twin_that_diverges_keeps_its_last_finite_row_and_its_neighbours_train_on(data):
    cohort = cohort_of("{name: magnitude, sparsity: 0.5, rounds: 2}", "{name: sgd, lr: {grid: [0.05, 1.0e+30]}}")
    alone = cohort_of("{name: magnitude, sparsity: 0.5, rounds: 2}", "{name: sgd, lr: 0.05}")
    trainer, quiet = trainer_of(cohort, data, origin_of(cohort, data)), trainer_of(alone, data, origin_of(alone, data))
    first = trainer.checkpoint(cohort.model_ids)
    for _ in range(2):
        trainer.train_epoch(never)
        quiet.train_epoch(never)
    wild = [j.model_id for j in cohort.jobs if j.training.optimizer.lr > 1]
    assert set(trainer.diverged) == set(wild)
    calm = [m for m in cohort.model_ids if m not in wild]
    assert sorted(calm) == sorted(alone.model_ids)
    found, expected = trainer.checkpoint(tuple(calm)), quiet.checkpoint(tuple(calm))
    assert np.array_equal(found.weights, expected.weights)
    for model_id in wild:
        (kept,) = trainer.checkpoint((model_id,)).weights
        assert trainer.last_finite[model_id] == 0
        assert np.array_equal(kept, first.weights[cohort.model_ids.index(model_id)])

"""The shipped blueprints say exactly what the papers' tables say (specs: 27 zoos, 50,360 models, 2,585,360 states)."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

from zoogen.blueprint import load
from zoogen.blueprint.records import Blueprint

SHIPPED = Path(__file__).parents[2] / "blueprints"
ZOOS = SHIPPED / "model-zoos-2022"
# Family: models of one Hyp zoo (grid points x 10), samples of (train, val, test), input shape.
CNN = {
    "mnist": (2560, (50_000, 10_000, 10_000), (1, 28, 28)),
    "fashion-mnist": (2560, (50_000, 10_000, 10_000), (1, 28, 28)),
    "svhn": (4320, (60_000, 13_257, 26_032), (1, 28, 28)),
    "usps": (2560, (6_000, 1_291, 2_007), (1, 28, 28)),
    "cifar10-s": (1280, (42_000, 8_000, 10_000), (3, 28, 28)),
    "cifar10-l": (1280, (42_000, 8_000, 10_000), (3, 32, 32)),
    "stl10-s": (2560, (4_200, 800, 8_000), (3, 28, 28)),
    "stl10-l": (2560, (4_200, 800, 8_000), (3, 32, 32)),
}
RESNET = {
    "cifar10": (50, 256, 0.05, (40_000, 10_000, 10_000)),
    "cifar100": (60, 128, 0.1, (40_000, 10_000, 10_000)),
    "tiny-imagenet": (60, 128, 0.1, (100_000, 0, 10_000)),
}
# Adam needs no momentum; lr and weight decay as in the table of the Seed zoos.
SEED_POINTS = {
    "mnist": ("tanh", "uniform", 3e-4, 0.0),
    "fashion-mnist": ("tanh", "uniform", 3e-4, 0.0),
    "svhn": ("tanh", "uniform", 3e-3, 0.0),
    "usps": ("tanh", "uniform", 3e-4, 1e-3),
    "cifar10-s": ("gelu", "kaiming_uniform", 1e-4, 1e-2),
    "cifar10-l": ("gelu", "kaiming_uniform", 1e-4, 1e-2),
    "stl10-s": ("tanh", "kaiming_uniform", 1e-4, 1e-3),
    "stl10-l": ("tanh", "kaiming_uniform", 1e-4, 1e-3),
}


def models(blueprint: Blueprint) -> int:
    assert blueprint.draws == 1
    return sum(prod(len(f.values) for f in s.factors) for s in blueprint.strata) * blueprint.seeds.count


def states(blueprint: Blueprint) -> int:
    per_stratum = (
        prod(len(f.values) for f in s.factors) * len(s.checkpoints.recording(s.training.epochs).epochs)
        for s in blueprint.strata
    )
    return sum(per_stratum) * blueprint.seeds.count


def test_there_are_27_zoos_with_50360_models_and_2585360_states():
    blueprints = [load(path) for path in sorted(ZOOS.glob("*.yaml"))]
    assert len({b.name for b in blueprints}) == 27
    assert sum(map(models, blueprints)) == 50_360
    assert sum(map(states, blueprints)) == 2_585_360


@pytest.mark.parametrize(
    "path", sorted(p for p in SHIPPED.rglob("*.yaml") if p.parent.name != "twins"), ids=lambda p: p.stem
)
def test_a_shipped_blueprint_loads_and_is_named_like_its_file(path):
    name = load(path).name
    assert path.stem in name


@pytest.mark.parametrize("family", CNN)
@pytest.mark.parametrize("kind", ["seed", "hyp-10-fix", "hyp-10-rand"])
def test_a_cnn_zoo_has_its_models_data_and_recipe(family, kind):
    hyp, sizes, shape = CNN[family]
    blueprint = load(ZOOS / f"{family}-{kind}.yaml")
    assert models(blueprint) == (1000 if kind == "seed" else hyp)
    assert states(blueprint) == 51 * models(blueprint)
    for stratum in blueprint.strata:
        assert (stratum.task.sizes, stratum.task.input_shape, stratum.task.split_seed) == (sizes, shape, 42)
        assert stratum.architecture.registered_name == ("cnn-l" if family.endswith("-l") else "cnn-s")
        assert (stratum.training.epochs, stratum.training.batch_size) == (50, 10)
        assert stratum.task.normalise == ("mnist" if family in ("mnist", "usps") else "half")
        assert stratum.task.random_crop == stratum.task.rotation == 0
        assert not stratum.task.horizontal_flip


@pytest.mark.parametrize("family", CNN)
def test_a_seed_zoo_is_one_point_with_seeds_1_to_1000(family):
    blueprint = load(ZOOS / f"{family}-seed.yaml")
    (stratum,) = blueprint.strata
    optimizer, net = stratum.training.optimizer, stratum.architecture
    assert (list(blueprint.seeds.values), stratum.factors) == (list(range(1, 1001)), ())
    assert (net.activation, net.init, optimizer.lr, optimizer.weight_decay) == SEED_POINTS[family]
    assert (optimizer.registered_name, net.dropout) == ("adam", 0.0)


@pytest.mark.parametrize("family", CNN)
def test_a_hyp_zoo_has_the_full_grid_and_momentum_for_sgd_only(family):
    fix, rand = (load(ZOOS / f"{family}-hyp-10-{kind}.yaml") for kind in ("fix", "rand"))
    assert fix.strata == rand.strata
    assert (list(fix.seeds.values), (rand.seeds.draw, rand.seeds.below)) == (list(range(1, 11)), (10, 1_000_000))
    first = {factor.key.split(".")[-1]: set(factor.values) for factor in fix.strata[0].factors}
    assert first["activation"] == {"tanh", "relu", "sigmoid", "gelu"}
    assert first["init"] == {"uniform", "normal", "kaiming_uniform", "kaiming_normal"}
    optimizers = {s.training.optimizer.registered_name: s.training.optimizer for s in fix.strata}
    assert set(optimizers) == ({"sgd"} if family == "svhn" else {"adam", "sgd"})
    assert optimizers["sgd"].momentum == 0.9
    lr, decay = first.get("lr", {optimizers["sgd"].lr}), first["weight_decay"]
    if family == "svhn":
        assert (first["dropout"], lr, decay) == ({0, 0.3, 0.5}, {1e-2, 1e-3, 1e-4}, {0, 1e-3, 1e-1})
    else:
        assert first["dropout"] == {0.0, 0.5}
        assert lr == ({1e-3} if family.startswith("cifar10") else {1e-3, 1e-4})
        assert decay == ({1e-3, 1e-4} if family in ("mnist", "fashion-mnist") else {1e-2, 1e-3})


@pytest.mark.parametrize("family", RESNET)
def test_a_resnet_zoo_follows_one_cycle_and_stores_no_epoch_0(family):
    epochs, batch, lr, sizes = RESNET[family]
    blueprint = load(ZOOS / f"{family}-resnet18-seed.yaml")
    (stratum,) = blueprint.strata
    training, net = stratum.training, stratum.architecture
    assert list(blueprint.seeds.values) == list(range(1, 1001))
    assert stratum.checkpoints.recording(epochs).epochs == tuple(range(1, epochs + 1))
    assert (training.epochs, training.batch_size, training.optimizer.lr) == (epochs, batch, lr)
    assert (training.optimizer.momentum, training.optimizer.weight_decay) == (0.9, 5e-4)
    assert (training.schedule.registered_name, net.registered_name, net.init) == (
        "one_cycle",
        "resnet18",
        "kaiming_uniform",
    )
    assert (stratum.task.sizes, stratum.task.horizontal_flip) == (sizes, True)
    assert (stratum.task.random_crop, stratum.task.rotation) == ((0, 20.0) if family == "tiny-imagenet" else (4, 0.0))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_phase_diagram_has_192_models_and_the_published_micro_batches(name):
    blueprint = load(SHIPPED / "phase-transitions" / f"cifar10-{name}.yaml")
    assert models(blueprint) == 192
    assert blueprint.axes == {"load": "architecture.width", "temperature": "training.batch_size"}
    assert list(blueprint.seeds.values) == [0, 1, 2]
    for stratum in blueprint.strata:
        assert stratum.task.sizes == (50_000, 0, 10_000)
        width, batch = stratum.architecture.width, stratum.training.batch_size
        limits = {64: (1024, 512), 128: (512, 256), 256: (256, 128)} if name == "resnet50" else {}
        least, part = limits.get(width, (float("inf"), None))
        assert stratum.training.micro_batch == (part if batch >= least else None)


def test_the_quickstart_varies_at_least_three_factors_of_at_least_64_models():
    blueprint = load(SHIPPED / "quickstart.yaml")
    keys = {f.key for s in blueprint.strata for f in s.factors} | set(blueprint.strata[0].choice)
    assert models(blueprint) >= 64
    assert len(keys) >= 3

"""What a valid blueprint becomes."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from zoogen.blueprint.records import CheckpointPolicy, Draw, Factor, ModelSplit, SeedPolicy
from zoogen.core.records import Resources


def factors(stratum) -> dict[str, tuple]:
    return {factor.key: factor.values for factor in stratum.factors}


def test_plain_values_and_defaults(read, write):
    blueprint = read()
    (stratum,) = blueprint.strata
    assert (blueprint.name, blueprint.version, blueprint.draws, blueprint.axes) == ("tiny", 1, 1, {})
    assert blueprint.text == write()
    assert blueprint.seeds == SeedPolicy(values=range(3))
    assert blueprint.model_split == ModelSplit(0.7, 0.15, 0.15)
    assert (stratum.architecture.registered_name, stratum.architecture.width) == ("test-net", 8)
    assert (stratum.training.epochs, stratum.training.batch_size, stratum.training.optimizer.lr) == (5, 10, 0.1)
    assert stratum.training.schedule.registered_name == "constant"
    assert (stratum.factors, stratum.choice, stratum.checkpoints) == ((), {}, CheckpointPolicy())
    assert (stratum.resources, stratum.cohort_size) == (Resources(), None)


def test_grids_become_typed_factors_in_the_order_of_the_file(read):
    blueprint = read(
        seeds="{range: [0, 3], order: {grid: [7, 8]}}",
        architecture="{name: test-net, rate: {grid: [0, 0.5]}, hidden: {grid: [[], [4, 2]]}, width: {grid: [3, 2]}}",
    )
    (stratum,) = blueprint.strata
    assert list(factors(stratum).items()) == [
        ("architecture.rate", (0.0, 0.5)),
        ("architecture.hidden", ((), (4, 2))),
        ("architecture.width", (3, 2)),
        ("seeds.order", (7, 8)),
    ]
    assert type(stratum.factors[0].values[0]) is float
    assert (stratum.architecture.rate, stratum.architecture.hidden, stratum.architecture.width) == (0.0, (), 3)


def test_a_grid_of_names_gives_a_stratum_each_and_by_sets_what_only_one_has(read):
    optimizer = (
        "{name: {grid: [test-plain, test-heavy]}, lr: {grid: [0.1, 0.2]}, "
        "momentum: {by: training.optimizer.name, cases: {test-heavy: 0.9}}}"
    )
    plain, heavy = read(training=f"{{epochs: 5, batch_size: 10, optimizer: {optimizer}}}").strata
    assert plain.choice == {"training.optimizer.name": "test-plain"}
    assert heavy.choice == {"training.optimizer.name": "test-heavy"}
    assert heavy.training.optimizer.momentum == 0.9
    assert factors(plain) == factors(heavy) == {"training.optimizer.lr": (0.1, 0.2)}


def test_nested_by_gives_a_value_for_every_pair(read):
    blueprint = read(
        architecture="{name: test-net, width: {grid: [1, 2, 3]}}",
        training="""
        epochs: 5
        batch_size: {grid: [10, 20]}
        optimizer: {name: test-plain, lr: 1}
        micro_batch:
          by: architecture.width
          cases:
            1: 4
            2: {by: training.batch_size, cases: {20: 5}}
          otherwise: {by: training.batch_size, cases: {10: 6}, otherwise: 7}
        """,
    )
    found = {(s.architecture.width, s.training.batch_size): s.training.micro_batch for s in blueprint.strata}
    assert found == {(1, 10): 4, (1, 20): 4, (2, 10): None, (2, 20): 5, (3, 10): 6, (3, 20): 7}
    assert blueprint.strata[3].choice == {"architecture.width": 2, "training.batch_size": 20}


def test_a_case_may_hold_a_grid_and_no_case_leaves_the_default(read):
    one, two = read(
        architecture="{name: test-net, act: {grid: [relu, tanh]}, "
        "width: {by: architecture.act, cases: {tanh: {grid: [5, 6]}}}}"
    ).strata
    assert (factors(one), one.architecture.width) == ({}, 8)
    assert factors(two) == {"architecture.width": (5, 6)}


def test_a_number_matches_its_case_whether_written_whole_or_with_a_point(read):
    (stratum,) = read(architecture="{name: test-net, rate: 0, width: {by: architecture.rate, cases: {0.0: 5}}}").strata
    assert stratum.architecture.width == 5


def test_true_is_not_the_case_1(read):
    (stratum,) = read(
        architecture="{name: test-net, width: {by: training.epochs, cases: {1: 5, true: 6}, otherwise: 7}}",
        training="{epochs: 1, batch_size: 1, optimizer: {name: test-plain, lr: 1}}",
        overrides=("version=1",),  # an override allows cases that nothing matches
    ).strata
    assert stratum.architecture.width == 5


def test_coupled_lists_multiply_and_are_laid_over_the_base(read):
    blueprint = read(
        coupled="""
        opt:
          - {training: {optimizer: {name: test-plain}}}
          - {training: {optimizer: {name: test-heavy, momentum: {grid: [0.5, 0.9]}}, epochs: 7}}
        net: [{architecture: {width: 3}}, {architecture: {width: 4}}]
        """
    )
    seen = [(dict(s.choice), s.training.epochs, s.architecture.width) for s in blueprint.strata]
    pairs = itertools.product((0, 1), (0, 1))
    assert seen == [({"opt": o, "net": n}, (5, 7)[o], (3, 4)[n]) for o, n in pairs]
    assert [s.training.optimizer.lr for s in blueprint.strata] == [0.1] * 4
    assert factors(blueprint.strata[2]) == {"training.optimizer.momentum": (0.5, 0.9)}


def test_a_section_may_come_from_coupled_entries_alone(read):
    blueprint = read(
        architecture=None,
        coupled="{net: [{architecture: {name: test-net}}, {architecture: {name: test-needy, depth: 3}}]}",
    )
    assert [s.architecture.registered_name for s in blueprint.strata] == ["test-net", "test-needy"]


def test_draws_become_factors_with_typed_bounds(read):
    blueprint = read(
        draws="20",
        architecture="""
        name: test-net
        rate: {draw: {uniform: [0, 0.5]}}
        width: {draw: {integers: [1, 9]}}
        act: {draw: {choice: [tanh, relu]}}
        """,
        training="{epochs: 5, batch_size: 1, optimizer: {name: test-plain, lr: {draw: {log_uniform: [1.0e-4, 1]}}}}",
    )
    (stratum,) = blueprint.strata
    assert blueprint.draws == 20
    assert stratum.factors == (
        Factor("architecture.rate", draw=Draw("uniform", (0.0, 0.5))),
        Factor("architecture.width", draw=Draw("integers", (1, 9))),
        Factor("architecture.act", draw=Draw("choice", ("tanh", "relu"))),
        Factor("training.optimizer.lr", draw=Draw("log_uniform", (1.0e-4, 1.0))),
    )
    assert (stratum.architecture.width, stratum.architecture.act) == (1, "tanh")


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("{range: [1, 1001]}", SeedPolicy(values=range(1, 1001))),
        ("{list: [3, 5]}", SeedPolicy(values=(3, 5))),
        ("{draw: 10, below: 1000000}", SeedPolicy(draw=10, below=1_000_000)),
        ("{range: [0, 2], init: 7}", SeedPolicy(values=range(2), apart={"init": 7})),
    ],
)
def test_seed_policies(read, text, policy):
    blueprint = read(seeds=text)
    assert blueprint.seeds == policy
    assert blueprint.strata[0].factors == ()


def test_a_billion_seeds_take_no_memory_to_refuse_and_twenty_million_are_fine(read):
    assert read(seeds="{range: [0, 20000000]}").seeds.count == 20_000_000


def test_a_stream_that_differs_between_strata_is_a_factor_of_each(read):
    blueprint = read(
        architecture="{name: test-net, act: {grid: [relu, tanh]}}",
        seeds="{range: [0, 2], init: {by: architecture.act, cases: {relu: 1}, otherwise: 2}}",
    )
    assert [factors(s) for s in blueprint.strata] == [{"seeds.init": (1,)}, {"seeds.init": (2,)}]
    assert blueprint.seeds.apart == {}


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ("{}", [0, 1, 2, 3, 4, 5]),
        ("{every: 2}", [0, 2, 4, 5]),
        ("{initial: false}", [1, 2, 3, 4, 5]),
        ("{last: 2}", [0, 4, 5]),
        ("{last: 2, initial: false}", [4, 5]),
        ("{epochs: [1, 3]}", [1, 3]),
        ("{epochs: [1, 3], initial: true}", [0, 1, 3]),
        ("{epochs: [1], last: 1}", [1, 5]),
        ("{epochs: [1], every: 2}", [1, 2, 4]),
        ("{every: null}", [0, 5]),
    ],
)
def test_checkpoint_policies(read, text, epochs):
    policy = read(checkpoints=text).strata[0].checkpoints
    assert list(policy.recording(5).epochs) == epochs


def test_the_rest_of_the_checkpoint_policy(read):
    text = "{optimizer: all, test_predictions: true, evaluate_train: all}"
    assert read(checkpoints=text).strata[0].checkpoints == CheckpointPolicy(
        optimizer="all", test_predictions=True, evaluate_train=-1
    )


def test_resources_may_depend_on_a_factor(read):
    blueprint = read(
        architecture="{name: test-net, width: {grid: [1, 64]}}",
        resources="{gpus: {by: architecture.width, cases: {64: 1}, otherwise: 0.25}, cohort: 16, compile: true}",
    )
    assert [s.resources.gpus for s in blueprint.strata] == [0.25, 1.0]
    assert [(s.resources.compile, s.cohort_size) for s in blueprint.strata] == [(True, 16)] * 2


def test_axes_may_name_structural_and_other_factors(read):
    blueprint = read(
        architecture="{name: test-net, width: {grid: [1, 64]}, act: {by: architecture.width, cases: {1: tanh}}}",
        training="{epochs: 5, batch_size: {grid: [1, 2]}, optimizer: {name: test-plain, lr: 1}}",
        axes="{load: architecture.width, temperature: training.batch_size}",
    )
    assert blueprint.axes == {"load": "architecture.width", "temperature": "training.batch_size"}


def test_a_mapping_as_value_reaches_the_architecture(read):
    (stratum,) = read(architecture="{name: test-needy, depth: 1, options: {a: [1, 2], b: {c: 0.5}}}").strata
    assert stratum.architecture.options == {"a": [1, 2], "b": {"c": 0.5}}


def test_checking_a_blueprint_loads_no_torch():
    code = (
        "import sys; from zoogen.blueprint import load, schema; load('blueprints/quickstart.yaml'); schema();"
        "sys.exit(len({'torch', 'ray', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

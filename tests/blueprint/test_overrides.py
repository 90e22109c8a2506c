"""``--set key=value``."""

from __future__ import annotations

import pytest

from zoogen.blueprint import BlueprintError


def complaint(read, *overrides: str, **changes) -> str:
    with pytest.raises(BlueprintError) as caught:
        read(overrides=overrides, **changes)
    return str(caught.value)


def test_a_value_is_replaced_and_typed(read):
    blueprint = read(overrides=("training.epochs=3", "architecture.rate=0.25", "zoo=pilot"))
    assert blueprint.strata[0].training.epochs == 3
    assert (blueprint.strata[0].architecture.rate, blueprint.name) == (0.25, "pilot")
    assert blueprint.overrides == ("training.epochs=3", "architecture.rate=0.25", "zoo=pilot")


def test_the_last_override_of_a_key_holds(read):
    assert read(overrides=("training.epochs=3", "training.epochs=4")).strata[0].training.epochs == 4


def test_a_grid_can_be_set_and_narrowed(read):
    changes = {"architecture": "{name: test-net, width: {grid: [1, 2]}}"}
    assert read(overrides=("architecture.width={grid: [5, 6, 7]}",), **changes).strata[0].factors[0].values == (5, 6, 7)
    assert read(overrides=("architecture.width.grid=[5]",), **changes).strata[0].factors[0].values == (5,)
    assert read(overrides=("architecture.width=5",), **changes).strata[0].factors == ()


def test_a_mapping_replaces_the_whole_section(read):
    blueprint = read(
        overrides=("architecture={name: test-needy, depth: 2}",), architecture="{name: test-net, width: 3, act: tanh}"
    )
    assert blueprint.strata[0].architecture.depth == 2


def test_a_new_section_can_be_set(read):
    assert read(overrides=("resources.cpus=2",)).strata[0].resources.cpus == 2.0


def test_narrowing_a_name_leaves_cases_unused(read):
    momentum = "{by: training.optimizer.name, cases: {test-heavy: 0.9}}"
    optimizer = f"{{name: {{grid: [test-plain, test-heavy]}}, lr: 1, momentum: {momentum}}}"
    training = f"{{epochs: 5, batch_size: 10, optimizer: {optimizer}}}"
    (stratum,) = read(overrides=("training.optimizer.name=test-plain",), training=training).strata
    assert stratum.training.optimizer.lr == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "unknown key 'epoch' in training\nknown: batch_size,"),
        ("trianing.epochs=3", "unknown key 'trianing'\nknown:"),
        ("training.epochs=three", "epochs in training must be a whole number >= 1, got 'three'"),
        ("architecture.rate=1e-3", "got '1e-3'\nYAML 1.1 reads 1e-3 as text; write 1.0e-3"),
        ("training.epochs=", "epochs in training must be a whole number >= 1, got nothing"),
        ("training.epochs=[", "not valid YAML"),
        ("training.epochs", "not of the form key=value\nwrite --set training.epochs=3"),
        ("=3", "not of the form key=value"),
        ("architecture.name=test-nett", "unknown architecture 'test-nett'"),
        ("architecture={name: test-net, name: test-net}", "the key 'name' is repeated"),
        ("training.optimizer=test-plain", "training.optimizer must be a mapping, got 'test-plain'"),
    ],
)
def test_a_wrong_override_is_located_as_the_option(read, override, message):
    text = complaint(read, override)
    assert text.startswith(f"--set {override}: ")
    assert message in text


def test_problems_of_file_and_options_come_together(read):
    text = complaint(read, "training.epochs=0", architecture="{name: test-net, act: rleu}")
    assert "<text>:4:37: unknown act 'rleu'" in text
    assert "--set training.epochs=0: epochs in training must be" in text


def test_an_override_that_a_coupled_list_would_undo_is_refused(read):
    changes = {"coupled": "{net: [{architecture: {width: 3}}, {architecture: {width: 4}}]}"}
    text = complaint(read, "architecture.width=5", **changes)
    assert "architecture.width is set by the coupled list 'net'" in text
    assert read(overrides=("coupled.net=[{architecture: {width: 5}}]",), **changes).strata[0].architecture.width == 5

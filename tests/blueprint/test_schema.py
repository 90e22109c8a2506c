"""The JSON Schema agrees with ``load`` on shipped blueprints and typical mistakes; the reference names all keys."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from zoogen.blueprint import BlueprintError, loads, schema
from zoogen.blueprint.fields import attribute_docs, fields_of, summary, words
from zoogen.blueprint.reference import reference
from zoogen.core.registry import ARCHITECTURES, OPTIMIZERS, SCHEDULES, TASKS

jsonschema = pytest.importorskip("jsonschema")
SHIPPED = sorted(p for p in (Path(__file__).parents[2] / "blueprints").rglob("*.yaml") if p.parent.name != "twins")


def as_json(value: Any) -> Any:
    """As editors see it: the keys of a YAML mapping are text."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list) else value


@cache
def _validator():
    return jsonschema.Draft202012Validator(schema())


@pytest.fixture
def validator():
    return _validator()  # made once, while the entries of conftest are registered


def test_the_schema_is_a_schema(validator):
    jsonschema.Draft202012Validator.check_schema(validator.schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_blueprint_is_valid(path, validator):
    found = [error.message for error in validator.iter_errors(as_json(yaml.safe_load(path.read_text())))]
    assert found == []


RIGHT = [
    {},
    {"architecture": "{name: test-net, width: {grid: [1, 2]}, act: {draw: {choice: [relu, tanh]}}}", "draws": "2"},
    {"architecture": "{name: {grid: [test-net, test-needy]}, depth: {by: architecture.name, cases: {test-needy: 2}}}"},
    {"coupled": "{net: [{architecture: {width: 1}}, {architecture: {width: {grid: [2, 3]}}}]}"},
    {"architecture": None, "coupled": "{net: [{architecture: {name: test-net}}]}"},
    {"seeds": "{draw: 10, below: 1000, init: {grid: [1, 2]}}"},
    {"checkpoints": "{epochs: [0, 1], evaluate_train: all}"},
    {"resources": "{cpus: {by: architecture.name, cases: {test-net: 2}}, cohort: 3}"},
    {"axes": "{load: architecture.width}", "architecture": "{name: test-net, width: {grid: [1, 2]}}"},
]

WRONG = [
    {"typo": "1"},
    {"zoo": "My Zoo"},
    {"seeds": None},
    {"task": None},
    {"architecture": "{name: test-nett}"},
    {"architecture": "{width: 3}"},
    {"architecture": "{name: test-needy}"},
    {"architecture": "{name: test-net, widht: 3}"},
    {"architecture": "{name: test-net, width: '3'}"},
    {"architecture": "{name: test-net, width: 0}"},
    {"architecture": "{name: test-net, rate: 1e-3}"},
    {"architecture": "{name: test-net, title: no}"},
    {"architecture": "{name: test-net, act: rleu}"},
    {"architecture": "{name: test-net, width: {grid: []}}"},
    {"architecture": "{name: test-net, width: {grid: [1, 1]}}"},
    {"architecture": "{name: test-net, width: {gird: [1]}}"},
    {"architecture": "{name: test-net, width: {by: training.epochs}}"},
    {"architecture": "{name: test-net, width: {by: training.epochs, cases: {5: x}}}"},
    {"architecture": "{name: test-net, width: {draw: {unifrom: [1, 2]}}}", "draws": "1"},
    {"training": "{epochs: 5, optimizer: {name: test-plain, lr: 1}}"},
    {"training": "{epochs: 5, batch_size: 1, optimizer: {name: test-plain, lr: 1, momentum: 0.9}}"},
    {"training": "{epochs: 5, batch_size: 1, optimizer: {name: test-plain}}"},
    {"seeds": "{range: [0, 3], list: [1]}"},
    {"seeds": "{draw: 3}"},
    {"checkpoints": "{every: {grid: [1, 2]}}"},
    {"coupled": "{net: [{architecture: {widht: 1}}]}"},
    {"coupled": "{net: {architecture: {width: 1}}}"},
]


@pytest.mark.parametrize("changes", RIGHT, ids=str)
def test_what_load_accepts_is_valid(changes, write, validator):
    text = write(**changes)
    loads(text)
    assert [error.message for error in validator.iter_errors(as_json(yaml.safe_load(text)))] == []


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_typical_mistakes_are_invalid_for_both(changes, write, validator):
    text = write(**changes)
    assert not validator.is_valid(as_json(yaml.safe_load(text)))
    with pytest.raises(BlueprintError):
        loads(text)


def test_the_reference_names_every_key_of_every_entry():
    text = reference()
    for registry in (ARCHITECTURES, TASKS, OPTIMIZERS, SCHEDULES):
        for name in registry.names():
            assert f"**`name: {name}`**" in text
            for key in fields_of(registry.get(name)):
                assert f"| `{key}` |" in text
    assert "The function between layers." in text  # of test-net, from its docstring


def test_docstrings_are_taken_apart():
    net = ARCHITECTURES.get("test-net")
    assert summary(net) == "A network."
    assert attribute_docs(net) == {"width": "Units.", "act": "The function between layers."}
    assert words(int | None) == "a whole number or null"

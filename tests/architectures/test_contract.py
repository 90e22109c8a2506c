"""What every registered architecture promises, whatever it computes."""

import dataclasses
import json
import pickle
import sys

import pytest
import torch

from zoogen.core.canonical import canonical_json
from zoogen.core.errors import UserError
from zoogen.core.modules import build_model, describe
from zoogen.core.registry import ARCHITECTURES

# Small members of the families; an architecture whose fields all have defaults needs no line here.
ARGUMENTS = {
    "resnet18": {"width": 2},
    "resnet50": {"width": 2},
    "torchvision": {"model": "squeezenet1_1", "arguments": {"dropout": 0.25}},
    "import": {"path": "own_networks:make", "arguments": {"units": [7, 5]}},
}
OWN_NETWORKS = """
from itertools import pairwise
from math import prod
from torch import nn

def make(input_shape, outputs, units):
    layers = [nn.Linear(a, b) for a, b in pairwise([prod(input_shape), *units, outputs])]
    return nn.Sequential(nn.Flatten(), *layers)
"""


@pytest.fixture(scope="module", autouse=True)
def _own_networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    (folder / "own_networks.py").write_text(OWN_NETWORKS)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("own_networks", None)


def make(name, **changes):
    return ARCHITECTURES.make(name, {**ARGUMENTS.get(name, {}), **changes})


def fields(name):
    return {field.name for field in dataclasses.fields(ARCHITECTURES.get(name))}


each_name = pytest.mark.parametrize("name", ARCHITECTURES.names())
each_shape = pytest.mark.parametrize("input_shape", [(1, 28, 28), (3, 32, 32)], ids=str)


@each_name
@each_shape
def test_a_network_maps_a_batch_to_one_score_per_class(name, input_shape):
    if name == "torchvision" and input_shape[0] == 1:
        with pytest.raises(UserError, match="squeezenet1_1"):  # torchvision's networks take three channels
            build_model(make(name), input_shape, 10, seed=0)
        return
    network = build_model(make(name), input_shape, 10, seed=0)
    assert network.training
    assert network(torch.rand(4, *input_shape)).shape == (4, 10)
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in network.parameters())


@each_name
def test_the_scores_of_a_sample_do_not_depend_on_its_batch_in_evaluation(name):
    network = build_model(make(name), (3, 32, 32), 10, seed=0).eval().double()
    inputs_B = torch.rand(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([network(inputs_B[i : i + 1]) for i in range(4)])
        # Float64 sums of at most thousands of terms of order one: rounding stays far below 1e-10.
        torch.testing.assert_close(network(inputs_B), alone, rtol=1e-10, atol=1e-10)


@each_name
def test_equal_seeds_give_equal_weights_whatever_the_global_generator_did(name):
    torch.manual_seed(1)
    first = build_model(make(name), (3, 32, 32), 10, seed=5).state_dict()
    torch.rand(17)
    second = build_model(make(name), (3, 32, 32), 10, seed=5).state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


@each_name
def test_different_seeds_give_different_weights(name):
    layout = describe(make(name), (3, 32, 32), 10)
    one, two = (build_model(make(name), (3, 32, 32), 10, seed=seed).state_dict() for seed in (0, 1))
    drawn = [e.name for e in layout.entries if e.role == "weight"]
    assert drawn
    assert not any(torch.equal(one[key], two[key]) for key in drawn)


@each_name
def test_building_leaves_torch_as_it_was(name):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        network = build_model(make(name), (3, 32, 32), 10, seed=5)
        describe(make(name), (3, 32, 32), 11)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.dtype == torch.float32 for p in network.parameters())


@each_name
def test_the_description_is_the_layout_of_the_network_and_a_round_trip_keeps_every_tensor(name):
    layout = describe(make(name), (3, 32, 32), 10)
    network = build_model(make(name), (3, 32, 32), 10, seed=0)
    network(torch.rand(4, 3, 32, 32))  # moves the running statistics off their start
    state = network.state_dict()
    assert {e.name: tuple(state[e.name].shape) for e in layout.entries} == {k: tuple(v.shape) for k, v in state.items()}
    assert layout.trainable == sum(p.numel() for p in network.parameters() if p.requires_grad)

    rows = {dtype: layout.flatten(state, dtype) for dtype in ("float32", *layout.side_dtypes)}
    other = build_model(make(name), (3, 32, 32), 10, seed=1)
    other.load_state_dict(layout.unflatten(rows), strict=True)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


@each_name
def test_fields_that_may_differ_within_a_cohort_change_no_layout(name):
    cls = ARCHITECTURES.get(name)
    values = {"dropout": [0.0, 0.5], "init": ["uniform", "kaiming_normal"]}
    assert cls.per_model <= fields(name)
    assert cls.per_model <= set(values), "a test value is needed for the new field"
    for field in cls.per_model:
        layouts = [describe(make(name, **{field: value}), (3, 32, 32), 10) for value in values[field]]
        assert layouts[0] == layouts[1]


@each_name
def test_a_description_survives_json_and_makes_the_same_architecture_again(name):
    architecture = make(name)
    described = ARCHITECTURES.describe(architecture)
    again = json.loads(json.dumps(described))
    assert again == described
    assert ARCHITECTURES.restore(again) == architecture
    assert canonical_json(ARCHITECTURES.describe(ARCHITECTURES.restore(again))) == canonical_json(described)


@each_name
def test_architectures_can_be_hashed_and_sent_to_another_process(name):
    copy = pickle.loads(pickle.dumps(make(name)))
    assert copy == make(name)
    assert hash(copy) == hash(make(name))


@each_name
def test_the_number_of_outputs_is_the_task_s(name):
    layouts = [describe(make(name), (3, 32, 32), outputs) for outputs in (2, 7)]
    assert layouts[0].trainable < layouts[1].trainable


def test_only_an_import_path_runs_named_code():
    assert [name for name in ARCHITECTURES.names() if ARCHITECTURES.get(name).runs_code] == ["import"]

"""Networks as functions, and stacked states, against plain modules and plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

import zoogen
from zoogen.core.errors import UserError
from zoogen.dataset.functional import stack_rows

IMPORTED = ("networks_to_run:Tied",)


@pytest.fixture
def zoo(small_zoo):
    return zoogen.open(small_zoo)


@pytest.fixture
def images(zoo):
    task = zoo.task()
    return task.prepare(task.inputs("val")[:20]), task.targets("val")[:20]


def of_one_architecture(zoo, **conditions):
    return zoo.select(architecture_id=zoo.models["architecture_id"][0], **conditions)


@torch.no_grad()
def test_vmap_over_stacked_states_is_what_each_module_computes(zoo, images):
    selection = of_one_architecture(zoo, epochs=[0, 2])
    function, _ = zoo.functional(zoo.models["architecture_id"][0])
    params, buffers = zoo.stacked(selection)
    found = vmap(function, in_dims=(0, 0, None))(params, buffers, images[0])
    assert len(found) == len(selection) > 3
    for outputs, row in zip(found, selection.checkpoints.itertuples(), strict=True):
        assert torch.allclose(outputs, zoo.module(row.model_id, row.epoch)(images[0]), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_backward(zoo, images):
    model = zoo.select("status == 'trained'").models["model_id"][0]
    function, template = zoo.functional(model[:8])
    inputs, targets = images
    cross_entropy = torch.nn.functional.cross_entropy
    params = {name: tensor.detach() for name, tensor in template.named_parameters()}
    found = grad(lambda p: cross_entropy(function(p, {}, inputs), targets))(params)
    module = zoo.module(model)
    cross_entropy(module(inputs), targets).backward()
    for name, parameter in module.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-6)
        assert parameter.grad.abs().sum() > 0


def test_the_template_of_a_model_is_its_last_state_in_eval_mode(zoo):
    model = zoo.models["model_id"][3]
    template = zoo.functional(model).template
    assert not template.training
    for name, tensor in zoo.state_dict(model).items():
        assert torch.equal(template.state_dict()[name], tensor)


@pytest.mark.parametrize(("kind", "allow"), [("resnet", ()), ("tied", IMPORTED)])
def test_stacked_tensors_are_the_state_dicts_with_their_dtypes(running_zoos, kind, allow):
    zoo = zoogen.open(running_zoos / kind)
    selection = zoo.select("seed != 1")
    params, buffers = zoo.stacked(selection)
    template = zoo.functional(selection.models["model_id"][0], allow=allow).template
    held = template.state_dict().keys()
    assert params.keys() == {name for name, _ in template.named_parameters()}
    assert buffers.keys() == {name for name, _ in template.named_buffers()} & held
    for place, row in enumerate(selection.checkpoints.itertuples()):
        state = zoo.state_dict(row.model_id, row.epoch)
        for name, tensor in {**params, **buffers}.items():
            assert tensor.dtype == state[name].dtype
            assert torch.equal(tensor[place], state[name])
    counters = [name for name in buffers if name.endswith("num_batches_tracked")]
    assert bool(counters) == (kind == "resnet")
    for name in counters:
        assert buffers[name].dtype == torch.int64
        assert set(buffers[name].tolist()) == {0, 20}  # steps of an epoch: 1257 samples in batches of 64


def test_side_tensors_of_several_shards_come_in_the_order_of_the_selection(running_zoos):
    from zoogen.dataset.selection import Selection

    zoo = zoogen.open(running_zoos / "resnet")
    backwards = Selection(zoo, zoo.select().rows[::-1])
    name = "bn1.num_batches_tracked"
    found = zoo.stacked(backwards).buffers[name].tolist()
    assert found == [20 * epoch for epoch in backwards.checkpoints["epoch"]]
    assert len(set(found)) == 2


@torch.no_grad()
def test_one_name_of_a_tied_tensor_sets_them_all(running_zoos, images):
    zoo = zoogen.open(running_zoos / "tied")
    function, template = zoo.functional(zoo.models["model_id"][0], allow=IMPORTED)
    params, buffers = zoo.stacked(zoo.select(epochs="last"))
    assert "inner.weight" in params
    assert "again.weight" not in params
    other = {name: tensor[1] for name, tensor in params.items()}
    template.load_state_dict({**other, "again.weight": other["inner.weight"]})
    expected = template(images[0])
    function, _ = zoo.functional(zoo.models["model_id"][0], allow=IMPORTED)
    assert torch.allclose(function(other, buffers, images[0]), expected, atol=1e-6)


def test_code_that_the_zoo_names_runs_only_when_allowed(running_zoos):
    zoo = zoogen.open(running_zoos / "tied")
    with pytest.raises(UserError, match="allow"):
        zoo.functional(zoo.models["architecture_id"][0])


def test_states_of_several_layouts_are_not_stacked(mixed_zoo):
    zoo = zoogen.open(mixed_zoo)
    with pytest.raises(UserError, match="different layouts"):
        zoo.stacked(zoo.select())


def test_states_of_several_architectures_of_one_layout_are_not_stacked_but_one_by_one(zoo):
    """Networks with tanh and with ReLU have the same tensors and compute different things."""
    selection = zoo.select(epochs="last")
    assert len(selection.by_layout()) == 1
    architectures = zoo.models["architecture_id"].unique().tolist()
    with pytest.raises(UserError, match=r"2 different architectures.*(\n.*)*\.by_architecture\(\)") as error:
        zoo.stacked(selection)
    assert all(name in str(error.value) for name in architectures)
    parts = selection.by_architecture()
    assert [part.architecture_id for part in parts] == architectures
    assert [part.models["architecture.activation"].unique().tolist() for part in parts] == [["tanh"], ["relu"]]
    assert sum(map(len, parts)) == len(selection)
    assert all(len(zoo.stacked(part).params["fc1.bias"]) == len(part) for part in parts)


def test_unknown_ids_are_refused(zoo):
    with pytest.raises(UserError, match="no model"):
        zoo.functional("zzzzzzzz")


def test_rows_of_another_width_are_no_states(zoo):
    layout = of_one_architecture(zoo).layout
    with pytest.raises(ValueError, match=f"{layout.parameters} wide"):
        stack_rows(layout, {"float32": torch.zeros(2, layout.parameters + 1)})

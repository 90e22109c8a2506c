"""How tensors lie in a row: roles, order, ties, other dtypes, and the way back into a module."""

import json
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.layout import Layout, describe_module


def network():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.LayerNorm(5)
    )


def by_name(module):
    return {e.name: e for e in describe_module(module).entries}


def rows(layout, state):
    return {dtype: layout.flatten(state, dtype) for dtype in ("float32", *layout.side_dtypes)}


@pytest.mark.parametrize(
    ("module", "roles"),
    [
        (nn.Conv2d(2, 3, 3), {"weight": "weight", "bias": "bias"}),
        (nn.Linear(2, 3), {"weight": "weight", "bias": "bias"}),
        (nn.Linear(2, 3, bias=False), {"weight": "weight"}),
        (
            nn.BatchNorm1d(3),
            {
                "weight": "norm_scale",
                "bias": "norm_shift",
                "running_mean": "running_statistic",
                "running_var": "running_statistic",
                "num_batches_tracked": "running_statistic",
            },
        ),
        (nn.LayerNorm(3), {"weight": "norm_scale", "bias": "norm_shift"}),
        (nn.GroupNorm(3, 3), {"weight": "norm_scale", "bias": "norm_shift"}),
        (nn.RMSNorm(3), {"weight": "norm_scale"}),
        (nn.InstanceNorm2d(3, affine=True), {"weight": "norm_scale", "bias": "norm_shift"}),
        (type("OwnNorm", (nn.LayerNorm,), {})(3), {"weight": "norm_scale", "bias": "norm_shift"}),
        (nn.Embedding(5, 3), {"weight": "weight"}),
        (nn.PReLU(), {"weight": "parameter"}),
        (
            nn.MultiheadAttention(4, 2),
            {
                "in_proj_weight": "weight",
                "in_proj_bias": "bias",
                "out_proj.weight": "weight",
                "out_proj.bias": "bias",
            },
        ),
        (
            nn.LSTM(2, 3),
            {"weight_ih_l0": "weight", "weight_hh_l0": "weight", "bias_ih_l0": "bias", "bias_hh_l0": "bias"},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_tensor_has_the_role_of_its_module(module, roles):
    assert {name: entry.role for name, entry in by_name(module).items()} == roles


def test_tokens_are_parameters_and_positions_are_buffers():
    module = nn.Linear(2, 2)
    module.class_token = nn.Parameter(torch.zeros(1, 1, 4))
    module.register_buffer("mask", torch.zeros(3))
    assert by_name(module)["class_token"].role == "parameter"
    assert by_name(module)["mask"].role == "buffer"


def test_offsets_leave_no_gap_and_the_trainable_part_comes_first():
    layout = describe_module(network())
    for dtype in ("float32", "int64"):
        entries = [e for e in layout.entries if e.dtype == dtype]
        assert entries[0].offset == 0
        assert all(a.offset + a.size == b.offset for a, b in pairwise(entries))
        assert entries[-1].offset + entries[-1].size == layout.row_size(dtype)
    trainable = [e.trainable for e in layout.entries]
    assert trainable == sorted(trainable, reverse=True)
    assert layout.trainable == sum(p.numel() for p in network().parameters())
    assert layout.parameters == layout.trainable + 6  # running mean and variance of three channels


def test_trainable_entries_lie_in_the_order_of_named_parameters():
    module = network()
    state_row = describe_module(module).flatten(module.state_dict())
    parameters = torch.nn.utils.parameters_to_vector(module.parameters())
    assert torch.equal(state_row[: len(parameters)], parameters)


def test_frozen_parameters_come_after_the_trainable_ones():
    module = network()
    module[0].requires_grad_(False)
    layout = describe_module(module)
    assert not any(e.trainable for e in layout.entries if e.name.startswith("0."))
    assert [e.name for e in layout.entries[:2]] == ["1.weight", "1.bias"]
    assert layout.trainable == sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_order_ranks_the_modules_that_own_tensors():
    orders = {e.name.split(".")[0]: e.order for e in describe_module(network()).entries}
    assert orders == {"0": 0, "1": 1, "4": 2, "5": 3}


def test_integer_buffers_lie_in_a_row_of_their_own():
    layout = describe_module(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3)))
    assert layout.side_dtypes == ("int64",)
    assert layout.row_size("int64") == 2
    assert layout.parameters == 4 * 2 + 4 * 3


def test_a_row_and_a_state_dict_tell_the_same():
    source, target = network(), network()
    source(torch.rand(4, 2, 4, 4))
    layout = describe_module(source)
    target.load_state_dict(layout.unflatten(rows(layout, source.state_dict())), strict=True)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def test_rows_may_be_read_only_arrays_and_are_copied():
    module = nn.Linear(3, 2)
    layout = describe_module(module)
    row = layout.flatten(module.state_dict()).numpy().copy()
    row.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = layout.unflatten({"float32": row})
    state["weight"].zero_()
    assert np.array_equal(row[:6], module.weight.detach().numpy().ravel())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 7, bias=False)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.again = self.body


def test_a_tied_tensor_is_stored_once_and_loaded_under_all_its_names():
    source, target = Tied(), Tied()
    layout = describe_module(source)
    assert layout.aliases == {
        "head.weight": "embed.weight",
        "again.weight": "body.weight",
        "again.bias": "body.bias",
    }
    assert layout.parameters == 7 * 4 + 4 * 4 + 4 + 7
    state = layout.unflatten(rows(layout, source.state_dict()))
    assert state["head.weight"] is state["embed.weight"]
    target.load_state_dict(state, strict=True)
    assert torch.equal(target.head.weight, source.embed.weight)


def test_buffers_that_are_not_saved_are_not_stored():
    module = nn.Linear(2, 2)
    module.register_buffer("table", torch.zeros(9), persistent=False)
    assert set(by_name(module)) == {"weight", "bias"}


def test_a_state_dict_with_more_than_tensors_of_its_own_is_refused():
    class Remembers(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            pass

    with pytest.raises(UserError, match="_extra_state"):
        describe_module(Remembers(2, 2))


def test_the_meta_device_gives_the_same_layout():
    with torch.device("meta"):
        modules = network(), Tied()
    assert [describe_module(m) for m in modules] == [describe_module(m) for m in (network(), Tied())]
    assert describe_module(modules[0]).layout_id == describe_module(network()).layout_id


def test_a_layout_survives_json():
    for module in (network(), Tied()):
        layout = describe_module(module)
        again = Layout.from_json(json.loads(json.dumps(layout.to_json())))
        assert again == layout
        assert again.layout_id == layout.layout_id


def test_the_id_tells_layouts_apart():
    ids = {describe_module(m).layout_id for m in (network(), Tied(), nn.Linear(2, 3), nn.Linear(3, 2))}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["entries"][1].update(offset=1), "starts at 1"),
        (lambda d: d["entries"][0].update(shape=[-3, 2]), "shape"),
        (lambda d: d["entries"][0].update(shape=[2.0, 3]), "shape"),
        (lambda d: d["entries"][0].update(role="secret"), "unknown role"),
        (lambda d: d["entries"][0].update(surprise=1), "surprise"),
        (lambda d: d["entries"][0].pop("dtype"), "dtype"),
        (lambda d: d["entries"][1].update(name="weight"), "twice"),
        (lambda d: d["aliases"].update(other="nowhere"), "other"),
        (lambda d: d.pop("aliases"), "aliases"),
        (lambda d: d.update(entries=[5]), "not a layout"),
    ],
)
def test_a_damaged_layout_is_refused(change, message):
    data = describe_module(nn.Linear(2, 3)).to_json()
    change(data)
    with pytest.raises(IntegrityError, match=message):
        Layout.from_json(data)


def test_tensors_and_rows_of_another_size_are_refused():
    layout = describe_module(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"'weight' is \(2, 3\), the layout says \(3, 2\)"):
        layout.flatten({"weight": torch.zeros(2, 3), "bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="'bias' is missing"):
        layout.flatten({"weight": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match=r"float32 is \(10,\), the layout says \(9,\)"):
        layout.unflatten({"float32": torch.zeros(10)})
    with pytest.raises(ValueError, match="float32 is missing"):
        layout.unflatten({})


def test_prunable_are_trained_weights_of_convolutions_and_linear_layers_only():
    embedding = nn.Embedding(5, 8)
    attention = nn.MultiheadAttention(8, 2)
    network = nn.ModuleDict(
        {
            "conv": nn.Conv1d(2, 3, 3),
            "norm": nn.BatchNorm1d(3),
            "frozen": nn.Linear(4, 4).requires_grad_(False),
            "linear": nn.Linear(8, 6),
            "embedding": embedding,
            "attention": attention,
        }
    )
    layout = describe_module(network)
    assert [e.name for e in layout.prunable] == ["conv.weight", "linear.weight", "attention.out_proj.weight"]
    row = layout.flatten(dict(network.named_parameters()) | dict(network.named_buffers()))
    found = row[torch.from_numpy(layout.prunable_places)]
    expected = [network["conv"].weight, network["linear"].weight, attention.out_proj.weight]
    assert torch.equal(found, torch.cat([w.detach().flatten() for w in expected]))


def test_a_cnn_of_2022_has_2416_prunable_weights():
    from zoogen.architectures.cnn import CNNSmall

    layout = describe_module(CNNSmall().build((1, 28, 28), 10))
    assert len(layout.prunable_places) == 2416


def test_a_network_without_such_layers_has_none():
    layout = describe_module(nn.Sequential(nn.BatchNorm1d(3)))
    assert layout.prunable == ()
    assert layout.prunable_places.tolist() == []

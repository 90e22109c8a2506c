"""Architectures that name a network of someone else: torchvision models and import paths."""

import sys

import pytest
import torch

from zoogen.architectures.import_path import ImportedModule
from zoogen.architectures.torchvision_models import TorchvisionModel
from zoogen.core.canonical import canonical_json
from zoogen.core.errors import UserError
from zoogen.core.modules import build_model, describe
from zoogen.core.registry import ARCHITECTURES

FACTORIES = """
import torch
from torch import nn

calls = []

def sees_the_task(input_shape, outputs, *, scale=1.0):
    calls.append((input_shape, outputs, scale))
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], outputs))

def knows_only_its_arguments(n_in, n_out):
    return nn.Sequential(nn.Flatten(), nn.Linear(n_in, n_out))

def hands_on(**options):
    return knows_only_its_arguments(**options)

class Network(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.fc = nn.Linear(12, outputs)

    def forward(self, x):
        return self.fc(x.flatten(1))

def computes_with_values(outputs):
    network = Network(outputs)
    assert network.fc.weight.norm().item() > 0
    return network

class LooksAtItsInput(Network):
    def forward(self, x):
        return super().forward(-x if x.sum() > 1e9 else x)

def counts_batches(outputs):
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, outputs))

def gives_no_module():
    return 5

def gives_a_tuple(outputs):
    class Pair(Network):
        def forward(self, x):
            return super().forward(x), x
    return Pair(outputs)

def is_double(outputs):
    return Network(outputs).double()

NOT_CALLABLE = 1
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("factories", None)


SHAPE = (3, 2, 2)


@pytest.mark.usefixtures("factories")
class TestImport:
    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("sees_the_task", {}),
            ("knows_only_its_arguments", {"n_in": 12, "n_out": 4}),
            ("hands_on", {"n_in": 12, "n_out": 4}),
            ("Network", {}),
            ("computes_with_values", {}),
            ("LooksAtItsInput", {}),
        ],
    )
    def test_a_factory_is_called_with_what_it_names(self, name, arguments):
        architecture = ImportedModule(f"factories:{name}", arguments)
        layout = describe(architecture, SHAPE, 4)
        assert layout.trainable == 12 * 4 + 4
        assert build_model(architecture, SHAPE, 4, seed=0)(torch.rand(2, *SHAPE)).shape == (2, 4)

    def test_arguments_reach_the_factory(self):
        build_model(ImportedModule("factories:sees_the_task", {"scale": 2.5}), SHAPE, 4, seed=0)
        assert sys.modules["factories"].calls[-1] == (SHAPE, 4, 2.5)

    def test_trying_the_network_leaves_its_statistics_alone(self):
        network = build_model(ImportedModule("factories:counts_batches"), SHAPE, 4, seed=0)
        assert network[0].num_batches_tracked == 0
        assert torch.equal(network[0].running_mean, torch.zeros(3))

    @pytest.mark.parametrize(
        ("path", "arguments", "message"),
        [
            ("factories.Network", {}, "not of the form package.module:factory"),
            ("factories:Net.work", {}, "not of the form package.module:factory"),
            ("no_such_package.networks:make", {}, "cannot import 'no_such_package.networks'"),
            ("factories:Netwrk", {}, "Did you mean 'Network'"),
            ("factories:NOT_CALLABLE", {}, "has no function or class 'NOT_CALLABLE'"),
            ("factories:Network", {"depth": 3}, "unexpected keyword argument 'depth'"),
            ("factories:Network", {"outputs": 3}, "the task sets 'outputs'"),
            ("factories:knows_only_its_arguments", {"n_in": 12}, "missing a required argument: 'n_out'"),
            ("factories:knows_only_its_arguments", {"n_in": 12, "n_out": 5}, r"gives shape \(2, 5\)"),
            ("factories:knows_only_its_arguments", {"n_in": 13, "n_out": 4}, r"fails on the task's input of shape"),
            ("factories:gives_no_module", {}, "gives a int, expected a torch.nn.Module"),
            ("factories:gives_a_tuple", {}, "gives a tuple, expected one tensor"),
            ("factories:is_double", {}, "fc.weight is torch.float64"),
        ],
    )
    def test_mistakes_are_the_users_and_are_named(self, path, arguments, message):
        with pytest.raises(UserError, match=message):
            describe(ImportedModule(path, arguments), SHAPE, 4)

    def test_code_runs_only_when_a_network_is_built(self):
        architecture = ImportedModule("factories:Network")
        ARCHITECTURES.restore(ARCHITECTURES.describe(architecture))
        assert "factories" not in sys.modules
        architecture.build(SHAPE, 4)
        assert "factories" in sys.modules


class TestTorchvision:
    def test_outputs_are_the_task_s_and_arguments_are_passed_on(self):
        wide = TorchvisionModel("resnet18", {"width_per_group": 64, "norm_layer": None})
        assert describe(wide, (3, 32, 32), 7).trainable == 11_176_512 + 512 * 7 + 7  # torchvision's body and our head

    @pytest.mark.parametrize(
        ("model", "arguments", "shape", "message"),
        [
            ("resnet-18", {}, (3, 32, 32), "Did you mean 'resnet18'"),
            ("resnet18", {"weights": "DEFAULT"}, (3, 32, 32), "weights are never loaded"),
            ("resnet18", {"num_classes": 3}, (3, 32, 32), "the task sets the number of outputs"),
            ("resnet18", {"depth": 3}, (3, 32, 32), "does not take .*depth"),
            ("resnet18", {}, (1, 28, 28), r"fails on the task's input of shape \(1, 28, 28\)"),
            ("fcn_resnet50", {}, (3, 32, 32), "is no classifier"),
            ("googlenet", {"init_weights": False}, (3, 32, 32), "aux_logits"),
        ],
    )
    def test_mistakes_are_the_users_and_are_named(self, model, arguments, shape, message):
        with pytest.raises(UserError, match=message):
            describe(TorchvisionModel(model, arguments), shape, 10)


@pytest.mark.parametrize("cls", [TorchvisionModel, ImportedModule])
class TestArguments:
    def test_are_part_of_the_identity(self, cls):
        described = [ARCHITECTURES.describe(cls("x", {"units": u})) for u in ([1, 2], [1, 3])]
        assert canonical_json(described[0]) != canonical_json(described[1])
        assert described[0]["arguments"] == {"units": [1, 2]}
        assert "arguments" not in ARCHITECTURES.describe(cls("x"))

    def test_cannot_be_changed_later(self, cls):
        given = {"units": [1, 2]}
        architecture = cls("x", given)
        given["units"].append(3)
        given["more"] = 1
        assert architecture == cls("x", {"units": [1, 2]})
        with pytest.raises(TypeError, match="cannot be changed"):
            architecture.arguments["units"] = [3]

    @pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), {1: "a"}])
    def test_must_be_json(self, cls, value):
        with pytest.raises(UserError, match=r"arguments\.block"):
            cls("x", {"block": value})

"""The small CNNs against a forward pass written out in functions."""

import pytest
import torch
import torch.nn.functional as F

from zoogen.architectures.cnn import CNNLarge, CNNSmall
from zoogen.core.errors import UserError
from zoogen.core.modules import build_model, describe

# Written as formulas, so that they do not share code with torch's modules.
FUNCTIONS = {
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "silu": lambda x: x / (1 + (-x).exp()),
}
POOLED = {CNNSmall: (True, True, False), CNNLarge: (True, True, True)}


def forward(w, x, act, pooled, dropped=lambda x: x):
    """Pool, then activation, then ``dropped``; cnn-s drops nothing after its third convolution."""
    for i, pool in enumerate(pooled, start=1):
        x = F.conv2d(x, w[f"conv{i}.weight"], w[f"conv{i}.bias"])
        x = act(F.max_pool2d(x, 2) if pool else x)
        x = dropped(x) if pool else x
    x = dropped(act(x.flatten(1) @ w["fc1.weight"].T + w["fc1.bias"]))
    return x @ w["fc2.weight"].T + w["fc2.bias"]


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize(("cls", "shape"), [(CNNSmall, (1, 28, 28)), (CNNLarge, (3, 32, 32))])
def test_the_network_is_convolution_pool_activation(cls, shape, activation):
    network = build_model(cls(activation=activation, dropout=0.3), shape, 10, seed=0).double().eval()
    x = torch.rand(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = forward(network.state_dict(), x, FUNCTIONS[activation], POOLED[cls])
    # Float64, sums of at most 288 terms of order one.
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_pooling_comes_before_the_activation():
    # The two orders agree for monotone functions; gelu falls below zero and so tells them apart.
    network = build_model(CNNSmall(activation="gelu"), (1, 28, 28), 10, seed=0).eval()
    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1)) - 2
    w = network.state_dict()
    after_conv = F.conv2d(x, w["conv1.weight"], w["conv1.bias"])
    pool_first, pool_last = F.gelu(F.max_pool2d(after_conv, 2)), F.max_pool2d(F.gelu(after_conv), 2)
    assert not torch.allclose(pool_first, pool_last, atol=1e-3)
    assert torch.equal(network[:3](x), pool_first)


@pytest.mark.parametrize("cls", [CNNSmall, CNNLarge])
def test_dropout_follows_the_activation_of_the_published_layers(cls):
    # A positive function of all-positive weights: a zero can only come from dropout, and only where dropout is.
    network = build_model(cls(activation="sigmoid", dropout=0.5), (3, 32, 32), 10, seed=0)
    zeros = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda m, i, out, name=name: zeros.update({name: (out == 0).any().item()}))
    network(torch.rand(64, 3, 32, 32))
    dropped = {f"conv{i}" for i, pool in enumerate(POOLED[cls], start=1) if pool} | {"fc1"}
    assert {name for name, found in zeros.items() if found and name.startswith("dropout")} == {
        {"conv1": "dropout1", "conv2": "dropout2", "conv3": "dropout3", "fc1": "dropout4"}[layer] for layer in dropped
    }
    assert not any(found for name, found in zeros.items() if name.startswith("act"))


@pytest.mark.parametrize("cls", [CNNSmall, CNNLarge])
def test_names_do_not_depend_on_dropout_and_neither_do_weights(cls):
    without, with_dropout = (build_model(cls(dropout=p), (3, 32, 32), 10, seed=4).state_dict() for p in (0.0, 0.5))
    assert list(without) == list(with_dropout)
    assert all(torch.equal(without[key], with_dropout[key]) for key in without)


@pytest.mark.parametrize(("cls", "least"), [(CNNSmall, 20), (CNNLarge, 22)])
def test_the_smallest_image_is_the_smallest_that_works(cls, least):
    network = build_model(cls(), (1, least, least + 3), 10, seed=0)
    assert network(torch.rand(2, 1, least, least + 3)).shape == (2, 10)
    with pytest.raises(UserError, match=f"at least {least}x{least} pixels, the task gives {least - 1}x40"):
        describe(cls(), (1, least - 1, 40), 10)


def test_a_task_without_images_is_refused():
    with pytest.raises(UserError, match=r"'cnn-s' needs images .* the task gives \(64,\)"):
        describe(CNNSmall(), (64,), 10)

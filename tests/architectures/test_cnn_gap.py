"""The network of the Small CNN Zoo against TensorFlow's definition of its layers, written out in NumPy."""

import numpy as np
import pytest
import torch

from zoogen.architectures.cnn_gap import CNNGap
from zoogen.core.errors import UserError
from zoogen.core.modules import build_model, describe

FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def convolve(x, kernel, bias):
    """``Conv2D(strides=2, padding="valid")``: x [n, h, w, in], kernel [3, 3, in, out], one output place at a time."""
    height, width = ((side - 3 + 2) // 2 for side in x.shape[1:3])
    out = np.zeros((len(x), height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            patch = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            out[:, i, j] = np.tensordot(patch, kernel, axes=3) + bias
    return out


def forward(w, x, act):
    for layer in ("conv1", "conv2", "conv3"):
        x = act(convolve(x, np.transpose(w[f"{layer}.weight"], (2, 3, 1, 0)), w[f"{layer}.bias"]))
    return x.mean(axis=(1, 2)) @ w["fc.weight"].T + w["fc.bias"]


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 32, 32), (3, 15, 22)], ids=str)
def test_the_network_is_what_the_authors_train_in_tensorflow(shape, activation):
    network = build_model(CNNGap(activation=activation, dropout=0.3), shape, 10, seed=0).double().eval()
    x = torch.rand(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    w = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    expected = forward(w, np.moveaxis(x.numpy(), 1, 3), FUNCTIONS[activation])
    # Float64, sums of at most 144 terms of order one.
    with torch.no_grad():
        np.testing.assert_allclose(network(x).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_the_number_of_parameters_is_the_published_one_for_any_size_of_grey_images():
    for side in (28, 32, 100):
        layout = describe(CNNGap(), (1, side, side), 10)
        sizes = {e.name: e.size for e in layout.entries}
        per_layer = [sizes[f"{layer}.weight"] + sizes[f"{layer}.bias"] for layer in ("conv1", "conv2", "conv3", "fc")]
        assert per_layer == [160, 2_320, 2_320, 170]
        assert layout.parameters == layout.trainable == 4_970


def test_dropout_follows_every_activation_and_nothing_else():
    # A positive function of all-positive weights: a zero can only come from dropout.
    network = build_model(CNNGap(activation="sigmoid", dropout=0.5, init="uniform"), (1, 28, 28), 10, seed=0)
    zeros = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda m, i, out, name=name: zeros.update({name: (out == 0).any().item()}))
    network(torch.rand(8, 1, 64, 64))  # 7x7 places before the mean
    assert {name for name, found in zeros.items() if found} == {"dropout1", "dropout2", "dropout3"}


def test_names_and_weights_do_not_depend_on_dropout():
    without, dropped = (build_model(CNNGap(dropout=p), (1, 28, 28), 10, seed=4).state_dict() for p in (0.0, 0.5))
    assert list(without) == list(dropped)
    assert all(torch.equal(without[name], dropped[name]) for name in without)


def test_the_smallest_image_is_the_smallest_that_works():
    assert build_model(CNNGap(), (1, 15, 17), 10, seed=0)(torch.rand(2, 1, 15, 17)).shape == (2, 10)
    with pytest.raises(UserError, match="at least 15x15 pixels, the task gives 14x40"):
        describe(CNNGap(), (1, 14, 40), 10)
    with pytest.raises(UserError, match=r"'cnn-gap' needs images .* the task gives \(64,\)"):
        describe(CNNGap(), (64,), 10)

"""Layers with trained noise: the spec's values, torch's own products and gradients, weights sampled one by one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from zoogen.core.layout import describe_module
from zoogen.train.sparsify.methods import VariationalDropout
from zoogen.train.sparsify.noise import normal
from zoogen.train.sparsify.variational import (
    VariationalConv2d,
    VariationalLinear,
    convert,
    kl_divergence,
    kl_slope,
    kl_term,
    layer_by_layer,
    log_alpha,
    variational_layers,
)

METHOD = VariationalDropout()
KEY = 0x1234_5678_9ABC_DEF1

# Layers of any shape, and inputs for them.
LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (3, 7)),
    "linear-of-sequences": (lambda: nn.Linear(7, 5), (3, 4, 7)),
    "linear-without-bias": (lambda: nn.Linear(7, 5, bias=False), (3, 7)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), (3, 2, 11)),
    "conv1d-circular": (
        lambda: nn.Conv1d(4, 4, 3, dilation=2, groups=2, padding=2, padding_mode="circular"),
        (2, 4, 9),
    ),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), (2, 2, 6, 7)),
    "conv2d-strided": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (2, 2, 7, 6)),
    "conv2d-dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=2, padding="same"), (2, 2, 6, 6)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "conv2d-reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 5)),
    "conv2d-replicate": (lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="replicate"), (2, 2, 5, 5)),
    "one-image": (lambda: nn.Conv2d(2, 3, 3), (2, 6, 6)),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def made(kind: str) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    return make().double(), torch.randn(shape, dtype=torch.float64)


def noisy(layer: nn.Module, log_sigma2: float | None = None) -> nn.Module:
    """The layer with noise of every size, or of one."""
    found = convert(layer, METHOD)
    with torch.no_grad():
        for name, tensor in found.named_parameters():
            if name.startswith("log_sigma2"):
                tensor.copy_(torch.linspace(-7, 1, tensor.numel()).view_as(tensor))
                if log_sigma2 is not None:
                    tensor.fill_(log_sigma2)
    found.noise.prepare([KEY])
    found.noise.start_step(0)
    return found


# Numbers of the spec


@pytest.mark.parametrize(
    ("log_alpha", "expected"),
    [(-10, 5.635781), (-8, 4.635899), (-4, 2.634208), (0, 0.431239), (1, 0.177970), (3, 0.025420), (8, 0.000168),
     (10, 0.000023)],
)  # fmt: skip
def test_the_kl_divergence_is_the_specs(log_alpha, expected):
    assert kl_divergence(torch.tensor(float(log_alpha), dtype=torch.float64)).item() == pytest.approx(
        expected, abs=1e-6
    )
    assert kl_divergence(torch.tensor(float(log_alpha))).item() == pytest.approx(expected, abs=1e-6)


def test_the_slope_of_the_kl_divergence_is_autograds():
    at = torch.linspace(-10, 10, 401, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(kl_divergence(at).sum(), at)
    torch.testing.assert_close(kl_slope(at.detach()), expected, rtol=1e-11, atol=0)
    # Bounds of the user's may be wide: nothing overflows into NaN.
    wide = torch.tensor([-200.0, -90.0, 90.0, 200.0])
    torch.testing.assert_close(kl_slope(wide), torch.tensor([-0.5, -0.5, 0.0, 0.0]))


def test_the_slope_of_an_element_does_not_depend_on_how_many_there_are():
    at = torch.linspace(-10, 10, 1003)
    whole = kl_slope(at)
    assert torch.equal(torch.cat([kl_slope(part) for part in at.split(7)]), whole)
    assert torch.equal(torch.stack([kl_slope(one) for one in at]), whole)


def test_log_alpha_is_noise_over_weight_between_its_bounds():
    weight = torch.tensor([1.0, -0.5, 2.0, 0.0, 1e-3, 1.0, 1.0], dtype=torch.float64)
    log_sigma2 = torch.tensor([-2.0, 0.5, -10.0, -10.0, 4.0, 9.0, -30.0], dtype=torch.float64)
    expected = [-2.0, 0.5 - 2 * math.log(0.5), -10 - 2 * math.log(2), -10 + 30 * math.log(10), 4 + 6 * math.log(10)]
    for bound in (8.0, 10.0):
        wanted = [max(-bound, min(bound, value)) for value in (*expected, 9.0, -30.0)]
        assert log_alpha(weight, log_sigma2, bound).tolist() == pytest.approx(wanted, rel=1e-11)


@pytest.mark.parametrize(("kind", "bound"), [("linear", 10.0), ("conv1d", 8.0), ("conv2d", 8.0)])
def test_linear_layers_and_convolutions_have_bounds_of_their_own(kind, bound):
    layer, _ = made(kind)
    for log_sigma2, wanted in ((50.0, bound), (-50.0, -bound)):
        for alpha in noisy(layer, log_sigma2).alphas():
            assert (alpha == wanted).all()
    other = VariationalDropout(clamp_linear=2.0, clamp_conv=3.0, log_sigma2=50.0)
    assert convert(layer, other).alphas()[0].max() == (2.0 if kind == "linear" else 3.0)


def test_the_kl_term_counts_weights_and_biases_of_convolutions():
    layer = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv1d(3, 2, 2, bias=False), nn.Linear(4, 5)).double()
    module = convert(layer, METHOD)
    noise = METHOD.log_sigma2
    tensors = [(layer[0].weight, 8), (layer[0].bias, 8), (layer[1].weight, 8), (layer[2].weight, 10)]
    expected = sum(
        kl_divergence((noise - 2 * own.abs().log()).clamp(-bound, bound)).sum().item() for own, bound in tensors
    )
    assert kl_term(variational_layers(module)).item() == pytest.approx(expected, rel=1e-9)


# Evaluation


def test_weights_are_zero_from_exactly_the_threshold_on():
    """With weights of 1 log alpha is log sigma2 itself: 1 + 1e-15 is 1 in float32."""
    below, at = math.nextafter(3.0, 0.0), 3.0
    sigmas = torch.tensor([[at, below, 2.5, 9.0]], dtype=torch.float64)
    layer = nn.Linear(4, 1).double()
    nn.init.ones_(layer.weight)
    found = convert(layer, VariationalDropout(clamp_linear=5.0)).eval()
    found.log_sigma2.data = sigmas
    # In float64 the 1e-15 tells: log alpha is 2e-15 lower, so the weight moves by it.
    found.weight.data -= 1e-15
    assert torch.equal(found.alphas()[0], sigmas.clamp(max=5.0))
    assert found(torch.eye(4, dtype=torch.float64)).flatten().sub(layer.bias).gt(0.5).tolist() == [
        False, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "biases"), [("linear", False), ("conv1d", True), ("conv2d", True)])
def test_biases_of_convolutions_go_beyond_the_threshold_and_of_linear_layers_never(kind, biases):
    layer, inputs = made(kind)
    found = noisy(layer, 50.0).eval()
    outputs = found(inputs)
    if biases:
        assert (outputs == 0).all()
    else:
        assert torch.equal(outputs, layer.bias.expand_as(outputs))


@every_layer
def test_a_converted_layer_evaluates_as_its_source_while_no_weight_is_small(kind):
    layer, inputs = made(kind)
    smallest = math.exp((METHOD.log_sigma2 - METHOD.threshold) / 2)
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.copy_(torch.where(tensor.abs() < 1.01 * smallest, smallest * 1.01, tensor))
    expected = layer(inputs)
    found = convert(layer, METHOD).eval()
    assert torch.equal(found(inputs), expected)
    with torch.no_grad():
        layer.weight.view(-1)[::2] = 0.99 * smallest
    small = layer.weight.detach().clone()
    small.view(-1)[::2] = 0
    assert torch.equal(found(inputs), functional_call(layer, {"weight": small}, inputs))


# Training


@every_layer
def test_gradients_are_those_of_the_formula_written_out(kind):
    layer, inputs = made(kind)
    found = noisy(layer)
    inputs.requires_grad_()
    own = dict(found.named_parameters())
    weight, bias, bound = own["weight"], own.get("bias"), 10.0 if isinstance(layer, nn.Linear) else 8.0

    def product(x, w, b):
        if isinstance(layer, nn.Linear):
            return functional.linear(x, w, b)
        return layer._conv_forward(x, w, b)

    def variance(tensor, name):
        alpha = torch.exp(torch.clamp(own[name] - 2 * torch.log(tensor.abs() + 1e-15), -bound, bound))
        return alpha * tensor * tensor

    of_bias = None if bias is None or "log_sigma2_bias" not in own else variance(bias, "log_sigma2_bias")
    mean = product(inputs, weight, bias)
    noise = normal(KEY, 0, mean.numel(), torch.float64, "cpu").view(mean.shape)
    expected = mean + noise * (1e-15 + product(inputs * inputs, variance(weight, "log_sigma2"), of_bias)) ** 0.5
    outputs = found.train()(inputs)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-13)
    direction = torch.randn(outputs.shape, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(out, [inputs, *own.values()], direction) for out in (outputs, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "one-image"])
def test_outputs_are_distributed_as_with_weights_sampled_one_by_one(kind):
    """The trick draws outputs; here the weights are drawn, 6000 times, and the outputs computed from them."""
    draws = 6000
    layer, inputs = made(kind)
    found = noisy(layer, -2.0).train()
    with torch.no_grad():
        ours = found(inputs.repeat(draws, *(1 for _ in inputs.shape[1:]))).unflatten(0, (draws, -1))
        rng = torch.Generator().manual_seed(1)
        sampled = {}
        for name, tensor in layer.named_parameters():
            share = (-2.0 - 2 * tensor.abs().log()).clamp(-10, 10 if isinstance(layer, nn.Linear) else 8).exp().sqrt()
            share = share * 0 if name == "bias" and isinstance(layer, nn.Linear) else share
            spread = torch.randn(draws, *tensor.shape, generator=rng, dtype=torch.float64)
            sampled[name] = tensor + spread * share * tensor.abs()
        theirs = vmap(lambda own: functional_call(layer, own, inputs))(sampled)
    mean, std = theirs.mean(0), theirs.std(0)
    # Each output is off by its standard error, so the root mean square of all of them is about 1.
    errors = (ours.mean(0) - mean) / std * (draws / 2) ** 0.5
    assert errors.square().mean().sqrt().item() == pytest.approx(1, abs=0.6)
    spreads = (ours.std(0) / std - 1) * draws**0.5
    assert spreads.square().mean().sqrt().item() == pytest.approx(1, abs=0.6)


def test_weights_of_zero_and_inputs_of_zero_have_finite_gradients():
    layer = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2))
    nn.init.zeros_(layer[0].weight)
    module = convert(layer, METHOD)
    outputs = module(torch.zeros(2, 3)) + module(torch.ones(2, 3))
    (outputs.sum() + kl_term(variational_layers(module))).backward()
    for parameter in module.parameters():
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_arithmetic_keeps_small_variances_and_their_gradients(dtype):
    """Of inputs of 1e-3 and noise of -14 variances are 1e-11: nothing in float16."""
    layer = convert(nn.Linear(8, 16), VariationalDropout(log_sigma2=-14.0))
    inputs = torch.full((4, 8), 1e-3)

    def gradient(precision: torch.dtype | None) -> Tensor:
        layer.noise.start_step(0)
        with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
            outputs = layer(inputs)
        assert outputs.dtype == (precision or torch.float32)
        return torch.autograd.grad(outputs.float().sum(), layer.log_sigma2)[0]

    layer.noise.prepare([KEY])
    narrow, wide = gradient(dtype), gradient(None)
    assert (narrow - wide).norm() < 0.02 * wide.norm()


# Conversion


def test_names_of_tensors_stay_and_noise_is_added():
    source = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2), nn.Linear(2, 2, False))
    layout = describe_module(source)
    module = convert(source, METHOD)
    found = describe_module(module)
    assert next(e for e in found.entries if e.name == "1.weight").role == "norm_scale"
    shapes = {e.name: e.shape for e in found.entries}
    assert {e.name: e.shape for e in layout.entries}.items() <= shapes.items()
    added = {name: shape for name, shape in shapes.items() if name not in {e.name for e in layout.entries}}
    assert added == {
        "0.log_sigma2": (3, 2, 3, 3), "0.log_sigma2_bias": (3,), "3.log_sigma2": (2, 3), "4.log_sigma2": (2, 2),
    }  # fmt: skip
    assert all(e.trainable for e in found.entries if "log_sigma2" in e.name)
    assert all((module.state_dict()[name] == -10).all() for name in added)


def test_the_published_network_has_twice_the_numbers():
    """cnn-s: 2464 parameters, of which the 20 biases of the linear layers stay as they are."""
    from zoogen.core.registry import ARCHITECTURES

    source = ARCHITECTURES.make("cnn-s", {}).build((1, 28, 28), 10)
    linear = sum(m.bias.numel() for m in source.modules() if isinstance(m, nn.Linear))
    module = convert(source, METHOD)
    noise = sum(p.numel() for name, p in module.named_parameters() if "log_sigma2" in name)
    weights = sum(m.weight.numel() for m in variational_layers(module))
    assert (weights, noise) == (2416, 2464 - linear)


def test_a_layer_in_two_places_is_one_layer_and_a_shared_tensor_one_tensor():
    shared = nn.Linear(4, 4)
    encoder, decoder = nn.Linear(4, 3), nn.Linear(4, 3)
    decoder.weight = encoder.weight
    source = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Tanh()), "encoder": encoder, "decoder": decoder})
    module = convert(source, METHOD)
    assert module["a"] is module["b"][0]
    assert len(variational_layers(module)) == 3
    assert module["encoder"].weight is module["decoder"].weight
    assert module["encoder"].log_sigma2 is not module["decoder"].log_sigma2
    layout = describe_module(module)
    assert layout.aliases == {
        "b.0.weight": "a.weight", "b.0.bias": "a.bias", "b.0.log_sigma2": "a.log_sigma2",
        "decoder.weight": "encoder.weight",
    }  # fmt: skip


def test_a_lone_layer_is_converted_and_others_stay():
    class Own(nn.Linear):
        """May mean something else."""

    assert type(convert(nn.Linear(2, 2), METHOD)) is VariationalLinear
    assert type(convert(nn.Conv2d(2, 2, 1), METHOD)) is VariationalConv2d
    source = nn.Sequential(Own(2, 2), nn.Bilinear(2, 2, 2), nn.ConvTranspose2d(2, 2, 1), nn.MultiheadAttention(4, 2))
    kinds = [type(layer) for layer in source.modules()]
    assert [type(layer) for layer in convert(source, METHOD).modules()] == kinds


def test_modes_stay():
    module = convert(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).eval()), METHOD)
    assert [layer.training for layer in module] == [True, False]


def test_a_transformer_layer_of_torch_evaluates_through_the_noisy_layers_in_it():
    torch.manual_seed(0)
    source = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    module = convert(source, VariationalDropout(log_sigma2=50.0)).eval()
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    state = {name: tensor for name, tensor in module.state_dict().items() if "log_sigma2" not in name}
    plain.load_state_dict(state | {"linear1.weight": torch.zeros(16, 8), "linear2.weight": torch.zeros(8, 16)})
    inputs = torch.randn(3, 5, 8)
    before = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad(), layer_by_layer():
        torch.testing.assert_close(module(inputs), plain(inputs))
    assert torch.backends.mha.get_fastpath_enabled() == before

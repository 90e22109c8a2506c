"""Initial weights against the closed forms of their distributions."""

from typing import get_args

import pytest
import torch
from torch import nn

from zoogen.architectures.initialisation import Initialisation, initialise

# Units large enough that a sample tells the distributions apart; fans: (in, out).
LAYERS = {
    "linear": (lambda: nn.Linear(300, 200), 300, 200),
    "conv": (lambda: nn.Conv2d(16, 64, 5), 16 * 25, 64 * 25),
}


def distribution(init, n_in, n_out):
    """(shape, mean, standard deviation, low, high) in closed form."""
    he, glorot = 2 / n_in, 2 / (n_in + n_out)
    return {
        "uniform": ("uniform", 0.5, (1 / 12) ** 0.5, 0.0, 1.0),
        "normal": ("normal", 0.0, 1.0, None, None),
        "kaiming_uniform": ("uniform", 0.0, he**0.5, -((3 * he) ** 0.5), (3 * he) ** 0.5),
        "kaiming_normal": ("normal", 0.0, he**0.5, None, None),
        "xavier_uniform": ("uniform", 0.0, glorot**0.5, -((3 * glorot) ** 0.5), (3 * glorot) ** 0.5),
        "xavier_normal": ("normal", 0.0, glorot**0.5, None, None),
    }[init]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("init", get_args(Initialisation))
def test_weights_follow_the_named_distribution(init, layer):
    build, n_in, n_out = LAYERS[layer]
    module = build()
    torch.manual_seed(0)
    initialise(module, init)
    shape, mean, std, low, high = distribution(init, n_in, n_out)
    w_P = module.weight.detach().double().flatten()
    n = len(w_P)
    # Standard errors: std / sqrt(n) of the mean, std sqrt((kurtosis - 1) / 4 n) of the deviation; five of each.
    kurtosis = {"uniform": 1.8, "normal": 3.0}[shape]
    assert w_P.mean().item() == pytest.approx(mean, abs=5 * std / n**0.5)
    assert w_P.std().item() == pytest.approx(std, abs=5 * std * ((kurtosis - 1) / (4 * n)) ** 0.5)
    if shape == "uniform":
        assert low - 1e-6 <= w_P.min()
        assert w_P.max() <= high + 1e-6
        # The largest of n uniform draws misses the bound by (high - low) / n on average; twenty times that is e^-20.
        assert w_P.max() >= high - 20 * (high - low) / n
    # Kolmogorov-Smirnov: the distance exceeds 2.3 / sqrt(n) with probability 5e-5.
    exact = torch.distributions.Normal(mean, std) if shape == "normal" else torch.distributions.Uniform(low, high)
    cdf_P = exact.cdf(w_P.clamp(low, high) if shape == "uniform" else w_P).sort().values
    ranks_P = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert (cdf_P - ranks_P).abs().max() < 2.3 / n**0.5


@pytest.mark.parametrize("init", get_args(Initialisation))
def test_every_bias_is_one_hundredth_and_other_layers_keep_theirs(init):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False), nn.Flatten(), nn.Linear(4, 2)
    )
    initialise(network, init)
    assert torch.equal(network[0].bias, torch.full((4,), 0.01))
    assert torch.equal(network[4].bias, torch.full((2,), 0.01))
    assert torch.equal(network[1].weight, torch.ones(4))
    assert torch.equal(network[1].bias, torch.zeros(4))

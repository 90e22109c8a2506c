from itertools import pairwise

import pytest
import torch

from zoogen.architectures.mlp import MLP
from zoogen.core.modules import build_model, describe


@pytest.mark.parametrize("hidden", [(), (7,), (16, 8, 4)], ids=str)
def test_hidden_lists_the_units_of_the_layers_between_input_and_output(hidden):
    network = build_model(MLP(hidden=hidden, activation="tanh", dropout=0.4), (2, 3, 4), 5, seed=0).double().eval()
    w = network.state_dict()
    x = torch.rand(6, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = x.reshape(6, 24)
    for i in range(1, len(hidden) + 2):
        expected = expected @ w[f"fc{i}.weight"].T + w[f"fc{i}.bias"]
        expected = expected.tanh() if i <= len(hidden) else expected
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)  # float64, at most 24 terms
    sizes = [24, *hidden, 5]
    assert describe(MLP(hidden=hidden), (2, 3, 4), 5).parameters == sum(
        n_out * (n_in + 1) for n_in, n_out in pairwise(sizes)
    )


def test_the_default_initialisation_is_torch_s_own_for_the_seed():
    ours = build_model(MLP(hidden=(8,)), (1, 8, 8), 10, seed=42)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        first, last = torch.nn.Linear(64, 8), torch.nn.Linear(8, 10)
    expected = {
        "fc1.weight": first.weight,
        "fc1.bias": first.bias,
        "fc2.weight": last.weight,
        "fc2.bias": last.bias,
    }
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())


def test_names_do_not_depend_on_dropout():
    names = [[e.name for e in describe(MLP(dropout=p), (1, 8, 8), 10).entries] for p in (0.0, 0.5)]
    assert names[0] == names[1]

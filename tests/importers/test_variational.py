"""Published sparse twins: what is imported computes what their evaluation computes."""

import json
from math import log

import pytest
import torch
from published_zoos import Published, config, digits, write_trial
from torch.nn.functional import conv2d, linear

from zoogen.core.modules import build_model
from zoogen.importers.opening import open_source
from zoogen.importers.source import Unusable
from zoogen.importers.tensors.variational import hard_zeroed


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """A trained CNN-s as a twin with noise on every weight: a zoo of one trial, and the state dict written."""
    folder = tmp_path_factory.mktemp("twin")
    state = write_trial(folder / "zoo/t", config(), epochs=1)[1]
    torch.manual_seed(3)
    for place in (0, 3, 6, 9, 11):
        weight, bias = state[f"module_list.{place}.weight"], state[f"module_list.{place}.bias"]
        state[f"module_list.{place}.log_sigma2"] = torch.randn(weight.shape) * 3 - 2
        noise = torch.randn(bias.shape) * 4 - 4 if place < 9 else torch.full(bias.shape, torch.nan)
        state[f"module_list.{place}.log_sigma2_bias"] = noise  # of linear layers never initialised
    torch.save(state, folder / "zoo/t/checkpoint_000001/checkpoints")
    torch.save(state, folder / "zoo/t/checkpoint_000000/checkpoints")
    return folder / "zoo", state


def evaluated(state, images):
    """Their forward pass in evaluation, written from the description: every weight decided on its own in float64."""

    def zeroed(name, noise):
        value = state[name].double()
        alpha = state[noise].double() - 2 * torch.log(value.abs() + 1e-15)
        return torch.where(alpha >= 3, 0.0, value).float()

    x = images
    for place, pooled in ((0, True), (3, True), (6, False)):
        name = f"module_list.{place}"
        x = conv2d(x, zeroed(f"{name}.weight", f"{name}.log_sigma2"), zeroed(f"{name}.bias", f"{name}.log_sigma2_bias"))
        x = torch.tanh(torch.max_pool2d(x, 2) if pooled else x)
    x = x.flatten(1)
    for place in (9, 11):
        name = f"module_list.{place}"
        x = linear(x, zeroed(f"{name}.weight", f"{name}.log_sigma2"), state[f"{name}.bias"])
        x = torch.tanh(x) if place == 9 else x
    return x


@pytest.mark.parametrize("kind", ["CNN", "CNN_ARD"])
def test_the_imported_twin_computes_what_its_evaluation_does(twin, kind, tmp_path):
    folder, written = twin
    (folder / "t/params.json").write_text(json.dumps(config(model__type=kind)))
    with open_source(folder, "ray-tune") as source:
        (model,) = source.models()
        state = source.state(model, model.checkpoints[0])
    assert model.sparse
    network = build_model(model.network.architecture, model.network.input_shape, 10, 0).eval()
    network.load_state_dict(state.tensors)
    images, _ = digits(28)
    with torch.no_grad():
        assert torch.equal(network(images), evaluated(written, images))
        plain = Published(config()).eval()
        plain.load_state_dict({n: t for n, t in written.items() if "sigma" not in n})
        assert not torch.allclose(plain(images), network(images))
    for name, kept in state.kept.items():
        assert torch.equal(kept, state.tensors[name] != 0)
    shares = [(~kept).double().mean().item() for kept in state.kept.values()]
    assert all(0.05 < share < 0.95 for share in shares)


def test_the_threshold_is_log_alpha_3():
    # log alpha = log sigma^2 - 2 log |w|: at |w| = 1 it is log sigma^2 itself.
    noise = torch.tensor([[2.99, 3.01], [-10.0, 3.0]])
    state, kept = hard_zeroed({"fc.weight": torch.ones(2, 2), "fc.log_sigma2": noise, "fc.bias": torch.ones(2)})
    assert kept["fc.weight"].tolist() == [[True, False], [True, False]]
    assert state["fc.weight"].tolist() == [[1.0, 0.0], [1.0, 0.0]]
    small = torch.full((1, 1), 1e-3)
    edge = 3 + 2 * log(1e-3)
    for shift, left in ((-0.01, True), (0.01, False)):
        noise = torch.full((1, 1), edge + shift)
        assert hard_zeroed({"a.weight": small, "a.log_sigma2": noise})[1]["a.weight"].item() is left


def test_noise_that_is_no_number_or_fits_no_weight():
    state, _ = hard_zeroed({"a.weight": torch.ones(1, 2), "a.log_sigma2": torch.tensor([[torch.nan, 0.0]])})
    assert state["a.weight"].isnan().tolist() == [[True, False]]
    with pytest.raises(Unusable, match=r"a.log_sigma2 without a weight"):
        hard_zeroed({"a.weight": torch.ones(1, 2), "a.log_sigma2": torch.ones(3)})


def test_a_twin_of_another_network_keeps_its_names_and_gets_a_mask(twin):
    folder, written = twin
    (folder / "t/params.json").write_text(json.dumps(config(model__type="CNN2")))
    with open_source(folder, "ray-tune") as source:
        (model,) = source.models()
        state = source.state(model, model.checkpoints[0])
    assert model.network is None
    assert {e.name for e in model.layout.prunable} == {n for n in written if n.endswith(".weight")} == set(state.kept)

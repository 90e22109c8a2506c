import pytest
import torch
from torch import nn

from zoogen.core import streams
from zoogen.train.dropout import CounterDropout, DropoutStream, keep_mask, replace_dropout

CPU = torch.device("cpu")


def masks(rate: float, *, seed: int = 0, steps: int = 1, layers: int = 1, n: int = 1000) -> torch.Tensor:
    """bool [steps, layers, n]."""
    made = [CounterDropout(rate).train() for _ in range(layers)]
    stream = DropoutStream(seed, made, CPU)
    stream.prepare(0, steps)
    found = []
    with torch.random.fork_rng():
        for step in range(steps):
            stream.start_step(step)
            found.append(torch.stack([layer(torch.ones(n)) != 0 for layer in made]))
    return torch.stack(found)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_the_rate(rate):
    n = 400_000
    dropped = (~masks(rate, n=n)).double().mean().item()
    assert dropped == pytest.approx(rate, abs=4 * (rate * (1 - rate) / n) ** 0.5)


def started(rate: float) -> CounterDropout:
    layer = CounterDropout(rate).train()
    layer.masks.prepare(torch.tensor([streams.stream_key(0, "dropout")]))
    return layer


def test_steps_layers_seeds_and_neighbouring_elements_are_independent():
    kept = masks(0.5, steps=4, layers=3, n=20_000).reshape(12, -1).double() * 2 - 1
    other = masks(0.5, seed=1, n=20_000).reshape(1, -1).double() * 2 - 1
    rows = torch.cat([kept, other])
    correlation = rows @ rows.T / rows.shape[1]
    correlation.fill_diagonal_(0)
    # 78 pairs with standard error 1 / sqrt(20 000): five of them leave 1 chance in 20 000.
    assert correlation.abs().max() < 5 / 20_000**0.5
    for lag in (1, 2, 7):
        assert (rows[:, lag:] * rows[:, :-lag]).mean(1).abs().max() < 5 / 20_000**0.5


def test_kept_elements_are_scaled_so_that_the_mean_stays():
    layer = started(0.2)
    inputs = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    outputs = layer(inputs)
    kept = outputs != 0
    torch.testing.assert_close(outputs[kept], inputs[kept] / 0.8)
    assert 0 < kept.sum() < 35
    outputs.sum().backward()
    torch.testing.assert_close(inputs.grad, kept / 0.8)


def test_the_mask_is_a_pure_function_of_key_and_position():
    key = streams.subkey(streams.stream_key(5, "dropout"), 17, 2)
    whole = keep_mask(key, 0, 101, 0.3, CPU)
    pieces = [keep_mask(key, first, count, 0.3, CPU) for first, count in ((0, 7), (7, 1), (8, 50), (58, 43))]
    assert torch.equal(torch.cat(pieces), whole)


def test_masks_of_many_models_are_those_of_each():
    keys = [streams.stream_key(seed, "dropout") for seed in range(4)]
    together = keep_mask(torch.tensor(keys)[:, None], 3, 50, 0.4, CPU)
    for key, mask in zip(keys, together, strict=True):
        assert torch.equal(mask, keep_mask(key, 3, 50, 0.4, CPU))


def test_masks_are_those_of_the_stream_by_step_layer_and_position():
    # 30 elements are drawn for many steps ahead; the sizes change on the way, and a step may come in two parts.
    layers = [CounterDropout(0.5).train() for _ in range(3)]
    stream = DropoutStream(9, layers, CPU)
    stream.prepare(70_000, 8)
    key = streams.stream_key(9, "dropout")
    with torch.random.fork_rng():
        for step, sizes in [(0, [30]), (1, [30]), (2, [7, 23]), (3, [30]), (7, [11]), (2, [30])]:
            stream.start_step(70_000 + step)
            assert torch.initial_seed() == streams.subkey(key, 70_000 + step, 0xFFFF)
            for number, layer in enumerate(layers):
                found = torch.cat([layer(torch.ones(size)) for size in sizes])
                expected = keep_mask(streams.subkey(key, 70_000 + step, number), 0, sum(sizes), 0.5, CPU)
                assert torch.equal(found, expected * 2.0)


def test_eval_mode_and_rate_zero_change_nothing_and_rate_one_drops_all():
    inputs = torch.randn(10)
    assert CounterDropout(0.5).eval()(inputs) is inputs
    assert CounterDropout(0.0).train()(inputs) is inputs
    assert not CounterDropout(1.0).train()(inputs).any()


def test_replacing_keeps_names_weights_order_and_sharing():
    shared = nn.Dropout(0.1)
    inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), shared)
    module = nn.Sequential(shared, inner, nn.Dropout2d(0.3))
    names = list(module.state_dict())
    layers = replace_dropout(module)
    assert [layer.p for layer in layers] == [0.1, 0.2]
    assert list(module.state_dict()) == names
    assert module[0] is layers[0]
    assert module[1][2] is layers[0]
    assert isinstance(module[2], nn.Dropout2d)


def test_a_layer_used_twice_in_a_step_draws_two_masks():
    layer = started(0.5)
    first, second = layer(torch.ones(64)), layer(torch.ones(64))
    assert not torch.equal(first, second)
    layer.masks.start_step(0)
    assert torch.equal(layer(torch.ones(64)), first)

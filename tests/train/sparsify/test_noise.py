"""Noise from counters: standard normal to its tails, independent, the same however it is cut into pieces."""

from __future__ import annotations

import math

import pytest
import torch

from zoogen.core import streams
from zoogen.train.sparsify import noise as noise_module
from zoogen.train.sparsify.noise import Noise, NoiseStream, normal

KEY = streams.stream_key(3, "noise")
N = 2**20


def drawn(key=KEY, first: int = 0, count: int = N, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return normal(key, first, count, dtype, "cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_moments_are_those_of_the_normal_distribution(dtype):
    x = drawn(dtype=dtype)
    assert x.dtype == dtype
    x = x.double()
    # E x**k and the variance of x**k, which is E x**(2 k) - (E x**k)**2; five standard errors.
    for k, (expected, spread) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert (x**k).mean().item() == pytest.approx(expected, abs=5 * math.sqrt(spread / N)), k


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tails_are_those_of_the_normal_distribution(dtype):
    x = drawn(dtype=dtype).double()
    for at in (1.5, 2.5, 3.5, 4.25):  # no number lies between these and the nearest of bfloat16
        for sign in (-1, 1):
            # Half a unit of bfloat16 away, so that rounding moves nothing across.
            cut = at + at * 2.0**-9 * (dtype == torch.bfloat16)
            p = math.erfc(cut / math.sqrt(2)) / 2
            found = (sign * x > at).double().mean().item()
            assert found == pytest.approx(p, abs=5 * math.sqrt(p / N) + 0.01 * p), (at, sign)
    assert x.abs().max() < 6.8


def test_the_distribution_is_normal_everywhere():
    """Kolmogorov and Smirnov: sqrt(N) times the largest distance is above 1.95 once in a thousand samples."""
    uniform = torch.special.ndtr(drawn().sort().values)
    places = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    assert (uniform - places).abs().max().item() * math.sqrt(N) < 1.95


@pytest.mark.parametrize("power", [1, 2])
def test_neighbours_are_independent(power):
    """The two numbers of a pair share their radius: their squares would show it."""
    x = drawn() ** power
    x = (x - x.mean()) / x.std()
    for lag in (1, 2, 3, 4, 7, 64, 1000):
        assert abs((x[lag:] * x[:-lag]).mean().item()) < 5 / math.sqrt(N), lag
    pairs = x.view(-1, 2)
    assert abs((pairs[:, 0] * pairs[:, 1]).mean().item()) < 5 / math.sqrt(N / 2)


def test_steps_layers_models_and_dropouts_draws_are_independent():
    stream, other = streams.stream_key(3, "noise"), streams.stream_key(4, "noise")
    keys = [
        streams.subkey(stream, 0, 0), streams.subkey(stream, 1, 0), streams.subkey(stream, 0, 1),
        streams.subkey(other, 0, 0), streams.subkey(streams.stream_key(3, "dropout"), 0, 0),
    ]  # fmt: skip
    found = drawn(torch.tensor(keys)[:, None], count=2**18)
    between = torch.corrcoef(found) - torch.eye(5)
    assert between.abs().max().item() < 5 / math.sqrt(2**18)


def test_numbers_are_box_and_mullers_of_the_two_halves_of_a_draw():
    found = drawn(first=6, count=4).tolist()
    for counter, pair in ((3, found[:2]), (4, found[2:])):
        bits = int(streams.bits(KEY, torch.tensor(counter))) & (2**64 - 1)
        low, high = bits & 0xFFFFFFFF, bits >> 32
        uniform = ((low + 2**31) % 2**32) / 2**32  # a signed h gives h / 2**32 + 1/2
        radius, angle = math.sqrt(-2 * math.log(uniform)), 2 * math.pi * high / 2**32
        assert pair == pytest.approx([radius * math.cos(angle), radius * math.sin(angle)], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("first", "count"), [(0, 1), (1, 1), (0, 7), (1, 6), (3, 10), (8, 5), (19, 2), (4, 0)])
def test_a_window_is_a_part_of_the_whole(first, count, dtype):
    whole = drawn(count=40, dtype=dtype)
    assert torch.equal(drawn(first=first, count=count, dtype=dtype), whole[first : first + count])


def test_many_models_draw_with_keys_of_their_own():
    keys = [streams.stream_key(seed, "noise") for seed in range(4)]
    found = normal(torch.tensor(keys)[:, None], 5, 20, torch.float32, "cpu")
    assert found.shape == (4, 20)
    for row, key in zip(found, keys, strict=True):
        assert torch.equal(row, normal(key, 5, 20, torch.float32, "cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_the_wide_ones_rounded(dtype):
    assert torch.equal(drawn(count=1000, dtype=dtype), drawn(count=1000, dtype=torch.float32).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_rarest_draw_is_finite(monkeypatch, dtype):
    """A radius from a uniform number that is 0 counts as half the next one: sqrt(66 log 2)."""
    monkeypatch.setattr(noise_module.streams, "bits", lambda key, counters: torch.full_like(counters, 2**31))
    found = normal(1, 0, 2, dtype, "cpu").double()
    expected = torch.tensor([math.sqrt(66 * math.log(2)), 0.0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-6)


# Over the steps of a run


def test_a_layers_noise_goes_on_counting_within_a_step_and_begins_anew_in_the_next():
    layer = Noise()
    layer.prepare([5, 7])
    layer.start_step(1)
    whole = normal(7, 0, 12, torch.float64, "cpu")
    like = torch.zeros(1, dtype=torch.float64)
    assert torch.equal(layer.draw(like.expand(2, 2, 2)), whole[:8].view(2, 2, 2))
    assert torch.equal(layer.draw(like.expand(1, 4)), whole[8:].view(1, 4))
    layer.start_step(0)
    assert torch.equal(layer.draw(like.expand(3)), normal(5, 0, 3, torch.float64, "cpu"))


def test_numbers_lie_in_the_order_of_a_contiguous_output_however_it_lies_in_memory():
    layer = Noise()
    layer.prepare([5])
    images = torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.draw(images).flatten(), normal(5, 0, 120, torch.float32, "cpu"))


def test_a_stream_gives_each_layer_and_step_the_key_of_its_numbers():
    layers = [Noise(), Noise()]
    stream = NoiseStream(9, layers)
    like = torch.zeros(4)
    for first in (0, 30):
        stream.prepare(first, 3)
        for step in (first + 2, first):
            stream.start_step(step)
            for number, layer in enumerate(layers):
                key = streams.subkey(streams.stream_key(9, "noise"), step, number)
                assert torch.equal(layer.draw(like), normal(key, 0, 4, torch.float32, "cpu"))
    stream.prepare(0, 0)  # an epoch without steps

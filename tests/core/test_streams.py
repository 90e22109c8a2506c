"""Counter-based random numbers against an independent implementation in Python's unbounded integers."""

import pytest
import torch

from zoogen.core.streams import bits, permutation, stream_key, subkey, torch_seed, uniform

KEYS = [stream_key(seed, stream) for seed, stream in [(0, "init"), (1, "order"), (2**40, "dropout")]]
COUNTERS = [0, 1, 2, 1023, 2**31, 2**32 + 5, 2**62 + 12345]


def squares(key, counter):
    """Widynski 2020 (arXiv:2004.06278), squares64, written from the paper: unsigned 64-bit words."""
    word = 2**64

    def swap_halves(x):
        return (x // 2**32 + x % 2**32 * 2**32) % word

    y = key * counter % word
    z = (y + key) % word
    x = swap_halves((y * y + y) % word)
    x = swap_halves((x * x + z) % word)
    x = swap_halves((x * x + y) % word)
    fourth = (x * x + z) % word
    x = swap_halves(fourth)
    return fourth ^ ((x * x + y) % word // 2**32)


def unsigned(tensor):
    return [value % 2**64 for value in tensor.tolist()]


@pytest.mark.parametrize("key", KEYS)
def test_bits_are_those_of_the_squares_function(key):
    assert unsigned(bits(key, torch.tensor(COUNTERS))) == [squares(key, counter) for counter in COUNTERS]


def test_a_tensor_of_keys_gives_what_each_key_gives_alone():
    counters_N = torch.arange(50)
    keys_M = torch.tensor(KEYS)
    together_MN = bits(keys_M[:, None], counters_N)
    assert torch.equal(together_MN, torch.stack([bits(key, counters_N) for key in KEYS]))
    assert subkey(keys_M, 7, 2).tolist() == [subkey(key, 7, 2) for key in KEYS]
    uniform_MN = uniform(subkey(keys_M, 7, 2)[:, None], counters_N)
    assert torch.equal(uniform_MN, torch.stack([uniform(subkey(key, 7, 2), counters_N) for key in KEYS]))


def test_a_tensor_of_steps_gives_the_keys_of_each_step_alone():
    steps_S = torch.tensor([0, 1, 7, 70_000])
    keys_M = torch.tensor(KEYS)
    together_MS = subkey(keys_M[:, None], steps_S, 2)
    assert together_MS.tolist() == [[subkey(key, step, 2) for step in steps_S.tolist()] for key in KEYS]
    assert subkey(KEYS[0], steps_S, 2).tolist() == together_MS[0].tolist()
    assert subkey(keys_M, steps_S[:3]).tolist() == [subkey(k, s) for k, s in zip(KEYS, (0, 1, 7), strict=True)]


def test_a_draw_depends_on_its_counter_and_not_on_its_neighbours():
    counters_N = torch.arange(1000)
    order_N = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bits(KEYS[0], counters_N)[order_N], bits(KEYS[0], order_N))


def test_stream_keys_are_odd_positive_and_apart():
    keys = [stream_key(seed, stream) for seed in range(500) for stream in ("init", "order", "augment", "dropout")]
    assert len(set(keys)) == 2000
    assert all(key % 2 == 1 and 0 < key < 2**63 for key in keys)


def test_steps_and_layers_have_their_own_keys():
    found = [subkey(KEYS[0], step, layer) for step in range(200) for layer in range(10)]
    assert len(set(found)) == 2000
    assert all(key % 2 == 1 and 0 < key < 2**63 for key in found)
    assert not set(found) & {subkey(KEYS[1], step, layer) for step in range(200) for layer in range(10)}


@pytest.mark.parametrize("key", KEYS)
def test_uniform_draws_have_the_moments_of_the_uniform_distribution(key):
    n = 200_000
    u_N = uniform(key, torch.arange(n))
    assert u_N.dtype == torch.float32
    assert u_N.min() >= 0
    assert u_N.max() < 1
    assert torch.equal(u_N * 2**24, (u_N * 2**24).round())
    u_N = u_N.double()
    # Five standard errors: var(u) = 1/12, var((u - 1/2)^2) = 1/180, var of a product of independent neighbours = 1/144.
    assert u_N.mean().item() == pytest.approx(1 / 2, abs=5 * (1 / 12 / n) ** 0.5)
    assert ((u_N - 0.5) ** 2).mean().item() == pytest.approx(1 / 12, abs=5 * (1 / 180 / n) ** 0.5)
    neighbours = ((u_N[1:] - 0.5) * (u_N[:-1] - 0.5)).mean().item()
    assert neighbours == pytest.approx(0, abs=5 * (1 / 144 / n) ** 0.5)


def test_draws_of_neighbouring_steps_are_uncorrelated():
    n = 1000
    u_TN = torch.stack([uniform(subkey(KEYS[0], step), torch.arange(n)) for step in range(100)]).double() - 0.5
    products = (u_TN[1:] * u_TN[:-1]).mean().item()
    assert products == pytest.approx(0, abs=5 * (1 / 144 / (99 * n)) ** 0.5)  # five standard errors


@pytest.mark.parametrize("n", [0, 1, 2, 1797])
def test_a_permutation_has_every_index_once(n):
    assert permutation(KEYS[0], n).sort().values.tolist() == list(range(n))


def test_permutations_depend_on_the_key_and_on_nothing_else():
    torch.manual_seed(0)
    first = permutation(KEYS[0], 1797)
    torch.manual_seed(1)
    assert torch.equal(permutation(KEYS[0], 1797), first)
    # Two independent orders agree in one place on average; more than 20 has probability below 1e-18.
    assert (permutation(KEYS[1], 1797) == first).sum() <= 20


def test_a_permutation_ranks_the_draws():
    expected = sorted(range(300), key=lambda i: squares(KEYS[0], i) - 2**64 * (squares(KEYS[0], i) >= 2**63))
    assert permutation(KEYS[0], 300).tolist() == expected


def test_all_orders_of_four_are_equally_likely():
    n = 12_000
    counts = {}
    for step in range(n):
        order = tuple(permutation(subkey(KEYS[0], step), 4).tolist())
        counts[order] = counts.get(order, 0) + 1
    chi_square = sum((count - n / 24) ** 2 / (n / 24) for count in counts.values())
    assert len(counts) == 24
    assert chi_square < 56  # 23 degrees of freedom: exceeded with probability 1.4e-4


def test_seeds_below_2_to_the_32_never_share_the_start_of_torch_s_generator():
    def first_draw(seed):
        return torch.rand(4, generator=torch.Generator().manual_seed(torch_seed(seed))).tolist()

    # 5 and 2**32 + 5 are the same seed to torch's generator.
    assert first_draw(5) != first_draw(2**32 + 5)
    assert first_draw(5) == torch.rand(4, generator=torch.Generator().manual_seed(5)).tolist()
    assert all(0 <= torch_seed(seed) < 2**32 for seed in (0, 2**32 - 1, 2**32, 2**63, -1))
    assert len({torch_seed(seed) for seed in (*range(2**32 - 500, 2**32 + 500), *range(500))}) == 1500

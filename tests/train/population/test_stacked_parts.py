"""The parts of the stacked engine one by one: leaving ``vmap``, memory order, equal maxima, masks, recorded steps."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn import functional

from zoogen.core import streams
from zoogen.train.dropout import keep_mask
from zoogen.train.population.stacked import epoch
from zoogen.train.population.stacked.crossing import on_stack
from zoogen.train.population.stacked.dropout import Draws, Masks, thresholds_and_scales
from zoogen.train.population.stacked.graph import Replayed
from zoogen.train.population.stacked.memory import merged
from zoogen.train.population.stacked.pooling import MaxPool
from zoogen.train.population.steps import epoch_orders


def test_a_function_on_the_stack_sees_all_models_and_autograd_sees_the_function():
    seen = []

    def function(x, missing, shared):
        seen.append((tuple(x.shape), missing, tuple(shared.shape)))
        return x * torch.arange(1.0, 4.0)[:, None] * shared, x.sum(1)

    x = torch.randn(2, 3, requires_grad=True)  # models on the second axis
    shared = torch.tensor([10.0, 20.0])
    product, sums = vmap(lambda one: on_stack(function, one, None, shared), in_dims=1)(x)
    assert seen == [((3, 2), None, (1, 2))]
    torch.testing.assert_close(product, x.T * torch.tensor([[10.0, 20.0], [20.0, 40.0], [30.0, 60.0]]))
    assert torch.equal(sums, x.sum(0))
    product.sum().backward()
    assert torch.equal(x.grad.T, torch.tensor([[10.0, 20.0], [20.0, 40.0], [30.0, 60.0]]))


def test_a_function_on_what_all_models_share_is_shared():
    found = vmap(lambda one: one + on_stack(lambda x: 2 * x, torch.ones(3)))(torch.zeros(4, 3))
    assert torch.equal(found, torch.full((4, 3), 2.0))


def test_a_random_layer_cannot_act_on_what_all_models_share():
    with pytest.raises(RuntimeError, match="same for all"):
        vmap(lambda one: one + on_stack(lambda x: x * torch.ones(4, 1), torch.ones(3)))(torch.zeros(4, 3))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 0, 1)])
def test_leading_axes_are_merged_without_a_copy_in_any_order(order):
    base = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    stacked = base.permute(*order, 3)
    flat, unmerge = merged(stacked, 3)
    assert flat.shape == (24, 5)
    assert flat.data_ptr() == base.data_ptr()
    assert torch.equal(unmerge(flat * 2), stacked * 2)
    assert torch.equal(unmerge(flat.sum(1)), stacked.sum(3))


POOLS = [
    MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False),
    MaxPool((3, 2), (1, 2), (1, 0), (1, 1), False),
    MaxPool((3, 3), (2, 2), (1, 1), (1, 1), True),
    MaxPool((2, 2), (3, 2), (1, 1), (2, 1), True),
    MaxPool((1, 4), (1, 4), (0, 2), (1, 1), True),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("side", [6, 7, 9])
def test_the_gradient_of_equal_maxima_goes_to_the_one_torch_takes(pool, side):
    rng = torch.Generator().manual_seed(side)
    x = torch.randint(0, 3, (2, 3, 4, side, side), generator=rng).double().requires_grad_()
    expected = functional.max_pool2d(
        x.flatten(0, 1), pool.kernel, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
    )
    found = pool("slices", x)
    assert torch.equal(found.flatten(0, 1), expected)
    weights = torch.randn(expected.shape, generator=rng, dtype=torch.float64)
    (ours,) = torch.autograd.grad(found.flatten(0, 1), x, weights)
    (theirs,) = torch.autograd.grad(expected, x, weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)  # overlapping windows add up in another order


def test_masks_are_those_of_keep_mask_model_by_model_and_go_on_counting():
    rates = (0.3, 0.0, 0.9)
    keys = torch.tensor([streams.stream_key(seed, "dropout") for seed in range(3)])[:, None]
    masks = Masks()
    masks.start_step({1: Draws(keys, *thresholds_and_scales(rates))})
    uses = [(1, 5), (3, 4), (2, 7)]  # odd numbers of elements: the next use begins in the middle of a draw
    found = [vmap(lambda x: masks(1, x))(torch.ones(3, *use, dtype=torch.float64)) for use in uses]
    expected = torch.ones(3, 31, dtype=torch.float64)
    for m, rate in enumerate(rates):
        if rate:
            expected[m] = keep_mask(int(keys[m]), 0, 31, rate, "cpu").double() / (1 - rate)
    torch.testing.assert_close(torch.cat([f.flatten(1) for f in found], 1), expected, rtol=1e-15, atol=0)
    untouched = torch.randn(3, 4)
    assert torch.equal(vmap(lambda x: masks(0, x))(untouched), untouched)


def test_orders_are_those_of_every_trainer(oracle, monkeypatch):
    monkeypatch.setattr(epoch, "_SORTED_AT_ONCE", 2)
    jobs = oracle.jobs(nn.Identity, [None] * 5)
    found = epoch.orders(jobs, 7, 101, torch.device("cpu"))
    assert torch.equal(found, epoch_orders(jobs, 7, 101))
    assert len(found.unique(dim=0)) == 5


class Device:
    """Stands for CUDA: says what is run, recorded and replayed, in order."""

    def __init__(self, monkeypatch, failure=None):
        self.told = []
        self.recording = False
        device = self

        class Graph:
            def replay(self):
                device.told.append("replay")

        class Stream:
            def __init__(self, *_):
                pass

            def wait_stream(self, other):
                device.told.append("wait")

        @contextmanager
        def graph(_):
            device.recording = True
            try:
                yield
            finally:
                device.recording = False
                if failure:
                    raise failure

        @contextmanager
        def stream(_):
            yield

        for name, stand_in in {
            "CUDAGraph": Graph, "Stream": Stream, "graph": graph, "stream": stream, "current_stream": Stream
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def run(self):
        self.told.append("record" if self.recording else "run")


def test_on_a_gpu_a_function_is_recorded_after_warming_up_and_replayed_from_then_on(monkeypatch):
    device = Device(monkeypatch)
    replayed = Replayed(device.run, torch.device("cuda"))
    for _ in range(6):
        replayed()
    assert device.told == ["wait", "run", "wait"] * 3 + ["record", "replay", "replay", "replay"]


def test_out_of_memory_while_recording_stays_out_of_memory(monkeypatch):
    device = Device(monkeypatch, failure=RuntimeError("operation failed due to a previous error during capture"))

    def run():
        if device.recording:
            raise torch.OutOfMemoryError("no room")

    replayed = Replayed(run, torch.device("cuda"))
    for _ in range(3):
        replayed()
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        replayed()


def test_elsewhere_a_function_is_simply_called():
    calls = []
    replayed = Replayed(lambda: calls.append(1), torch.device("cpu"))
    for _ in range(5):
        replayed()
    assert len(calls) == 5

"""Streams of batches: every state once, the same for every number of workers, resumable, in whatever process."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
import threading
from copy import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

import zoogen
from zoogen.core.errors import IntegrityError, UserError
from zoogen.dataset.reading import Reading
from zoogen.dataset.shards import ModelNumbers, States
from zoogen.dataset.windows import Order
from zoogen.store.stack_file import StackFile


@pytest.fixture(scope="module", autouse=True)
def failed_workers_are_not_waited_for():
    """torch waits 5 s for each worker that raised an error, when the data loader is collected: in any later test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
        yield
        gc.collect()


def keys(batches):
    """(model, epoch) of every state, in order, from metadata."""
    return [
        key for _, about in batches for key in zip(about["model_id"], about["epoch"].tolist(), strict=True)
    ]  # fmt: skip


def same(one, other):
    assert len(one) == len(other) > 0
    for (w, a), (v, b) in zip(one, other, strict=True):
        assert torch.equal(w, v)
        assert all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


@pytest.mark.parametrize("drop_last", [False, True])
def test_without_shuffling_it_is_the_selection_in_order(zoo, small_zoo, stored_rows, drop_last):
    selection = zoo.select("lr < 1")
    batches = list(selection.stream(5, "test_acc", drop_last=drop_last))
    whole = stored_rows(small_zoo, selection.checkpoints)
    length = len(whole) // 5 * 5 if drop_last else len(whole)
    assert length < len(whole) or not drop_last
    assert np.array_equal(torch.cat([w for w, _ in batches]), whole[:length])
    expected = selection.checkpoints["test_acc"].to_numpy(np.float32)[:length]
    assert np.array_equal(torch.cat([t for _, t in batches]), expected)
    assert len(selection.stream(5, drop_last=drop_last)) == len(batches)


@pytest.mark.parametrize("buffer", [None, 4, 12])
def test_shuffled_every_state_comes_once_with_its_own_weights(zoo, small_zoo, stored_rows, buffer):
    selection = zoo.select()
    stream = selection.stream(4, shuffle=True, seed=3, buffer=buffer)
    table = selection.checkpoints.set_index(["model_id", "epoch"], drop=False)
    orders = []
    for _ in range(2):
        batches = list(stream)
        found = keys(batches)
        assert sorted(found) == sorted(table.index.tolist())
        assert np.array_equal(torch.cat([w for w, _ in batches]), stored_rows(small_zoo, table.loc[found]))
        orders.append(found)
    assert orders[0] != orders[1] != table.index.tolist()
    again = selection.stream(4, shuffle=True, seed=3, buffer=buffer)
    again.set_epoch(1)
    assert keys(again) == orders[1]
    assert keys(selection.stream(4, shuffle=True, seed=4, buffer=buffer)) not in orders


def synthetic(n_shards=7, rows=3000):
    shard, row = np.repeat(np.arange(n_shards), rows), np.tile(np.arange(rows), n_shards)
    nothing = np.zeros(len(row), int)
    numbers = ModelNumbers(np.array(["m"], object))
    return States("x", tuple(f"s{i}" for i in range(n_shards)), shard, row, nothing, nothing, numbers)


def test_a_shuffled_order_reads_blocks_and_mixes_well():
    states = synthetic()
    order = Order(states, 2464, 64, True, 0, 4096, False)
    taken = np.concatenate(list(order.epoch(0)))
    assert np.array_equal(np.sort(taken), np.arange(len(states)))
    # Windows read few pieces: a block of 1.3 MB has 128 states of 2,464 floats; its ends at window borders are cut.
    for number in range(-(-order.batches // order.batches_per_window)):
        places = order.places(0, number)
        pieces = 1 + np.count_nonzero(np.diff(places) != 1)
        assert pieces <= len(places) / 128 * 1.1 + 2
    # Uniformly random permutations move a state by a third of the length on average; blocks of 128 in 21,000 states
    # leave the average of 164 independent blocks: standard error about 0.236 / sqrt(164) = 0.018.
    n = len(states)
    moved = np.abs(taken - np.arange(n)).mean() / n
    assert moved == pytest.approx(1 / 3, abs=4 * 0.018)
    # A batch of 64 draws from the 32 blocks of its window: 32 (1 - (1 - 1/32)^64) = 28 different ones are expected.
    different = [len(np.unique(taken[i : i + 64] // 128)) for i in range(0, n - 64, 64)]
    assert np.mean(different) > 22
    assert not np.array_equal(taken, np.concatenate(list(order.epoch(1))))


def test_a_buffer_that_holds_everything_shuffles_states_one_by_one():
    states = synthetic(2, 200)
    order = Order(states, 10, 8, True, 1, None, False)
    positions = np.stack([np.argsort(np.concatenate(list(order.epoch(e)))) for e in range(300)])
    # Place 0 of a uniform order is each state equally often: mean 199.5, standard error 115.5 / sqrt(300) = 6.7.
    assert positions[:, 0].mean() == pytest.approx(199.5, abs=4 * 6.7)
    # Neighbours in the file are no neighbours in the order: |difference| of a uniform pair is 133 on average.
    assert np.abs(positions[:, 0] - positions[:, 1]).mean() == pytest.approx(133.5, abs=4 * 94 / 300**0.5)


@pytest.mark.parametrize("workers", [1, 2])
def test_forked_workers_give_the_same_batches_in_the_same_order(zoo, workers):
    selection = zoo.select()
    alone = list(selection.stream(3, shuffle=True, buffer=9))
    stream = selection.stream(3, shuffle=True, buffer=9)
    next(iter(stream))  # files open in this process must not disturb the workers
    loader = DataLoader(stream, batch_size=None, num_workers=workers, multiprocessing_context="fork")
    assert len(loader) == len(alone)
    same(list(loader), alone)


@pytest.mark.parametrize("kind", ["stream", "dataset"])
def test_spawned_workers_give_the_same(zoo, kind):
    selection = zoo.select("lr < 1")
    normaliser = selection.normaliser()
    weights = selection.weights(normaliser=normaliser)
    if kind == "stream":
        source = selection.stream(7, "activation", normaliser=normaliser)
        next(iter(source))
        loader = DataLoader(source, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    else:
        source = selection.dataset("activation", normaliser=normaliser)
        source[0]
        loader = DataLoader(source, batch_size=7, num_workers=1, multiprocessing_context="spawn")
    batches = list(loader)
    assert np.array_equal(torch.cat([w for w, _ in batches]), weights)
    labels = [source.classes[t] for _, codes in batches for t in codes.tolist()]
    assert labels == selection.joined("activation")["architecture.activation"].tolist()


def test_it_goes_on_where_it_was_stopped_also_twice(zoo):
    def make():
        return zoo.select().stream(3, shuffle=True, seed=1, buffer=9)

    stream = make()
    whole = [list(stream) for _ in range(3)]
    assert keys(whole[0]) != keys(whole[1])

    first = make()
    list(first)
    given = []
    for batch in first:  # in the second epoch
        given.append(batch)
        if len(given) == 4:
            break
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["epoch"], state["batch"]) == (1, 4)

    second = make()
    second.load_state_dict(state)
    assert second.state_dict() == state
    for batch in second:
        given.append(batch)
        if len(given) == 6:
            break
    third = make()
    third.load_state_dict(second.state_dict())
    given += list(third)
    same(given, whole[1])
    same(list(third), whole[2])  # the epoch after it is whole


@pytest.mark.parametrize("workers", [1, 2])
def test_with_workers_the_count_of_given_batches_is_enough(zoo, workers):
    def make():
        return zoo.select().stream(3, shuffle=True, seed=1, buffer=9)

    whole = list(make())
    stream = make()
    stream.load_state_dict({**stream.state_dict(), "batch": 5})
    same(list(DataLoader(stream, batch_size=None, num_workers=workers)), whole[5:])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_loop_that_sets_its_epochs_goes_on_within_one(zoo, workers):
    def make():
        return zoo.select().stream(3, shuffle=True, seed=1, buffer=9)

    plain = make()
    whole = [list(plain) for _ in range(3)]

    def train(saved, stop):
        """The loop of the page "Open a zoo", until ``stop`` batches are given."""
        stream, given = make(), []
        loader = DataLoader(stream, batch_size=None, num_workers=workers)
        stream.load_state_dict(saved)
        begin = saved["batch"]
        for epoch in range(saved["epoch"], 3):
            stream.set_epoch(epoch)
            for count, batch in enumerate(loader, begin + 1):
                given.append(batch)
                if len(given) == stop:
                    return given, {**saved, "epoch": epoch, "batch": count}
            begin = 0
        return given, saved

    first, saved = train(make().state_dict(), len(whole[0]) + 4)
    assert (saved["epoch"], saved["batch"]) == (1, 4)
    second, _ = train(saved, None)
    same(first + second, whole[0] + whole[1] + whole[2])


def test_setting_an_epoch_starts_it_once_the_loaded_position_was_used(zoo):
    stream = zoo.select().stream(6, shuffle=True)
    whole = list(stream)
    for again in (0, 1):
        stream.load_state_dict({**stream.state_dict(), "epoch": 0, "batch": 2})
        if again:
            next(iter(stream))
        else:
            stream.set_epoch(1)
        stream.set_epoch(0)
        same(list(stream), whole)


def test_an_epoch_left_early_begins_anew_and_a_finished_one_is_over(zoo):
    stream = zoo.select().stream(6, shuffle=True)
    first = next(iter(stream))
    same([next(iter(stream))], [first])
    for batch in stream:
        last = batch
    assert stream.state_dict()["epoch"] == 1
    stream = zoo.select().stream(6, shuffle=True)
    given = []
    for batch in stream:
        given.append(batch)
        state = stream.state_dict()  # after the last batch, before the end of the epoch is seen
    same(given[-1:], [last])
    again = zoo.select().stream(6, shuffle=True)
    again.load_state_dict(state)
    assert list(again) == []
    assert again.state_dict()["epoch"] == 1


def test_a_state_of_another_iteration_is_refused(zoo):
    state = zoo.select().stream(3, shuffle=True).state_dict()
    for other in (
        zoo.select("lr < 1").stream(3, shuffle=True),
        zoo.select().stream(4, shuffle=True),
        zoo.select().stream(3, shuffle=True, seed=1),
        zoo.select().stream(3),
    ):
        with pytest.raises(UserError, match="another iteration"):
            other.load_state_dict(state)
    for wrong in ({}, {**state, "batch": 10_000}, {**state, "epoch": -1}, {**state, "batch": "1"}):
        with pytest.raises(UserError, match="no state of an iteration"):
            zoo.select().stream(3, shuffle=True).load_state_dict(wrong)


def test_batches_go_to_the_device(zoo):
    """The meta device is one that every machine has."""
    weights, accuracy = next(iter(zoo.select().stream(3, "test_acc", device="meta")))
    assert weights.device.type == accuracy.device.type == "meta"
    _, about = next(iter(zoo.select().stream(3, device="meta")))
    assert about["epoch"].device.type == "meta"
    loader = DataLoader(zoo.select().stream(3, device="meta"), batch_size=None, num_workers=1)
    with pytest.raises(UserError, match="num_workers=0"):
        list(loader)


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_on_the_cpu(zoo):
    on_gpu = list(zoo.select().stream(3, "test_acc", shuffle=True, device="cuda"))
    for (w, t), (v, u) in zip(on_gpu, zoo.select().stream(3, "test_acc", shuffle=True), strict=True):
        assert w.is_cuda
        assert t.is_cuda
        assert torch.equal(w.cpu(), v)
        assert torch.equal(t.cpu(), u)


def test_types_and_tensors_are_those_of_weights(zoo):
    selection = zoo.select()
    stream = selection.stream(5, columns="bias", dtype="bfloat16")
    assert stream.parameters == 18
    assert torch.equal(torch.cat([w for w, _ in stream]), selection.weights("bias", dtype="bfloat16"))


def test_metadata_of_a_batch_are_what_torch_collates_from_single_states(zoo):
    selection = zoo.select("lr < 1")
    dataset = selection.dataset()
    for number, (_, about) in enumerate(selection.stream(6)):
        places = range(6 * number, min(6 * number + 6, len(dataset)))
        expected = default_collate([dataset[place][1] for place in places])
        assert about.keys() == expected.keys()
        for name, values in expected.items():
            if isinstance(values, torch.Tensor):
                assert about[name].dtype == values.dtype
                assert torch.equal(about[name], values)
            else:
                assert about[name] == values


@pytest.mark.parametrize("kind", ["category", "str"])
def test_a_text_factor_that_some_models_lack_is_empty_there(zoo, kind):
    """As the kind of schedule's end where some models have no schedule."""
    own = ["tanh", None, "relu"] * 4
    zoo.tables.models["architecture.activation"] = pd.Series(own, dtype="str").astype(kind)
    expected = dict(zip(zoo.models["model_id"], ["tanh", "", "relu"] * 4, strict=True))
    selection = zoo.select()
    for batches in (DataLoader(selection.dataset(), batch_size=7), selection.stream(7)):
        found = {}
        for _, about in batches:
            found |= dict(zip(about["model_id"], about["architecture.activation"], strict=True))
        assert found == expected


def test_training_and_test_models_count_the_same_classes(zoo):
    relu = zoo.select(activation="relu").stream(100, "activation")
    assert relu.classes == ("relu", "tanh")
    assert next(iter(relu))[1].unique().tolist() == [0]
    tanh = zoo.select(activation="tanh").dataset("activation")
    assert tanh.classes == ("relu", "tanh")
    assert {int(t) for _, t in (tanh[i] for i in range(len(tanh)))} == {1}


def test_a_pickled_stream_leaves_its_window_behind(zoo):
    stream = zoo.select().stream(3, "test_acc")
    next(iter(stream))
    assert stream._windows.in_use is not None
    copy = pickle.loads(pickle.dumps(stream))
    assert copy._windows.in_use is None
    assert torch.equal(next(iter(copy))[0], next(iter(stream))[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shuffle", "windows"), [(True, 2), (False, 3)])
def test_memory_is_that_of_few_windows_and_no_batch_changes_later(zoo, monkeypatch, dtype, shuffle, windows):
    """In order, the batch in use is part of its window while the next window is taken and the one after is read."""
    made, original = [], Reading.memory
    monkeypatch.setattr(Reading, "memory", lambda self, states: made.append(states) or original(self, states))
    stream = zoo.select().stream(3, dtype=dtype, shuffle=shuffle, buffer=9)
    given = [w.clone() for w, _ in stream]
    assert len(given) >= 12
    assert made == [9] * windows
    stream.set_epoch(0)
    kept = [w for w, _ in stream]  # all of them at once: no memory is used again
    assert all(torch.equal(w, v) for w, v in zip(kept, given, strict=True))


def test_the_thread_of_a_stream_ends_with_it(zoo):
    def reading():
        return [t for t in threading.enumerate() if t.name.startswith("zoogen-window")]

    gc.collect()
    before = set(reading())
    stream = zoo.select().stream(3, shuffle=True, buffer=9)
    next(iter(stream))
    (thread,) = set(reading()) - before
    del stream
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stream_that_gives_its_memory_back_goes_on_as_before(zoo, dtype):
    stream = zoo.select().stream(3, dtype=dtype, shuffle=True, buffer=9)
    whole = list(stream)
    stream.set_epoch(0)
    stream.release()
    assert stream.held == 0
    given = []
    for batch in stream:
        given.append(batch)
        if len(given) < len(stream) - 6:  # two windows of nine states
            assert stream.held == 2 * 9 * stream.parameters * (4 if dtype == "float32" else 2)
        if len(given) % 4 == 0:
            stream.release()
            assert stream.held == 0
    same(given, whole)


def test_the_next_window_is_read_while_one_is_used_and_no_other(zoo, monkeypatch):
    stream = zoo.select().stream(3, shuffle=True, buffer=9)
    asked, original = [], type(stream._windows)._read

    def listening(self, key, memory):
        asked.append((key, threading.current_thread() is threading.main_thread()))
        return original(self, key, memory)

    monkeypatch.setattr(type(stream._windows), "_read", listening)
    list(stream)
    windows = -(-len(zoo.select()) // 9)
    assert asked == [((0, number), number == 0) for number in range(windows)]


def test_a_copy_reads_by_itself_while_the_first_goes_on(zoo):
    """As in a mixture, which copies streams: their threads must not share open files."""
    stream = zoo.select().stream(3, shuffle=True, buffer=6)
    whole = list(stream)
    stream.set_epoch(0)
    twin = copy(stream)
    assert twin._windows._shards is not stream._windows._shards
    both = list(zip(stream, twin, strict=True))
    same([one for one, _ in both], whole)
    same([other for _, other in both], whole)


def test_files_beyond_the_most_that_stay_open_are_opened_again(zoo, monkeypatch):
    stream = zoo.select().stream(3, shuffle=True, buffer=9)
    whole = [*stream, *stream]
    opened, closed, original, closing = set(), [], StackFile._opened, StackFile.close

    def opening(self):
        found = original(self)
        opened.add(self)
        assert len(opened) <= 2, "one that is kept, and a new one before the other goes"
        return found

    def close(self):
        opened.discard(self)
        closed.append(self)
        closing(self)

    monkeypatch.setattr("zoogen.dataset.shards._MOST_OPEN", 1)
    monkeypatch.setattr(StackFile, "_opened", opening)
    monkeypatch.setattr(StackFile, "close", close)
    stream = zoo.select().stream(3, shuffle=True, buffer=9)
    same([*stream, *stream], whole)
    assert len(closed) > len(set(closed)), "some file was closed more than once, so it was opened again"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_damaged_in_the_middle_is_named_and_nothing_wrong_is_given(small_zoo, tmp_path, workers):
    copy = shutil.copytree(small_zoo, tmp_path / "zoo")
    zoo = zoogen.open(copy)
    selection = zoo.select()
    whole = selection.weights()
    shards = selection.checkpoints["shard_id"]
    damaged = shards.unique()[-1]
    first = int(np.flatnonzero(shards == damaged)[0])
    assert 0 < first < len(whole)
    file = copy / "shards" / damaged / "weights.h5"
    data = bytearray(file.read_bytes())
    data[data.index(whole[first].tobytes())] ^= 1
    file.write_bytes(data)
    stream = zoogen.open(copy).select().stream(2, "test_acc", buffer=2)
    given = []
    with pytest.raises(IntegrityError, match=damaged):  # noqa: PT012
        for weights, _ in DataLoader(stream, batch_size=None, num_workers=workers):
            given.append(weights)
    assert np.array_equal(torch.cat(given), whole[: 2 * len(given)])
    assert first - 2 < 2 * len(given) <= first


def test_what_makes_no_stream_says_why(zoo):
    with pytest.raises(UserError, match="empty"):
        zoo.select("test_acc > 2").stream()
    with pytest.raises(UserError, match="at least one state"):
        zoo.select().stream(0)
    with pytest.raises(UserError, match="do not fill a batch"):
        zoo.select(epochs=0).stream(1000, drop_last=True)
    with pytest.raises(UserError, match="test_acc"):
        zoo.select().stream(4, "test_ac")
    with pytest.raises(UserError, match="unknown device"):
        zoo.select().stream(4, device="gpu")


@pytest.mark.parametrize("index", [slice(0, 3), [0, 1], "0", 1.0], ids=str)
def test_a_state_of_a_dataset_is_taken_by_its_number(zoo, index):
    dataset = zoo.select().dataset("test_acc")
    assert torch.equal(dataset[np.int64(-1)][0], dataset[len(dataset) - 1][0])
    with pytest.raises(UserError, match="by its number"):
        dataset[index]

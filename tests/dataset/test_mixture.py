"""Several zoos in one stream: shares, layouts, order and resumption."""

from __future__ import annotations

import pickle
import weakref
from collections import Counter
from copy import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import zoogen
from zoogen.core.errors import UserError
from zoogen.dataset.mixture import MixedBatch
from zoogen.dataset.reading import Reading


@pytest.fixture
def zoos(small_zoo, mixed_zoo):
    return zoogen.open(small_zoo), zoogen.open(mixed_zoo)


def test_each_batch_is_of_one_source_and_one_layout(zoos):
    small, mixed = zoos
    for batch in zoogen.mix({small: 1, mixed: 1}, batch=3, batches=60):
        assert isinstance(batch, MixedBatch)
        zoo = zoos[batch.source]
        assert batch.weights.shape[1] == zoo.layout(batch.layout_id).parameters
        for row, model, epoch in zip(batch.weights, batch.target["model_id"], batch.target["epoch"], strict=True):
            state = zoo.state_dict(model, int(epoch))
            assert torch.equal(row, torch.cat([t.ravel() for t in state.values()]))


def test_sources_come_in_the_shares_asked_for(zoos):
    small, mixed = zoos
    n = 4000
    stream = zoogen.mix({small.select(epochs=3): 3, mixed: 1}, batch=4, target="test_acc", batches=n)
    picked = np.array([stream._sources[part] for part in stream._picked(0)])
    # Binomial with p = 3/4: standard error sqrt(.75 * .25 / 4000) = 0.0068.
    assert (picked == 0).mean() == pytest.approx(0.75, abs=4 * 0.0068)
    found = Counter(b.source for b, _ in zip(stream, range(200), strict=False))
    assert found == Counter(picked[:200].tolist())


def test_every_state_of_a_source_comes_before_any_comes_again(zoos):
    small, mixed = zoos
    own = mixed.select(hidden="[4]")
    stream = zoogen.mix({small: 1, own: 2}, batch=4, batches=40)
    found = [
        key
        for b in stream
        if b.source == 1
        for key in zip(b.target["model_id"], b.target["epoch"].tolist(), strict=True)
    ]
    rounds = [found[i : i + len(own)] for i in range(0, len(found) - len(own), len(own))]
    everything = set(zip(own.checkpoints.model_id, own.checkpoints.epoch, strict=True))
    assert len(rounds) > 2
    assert all(set(r) == everything for r in rounds)
    assert rounds[0] != rounds[1]


def test_every_state_of_a_source_is_equally_frequent_whatever_its_layout(zoos):
    """One layout fills a batch and more, the other a quarter of one."""
    mixed = zoos[1]
    one = mixed.select(hidden="[6]").models["model_id"][0]
    source = mixed.select(f"hidden == '[4]' or model_id == '{one}'")
    assert [len(part) for part in source.by_layout()] in ([8, 2], [2, 8])
    n = 600
    found = Counter()
    for batch in zoogen.mix({source: 1}, batch=5, batches=n):
        found.update(zip(batch.target["model_id"], batch.target["epoch"].tolist(), strict=True))
    assert len(found) == len(source)
    # A pass takes 2 + 1 batches, so each state comes n / 3 = 200 times on average; the 200 of the small layout are
    # binomial, with standard error sqrt(600 / 3 * 2 / 3) = 11.5; the large one's are half the rest of the batches.
    for key, count in found.items():
        assert count == pytest.approx(n / 3, abs=4 * 11.5), key


def same(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert (a.source, a.layout_id) == (b.source, b.layout_id)
        assert torch.equal(a.weights, b.weights)
        assert torch.equal(a.target, b.target)


def make(zoos, **options):
    return zoogen.mix({zoos[0]: 0.3, zoos[1]: 0.7}, batch=5, target="test_acc", seed=2, **options)


def test_it_is_deterministic_and_resumes_twice_in_an_epoch(zoos):
    stream = make(zoos)
    whole = [list(stream) for _ in range(3)]
    assert len(whole[0]) == len(stream)
    assert [b.source for b in whole[0]] != [b.source for b in whole[1]]
    given = []
    state = {**make(zoos).state_dict(), "epoch": 1}
    for stop in (3, 7, len(stream)):
        part = make(zoos)
        part.load_state_dict(state)
        for batch in part:
            given.append(batch)
            if len(given) == stop:
                break
        state = part.state_dict()
    same(given, whole[1])
    with pytest.raises(UserError, match="another iteration"):
        zoogen.mix({zoos[0]: 0.4, zoos[1]: 0.6}, batch=5, target="test_acc", seed=2).load_state_dict(state)


def test_memory_does_not_grow_with_the_number_of_sources_and_batches_stay_the_same(small_zoo, monkeypatch):
    """Every array that a window is read into is watched until it is freed."""
    alive: dict[int, int] = {}
    memory = Reading.memory

    def watched(self, states):
        made = memory(self, states)
        alive[id(made)] = made.nbytes
        weakref.finalize(made, alive.pop, id(made))
        return made

    monkeypatch.setattr(Reading, "memory", watched)
    part = 610 * 4 * len(zoogen.open(small_zoo).select())  # bytes of the window of a source

    def run(number):
        mixture = zoogen.mix({zoogen.open(small_zoo): 1 for _ in range(number)}, batch=9, target="test_acc", batches=60)
        given, most = [], 0
        for batch in mixture:
            given.append(batch)
            most = max(most, sum(alive.values()))
        assert len({batch.source for batch in given}) == number
        return given, most

    whole, most = run(8)
    assert most == 8 * part
    monkeypatch.setattr("zoogen.dataset.mixture._MOST_BYTES", int(3.5 * part))
    for number in (4, 8):
        bounded, most = run(number)
        assert most == 3 * part
    same(bounded, whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(zoos, workers):
    same(list(DataLoader(make(zoos), batch_size=None, num_workers=workers)), list(make(zoos)))


def test_streams_bring_their_own_settings(zoos):
    small, mixed = zoos
    chosen = small.select("lr < 1")
    normaliser = chosen.normaliser()
    streams = {chosen.stream(8, "test_acc", normaliser=normaliser): 1.0}
    streams |= {part.stream(2, "test_acc", "bias"): 0.5 for part in mixed.select().by_layout()}
    found = list(zoogen.mix(streams, batches=30))
    standardised = chosen.weights(normaliser=normaliser)
    whole = torch.cat([b.weights for b in found if b.source == 0])
    assert torch.equal(whole[: len(chosen)], torch.from_numpy(standardised))
    assert {b.weights.shape[1] for b in found if b.source > 0} == {4 + 10, 6 + 10}


def test_classes_are_counted_alike_in_all_sources(zoos):
    """One zoo has two more values than the other: the same word has the same number."""
    small, mixed = zoos
    small.tables.models["note"] = ["b", "c"] * 6
    mixed.tables.models["note"] = ["a", "c"] * 4
    stream = zoogen.mix({small: 1, mixed: 1}, batch=4, target="note", batches=40)
    assert stream.classes == ("a", "b", "c")
    seen = {0: set(), 1: set()}
    for batch in stream:
        seen[batch.source] |= {stream.classes[int(t)] for t in batch.target}
    assert seen == {0: {"b", "c"}, 1: {"a", "c"}}


def test_its_tables_are_those_of_the_files_one_below_the_other(small_zoo, mixed_zoo, twin_zoos):
    paths = [small_zoo, mixed_zoo, twin_zoos / "magnitude"]
    small, mixed, twins = map(zoogen.open, paths)
    sources = {small.select(epochs="last"): 1, mixed: 1, twins.select("sparsity > 0.8").stream(4): 1}
    mixture = zoogen.mix(sources, batch=4)
    keep = [lambda t: t.epoch == t.groupby("model_id").epoch.transform("max"), None, lambda t: t.sparsity > 0.8]
    models, states = [], []
    for source, (path, rows) in enumerate(zip(paths, keep, strict=True)):
        own = pd.read_parquet(path / "checkpoints.parquet")
        states.append(own.assign(source=source) if rows is None else own[rows(own)].assign(source=source))
        of = pd.read_parquet(path / "models.parquet")
        models.append(of[of["model_id"].isin(states[-1]["model_id"])].assign(source=source))
    for found, parts in ((mixture.models, models), (mixture.checkpoints, states)):
        expected = pd.concat(parts)
        assert found.columns[0] == "source"
        assert set(found) >= set(expected)
        for name in {"source", "model_id", "epoch", "test_acc", "sparsity"} & set(found):
            np.testing.assert_array_equal(found[name], expected[name])
    rates = mixture.models["training.sparsify.sparsity"]
    assert rates.isna().tolist() == (mixture.models["source"] < 2).tolist()
    about = next(b for b in mixture if b.source == 2).target
    rows = mixture.checkpoints.merge(
        pd.DataFrame({"source": 2, "model_id": about["model_id"], "epoch": about["epoch"].numpy()})
    )
    assert len(rows) == len(about["model_id"])


def test_tables_stay_here_when_a_mixture_goes_to_workers(zoos):
    mixture = make(zoos)
    assert b"training.optimizer.lr" not in pickle.dumps(mixture)
    assert len(list(DataLoader(mixture, batch_size=None, num_workers=1, multiprocessing_context="spawn")))
    assert len(mixture.models) == sum(map(len, zoos))
    for other in (copy(mixture), zoogen.mix({copy(zoos[0].select().stream()): 1})):
        with pytest.raises(UserError, match="a copy of a stream"):
            _ = other.models


def test_classes_and_numbers_do_not_mix(zoos):
    small, mixed = zoos
    with pytest.raises(UserError, match="numbers"):
        zoogen.mix({small.select().stream(4, "test_acc"): 1, mixed.select(hidden="[4]").stream(4, "activation"): 1})


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "1"])
def test_weights_are_positive_numbers(zoos, weight):
    with pytest.raises(UserError, match="positive"):
        zoogen.mix({zoos[0]: 1.0, zoos[1]: weight})


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, int])
def test_weights_of_numpy_are_numbers(zoos, kind):
    one = zoogen.mix({zoos[0]: kind(1), zoos[1]: kind(3)}, batch=4, target="test_acc", batches=20)
    same(list(one), list(zoogen.mix({zoos[0]: 0.25, zoos[1]: 0.75}, batch=4, target="test_acc", batches=20)))


def test_sources_without_weights_and_what_is_no_source_are_refused(zoos, small_zoo):
    with pytest.raises(UserError, match=r"explicit weights: .*got list"):
        zoogen.mix(list(zoos))
    with pytest.raises(UserError, match="zoos, selections and streams"):
        zoogen.mix({str(small_zoo): 1})


def test_nothing_to_mix_is_said(zoos):
    with pytest.raises(UserError, match="nothing to mix"):
        zoogen.mix({})
    with pytest.raises(UserError, match="empty"):
        zoogen.mix({zoos[0].select("test_acc > 2"): 1.0})
    with pytest.raises(UserError, match="at least one batch"):
        zoogen.mix({zoos[0]: 1.0}, batches=0)

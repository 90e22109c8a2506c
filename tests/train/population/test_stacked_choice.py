"""Which variant of a layer is used: as asked for, as pinned, as remembered, or as measured."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn

from zoogen.core.errors import UserError
from zoogen.train.optimizers import SGD
from zoogen.train.population.stacked import choice
from zoogen.train.population.stacked.engine import StackedEngine
from zoogen.train.population.stacked.layers import TunedConvolution


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Tanh(), nn.Conv2d(3, 4, 2), nn.Flatten(2), nn.Conv1d(4, 4, 2),
        nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


@pytest.fixture
def engine(oracle):
    def make(batch_size=6, **further):
        (job,) = oracle.jobs(network, [SGD(lr=0.1)], batch_size=batch_size)
        return StackedEngine(job, oracle.images(), torch.device("cpu"), **further)

    return make


@pytest.fixture
def measured(monkeypatch):
    """Layers that were measured, instead of a measurement: loop is faster than the other convolutions."""
    asked = []

    def measure(layer, models, batch, precision, device):
        asked.append((layer.name, models, batch))
        return {name: (9.0 if i == 1 else 5.0 - i) for i, name in enumerate(layer.variants)}

    monkeypatch.setattr(choice, "_measure", measure)
    return asked


def variants(engine):
    return engine.describe()["variants"]


def test_each_layer_is_measured_at_its_size_and_the_fastest_variant_used(engine, measured, caplog):
    with caplog.at_level(logging.INFO, "zoogen"):
        found = variants(engine(models=7))
    assert found == {"0": "loop", "1": "native", "3": "loop", "5": "loop"}
    assert measured == [("0", 7, 6), ("1", 7, 6), ("3", 7, 6), ("5", 7, 6)]
    assert "3 loop 2000.00 ms, shifted 3000.00 ms, unfold 5000.00 ms, grouped 9000.00 ms" in caplog.text
    json.dumps(engine().describe())


def test_a_measurement_measures(engine):
    assert set(variants(engine(models=2))) == {"0", "1", "3", "5"}
    network_ = engine(models=2)._network
    seconds = choice._measure(network_.tuned[0], 3, 5, "float32", torch.device("cpu"))
    assert seconds.keys() == {"unfold", "grouped", "shifted", "loop"}
    assert all(0 < s < 10 for s in seconds.values())


def test_what_an_engine_describes_pins_another(engine, measured):
    found = variants(engine())
    measured.clear()
    assert variants(engine(variants=found)) == found
    assert measured == []


def test_a_layer_or_a_kind_can_be_set_and_the_rest_is_measured(engine, measured):
    found = variants(engine(variants={"conv2d": "shifted", "3": "grouped", "max_pool": "slices"}))
    assert found == {"0": "shifted", "1": "slices", "3": "grouped", "5": "loop"}
    assert [name for name, *_ in measured] == ["5"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"conv2d": "unfolded"}, "unknown variant 'unfolded' of 'conv2d'(.|\n)*Did you mean 'unfold'"),
        ({"max_pool": "unfold"}, "unknown variant 'unfold' of 'max_pool'"),
        ({"4": "unfold"}, "no layer or kind '4'"),
        ({"conv2": "unfold"}, "no layer or kind 'conv2'"),
    ],
)
def test_an_unknown_choice_is_the_users_mistake(engine, wanted, message):
    with pytest.raises(UserError, match=message):
        engine(variants=wanted)


def test_a_kind_that_a_network_does_not_have_may_be_set(oracle):
    (job,) = oracle.jobs(lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 4)), [SGD(lr=0.1)])
    made = StackedEngine(job, oracle.images(), torch.device("cpu"), variants={"conv2d": "unfold"})
    assert variants(made) == {}


def test_measurements_are_remembered_by_size(engine, measured, tmp_path):
    cache = tmp_path / "made" / "on-demand"
    found = variants(engine(models=7, cache=cache))
    measured.clear()
    assert variants(engine(models=7, cache=cache)) == found
    assert measured == []
    engine(models=8, cache=cache)
    assert len(measured) == 4
    engine(models=7, batch_size=5, cache=cache)
    assert len(measured) == 8
    assert len(list((cache / "choices").iterdir())) == 12


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"answer": 3}'])
def test_a_damaged_measurement_is_told_once_and_made_anew(engine, measured, tmp_path, content, caplog):
    found = variants(engine(cache=tmp_path))
    damaged = sorted((tmp_path / "choices").iterdir())[0]
    damaged.write_bytes(content)
    measured.clear()
    assert variants(engine(cache=tmp_path)) == found
    assert len(measured) == 1
    assert [r.levelname for r in caplog.records].count("WARNING") == 1
    assert variants(engine(cache=tmp_path)) == found
    assert len(measured) == 1


def test_other_variants_are_measured_anew(engine, measured, tmp_path, monkeypatch):
    engine(cache=tmp_path)
    measured.clear()
    monkeypatch.setattr(TunedConvolution, "variants", ("grouped", "loop"))
    engine(cache=tmp_path)
    assert len(measured) == 3


def test_a_cache_that_cannot_be_written_costs_a_measurement_each_time(engine, measured, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for times in (1, 2):
        assert variants(engine(cache=tmp_path / "file" / "cache"))
        assert len(measured) == 4 * times


def test_a_variant_that_does_not_fit_into_memory_is_left_out(engine, monkeypatch):
    workload = choice._workload

    def greedy(layer, variant, *further):
        if variant in ("unfold", "slices"):
            raise torch.OutOfMemoryError("no room")
        return workload(layer, variant, *further)

    monkeypatch.setattr(choice, "_workload", greedy)
    found = variants(engine(models=2))
    assert found["1"] == "native"
    assert "unfold" not in found.values()
    monkeypatch.setattr(choice, "_workload", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError, match="layer '0' does not fit"):
        engine(models=2)

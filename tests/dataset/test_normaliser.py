"""Standardisation against scikit-learn's StandardScaler and plain NumPy on the training rows."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import zoogen
from zoogen.core.errors import IntegrityError, UserError
from zoogen.dataset import Normaliser
from zoogen.dataset.normaliser import Moments


@pytest.fixture
def selection(zoo):
    return zoo.select("lr < 1")


@pytest.fixture
def training(small_zoo, selection, stored_rows):
    """float64 [n, P] of the training models, by h5py."""
    checkpoints = selection.checkpoints.merge(selection.models[["model_id", "split"]], on="model_id")
    own = checkpoints[checkpoints["split"] == "train"]
    assert 0 < len(own) < len(checkpoints)
    return stored_rows(small_zoo, own).astype(np.float64)


@pytest.mark.parametrize("part_bytes", [5_000, 16 << 20])
def test_per_parameter_it_is_the_standard_scaler_of_the_training_models(selection, training, part_bytes, monkeypatch):
    monkeypatch.setattr("zoogen.dataset.normaliser._PART_BYTES", part_bytes)
    normaliser = selection.normaliser()
    scaler = StandardScaler().fit(training)
    # Both compute in float64 in another order: some ulps of values near 1.
    np.testing.assert_allclose(normaliser.shift, scaler.mean_, rtol=0, atol=1e-14)
    np.testing.assert_allclose(normaliser.scale, scaler.scale_, rtol=1e-12)
    assert normaliser.states == len(training)
    everything = selection.weights()
    expected = scaler.transform(everything.astype(np.float64))
    found = selection.weights(normaliser=normaliser)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)  # float32 beside float64


@pytest.mark.parametrize("kind", ["layer", "minmax"])
def test_per_layer_weights_and_bias_are_taken_together(selection, training, kind):
    normaliser = selection.normaliser(kind)
    found = normaliser.apply(training)
    for layer in ("fc1.", "fc2."):
        own = np.concatenate(
            [np.arange(e.offset, e.offset + e.size) for e in selection.layout.entries if e.name.startswith(layer)]
        )
        scaler = StandardScaler() if kind == "layer" else MinMaxScaler((-1, 1))
        expected = scaler.fit_transform(training[:, own].reshape(-1, 1)).reshape(len(training), -1)
        np.testing.assert_allclose(found[:, own], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["parameter", "layer", "minmax"])
def test_it_is_inverted_in_numpy_and_in_torch(selection, kind):
    normaliser = selection.normaliser(kind)
    weights = selection.weights()
    # float32 rounding of numbers up to a few standard deviations, scaled back.
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(normaliser.invert(selection.weights(normaliser=normaliser)), weights, **close)
    tensor = torch.from_numpy(weights).requires_grad_()
    there = normaliser.apply(tensor)
    np.testing.assert_allclose(there.detach().numpy(), normaliser.apply(weights), rtol=1e-4, atol=1e-5)
    back = normaliser.invert(there)
    np.testing.assert_allclose(back.detach().numpy(), weights, **close)
    back.sum().backward()
    np.testing.assert_allclose(tensor.grad.numpy(), 1, rtol=1e-5)


def test_some_columns_are_standardised_as_in_the_whole(selection):
    normaliser = selection.normaliser()
    whole = selection.weights(normaliser=normaliser)
    entry = next(e for e in selection.layout.entries if e.name == "fc2.weight")
    own = selection.weights("fc2.weight", normaliser=normaliser)
    assert np.array_equal(own, whole[:, entry.offset : entry.offset + entry.size])
    back = normaliser.invert(own, "fc2.weight")
    np.testing.assert_allclose(back, selection.weights("fc2.weight"), rtol=1e-5, atol=1e-6)


def test_a_constant_parameter_becomes_zero_and_comes_back(zoo):
    """Epoch 0 of one training model: nothing varies."""
    model = zoo.select(split="train").models["model_id"][0]
    selection = zoo.select(f"model_id == '{model}'", epochs=0)
    normaliser = selection.normaliser()
    assert (normaliser.scale == 1).all()
    assert (selection.weights(normaliser=normaliser) == 0).all()
    assert np.array_equal(normaliser.invert(np.zeros_like(selection.weights())), selection.weights())
    moments = Moments(2)
    for _ in range(7):
        moments.add(np.full((13, 2), 0.1, np.float32))
    assert moments.squares.tolist() == [0, 0]


def test_moments_in_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    rows = (1000 + rng.normal(size=(1000, 3)) * [1e-3, 1, 100]).astype(np.float32)
    moments = Moments(3)
    for part in np.split(rows, [1, 2, 300, 301, 999]):
        moments.add(part)
    assert moments.count == 1000
    # A mean of 1000 and deviations of 1e-3: one pass over squares would lose all digits, this keeps most.
    np.testing.assert_allclose(moments.squares / 1000, rows.astype(np.float64).var(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.mean, rows.astype(np.float64).mean(axis=0), rtol=1e-12)
    assert np.array_equal(moments.low, rows.min(axis=0))
    assert np.array_equal(moments.high, rows.max(axis=0))


def test_memory_does_not_grow_with_the_number_of_rows():
    def peak(parts):
        moments = Moments(1000)
        tracemalloc.start()
        for _ in range(parts):
            moments.add(np.ones((100, 1000), np.float32))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(40) < 1.2 * peak(4)


@pytest.mark.parametrize("kind", ["parameter", "layer", "minmax"])
def test_it_is_saved_as_json_and_read_back_exactly(selection, tmp_path, kind):
    normaliser = selection.normaliser(kind)
    file = tmp_path / "normaliser.json"
    normaliser.save(file)
    told = json.loads(file.read_text())
    assert told["kind"] == kind
    again = Normaliser.load(file)
    assert np.array_equal(again.shift, normaliser.shift)
    assert np.array_equal(again.scale, normaliser.scale)
    assert (again.kind, again.states) == (normaliser.kind, normaliser.states)
    assert np.array_equal(selection.weights(normaliser=again), selection.weights(normaliser=normaliser))
    again.save(tmp_path / "second.json")
    assert (tmp_path / "second.json").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format_version=2),
        lambda d: d.update(kind="other"),
        lambda d: d.pop("tensors"),
        lambda d: d["tensors"]["fc1.bias"].update(scale=[0.0] * 8),
        lambda d: d["tensors"]["fc1.bias"].update(shift=[1.0]),
        lambda d: d["tensors"]["fc1.bias"].update(shift="x"),
        lambda d: d["tensors"].pop("fc2.bias"),
        lambda d: d["layout"]["entries"][0].update(offset=3),
    ],
)
def test_a_damaged_file_is_refused(selection, tmp_path, change):
    file = tmp_path / "normaliser.json"
    selection.normaliser().save(file)
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(IntegrityError, match=r"normaliser\.json"):
        Normaliser.load(file)


def test_what_cannot_be_fitted_or_applied_says_why(zoo, selection, mixed_zoo, tmp_path):
    with pytest.raises(UserError, match="training models"):
        selection.select(split="test").normaliser()
    with pytest.raises(UserError, match="empty"):
        selection.select("test_acc > 2").normaliser()
    with pytest.raises(UserError, match="Did you mean 'layer'"):
        selection.normaliser("layers")
    normaliser = selection.normaliser()
    with pytest.raises(UserError, match="fitted on layout"):
        zoogen.open(mixed_zoo).select(hidden="[4]").weights(normaliser=normaliser)
    with pytest.raises(UserError, match="rows of"):
        normaliser.apply(np.zeros((3, 5), np.float32))
    with pytest.raises(UserError, match="no normaliser"):
        Normaliser.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "narrow",
    [
        lambda s: s,
        lambda s: s.select("epoch > 0"),
        lambda s: s.finite(1e3),
        lambda s: s.by_layout()[0],
        lambda s: s.pairs().after,
    ],
    ids=["whole", "select", "finite", "by_layout", "pairs"],
)
def test_of_another_split_it_is_fitted_on_the_training_side_of_that_split(zoo, small_zoo, stored_rows, narrow):
    """The sides of the split and the stored ones differ: a test model may be one that is stored as a training model."""
    split = zoo.resplit("activation", test=["tanh"])
    selection = narrow(split.select("train", "lr < 1"))
    assert selection.models["split"].nunique() > 1
    rows = stored_rows(small_zoo, selection.checkpoints).astype(np.float64)
    normaliser = selection.normaliser()
    assert normaliser.states == len(rows)
    np.testing.assert_allclose(normaliser.shift, rows.mean(axis=0), rtol=0, atol=1e-14)
    tests = narrow(split.select("test", "lr < 1"))
    assert "train" in set(tests.models["split"])
    with pytest.raises(UserError, match=r"training models.*\n.*split\.select"):
        tests.normaliser()


def test_half_precision_is_rounded_after_standardising(selection):
    normaliser = selection.normaliser()
    exact = selection.weights(normaliser=normaliser)
    assert np.array_equal(selection.weights(dtype="float16", normaliser=normaliser), exact.astype(np.float16))

"""Arrays by tensor, half precision and filters, against NumPy and torch on the rows that h5py reads."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import zoogen
from zoogen.core.errors import UserError
from zoogen.dataset.shards import Shards
from zoogen.store.stack_file import StackFile


@pytest.mark.parametrize("columns", [None, ["fc2.bias", "fc1.weight"], "bias"], ids=str)
def test_arrays_are_the_tensors_of_the_state_dicts(zoo, columns):
    selection = zoo.select(epochs=[0, 2], activation="tanh")
    arrays = selection.arrays(columns)
    wanted = {"bias": ["fc1.bias", "fc2.bias"], "None": ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]}
    assert list(arrays) == wanted.get(str(columns), ["fc1.weight", "fc2.bias"])
    for number, row in enumerate(selection.checkpoints.itertuples()):
        state = zoo.state_dict(row.model_id, row.epoch)
        for name, values in arrays.items():
            assert values.dtype == np.float32
            assert np.array_equal(values[number], state[name].numpy())


def test_a_tensor_is_read_without_the_columns_beside_it(zoo, monkeypatch):
    asked = []
    original = StackFile.read

    def listening(self, name, rows=None, columns=None, out=None):
        asked.append((name, columns))
        return original(self, name, rows, columns, out)

    monkeypatch.setattr(StackFile, "read", listening)
    zoo.select(epochs=1).arrays("fc2.bias")
    entry = next(e for e in zoo.select().layout.entries if e.name == "fc2.bias")
    cuts = {(c.start, c.stop) for name, c in asked if name == "weights"}
    assert cuts == {(entry.offset, entry.offset + entry.size)}


@pytest.mark.parametrize("dtype", ["float16", np.float16, torch.float16, np.dtype("float16")], ids=str)
def test_float16_is_numpys_rounding(zoo, small_zoo, stored_rows, dtype):
    selection = zoo.select("lr < 1")
    found = selection.weights(dtype=dtype)
    assert found.dtype == np.float16
    assert np.array_equal(found, stored_rows(small_zoo, selection.checkpoints).astype(np.float16))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16], ids=str)
def test_bfloat16_is_torchs_rounding(zoo, small_zoo, stored_rows, dtype, monkeypatch):
    monkeypatch.setattr("zoogen.dataset.reading._PART_BYTES", 10_000)  # several parts
    selection = zoo.select()
    found = selection.weights("weight", dtype=dtype)
    whole = torch.from_numpy(stored_rows(small_zoo, selection.checkpoints))
    kept = [whole[:, e.offset : e.offset + e.size] for e in selection.layout.entries if e.role == "weight"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.cat(kept, 1).bfloat16())
    assert torch.equal(torch.cat(list(selection.iter_weights(7, "weight", dtype=dtype))), found)


def test_a_weight_too_large_for_half_precision_is_refused_and_can_be_left_out(zoo):
    selection = zoo.select()
    largest = np.abs(selection.weights()).max()
    assert largest > 65504, "some models of the small zoo should have grown beyond float16"
    with pytest.raises(UserError, match=r"finite\(max_abs=65504\)"):
        selection.weights(dtype="float16")
    assert np.isfinite(selection.finite(max_abs=65504).weights(dtype="float16")).all()


def replaced(selection, monkeypatch, value):
    """The selection as if the first weight of its first state were ``value``."""
    original = Shards.weights

    def reading(self, states, columns, width, out=None):
        rows = original(self, states, columns, width, out)
        rows[0, 0] = value
        return rows

    monkeypatch.setattr(Shards, "weights", reading)
    return selection


@pytest.mark.parametrize("value", [3.4e38, -3.4e38])
def test_a_weight_too_large_for_bfloat16_is_told_with_the_bound_of_bfloat16(zoo, monkeypatch, value):
    selection = replaced(zoo.select(), monkeypatch, value)
    with pytest.raises(UserError, match=r"weight of 3\.4e\+38 does not fit bfloat16\n.*, or read float32$") as error:
        selection.weights(dtype="bfloat16")
    bound = float(re.search(r"max_abs=([^)]*)\)", str(error.value))[1])
    largest = torch.finfo(torch.bfloat16).max
    assert 0.99999 * largest < bound <= largest
    assert torch.tensor(bound).bfloat16().isfinite()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.filterwarnings("error")
def test_a_standardised_weight_too_large_for_its_type_is_an_error_and_no_infinity(zoo, monkeypatch, dtype):
    """A parameter that hardly varied among the training models, and is large elsewhere."""
    selection = zoo.select("lr < 1")
    normaliser = selection.normaliser()
    normaliser.scale[0] = 1e-5
    with pytest.raises(UserError, match=r"standardised weight of 1e\+43 does not fit float32\n.*max_abs=\.\.\.\)$"):
        replaced(selection, monkeypatch, 1e38).weights(dtype=dtype, normaliser=normaliser)
    infinite = replaced(selection, monkeypatch, np.inf).weights(dtype=dtype, normaliser=normaliser)
    assert np.isinf(float(infinite[0, 0])), "what is infinite in the zoo stays so"


@pytest.mark.parametrize("dtype", ["float64", "int8", torch.float64])
def test_another_type_is_refused_with_those_there_are(zoo, dtype):
    with pytest.raises(UserError, match="float32, float16 or bfloat16"):
        zoo.select().weights(dtype=dtype)


@pytest.mark.parametrize("max_abs", [None, 0.5, 1.0, 1e4])
def test_filters_keep_what_numpy_keeps(zoo, small_zoo, stored_rows, max_abs, monkeypatch):
    monkeypatch.setattr("zoogen.dataset.finite._PART_BYTES", 10_000)
    selection = zoo.select(epochs=[1, 2, 3])
    rows = stored_rows(small_zoo, selection.checkpoints)
    expected = (np.abs(rows) <= (np.inf if max_abs is None else max_abs)).all(axis=1)
    if max_abs == 1e4:
        assert 0 < expected.sum() < len(expected)
    assert np.array_equal(selection.is_finite(max_abs), expected)
    kept = selection.finite(max_abs)
    assert kept.checkpoints.equals(selection.checkpoints[expected].reset_index(drop=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found_wherever_it_stands(zoo, monkeypatch, value):
    """Stored states are finite, so the reader is made to hand out one that is not."""
    selection = zoo.select("lr < 1", epochs=[0, 3])
    whole = selection.weights()
    whole[1, -1] = whole[4, 0] = whole[5, 100] = value

    def parts(self, batch):
        assert len(self) == len(whole)
        yield from (whole[start : start + batch] for start in range(0, len(whole), batch))

    monkeypatch.setattr(type(selection), "iter_weights", parts)
    assert np.flatnonzero(~selection.is_finite()).tolist() == [1, 4, 5]
    assert np.array_equal(selection.is_finite(), np.isfinite(whole).all(axis=1))


def test_filters_work_across_layouts(mixed_zoo, stored_rows):
    zoo = zoogen.open(mixed_zoo)
    selection = zoo.select()
    parts = selection.by_layout()
    assert sorted(p.layout.parameters for p in parts) == [64 * 4 + 4 + 40 + 10, 64 * 6 + 6 + 60 + 10]
    assert sum(map(len, parts)) == len(selection)
    largest = {}
    for part in parts:
        keys = zip(part.checkpoints.model_id, part.checkpoints.epoch, strict=True)
        largest |= dict(zip(keys, np.abs(part.weights()).max(axis=1), strict=True))
    bound = float(np.median(list(largest.values())))
    keys = zip(selection.checkpoints.model_id, selection.checkpoints.epoch, strict=True)
    assert selection.is_finite(bound).tolist() == [largest[key] <= bound for key in keys]
    assert 0 < len(selection.finite(bound)) < len(selection)
    with pytest.raises(UserError, match="not negative"):
        selection.is_finite(-1)

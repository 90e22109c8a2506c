"""Scores computed anew against the stored ones, and against one module after another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zoogen
from zoogen.core.errors import EnvironmentFault, UserError
from zoogen.core.registry import TASKS
from zoogen.dataset import evaluate as evaluating
from zoogen.dataset.task import ZooTask
from zoogen.tasks import cache_root, data_root

IMPORTED = ("networks_to_run:Tied",)


@pytest.fixture
def zoo(small_zoo):
    return zoogen.open(small_zoo)


@torch.no_grad()
def one_by_one(zoo, selection, part, allow=()):
    """float64 losses [n] and predictions [n, N] by modules of one state each."""
    task = zoo.task()
    inputs, targets = task.prepare(task.inputs(part)), task.targets(part)
    outputs = [zoo.module(r.model_id, r.epoch, allow=allow)(inputs) for r in selection.checkpoints.itertuples()]
    losses = [torch.nn.functional.cross_entropy(o.double(), targets).item() for o in outputs]
    return np.array(losses), np.stack([o.argmax(1).numpy() for o in outputs]), targets.numpy()


def assert_stored(table, states, part):
    """Scores equal the stored ones; a sample whose two best classes are equal to rounding may fall either way."""
    assert table["model_id"].tolist() == states["model_id"].tolist()
    assert table["epoch"].tolist() == states["epoch"].tolist()
    assert np.allclose(table["loss"], states[f"{part}_loss"], rtol=1e-5, atol=1e-6)
    assert np.abs(table["acc"] - states[f"{part}_acc"]).max() <= 1 / 270 + 1e-6
    assert (np.abs(table["acc"] - states[f"{part}_acc"]) < 1e-6).mean() > 0.9


@pytest.mark.parametrize("part", ["test", "val"])
@pytest.mark.parametrize("kind", ["cnn", "resnet", "tied", "branching"])
def test_scores_are_the_stored_ones(running_zoos, kind, part):
    zoo = zoogen.open(running_zoos / kind)
    selection = zoo.select()
    table = zoo.evaluate(selection, part, allow=IMPORTED)
    assert_stored(table, selection.checkpoints, part)
    assert len(table) == 2 * len(zoo)
    assert table["loss"].nunique() >= 3  # networks that differ in dropout alone begin alike


@pytest.mark.parametrize("part", ["test", "val"])
def test_scores_of_dropout_and_of_diverged_networks_are_the_stored_ones(zoo, part):
    selection = zoo.select()
    assert {"diverged", "trained"} == set(selection.models["status"])
    assert selection.models["architecture.dropout"].nunique() == 2
    finite = np.isfinite(selection.checkpoints[f"{part}_loss"].to_numpy())
    table, states = zoo.evaluate(selection, part), selection.checkpoints
    assert_stored(table[finite], states[finite], part)
    assert np.isfinite(table["loss"]).tolist() == finite.tolist()


@pytest.mark.parametrize("name", ["magnitude", "random", "variational"])
def test_scores_of_twins_are_the_stored_ones(twin_zoos, name):
    zoo = zoogen.open(twin_zoos / name)
    assert_stored(zoo.evaluate(zoo.select()), zoo.select().checkpoints, "test")


def test_predictions_are_the_stored_ones_and_give_the_accuracy(zoo):
    selection = zoo.select("status == 'trained'", epochs=[3, 1])
    table = zoo.evaluate(selection, predictions=True)
    found = np.stack(table["predictions"].tolist())
    assert found.dtype == np.uint8
    assert (found == selection.predictions()).mean() > 0.999
    assert np.allclose((found == zoo.task().targets("test").numpy()).mean(1), table["acc"])


@pytest.mark.parametrize("kind", ["tied", "resnet"])
def test_scores_on_training_data_are_those_of_one_module_after_another(running_zoos, kind):
    zoo = zoogen.open(running_zoos / kind)
    selection = zoo.select(seed=[0, 2])
    losses, classes, targets = one_by_one(zoo, selection, "train", IMPORTED)
    table = zoo.evaluate(selection, "train", predictions=True, allow=IMPORTED)
    assert np.allclose(table["loss"], losses, rtol=1e-5)
    assert np.abs(table["acc"] - (classes == targets).mean(1)).max() <= 1 / 1257 + 1e-9
    assert (np.stack(table["predictions"].tolist()) == classes).mean() > 0.999


@pytest.mark.parametrize("limits", [(2**6, 2**6, 1), (2**12, 2**14, 2**11), (2**30, 2**30, 2**30)], ids=str)
def test_how_many_are_computed_at_once_changes_nothing(zoo, monkeypatch, limits):
    whole = zoo.evaluate(zoo.select(), predictions=True)
    for name, limit in zip(("_BATCH", "_TOGETHER"), limits[:2], strict=True):
        monkeypatch.setattr(evaluating, name, {"cpu": limit})
    monkeypatch.setattr(evaluating, "_WEIGHTS", limits[2])
    selection = zoo.select("epoch < 2")
    table = zoo.evaluate(selection, predictions=True)
    some = whole[whole["epoch"] < 2]
    assert np.allclose(table["loss"], some["loss"], rtol=1e-6, equal_nan=True)
    assert (np.stack(table["predictions"].tolist()) == np.stack(some["predictions"].tolist())).mean() > 0.999


def test_small_networks_are_computed_together(zoo, monkeypatch):
    calls = []
    original = torch.func.vmap
    monkeypatch.setattr(torch.func, "vmap", lambda *a, **k: calls.append(a) or original(*a, **k))
    zoo.evaluate(zoo.select(architecture_id=zoo.models["architecture_id"][0]))
    assert len(calls) == 1


def test_models_of_several_layouts_are_scored_in_one_table(mixed_zoo):
    zoo = zoogen.open(mixed_zoo)
    assert zoo.models["architecture_id"].nunique() > 2
    assert_stored(zoo.evaluate(zoo.select()), zoo.select().checkpoints, "test")


def test_training_in_16_bits_is_scored_in_16_bits(running_zoos):
    zoo = zoogen.open(running_zoos / "bfloat16")
    selection = zoo.select(epochs="last")
    stored = selection.checkpoints["test_loss"].to_numpy()
    plain, _, _ = one_by_one(zoo, selection, "test")
    found = zoo.evaluate(selection)["loss"].to_numpy()
    assert np.allclose(found, stored, rtol=1e-5)
    assert np.abs(plain - stored).max() > 1e-4


def test_a_part_without_samples_has_no_scores(running_zoos):
    zoo = zoogen.open(running_zoos / "no-val")
    table = zoo.evaluate(zoo.select(), "val", predictions=True)
    assert len(table) == 6
    assert table[["loss", "acc"]].isna().all(axis=None)
    assert {p.shape for p in table["predictions"]} == {(0,)}


def test_a_selection_of_nothing_has_no_scores(zoo):
    table = zoo.evaluate(zoo.select("test_acc > 2"), predictions=True)
    assert list(table) == ["model_id", "epoch", "loss", "acc", "predictions"]
    assert len(table) == 0


# --- Any weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cnn", "resnet"])
def test_stored_weights_given_as_a_matrix_have_the_stored_scores(running_zoos, kind):
    zoo = zoogen.open(running_zoos / kind)
    selection = zoo.select(epochs="last")
    table = zoo.evaluate_weights(selection.weights())
    assert np.allclose(table["loss"], selection.checkpoints["test_loss"], rtol=1e-5)
    assert np.abs(table["acc"] - selection.checkpoints["test_acc"]).max() <= 1 / 270 + 1e-6


def test_made_up_weights_are_scored_as_a_module_would_be(zoo):
    model = zoo.models["model_id"][0]
    selection = zoo.select(architecture_id=zoo.models["architecture_id"][0], epochs="first")
    mean = torch.from_numpy(selection.weights()).mean(0, keepdim=True).double().requires_grad_()
    table = zoo.evaluate_weights(torch.cat([mean, 2 * mean]), like=model[:8], part="val", predictions=True)
    module = zoo.module(model)
    module.load_state_dict(selection.layout.unflatten({"float32": 2 * mean.detach()[0].float()}))
    task = zoo.task()
    outputs = module(task.prepare(task.inputs("val")))
    assert len(table) == 2
    expected = torch.nn.functional.cross_entropy(outputs, task.targets("val")).item()
    assert table["loss"][1] == pytest.approx(expected, rel=1e-5)
    assert np.array_equal(table["predictions"][1], outputs.argmax(1).numpy())


def test_weights_that_are_not_finite_have_neither_loss_nor_accuracy(running_zoos):
    zoo = zoogen.open(running_zoos / "cnn")
    weights = zoo.select(epochs="last").weights()
    weights[1, 3] = np.nan
    found = zoo.evaluate_weights(weights, like=zoo.models["architecture_id"][0])
    for name in ("loss", "acc"):
        assert found[name].isna().tolist() == [False, True, False, False][: len(found)]


def test_no_weights_have_no_scores(running_zoos):
    zoo = zoogen.open(running_zoos / "resnet")
    width = zoo.select().layout.parameters
    assert zoo.evaluate_weights(np.empty((0, width), np.float32), predictions=True).shape == (0, 3)


@pytest.mark.parametrize("weights", [np.zeros((2, 7), np.float32), np.zeros(5, np.float32), np.zeros((1, 9), int)])
def test_weights_of_another_shape_or_kind_are_refused(running_zoos, weights):
    zoo = zoogen.open(running_zoos / "cnn")
    with pytest.raises(UserError, match=r"takes floating point \[n, "):
        zoo.evaluate_weights(weights, like=zoo.models["model_id"][0])


def test_an_architecture_is_named_where_there_are_several(zoo):
    with pytest.raises(UserError, match="stored models of 2 architectures"):
        zoo.evaluate_weights(np.zeros((1, 610), np.float32))


# --- Other data, and refusals ----------------------------------------------------------------------------------------


def test_other_data_can_be_given(running_zoos):
    zoo = zoogen.open(running_zoos / "no-val")
    digits = TASKS.make("digits", {"val": 500, "split_seed": 1})
    other = ZooTask("other", digits, digits.load(data_root(), cache_root()))
    selection = zoo.select(epochs="last")
    table = zoo.evaluate(selection, "val", task=other, predictions=True)
    module = zoo.module(selection.checkpoints["model_id"][2])
    outputs = module(other.prepare(other.inputs("val")))
    assert np.array_equal(table["predictions"][2], outputs.argmax(1).numpy())


def test_data_that_do_not_fit_the_networks_are_refused(running_zoos):
    cnn, resnet = (zoogen.open(running_zoos / kind) for kind in ("cnn", "resnet"))
    with pytest.raises(UserError, match=r"takes \[1, 28, 28\]"):
        cnn.evaluate(cnn.select(), task=resnet.task())


def test_models_of_unrecorded_data_ask_for_them(running_zoos):
    zoo = zoogen.open(running_zoos / "resnet")
    task = zoo.task()
    zoo.tables.models["task_id"] = None
    with pytest.raises(UserError, match="does not record"):
        zoo.evaluate(zoo.select())
    assert_stored(zoo.evaluate(zoo.select(), task=task), zoo.select().checkpoints, "test")


def test_a_selection_of_another_zoo_is_refused(zoo, mixed_zoo):
    with pytest.raises(UserError, match="evaluate it there"):
        zoo.evaluate(zoogen.open(mixed_zoo).select())


def test_what_is_no_selection_is_refused(zoo):
    ids = zoo.models["model_id"].tolist()
    for take in (zoo.evaluate, zoo.stacked):
        for given in (ids, ids[0], zoo):
            with pytest.raises(UserError, match="takes a selection"):
                take(given)


def test_unknown_parts_and_devices_are_refused(zoo):
    with pytest.raises(UserError, match="Did you mean 'train'"):
        zoo.evaluate(zoo.select(), "training")
    with pytest.raises(UserError, match="unknown device"):
        zoo.evaluate(zoo.select(), device="gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_fault_of_the_machine(zoo):
    one = zoo.select(activation="tanh")
    for ask in (zoo.evaluate, zoo.stacked, lambda s, device: s.stream(4, device=device)):
        with pytest.raises(EnvironmentFault, match="no GPU"):
            ask(one, device="cuda")


def test_settings_of_torch_are_left_as_they_were(running_zoos):
    zoo = zoogen.open(running_zoos / "bfloat16")
    before = torch.backends.cudnn.allow_tf32, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    state = torch.random.get_rng_state()
    zoo.evaluate(zoo.select())
    assert (torch.backends.cudnn.allow_tf32, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")) == before
    assert torch.equal(torch.random.get_rng_state(), state)

"""Preprocessed zoos: pickled datasets are read without their classes, and give back what went into them."""

import json
import sys
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from preprocessed_zoos import LAYERS, write_dataset
from published_zoos import Published, config

import zoogen
from zoogen.build.importing import import_zoo
from zoogen.core.errors import IntegrityError, UserError
from zoogen.importers.opening import open_source
from zoogen.importers.source import Skipped, SourceModel
from zoogen.store.verify import verify

KINDS = {
    "NN_tune_trainable_1": config(seed=1),
    "NN_tune_trainable_2": config(seed=2, model__nlin="gelu", model__dropout=0.5),
    "NN_tune_trainable_3": config(seed=3, optim__lr=0.001),
    "NN_tune_trainable_4": config(seed=4, model__nlin="relu"),
    "NN_tune_trainable_5": config(seed=5, optim__optimizer="SGD"),
}
PLAIN = {name: settings for name, settings in KINDS.items() if settings["model::dropout"] == 0}


@pytest.fixture(scope="module")
def trials():
    """``{trial: (settings, {epoch: state dict}, {epoch: results})}``."""
    found = {}
    for name, settings in KINDS.items():
        torch.manual_seed(settings["seed"])
        states = {epoch: Published(settings).state_dict() for epoch in (0, 1)}
        told = {e: {"test_acc": 0.1 + e / 3, "train_acc": 0.2 + e / 3, "training_iteration": e} for e in states}
        found[name] = (settings, states, told)
    return found


def splits(trials, names=tuple(KINDS)):
    """Three models to learn from, the others to validate and test."""
    own = {name: trials[name] for name in names}
    *train, val, test = own
    return {
        "trainset": {name: own[name] for name in train},
        "valset": {val: own[val]},
        "testset": {test: own[test]},
    }


def read(path, kind=None):
    with open_source(path, kind) as source:
        found = list(source.models())
        models = {m.key: m for m in found if isinstance(m, SourceModel)}
        states = {k: {s.epoch: source.state(m, s).tensors for s in m.checkpoints} for k, m in models.items()}
        measured = {k: source.measured(m) for k, m in models.items()}
        return models, states, measured, [s for s in found if isinstance(s, Skipped)]


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("mode", ["checkpoint", "vector", "vectors"])
def test_every_state_comes_back_bit_for_bit(trials, tmp_path, mode, new):
    names = tuple(KINDS) if mode == "checkpoint" else tuple(PLAIN)
    package = "ghrp.checkpoints_to_datasets" if mode == "vectors" else "checkpoints_to_datasets"
    path = write_dataset(tmp_path / "dataset.pt", splits(trials, names), mode=mode, new=new, package=package)
    assert package not in sys.modules
    models, states, _, skipped = read(path)
    assert list(models) == list(names)
    assert not skipped
    for name in names:
        written = trials[name][1]
        assert [s.epoch for s in models[name].checkpoints] == list(written)
        for epoch, state in written.items():
            found = states[name][epoch]
            assert list(found) == [
                f"{n}.{p}" for n in ("conv1", "conv2", "conv3", "fc1", "fc2") for p in ("weight", "bias")
            ]
            for ours, (theirs, tensor) in zip(found.values(), state.items(), strict=True):
                assert torch.equal(ours, tensor), theirs


def test_an_import_is_the_zoo_that_was_preprocessed(trials, tmp_path):
    path = write_dataset(tmp_path / "dataset_mnist_hyp.pt", splits(trials))
    done = import_zoo(path, None, tmp_path / "zoo", lambda text: None)
    assert (done.models, done.states, done.skipped) == (5, 10, ())
    assert verify(done.path).complete
    zoo = zoogen.open(tmp_path / "zoo")
    table = zoo.models.reset_index().set_index("source.key")
    assert table["split"].astype(str).to_dict() == dict(zip(KINDS, [*["train"] * 3, "val", "test"], strict=True))
    assert (table["source.config.split"].astype(str) == table["split"].astype(str)).all()
    assert table["training.optimizer.lr"].to_dict() == {n: s["optim::lr"] for n, s in KINDS.items()}
    assert table["training.optimizer.name"].astype(str).to_dict()["NN_tune_trainable_5"] == "sgd"
    checkpoints = zoo.checkpoints.reset_index().set_index(["model_id", "epoch"])
    images = torch.randn(4, 1, 28, 28)
    for name, (settings, states, told) in trials.items():
        model_id = table.loc[name, "model_id"]
        for epoch in states:
            row = checkpoints.loc[(model_id, epoch)]
            assert row["test_acc"] == told[epoch]["test_acc"]
            assert row["source.result.ggap"] == pytest.approx(told[epoch]["train_acc"] - told[epoch]["test_acc"])
        network = Published(settings).eval()
        network.load_state_dict(states[1])
        with torch.no_grad():
            assert torch.equal(zoo.module(model_id).eval()(images), network(images))
    again = import_zoo(path, None, tmp_path / "zoo", lambda text: None)
    assert (again.models, again.states) == (5, 10)


def test_an_activation_that_was_not_recorded_is_not_guessed(trials, tmp_path):
    path = write_dataset(tmp_path / "dataset_seed.pt", splits(trials, tuple(PLAIN)), keys=(), mode="vector")
    models, states, _, _ = read(path)
    for name, model in models.items():
        assert model.network is None
        assert "not all that a network here needs" in model.notes[0]
        assert not any(key.startswith("architecture.") for key in model.settings)
        assert torch.equal(states[name][1]["fc2.bias"], trials[name][1][1]["module_list.11.bias"])


def test_properties_of_another_epoch_are_not_taken_for_this_one(trials, tmp_path):
    def shift(found):
        found["trainset"].properties["training_iteration"][1] += 1

    path = write_dataset(tmp_path / "dataset.pt", splits(trials), change=shift)
    models, _, measured, _ = read(path)
    first = next(iter(models))
    assert set(measured[first].by_epoch) == {0}
    assert measured[first].notes == ("has properties of another epoch for epoch 1; they are left out",)


def test_what_a_file_says_of_all_states_alike_stands_once_in_the_record(trials, tmp_path):
    text = "a" * 9000

    def describe(found):
        one = found["trainset"]
        one.properties["data::text"] = [text] * len(one.paths)
        for i in range(1000):
            one.properties[f"data::{i}"] = [text[i:]] * len(one.paths) if i < 9 else [i] * len(one.paths)

    models, _, _, _ = read(write_dataset(tmp_path / "dataset.pt", splits(trials), change=describe))
    name = "NN_tune_trainable_1"
    record = json.loads(models[name].original)
    assert record["properties"]["data::text"] == text
    assert record["properties"]["data::999"] == 999
    assert {int(e): told["test_acc"] for e, told in record["states"].items()} == {
        e: told["test_acc"] for e, told in trials[name][2].items()
    }
    assert len(models[name].original) < 11 * 9000 + 40_000


def test_a_record_without_end_is_cut_and_said(trials, tmp_path):
    def describe(found):
        one = found["testset"]
        one.properties |= {f"data::{i}": [f"{i}" + "a" * 9000] * len(one.paths) for i in range(600)}

    models, _, measured, _ = read(write_dataset(tmp_path / "dataset.pt", splits(trials), change=describe))
    model = models["NN_tune_trainable_5"]
    assert len(model.original) < 4.3e6
    assert [n for n in model.notes if "a record of more than 4,194,304 characters" in n]
    assert set(measured["NN_tune_trainable_5"].by_epoch) == {0, 1}


def test_one_text_again_and_again_is_refused(trials, tmp_path):
    text = "a" * 10_000

    def describe(found):
        one = found["trainset"]
        one.properties |= {f"data::{i}": [text] * len(one.paths) for i in range(300)}

    path = write_dataset(tmp_path / "dataset.pt", splits(trials), change=describe)
    with pytest.raises(IntegrityError, match=r"^dataset\.pt tells of [\d,]+ characters of properties"):
        read(path)


def test_without_lists_of_paths_and_epochs_labels_tell(trials, tmp_path):
    def strip(found):
        for one in found.values():
            del one.paths, one.epochs

    expected, _, _, _ = read(write_dataset(tmp_path / "whole.pt", splits(trials)))
    models, _, _, _ = read(write_dataset(tmp_path / "dataset.pt", splits(trials), change=strip))
    assert {k: [s.epoch for s in m.checkpoints] for k, m in models.items()} == {
        k: [s.epoch for s in m.checkpoints] for k, m in expected.items()
    }


def index_of(kind="CNN"):
    """``index_dict.json`` as published."""
    shapes = [(8, 1, 25), (6, 8, 25), (4, 6, 4), (20, 4, 9), (10, 20, 1)]
    starts = np.cumsum([0] + [o * i * k + o for o, i, k in shapes]).tolist()
    return {
        "layer": [list(layer) for layer in LAYERS[kind]],
        "idx_start": starts[:-1],
        "idx_length": np.diff(starts).tolist(),
        "kernel_no": [o for o, _, _ in shapes],
        "kernel_size": [k for _, _, k in shapes],
        "channels_in": [i for _, i, _ in shapes],
    }


@pytest.mark.parametrize("numbers", [2464, 2400])
def test_an_index_beside_the_file_names_the_parts_of_vectors_of_its_length(tmp_path, numbers):
    index = index_of()
    if numbers == 2400:  # of no published network: fc2 has 7 outputs and no channel is 28
        index["kernel_no"][-1], index["idx_length"][-1] = 7, 147
    length = index["idx_start"][-1] + index["idx_length"][-1]
    vectors = torch.randn(3, length)

    def replace(found):
        one = found["trainset"]
        del one.checkpoint_base
        one.data_in, one.properties = vectors, None
        one.paths, one.epochs = one.paths[:1] * 3, [0, 1, 2]

    (tmp_path / "zoo").mkdir()
    empty = {
        "t": (
            config(),
            {0: Published(config()).state_dict()},
            {0: dict.fromkeys(("train_acc", "test_acc", "training_iteration"), 0)},
        )
    }
    write_dataset(tmp_path / "zoo/dataset.pt", {"trainset": empty}, mode="vector", change=replace)
    _, states, _, _ = read(tmp_path / "zoo")
    (own,) = states.values()
    if length != 2464:
        assert {n: tuple(t.shape) for n, t in own[0].items()} == {"weights": (length,)}
    (tmp_path / "zoo/index_dict.json").write_text(json.dumps(index))
    _, states, _, _ = read(tmp_path / "zoo")
    (own,) = states.values()
    assert len(own[0]) == 10
    place = 0
    for layer, (first, last) in enumerate([(8, 25), (6, 200), (4, 24), (20, 36), (index["kernel_no"][-1], 20)]):
        weight, bias = list(own[2].values())[2 * layer : 2 * layer + 2]
        assert torch.equal(weight.reshape(first, last), vectors[2, place : place + first * last].reshape(first, last))
        place += first * last + first
        assert torch.equal(bias, vectors[2, place - first : place])
    assert place == length


CONTRADICTIONS = {
    "epochs": (lambda d: d["trainset"].epochs.pop(), r"trainset\.epochs of 5 entries for 6 states"),
    "paths": (lambda d: d["valset"].paths.append("x"), r"valset\.paths of 3 entries for 2 states"),
    "properties": (
        lambda d: d["testset"].properties["optim::lr"].pop(),
        r"testset\.properties\['optim::lr'\] of 1 entries for 2 states",
    ),
    "an epoch": (lambda d: d["trainset"].epochs.__setitem__(1, -1), r"trainset\.epochs\[1\], which is no whole number"),
    "a path": (lambda d: d["trainset"].paths.__setitem__(0, "a\x1b[2J"), r"trainset\.paths\[0\], which is no path"),
    "a state": (lambda d: d["trainset"].data_in.__setitem__(2, 7), r"trainset\.data_in\[2\], which is neither"),
    "a tensor": (lambda d: d["trainset"].data_in[2].update(x=7), r"trainset\.data_in\[2\], in which x is no tensor"),
    "no data": (lambda d: delattr(d["trainset"], "data_in"), r"trainset\.data_in is neither a list nor a tensor"),
    "two splits": (lambda d: d.update(valset=d["trainset"], testset=d["testset"]), "both in trainset and in valset"),
    "a dimension": (lambda d: setattr(d["trainset"], "data_in", torch.ones(6)), r"trainset\.data_in of 1 dimensions"),
    "a cube": (
        lambda d: d["trainset"].data_in.__setitem__(0, torch.ones(2, 2, 2)),
        r"trainset\.data_in\[0\] of 3 dimensions",
    ),
    "no sets": (dict.clear, "holds no trainset, valset or testset"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_file_that_contradicts_itself_is_refused_by_the_name_of_the_field(trials, tmp_path, name):
    change, says = CONTRADICTIONS[name]
    path = write_dataset(tmp_path / "dataset.pt", splits(trials), change=change)
    with pytest.raises(IntegrityError, match=rf"^dataset\.pt .*{says}"):
        read(path, "modelzoo-pt")


def test_files_of_a_folder_are_told_apart_and_other_files_are_said(trials, tmp_path):
    own = splits(trials)
    for name in ("small", "large"):
        write_dataset(tmp_path / f"dataset_{name}.pt", own)
    torch.save({"w": torch.ones(1)}, tmp_path / "other.pt")
    (tmp_path / "index_dict.json").write_text("{}")
    models, _, _, skipped = read(tmp_path)
    assert sorted(models) == sorted(f"dataset_{name}/{trial}" for name in ("small", "large") for trial in KINDS)
    assert skipped == [Skipped("other.pt", None, "holds no dataset of models", what="file")]


def test_a_file_is_the_same_source_in_a_folder_and_in_archives(trials, tmp_path):
    (tmp_path / "zoo").mkdir()
    path = write_dataset(tmp_path / "zoo/dataset.pt", splits(trials))
    with tarfile.open(tmp_path / "zoo.tar", "w") as tar:
        tar.add(path, "zoo/dataset.pt")
    for form, how in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / f"{form}.zip", "w", how) as archive:
            archive.write(path, "zoo/dataset.pt")
    models, states, _, _ = read(path)
    for place in ("zoo", "zoo.tar", "stored.zip", "deflated.zip"):
        others, same, _, _ = read(tmp_path / place)
        assert [(m.key, m.settings, m.split) for m in others.values()] == [
            (m.key, m.settings, m.split) for m in models.values()
        ]
        for key, epochs in states.items():
            for epoch, tensors in epochs.items():
                assert all(torch.equal(tensor, same[key][epoch][n]) for n, tensor in tensors.items())


def paired(found):
    """As the published loaders pair the two epochs of every model, 0 -> 1; the second states are never made vectors."""
    for one in found.values():
        told = one.properties
        first = [place for place, epoch in enumerate(one.epochs) if epoch == 0]
        one.task = "sequence_prediction"
        if isinstance(one.data_in, torch.Tensor):
            one.data_out = [one.data_out[place + 1] for place in first]
            one.data_in = one.weights_in = one.data_in[first]
        else:
            one.data_out = [one.data_in[place + 1] for place in first]
            one.data_in = [one.data_in[place] for place in first]
        for name in ("labels_in", "paths", "epochs"):
            setattr(one, name, [getattr(one, name)[place] for place in first])
        one.labels_out = [f"{path} epoch 1 layer {one.layer_lst}" for path in one.paths]
        one.properties = {name: [values[place] for place in first] for name, values in told.items()}


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("mode", ["checkpoint", "vector", "vectors"])
def test_of_pairs_the_last_state_of_a_model_is_the_second_one(trials, tmp_path, mode):
    names = tuple(KINDS) if mode == "checkpoint" else tuple(PLAIN)
    path = write_dataset(tmp_path / "dataset.pt", splits(trials, names), mode=mode, change=paired)
    models, states, measured, skipped = read(path)
    for name in names:
        assert [s.epoch for s in models[name].checkpoints] == [0, 1]
        assert list(measured[name].by_epoch) == [0]
        assert models[name].notes == ()
        assert list(json.loads(models[name].original)["states"]) == ["0"]
        for epoch, state in trials[name][1].items():
            assert all(torch.equal(a, b) for a, b in zip(states[name][epoch].values(), state.values(), strict=True))
    assert [(s.key, s.what) for s in skipped] == [
        (f"dataset.pt: {part}set", "part") for part in ("train", "val", "test")
    ]
    assert {s.reason.partition(" (")[0] for s in skipped} == {
        "holds pairs of states; a second one is read where it is the first of no pair, and nothing was measured of it"
    }
    done = import_zoo(path, None, tmp_path / "zoo", lambda text: None)
    assert (done.models, done.states) == (len(names), 2 * len(names))
    assert "  3 parts: holds pairs of states" in str(done)


@pytest.mark.parametrize(
    "labels", [None, lambda path: f"{path} of another epoch", lambda path: f"{path}_2 epoch 1 layer []", lambda path: 7]
)
def test_second_states_without_labels_that_name_their_epoch_are_not_read(trials, tmp_path, labels):
    def change(found):
        paired(found)
        for one in found.values():
            one.labels_out = labels and [labels(path) for path in one.paths]

    models, _, _, skipped = read(write_dataset(tmp_path / "dataset.pt", splits(trials), change=change))
    assert {s.epoch for m in models.values() for s in m.checkpoints} == {0}
    assert "the second ones are not read" in skipped[0].reason


def test_one_state_is_read_at_a_time(tmp_path):
    """60 MB of vectors: what is in memory at once is one vector and the description of the others."""
    state = Published(config()).state_dict()
    line = dict.fromkeys(("train_acc", "test_acc", "training_iteration"), 0)
    trial = {"t": (config(), {0: state}, {0: line})}
    vectors = torch.randn(6000, 2464)

    def replace(found):
        one = found["trainset"]
        one.data_in, one.weights_in, one.data_out, one.properties = vectors, None, None, None
        one.paths = [f"/zoo/trial_{i // 10}" for i in range(6000)]
        one.epochs = [i % 10 for i in range(6000)]

    path = write_dataset(tmp_path / "dataset.pt", {"trainset": trial}, mode="vector", change=replace)
    assert path.stat().st_size > 59e6
    tracemalloc.start()
    with open_source(path) as source:
        models = list(source.models())
        for number, model in enumerate(models[::20]):
            state = source.state(model, model.checkpoints[7]).tensors
            assert torch.equal(state["fc2.bias"], vectors[number * 200 + 7, -10:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(models) == 600
    assert peak < 15e6


def test_a_source_without_datasets_is_not_recognised(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "states.pt")
    with pytest.raises(UserError, match="looks like none of them"):
        read(tmp_path / "states.pt")
    with pytest.raises(IntegrityError, match=r"^states\.pt holds no trainset"):
        read(tmp_path / "states.pt", "modelzoo-pt")


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_properties_whose_names_become_one_are_left_out(trials, tmp_path):
    def add(found):
        count = len(found["trainset"].paths)
        found["trainset"].properties |= {"f/1": list(range(count)), "f.1": [-1 - n for n in range(count)]}

    _, _, measured, _ = read(write_dataset(tmp_path / "dataset.pt", splits(trials), change=add))
    first = next(iter(measured.values()))
    assert all("source.result.f.1" not in told for told in first.by_epoch.values())
    assert first.notes == ("has different numbers that are all called source.result.f.1; none of them is taken",)

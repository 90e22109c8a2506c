"""The Small CNN Zoo's matrix: what of it becomes which model, epoch, tensor and metric."""

import json
import shutil
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from published_matrices import CONFIGS, STEPS, config, images, scores, torch_order, write_small_cnn_zoo

import zoogen
from zoogen.build.importing import import_zoo
from zoogen.core.errors import UserError
from zoogen.importers.containers.files import Limits, open_files
from zoogen.importers.opening import open_source
from zoogen.importers.source import Skipped, SourceModel
from zoogen.importers.tensors.npy import Rows, read_header
from zoogen.store.verify import verify


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folder of a zoo of three models, and its variables by model and step."""
    folder = tmp_path_factory.mktemp("published") / "mnist"
    return folder, write_small_cnn_zoo(folder)


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    """The same as a zoo of ours; the kind is recognised."""
    done = import_zoo(published[0], None, tmp_path_factory.mktemp("imported") / "zoo", lambda text: None)
    assert (done.models, done.states, done.diverged, done.skipped) == (3, 27, 0, ())
    return zoogen.open(done.path)


@pytest.fixture
def copy(published, tmp_path):
    return shutil.copytree(published[0], tmp_path / "copy")


def table(folder):
    # The engine in Python reads a number to the nearest float, as the one in C does only since pandas 3.
    return pd.read_csv(folder / "metrics.csv.gz", index_col=0, engine="python")


def rewrite(folder, change):
    """The metrics after ``change``, which takes the table and may change it in place."""
    found = table(folder)
    changed = change(found)
    (found if changed is None else changed).to_csv(folder / "metrics.csv.gz")


def read(folder):
    with open_source(folder) as source:
        return list(source.models())


def keys(zoo):
    return dict(zip(zoo.models["source.key"], zoo.models["model_id"], strict=True))


def test_every_state_is_numpys_transpose_bit_for_bit(published, imported):
    for key, model_id in keys(imported).items():
        for step in STEPS:
            expected, found = torch_order(published[1][key][step]), imported.state_dict(model_id, step)
            assert list(found) == [f"{owner}.{leaf}" for owner in ("conv1", "conv2", "conv3", "fc")
                                   for leaf in ("weight", "bias")]  # fmt: skip
            for name, tensor in found.items():
                assert tensor.dtype == torch.float32
                assert np.array_equal(tensor.numpy(), expected[name])


def test_a_module_computes_what_the_network_does_in_tensorflows_conventions(published, imported):
    x, classes = images()
    inputs = torch.tensor(np.moveaxis(x, 3, 1), dtype=torch.float32)
    rows = imported.checkpoints.set_index(["model_id", "epoch"])
    for key, model_id in keys(imported).items():
        for step in (0, 3, 86):
            with torch.no_grad():
                outputs = imported.module(model_id, step)(inputs).numpy()
            expected = scores(published[1][key][step], x, CONFIGS[key]["config.activation"])
            # Float32 sums of at most 144 terms of order one, three layers deep.
            np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
            assert (outputs.argmax(1) == classes).mean() == rows.loc[(model_id, step), "test_acc"]


def test_settings_and_metrics_are_those_of_the_table(published, imported):
    theirs = table(published[0])
    models = imported.models.set_index("source.key")
    for key, own in theirs.groupby("modeldir"):
        first, row = own.iloc[0], models.loc[key]
        assert row["architecture.name"] == "cnn-gap"
        assert row["architecture.activation"] == first["config.activation"]
        assert row["architecture.dropout"] == first["config.dropout"]
        assert row["training.optimizer.name"] == first["config.optimizer"]
        assert row["training.optimizer.lr"] == first["config.learning_rate"]
        assert (row["training.epochs"], row["seed"]) == (86, 42)
        for name in ("w_init", "b_init", "init_std", "l2reg", "train_fraction", "dataset", "num_units"):
            assert row[f"source.config.{name}"] == first[f"config.{name}"]
        record = json.loads(row["source.record"])
        assert {n: v for n, v in record.items() if n.startswith("config.")} == CONFIGS[key]
        assert record["step"] == own["step"].tolist()
        assert record["laststep"] == [str(last) for last in own["laststep"]]
        assert record[""] == own.index.tolist()
    of = {model_id: key for key, model_id in keys(imported).items()}
    assert len(imported.checkpoints) == len(theirs)
    for row in imported.checkpoints.itertuples():
        (told,) = theirs[(theirs.modeldir == of[row.model_id]) & (theirs.step == row.epoch)].to_dict("records")
        assert (row.test_acc, row.test_loss) == (told["test_accuracy"], told["test_loss"])
        assert (row.train_acc, row.train_loss) == (told["train_accuracy"], told["train_loss"])


def test_the_result_is_verified_and_says_what_it_holds(imported):
    report = verify(imported.path)
    assert report.complete, report
    assert (report.counts["planned"], report.counts["states"]) == (3, 27)
    assert {"architecture.activation", "training.optimizer.name"} <= set(imported.factors)
    assert "cnn-gap" in (imported.path / "README.md").read_text()


def test_plain_csv_zip_and_compressed_tar_hold_the_same_zoo(published, copy, tmp_path):
    table(copy).to_csv(copy / "metrics.csv")
    (copy / "metrics.csv.gz").unlink()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in copy.iterdir():
            file.write(path, f"mnist/{path.name}")
    with tarfile.open(tmp_path / "mnist.tar.xz", "w:xz") as file:
        file.add(published[0], "mnist")
    with open_source(published[0]) as first:
        expected = list(first.models())
        for place in (copy, tmp_path / "a.zip", tmp_path / "mnist.tar.xz"):
            with open_source(place) as source:
                for theirs, ours in zip(expected, source.models(), strict=True):
                    assert (theirs.key, theirs.settings, theirs.original) == (ours.key, ours.settings, ours.original)
                    assert first.measured(theirs) == source.measured(ours)
                    for a, b in zip(theirs.checkpoints, ours.checkpoints, strict=True):
                        one, other = first.state(theirs, a).tensors, source.state(ours, b).tensors
                        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_rows_are_read_forwards_whatever_the_order_of_their_steps(published):
    """A compressed archive is then inflated once for all of them."""
    with open_source(published[0]) as source:
        models = list(source.models())
        ranges, whole = [], source.files.read_range
        source.files.read_range = lambda name, start, length: ranges.append(start) or whole(name, start, length)
        for model in models:
            for stored in model.checkpoints:
                source.state(model, stored)
    assert len(ranges) > 1
    assert ranges == sorted(set(ranges))


def test_memory_does_not_grow_with_the_matrix(tmp_path):
    rows, columns = 100_000, 4_970  # 2 GB of zeros, of which the disk keeps none
    with (tmp_path / "weights.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)})
        start = file.tell()
        file.truncate(start + rows * columns * 4)
        for index in (0, 55_555, rows - 1):
            file.seek(start + index * columns * 4)
            file.write(np.full(columns, index + 1, "<f4").tobytes())
    files = open_files(tmp_path, Limits())
    matrix = Rows(files, "weights.npy", read_header(files, "weights.npy"))
    tracemalloc.start()
    for index in range(0, rows, 101):
        matrix.row(index)
    for index in (0, 55_555, rows - 1):
        assert np.array_equal(matrix.row(index), np.full(columns, index + 1, np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_numbers_of_other_types_become_float32_where_it_keeps_them(copy, dtype):
    values = np.load(copy / "weights.npy").astype(np.float16).astype(np.float32)
    np.save(copy / "weights.npy", values.astype(dtype))
    with open_source(copy) as source:
        model = next(iter(source.models()))
        tensors = source.state(model, model.checkpoints[0]).tensors
    assert np.array_equal(tensors["conv1.bias"].numpy(), values[0, :16])
    assert tensors["conv1.bias"].dtype == torch.float32


def test_numbers_that_float32_cannot_keep_are_left_out_and_said(copy, tmp_path):
    values = np.load(copy / "weights.npy").astype(np.float64)
    values[2, 7] += 1e-12
    values[4, 9] = 1e300
    np.save(copy / "weights.npy", values)
    done = import_zoo(copy, None, tmp_path / "zoo", lambda text: None)
    assert done.states == 25
    steps = table(copy)["step"].tolist()
    told = {(s.epoch, s.reason) for s in done.skipped}
    assert told == {(steps[row], "holds numbers that float32 cannot keep") for row in (2, 4)} | {
        (None, "has results that are of no stored state (2, kept in logs/results/)")
    }


def test_a_model_that_became_nan_is_a_diverged_one(copy, tmp_path):
    values, theirs = np.load(copy / "weights.npy"), table(copy)
    lost = (theirs.modeldir == "/somewhere/9001/5") & (theirs.step >= 40)
    values[lost.to_numpy(), 100] = np.nan
    np.save(copy / "weights.npy", values)
    rewrite(copy, lambda t: t.__setitem__("test_loss", t.test_loss.where(~lost)))
    done = import_zoo(copy, None, tmp_path / "zoo", lambda text: None)
    assert (done.models, done.states, done.diverged) == (3, 27 - 4, 1)
    zoo = zoogen.open(done.path)
    ends = zoo.models.set_index("source.key")
    assert ends.loc["/somewhere/9001/5", "status"] == "diverged"
    assert zoo.checkpoints["test_loss"].notna().all()


def test_a_model_whose_training_crashed_keeps_the_steps_it_has(copy, tmp_path):
    gone = 20
    np.save(copy / "weights.npy", np.delete(np.load(copy / "weights.npy"), gone, axis=0))
    key, step = table(copy).iloc[gone][["modeldir", "step"]]
    rewrite(copy, lambda t: t.drop(t.index[gone]))
    zoo = zoogen.open(import_zoo(copy, None, tmp_path / "zoo", lambda text: None).path)
    epochs = zoo.checkpoints.groupby("model_id")["epoch"].apply(set)
    for other, model_id in keys(zoo).items():
        assert epochs[model_id] == set(STEPS) - ({step} if other == key else set())


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("activation", "selu", "activation 'selu' is unknown here"),
        ("dataset", "stl10", "dataset 'stl10' is unknown here"),
        ("dropout", 1.0, "dropout 1.0 is no probability below 1"),
        ("dnn_architecture", "cnnbn", "dnn_architecture is 'cnnbn', not 'cnn'"),
        ("num_units", np.nan, "num_units is None, not 16"),
    ],
)
def test_a_network_that_the_record_leaves_open_is_imported_without_code(copy, name, value, why):
    def change(found):
        found[f"config.{name}"] = found[f"config.{name}"].astype(object)
        found.loc[found.modeldir == "/somewhere/9001/5", f"config.{name}"] = value

    rewrite(copy, change)
    first, other, _ = read(copy)
    assert first.network is not None
    assert other.network is None
    assert other.notes == (f"is imported without code: {why}",)
    assert {e.name: (e.shape, e.module) for e in other.layout.entries} == {
        e.name: (e.shape, e.module) for e in first.layout.entries
    }


def test_other_networks_in_this_layout_keep_their_shapes(tmp_path, monkeypatch):
    import published_matrices as writer

    monkeypatch.setitem(writer.SHAPES, "sequential/conv2d_2/kernel:0", (3, 3, 16, 12))
    monkeypatch.setitem(writer.SHAPES, "sequential/conv2d_2/bias:0", (12,))
    monkeypatch.setitem(writer.SHAPES, "sequential/dense/kernel:0", (12, 10))
    trained = write_small_cnn_zoo(tmp_path / "zoo", {"/a": config()})
    done = import_zoo(tmp_path / "zoo", "small-cnn-zoo", tmp_path / "out", lambda text: None)
    zoo = zoogen.open(done.path)
    assert [s.reason for s in done.skipped] == [
        "is imported without code: its variables are not those of the published network"
    ]
    (model_id,) = zoo.models["model_id"]
    for name, values in torch_order(trained["/a"][86]).items():
        assert np.array_equal(zoo.state_dict(model_id)[name].numpy(), values)
    with pytest.raises(UserError, match="imported without code"):
        zoo.module(model_id)


def test_rows_that_cannot_be_of_one_model_are_skipped(copy):
    def change(found):
        found.loc[found.index[3], "step"] = 0
        found.loc[found.index[10], "config.learning_rate"] = 0.7

    rewrite(copy, change)
    first, second, third = read(copy)
    assert first == Skipped("/somewhere/9001/2", None, "has several rows of step 0, so that which is which is not told")
    assert second.reason == "has rows that differ in config.learning_rate, so that they are not of one model"
    assert isinstance(third, SourceModel)


def test_values_that_are_missing_or_no_numbers_stay_so(copy):
    def change(found):
        found["test_accuracy"] = found["test_accuracy"].astype(object)
        found.loc[found.index[0], "test_accuracy"] = None
        found.loc[found.index[1], "test_loss"] = np.inf
        found.loc[found.index[2], "test_accuracy"] = "1_000"
        found.loc[found.index[4], "test_accuracy"] = "1" * 16_000 + "x"
        found["seconds"] = np.arange(27) / 4
        found["config.architecture.init"] = "uniform"
        found["config.random_seed"] = 42.0

    rewrite(copy, change)
    with open_source(copy) as source:
        first, *_ = source.models()
        measured = source.measured(first).by_epoch
    assert "test_acc" not in measured[0]
    assert "test_acc" not in measured[2]
    assert "test_acc" not in measured[3]
    assert measured[1]["test_loss"] == float("inf")
    assert measured[20]["source.result.seconds"] == 0.75
    assert first.settings["source.config.architecture.init"] == "uniform"
    assert first.settings["seed"] == 42
    assert "architecture.init" not in first.settings


def test_several_zoos_in_one_folder_are_told_apart(published, tmp_path):
    for name in ("cifar10", "mnist"):
        shutil.copytree(published[0], tmp_path / "both" / name)
    with pytest.raises(UserError, match="found them in cifar10, mnist; import each by itself"):
        read(tmp_path / "both")


def test_columns_whose_names_become_one_are_told_apart_or_left_out(published, tmp_path):
    folder = shutil.copytree(published[0], tmp_path / "mnist")
    rows = pd.read_csv(folder / "metrics.csv.gz", index_col=0)
    rows["f/1"], rows["f.1"], rows["g/1"], rows["g.1"] = 1.5, 2.5, 3.5, 3.5
    rows["config.h/1"], rows["config.h.1"] = 4, 5
    rows.to_csv(folder / "metrics.csv.gz")
    with open_source(folder) as source:
        for model in source.models():
            assert "source.config.h.1" not in model.settings
            assert model.notes == ("has different values for source.config.h.1; none of them is taken",)
            measured = source.measured(model)
            assert all("source.result.f.1" not in m for m in measured.by_epoch.values())
            assert all(m["source.result.g.1"] == 3.5 for m in measured.by_epoch.values())
            assert len(measured.notes) == 1

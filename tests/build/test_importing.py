"""From a published zoo to one of ours: what is in it afterwards is what the source has, however the way there went."""

import hashlib
import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "importers"))  # published_zoos

from import_runs import by_key, digests, poison, skips, take
from published_zoos import Published, config, digits, results, write_trial

import zoogen
import zoogen.build.imported_units as units
from zoogen.build.importing import import_zoo
from zoogen.core.errors import IntegrityError, UserError
from zoogen.importers.opening import open_source
from zoogen.importers.ray_tune import RayTune
from zoogen.store.verify import verify


def test_every_state_is_that_of_torch_load_bit_for_bit(trials, tmp_path):
    folder, written = trials
    done = take(folder, tmp_path / "out")
    assert (done.models, done.states, done.diverged, done.skipped) == (6, 18, 0, ())
    zoo = zoogen.open(done.path)
    models = by_key(zoo)
    for name, epochs in written.items():
        for epoch in epochs:
            (file,) = folder.glob(f"{name}/checkpoint_*{epoch}/checkpoints")
            theirs = torch.load(file, weights_only=True)
            ours = zoo.state_dict(models[name].model_id, epoch)
            # Modules in order of execution: names apart, both list the same tensors.
            pairs = zip(theirs.values(), ours.values(), strict=True)
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_what_was_measured_where_no_state_is_stored_is_kept_beside_the_tables(source, tmp_path):
    trial = source / "NN_tune_trainable_a_1"
    before = results(trial)
    shutil.rmtree(trial / "checkpoint_000001")  # thinned
    (trial / "checkpoint_000002/checkpoints").write_bytes(b"damaged")
    done = take(source, tmp_path / "out")
    (row,) = zoogen.open(done.path).models.query("`source.key` == 'NN_tune_trainable_a_1'").to_dict("records")
    lines = [json.loads(line) for f in (done.path / "logs/results").iterdir() for line in f.read_text().splitlines()]
    assert {line["model_id"] for line in lines} == {row["model_id"]}
    assert sorted((line["epoch"], line["train_loss"], line["test_acc"]) for line in lines) == [
        (e, before[e]["train_loss"], before[e]["test_acc"]) for e in (1, 2)
    ]
    told = "has results that are of no stored state (2, kept in logs/results/)"
    assert (row["source.key"], None, told) in skips(done.path)


def test_a_module_computes_what_the_source_network_does(trials, tmp_path):
    folder, written = trials
    zoo = zoogen.open(take(folder, tmp_path / "out").path)
    for name, row in by_key(zoo).items():
        settings = json.loads(row["source.record"])
        theirs = Published(settings)
        state = {k.removeprefix("module.").removeprefix("model."): t for k, t in written[name][2].items()}
        theirs.load_state_dict(state)
        images, targets = digits(28 if settings["model::type"] == "CNN" else 32)
        with torch.no_grad():
            outputs = zoo.module(row.model_id)(images)
            assert torch.equal(outputs, theirs.eval()(images))
        # The recorded accuracy is that of these weights on the data they were trained on.
        assert (outputs.argmax(1) == targets).double().mean().item() == row["test_acc"]
        assert row["architecture.dropout"] == settings["model::dropout"]


def test_tables_hold_what_the_results_say(trials, tmp_path):
    folder, _ = trials
    zoo = zoogen.open(take(folder, tmp_path / "out").path)
    keys = zoo.models.set_index("model_id")["source.key"]
    assert len(zoo.checkpoints) == 18
    for row in zoo.checkpoints.itertuples():
        told = results(folder / keys[row.model_id])[row.epoch]
        names = ("train_loss", "train_acc", "test_loss", "test_acc")
        assert [getattr(row, n) for n in names] == [told[n] for n in names]
    assert zoo.models["seed"].tolist() == [1, 2, 3, 4, 5, 6]
    assert set(zoo.models["status"]) == {"trained"}
    assert "architecture.activation" in zoo.factors
    assert len(zoo.select(activation="gelu", epochs="last").models) == 1


def test_verify_is_content_and_finds_a_flipped_bit(trials, tmp_path):
    out = take(trials[0], tmp_path / "out").path
    report = verify(out)
    assert report.complete, report
    assert (report.counts["planned"], report.counts["scheduled"], report.counts["states"]) == (6, 6, 18)
    weights = next(out.glob("shards/*/weights.h5"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    assert verify(out).damaged


def test_zip_tar_and_folder_give_the_same_zoo(trials, tmp_path):
    folder, _ = trials
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        for path in sorted(folder.rglob("*"), reverse=True):  # checkpoints before what describes them
            file.add(path, path.relative_to(folder.parent), recursive=False)
    zoos = [zoogen.open(take(p, tmp_path / f"out{i}").path) for i, p in
            enumerate((folder, tmp_path / "a.zip", tmp_path / "a.tar.gz"))]  # fmt: skip
    assert not list(tmp_path.glob("**/checkpoints"))
    first, *others = zoos
    for other in others:
        assert set(other.models["model_id"]) == set(first.models["model_id"])
        for model_id in first.models["model_id"]:
            for epoch in range(3):
                a, b = first.state_dict(model_id, epoch), other.state_dict(model_id, epoch)
                assert all(torch.equal(a[n], b[n]) for n in a)


def test_models_are_split_by_their_name_and_children_stay_with_their_parent(trials, tmp_path):
    one = trials[0] / "NN_tune_trainable_a_1"
    root = tmp_path / "vit"
    for parent in range(8):
        shutil.copytree(one, root / f"pretraining/p{parent}")
        for child in range(3):
            shutil.copytree(one, root / f"finetuning/p{parent}/c{child}")
    models = by_key(zoogen.open(take(root, tmp_path / "out").path))
    for parent in range(8):
        (side,) = {row["split"] for key, row in models.items() if f"/p{parent}" in key}
        place = int(hashlib.blake2b(f"p{parent}".encode(), digest_size=16).hexdigest()[17:], 16) / 16**15
        assert side == ("train" if place < 0.7 else "val" if place < 0.85 else "test")
    assert len({row["split"] for row in models.values()}) > 1
    assert models["finetuning/p1/c2"]["source.parent"] == "pretraining/p1"


def test_what_cannot_be_used_is_left_out_recorded_and_summed_up(source, tmp_path):
    a = [f"NN_tune_trainable_a_{i}" for i in range(1, 5)]
    poison(source, a[0], 2, torch.nan)  # the last one: diverged
    poison(source, a[1], 1, torch.inf)  # between finite ones: left out
    next(source.glob(f"{a[2]}/checkpoint_*1/checkpoints")).write_bytes(b"damaged")
    for file in source.glob(f"{a[3]}/checkpoint_*/checkpoints"):
        file.unlink()
    for epoch in range(3):
        poison(source, "NN_tune_trainable_b_5", epoch, torch.nan)
    done = take(source, tmp_path / "out")
    assert (done.models, done.states, done.diverged) == (4, 2 + 2 + 2 + 3, 1)
    told = [skip for skip in skips(done.path) if "of no stored state" not in skip[2]]
    assert [(k, e) for k, e, _ in told] == [
        (a[3], None), (a[0], 2), (a[1], 1), (a[2], 1), *(("NN_tune_trainable_b_5", e) for e in range(3)),
    ]  # fmt: skip
    assert told[0][2] == "has no checkpoints"
    assert told[1][2] == told[2][2] == "holds NaN or infinite numbers"
    assert "without running code" in told[3][2]
    assert "1 model: has no checkpoints" in str(done)
    assert "5 checkpoints: holds NaN or infinite numbers" in str(done)
    zoo = zoogen.open(done.path)
    models = by_key(zoo)
    assert set(models) == {a[0], a[1], a[2], "NN_tune_trainable_b_6"}
    assert (models[a[0]]["status"], models[a[0]]["diverged_epoch"], models[a[0]]["last_epoch"]) == ("diverged", 2, 1)
    assert models[a[1]]["status"] == "trained"
    stored = zoo.checkpoints.groupby("model_id")["epoch"].apply(list)
    assert stored[models[a[1]].model_id] == stored[models[a[2]].model_id] == [0, 2]
    assert np.isfinite(zoo.select(**{"architecture.name": "cnn-s"}).weights()).all()
    assert verify(done.path).complete
    before = digests(done.path)
    take(source, done.path)
    assert digests(done.path) == before


@pytest.mark.parametrize("size", [1, 40_000])
def test_small_units_give_the_same_models(source, tmp_path, monkeypatch, size):
    """Units of one state or of a few, as large networks come in; one model diverges between two units."""
    poison(source, "NN_tune_trainable_a_1", 1, torch.nan)
    poison(source, "NN_tune_trainable_a_1", 2, torch.nan)
    whole = zoogen.open(take(source, tmp_path / "whole").path)
    monkeypatch.setattr(units, "BYTES", size)
    done = take(source, tmp_path / "parts")
    parts = zoogen.open(done.path)
    assert verify(done.path).complete
    assert len(list(done.path.glob("shards/*"))) > len(list((tmp_path / "whole/shards").iterdir()))
    columns = ["model_id", "status", "diverged_epoch", "last_epoch", "test_acc", "split"]
    assert parts.models[columns].equals(whole.models[columns])
    assert by_key(parts)["NN_tune_trainable_a_1"]["diverged_epoch"] == 1
    for row in whole.checkpoints.itertuples():
        a, b = (z.state_dict(row.model_id, row.epoch) for z in (whole, parts))
        assert all(torch.equal(a[n], b[n]) for n in a)


def test_networks_that_are_none_of_ours_are_imported_by_their_own_names(source, tmp_path):
    for params in source.glob("*_a_*/params.json"):
        params.write_text(json.dumps(json.loads(params.read_text()) | {"model::type": "mlp"}))
    zoo = zoogen.open(take(source, tmp_path / "out").path)
    row = by_key(zoo)["NN_tune_trainable_a_3"]
    file = next(source.glob("*_a_3/checkpoint_*2/checkpoints"))
    theirs, ours = torch.load(file, weights_only=True), zoo.state_dict(row.model_id)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], t) for n, t in theirs.items())
    with pytest.raises(UserError) as error:
        zoo.module(row.model_id)
    first, *rest = str(error.value).splitlines()
    assert first == "this model was imported without code: nothing here says how to build its network ('mlp')"
    assert "known: " not in str(error.value)
    assert all(word in rest[0] for word in ("zoo.state_dict", "weights()", "architecture.name", "input_shape"))
    assert verify(zoo.path).complete


def test_twins_have_masks_and_sparsities(tmp_path):
    states = write_trial(tmp_path / "zoo/t", config(), epochs=1)
    for epoch, state in states.items():
        for place in (0, 3, 6, 9, 11):
            noise = torch.full(state[f"module_list.{place}.weight"].shape, -30.0)
            noise.view(-1)[: epoch * 10] = 10.0
            state[f"module_list.{place}.log_sigma2"] = noise
        torch.save(state, tmp_path / f"zoo/t/checkpoint_{epoch:06d}/checkpoints")
    zoo = zoogen.open(take(tmp_path / "zoo", tmp_path / "out").path)
    weights = 2464 - 48
    assert zoo.checkpoints["sparsity"].tolist() == [0.0, 50 / weights]
    sizes = [200, 1200, 96, 720, 200]
    assert zoo.checkpoints["layer_sparsity"][1].tolist() == [10 / n for n in sizes]
    kept = zoo.select(epochs=1).kept()
    assert (~kept).sum() == 50
    assert verify(zoo.path).complete


@pytest.mark.parametrize("what", ["nothing", "no trials", "only broken", "only nan"])
def test_a_source_that_holds_nothing_is_refused_and_leaves_nothing(trials, tmp_path, what):
    source, out = tmp_path / "source", tmp_path / "out"
    if what == "only nan":
        shutil.copytree(trials[0] / "NN_tune_trainable_a_1", source / "t")
        for epoch in range(3):
            poison(source, "t", epoch, torch.nan)
    elif what != "nothing":
        (source / "t/checkpoint_000000").mkdir(parents=True)
    if what == "only broken":
        (source / "t/checkpoint_000000/checkpoints").write_bytes(b"x")
    with pytest.raises(UserError, match="there is no folder" if what == "nothing" else "holds no model that can be"):
        take(source, out)
    assert not out.exists()


def test_a_hostile_archive_leaves_nothing_behind(tmp_path):
    with zipfile.ZipFile(tmp_path / "zoo.zip", "w") as file:
        file.writestr("t/checkpoint_000000/checkpoints", "x")
        file.writestr("../../evil", "x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(IntegrityError, match=r"'\.\./\.\./evil' leads out"):
        take(tmp_path / "zoo.zip", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", ["models", "state", "measured"])
def test_what_no_reader_expected_names_the_source_and_leaves_nothing_half_begun(source, tmp_path, monkeypatch, where):
    def broken(*_):
        raise TypeError("a list where a number was expected")

    monkeypatch.setattr(RayTune, where, broken)
    with pytest.raises(IntegrityError, match=r"source: cannot be read as ray-tune \(TypeError: a list where"):
        take(source, tmp_path / "out")
    monkeypatch.undo()
    if where == "models":
        assert not (tmp_path / "out").exists()
    assert take(source, tmp_path / "out").models == 6


def test_a_refusal_before_the_first_unit_leaves_no_folder(source, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("no")

    monkeypatch.setattr("zoogen.build.importing._manifest", broken)
    with pytest.raises(IntegrityError):
        take(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_of_fewest_models_have_no_columns_but_stay_in_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr("zoogen.build.imported_table._MOST_COLUMNS", 20)
    for name in ("a", "b"):
        write_trial(tmp_path / "source" / name, config(**{f"{name}{i}": i for i in range(30)}), epochs=0)
    said = []
    import_zoo(tmp_path / "source", "ray-tune", tmp_path / "zoo", said.append)
    zoo = zoogen.open(tmp_path / "zoo")
    assert sum(name.startswith(("source.config.", "architecture.", "training.")) for name in zoo.models) == 20
    assert "training.optimizer.lr" in zoo.models
    assert all(json.loads(row["source.record"])[f"{key}29"] == 29 for key, row in by_key(zoo).items())
    assert any("only in source.record" in line for line in said)


def test_listing_a_compressed_tar_goes_back_no_more_often_for_more_models(source, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "zoo.tar.gz", "w:gz") as file:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            file.add(path, path.relative_to(source.parent))
    with open_source(tmp_path / "zoo.tar.gz") as opened:
        stream, back = opened.files._stream, []
        seek = type(stream).seek

        def counted(self, offset, whence=0):
            back.append(offset < self.tell())
            return seek(self, offset, whence)

        monkeypatch.setattr(type(stream), "seek", counted)
        assert len(list(opened.models())) == 6
    assert 1 <= sum(back) <= 2


def test_more_records_than_the_memory_should_hold_are_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr("zoogen.build.importing._MOST_RECORDS", 100)
    with pytest.raises(IntegrityError, match="records of its models have more than 100 characters"):
        take(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()

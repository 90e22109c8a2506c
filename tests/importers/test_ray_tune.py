"""Trial directories: what of them becomes which model, epoch and metric, and what is left out and why."""

import json
import shutil

import pytest
import torch
from published_zoos import config, results, write_trial

from zoogen.core.errors import UserError
from zoogen.importers.opening import open_source
from zoogen.importers.source import Skipped, SourceModel, Unusable


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial") / "zoo"
    write_trial(folder / "t", config(), epochs=1)
    return folder


@pytest.fixture
def zoo(trial, tmp_path):
    return shutil.copytree(trial, tmp_path / "zoo")


def read(folder, kind="ray-tune"):
    """Models (or Skipped) of a source, and what was measured of each."""
    with open_source(folder, kind) as source:
        found = list(source.models())
        return found, [source.measured(m) for m in found if isinstance(m, SourceModel)]


def test_settings_stand_under_our_keys_and_the_record_is_kept_whole(zoo):
    (model,), _ = read(zoo)
    assert model.key == "t"
    expected = {
        "architecture.name": "cnn-s",
        "architecture.activation": "tanh",
        "architecture.dropout": 0,
        "architecture.init": "kaiming_uniform",
        "training.optimizer.name": "adam",
        "training.optimizer.lr": 0.003,
        "training.optimizer.weight_decay": 0.001,
        "training.batch_size": 50,
        "training.epochs": 2,
        "seed": 1,
    }
    own = {k: v for k, v in model.settings.items() if not k.startswith("source.")}
    assert own == expected
    assert model.settings["source.config.dataset.dump"] == "/somewhere/dataset.pt"
    assert json.loads(model.original) == config()
    assert (model.network.input_shape, model.network.outputs) == ((1, 28, 28), 10)


def test_metrics_belong_to_the_epoch_of_their_line(zoo):
    _, (measured,) = read(zoo)
    for epoch, told in results(zoo / "t").items():
        for name in ("train_loss", "train_acc", "test_loss", "test_acc"):
            assert measured.by_epoch[epoch][name] == told[name]
        assert measured.by_epoch[epoch]["source.result.time_this_iter_s"] == 0.25
    assert measured.notes == ()


def test_a_truncated_last_line_is_left_out_and_said(zoo):
    file = zoo / "t/result.json"
    file.write_bytes(file.read_bytes()[:-30])
    _, (measured,) = read(zoo)
    assert set(measured.by_epoch) == {0}
    assert measured.notes == ("line 2 of result.json is truncated and is left out",)


def test_without_result_json_the_csv_says_the_same(zoo):
    _, (told,) = read(zoo)
    (zoo / "t/result.json").unlink()
    _, (measured,) = read(zoo)
    names = ("train_loss", "train_acc", "test_loss", "test_acc", "source.result.time_this_iter_s")
    for epoch in (0, 1):
        assert [measured.by_epoch[epoch][n] for n in names] == [told.by_epoch[epoch][n] for n in names]


def test_without_any_results_metrics_are_missing_and_it_is_said(zoo):
    for name in ("result.json", "progress.csv"):
        (zoo / "t" / name).unlink()
    (model,), (measured,) = read(zoo)
    assert isinstance(model, SourceModel)
    assert not measured.by_epoch
    assert "no results" in measured.notes[0]


def test_lines_that_name_their_checkpoint_belong_to_that_one(zoo):
    lines = [told | {"training_iteration": i + 1, "checkpoint_dir_name": f"checkpoint_{i:06d}"}
             for i, told in results(zoo / "t").items()]  # fmt: skip
    lines.insert(1, lines[0] | {"training_iteration": 0, "checkpoint_dir_name": None, "test_loss": 9.0})
    before = results(zoo / "t")
    (zoo / "t/result.json").write_text("\n".join(map(json.dumps, lines)))
    _, (measured,) = read(zoo)
    assert {e: m["test_loss"] for e, m in measured.by_epoch.items()} == {e: t["test_loss"] for e, t in before.items()}


DAMAGED, JUNK = "damaged", '{"training_iteration": 1, '


@pytest.mark.parametrize(
    ("iterations", "checkpoints", "extra", "expected"),
    [
        ([1, 2], [0, 1], {}, {0: 1, 1: 2}),  # Ray since 2.7: checkpoints 0 and 1 of iterations 1 and 2
        ([0, 1], [0, 1], {}, {0: 0, 1: 1}),
        ([1], [0, 1], {}, {1: 1}),  # an old Ray without a row for epoch 0
        ([1, 2], [0, 1], {"experiment_id": "x"}, {1: 1, 2: 2}),
        ([1, 2, 3, 4], [0, 1], {}, {}),  # a checkpoint every second iteration, or the first two
        ([1, 2, 3, 3, 4, 5], [1, 2, 3, 4, 5], {}, {i: i for i in range(1, 6)}),  # a trial that was resumed
        ([1, 2, 3, 4, 5], [1, 2, 3, 4], {}, {}),  # the last checkpoint, or the first, is lost
        ([1, 2, 3, 4, 5], [2, 4], {}, {}),
        ([1, 2, 3, 4], [2, 4], {}, {1: 1, 2: 2, 3: 3, 4: 4}),
        ([1, 2, 3, 4, 5], [0, 2, 4], {}, {}),  # checkpoint 0 may be the untrained network, without a result
        ([DAMAGED, 1, 2, 3, 4], [0, 1, 2, 3, 4], {}, {1: 1, 2: 2, 3: 3, 4: 4}),
        ([DAMAGED, 2, 3, 4], [0, 1, 2, 3], {}, {1: 2, 2: 3, 3: 4}),
        ([1, DAMAGED, 3], [0, 1, 2], {}, {0: 1, 2: 3}),
        ([1, 2, DAMAGED], [1, 2, 3], {}, {1: 1, 2: 2}),
        ([1, 2, DAMAGED], [0, 1, 2], {}, {0: 1, 1: 2}),
    ],
)
def test_results_are_assigned_only_where_it_is_known_to_which_checkpoint(zoo, iterations, checkpoints, extra, expected):
    lines = [
        JUNK if i is DAMAGED else json.dumps({"training_iteration": i, "test_loss": i} | extra) for i in iterations
    ]
    (zoo / "t/result.json").write_text("\n".join(lines))
    first = zoo / "t/checkpoint_000000"
    for number in checkpoints:
        if not (zoo / f"t/checkpoint_{number:06d}").exists():
            shutil.copytree(first, zoo / f"t/checkpoint_{number:06d}")
    for number in {0, 1} - set(checkpoints):
        shutil.rmtree(zoo / f"t/checkpoint_{number:06d}")
    _, (measured,) = read(zoo)
    assert {e: m["test_loss"] for e, m in measured.by_epoch.items()} == expected
    assert len(measured.notes) == (not expected) + (DAMAGED in iterations)
    known = sorted(i for i in iterations if i is not DAMAGED)
    assert [m["test_loss"] for m in measured.others] == ([] if expected else known)


def test_without_params_json_the_settings_of_the_results_count(zoo):
    (zoo / "t/params.json").unlink()
    (model,), _ = read(zoo)
    assert model.network is not None
    (zoo / "t/result.json").unlink()
    (model,), _ = read(zoo)
    assert (model.network, model.settings, model.notes) == (None, {}, ("has no settings (params.json)",))


def test_trials_without_usable_checkpoints_are_skipped_with_their_reason(zoo):
    (zoo / "empty").mkdir()
    (zoo / "empty/params.json").write_text(json.dumps(config()))
    (zoo / "broken/checkpoint_000000").mkdir(parents=True)
    (zoo / "broken/checkpoint_000000/checkpoints").write_bytes(b"")
    found = {m.key: m for m in read(zoo)[0]}
    assert isinstance(found["t"], SourceModel)
    assert found["empty"] == Skipped("empty", None, "has no checkpoints")
    assert found["broken"].reason.startswith("has no usable checkpoint: epoch 0 is not a state dict")


def test_a_checkpoint_of_another_network_does_not_fit(zoo):
    torch.save({"module_list.0.weight": torch.ones(3)}, zoo / "t/checkpoint_000000/checkpoints")
    with open_source(zoo, "ray-tune") as source:
        (model,) = source.models()
        assert model.network is not None  # the other checkpoint is what the record says
        source.state(model, model.checkpoints[1])
        with pytest.raises(Unusable, match=r"does not fit its model: lacks conv1\.bias"):
            source.state(model, model.checkpoints[0])


@pytest.mark.parametrize(
    "change",
    [
        {"model__nlin": "swish"},
        {"model__type": "CNN2"},
        {"model__channels_in": 3},
        {"model__dropout": "half"},
        {"model__init_type": None},
        {"model__channels_in": -1},
    ],
)
def test_a_network_that_the_record_does_not_describe_keeps_its_own_names(zoo, change):
    (zoo / "t/params.json").write_text(json.dumps(config(**change)))
    with open_source(zoo, "ray-tune") as source:
        (model,) = source.models()
        assert model.network is None
        assert "imported without code" in model.notes[0]
        state = source.state(model, model.checkpoints[1])
    written = torch.load(zoo / "t/checkpoint_000001/checkpoints", weights_only=True)
    sizes = sorted(t.numel() for t in written.values())
    assert sorted(e.size for e in model.layout.entries) == sizes == sorted(t.numel() for t in state.tensors.values())


def test_an_epoch_that_stands_twice_is_taken_once(zoo):
    shutil.copytree(zoo / "t/checkpoint_000001", zoo / "t/checkpoint_1")
    (model,), _ = read(zoo)
    assert [s.epoch for s in model.checkpoints] == [0, 1]
    assert model.notes == ("has two checkpoints of epoch 1; t/checkpoint_1/checkpoints is left out",)


def test_fine_tuned_models_name_their_parent(zoo, tmp_path):
    root = tmp_path / "vit"
    shutil.copytree(zoo / "t", root / "pretraining/sl_seed_42")
    shutil.copytree(zoo / "t", root / "finetuning/sl_seed_42/sl_ft_LR_0.1")
    shutil.copytree(zoo / "t", root / "finetuning/cl_seed_7/cl_ft_LR_0.1")
    parents = {m.key: m.parent for m in read(root)[0]}
    assert parents == {
        "pretraining/sl_seed_42": None,
        "finetuning/sl_seed_42/sl_ft_LR_0.1": "pretraining/sl_seed_42",
        "finetuning/cl_seed_7/cl_ft_LR_0.1": "cl_seed_7",  # which was not fetched
    }


def test_strange_records_do_no_harm(zoo):
    for text in ("[]", "{", '{"a": 1e999, "b\\u001b[2J": [1, 2], "seed": "x", "' + "c" * 500 + '": 1}', "[" * 100_000):
        (zoo / "t/params.json").write_text(text)
        (model,), _ = read(zoo)
        assert all(name.isprintable() and len(name) < 200 for name in model.settings)
        assert model.settings.get("seed") in (None, 1)


def test_the_kind_is_recognised_and_an_unknown_one_is_told(zoo, tmp_path):
    with open_source(zoo) as source:
        assert source.registered_name == "ray-tune"
    with pytest.raises(UserError, match="Did you mean 'ray-tune'"), open_source(zoo, "raytune"):
        pass
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="say what it is"), open_source(tmp_path / "other"):
        pass


def one_line(**told):
    return json.dumps({"training_iteration": 1, "test_loss": 0.5} | told)


@pytest.mark.parametrize(
    ("told", "absent", "present", "noted"),
    [
        ({"val_loss": 1.0, "validation_loss": 2.0}, "val_loss", {}, True),
        ({"val_loss": 1.0, "validation_loss": 1.0}, "source.result.validation_loss", {"val_loss": 1.0}, False),
        ({"a/b": 1.0, "a.b": 2.0}, "source.result.a.b", {}, True),
        ({"huge": 10**400}, "source.result.huge", {}, False),
    ],
)
@pytest.mark.parametrize("form", ["result.json", "progress.csv"])
def test_metrics_that_cannot_be_told_apart_are_left_out(zoo, told, absent, present, noted, form):
    (zoo / "t/result.json").unlink()
    line = {"training_iteration": 1, "test_loss": 0.5} | told
    rows = f"{','.join(line)}\n{','.join(map(str, line.values()))}\n"
    (zoo / "t" / form).write_text(json.dumps(line) if form == "result.json" else rows)
    _, (measured,) = read(zoo)
    assert measured.by_epoch[1].items() >= ({"test_loss": 0.5} | present).items()
    assert absent not in measured.by_epoch[1]
    assert len(measured.notes) == noted


@pytest.mark.parametrize(
    ("text", "value"), [("1e999", None), ("-1e999", None), ("Infinity", float("inf")), ("0.25", 0.25)]
)
def test_a_number_beyond_float64_is_nan_and_not_the_infinity_that_nobody_wrote(zoo, text, value):
    (zoo / "t/result.json").write_text(one_line(test_acc=7.0).replace("7.0", text))
    _, (measured,) = read(zoo)
    found = measured.by_epoch[1]["test_acc"]
    assert found != found if value is None else found == value


@pytest.mark.parametrize(
    ("limit", "most", "says"),
    [
        ("_MOST_LINES", 3, "result.json has more than 3 lines"),
        ("_MOST_NUMBERS", 5, "result.json has more than 5 numbers"),
        ("_MOST_BAD", 1, "result.json has more than 1 lines that are no JSON objects"),
    ],
)
def test_results_that_are_larger_than_any_log_are_left_to_the_csv(zoo, monkeypatch, limit, most, says):
    (zoo / "t/progress.csv").write_text("training_iteration,test_loss\n1,0.5\n")
    lines = "\n".join(["no", "no", one_line(), one_line()])
    (zoo / "t/result.json").write_text(lines if limit != "_MOST_NUMBERS" else f"{one_line()}\n" * 3)
    monkeypatch.setattr(f"zoogen.importers.records.ray_results.{limit}", most)
    _, (measured,) = read(zoo)
    assert measured.by_epoch == {1: {"test_loss": 0.5, "source.result.training_iteration": 1.0}}
    assert measured.notes[0].startswith(says)


def test_a_large_file_of_results_is_refused_before_it_is_read(zoo):
    with (zoo / "t/result.json").open("ab") as file:
        file.truncate((64 << 20) + 1)
    _, (measured,) = read(zoo)
    assert "expected at most 67,108,864" in measured.notes[0]


def test_only_numbers_of_so_many_names_are_kept_of_results(zoo):
    numbers = {f"n{i}": i for i in range(1500)}
    (zoo / "t/result.json").write_text(one_line(**numbers, config={"a": list(range(1000))}, text="x" * 1000))
    _, (measured,) = read(zoo)
    assert len(measured.by_epoch[1]) == 1000
    assert "more than 1,000 metrics" in measured.notes[0]


def test_numbers_within_mappings_and_lists_are_metrics_as_in_the_csv_of_ray(zoo):
    (zoo / "t/result.json").write_text(one_line(eval={"acc": 0.5, "at": [1, 2.5]}, curve=[0.1, "x", [3]], text="x"))
    _, (measured,) = read(zoo)
    told = {k.removeprefix("source.result."): v for k, v in measured.by_epoch[1].items()}
    own = {"training_iteration": 1, "test_loss": 0.5}
    assert told == own | {"eval.acc": 0.5, "eval.at.0": 1, "eval.at.1": 2.5, "curve.0": 0.1, "curve.2.0": 3}


def test_settings_under_one_key_are_told_apart_or_left_out(zoo):
    (zoo / "t/params.json").write_text(json.dumps(config() | {"training.optimizer.lr": 0.5, "a/b": 1, "a.b": 2}))
    (model,), _ = read(zoo)
    assert model.settings["training.optimizer.lr"] == 0.5
    assert "source.config.a.b" not in model.settings
    assert json.loads(model.original)["optim::lr"] == 0.003
    assert [note.partition("; ")[2] for note in model.notes] == [
        "that of its own name is taken", "none of them is taken",
    ]  # fmt: skip


def test_settings_nested_deeper_than_any_are_damaged(zoo):
    (zoo / "t/params.json").write_text('{"a":' * 950 + "0" + "}" * 950)
    (model,), _ = read(zoo)
    assert model.notes[0] == "params.json is damaged (it is nested too deep)"


def test_settings_of_more_values_than_any_are_not_read(zoo):
    large = json.dumps({"a": [[]] * 20_000})
    (zoo / "t/params.json").write_text(large)
    (zoo / "t/result.json").write_text(one_line(config=json.loads(large)))
    (model,), _ = read(zoo)
    assert (model.settings, model.original) == ({}, "{}")
    assert model.notes == (
        "params.json is damaged (it has more than the 10,000 values that are read)",
        "the settings in result.json are left out (it has more than the 10,000 values that are read)",
        "has no settings (params.json)",
    )

"""An import that knows its task: records are held against what the networks score, and the zoo can be trained on."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "importers"))  # published_zoos

from published_zoos import config, results, write_trial

import zoogen
from zoogen.build.imported_task import Trained, _spread, find_task
from zoogen.build.importing import import_zoo
from zoogen.build.pipeline import BuildOptions
from zoogen.build.sparsify import SparsifyOptions, plan_of, sparsify
from zoogen.core.errors import EnvironmentFault, UserError
from zoogen.core.registry import TASKS
from zoogen.report.overview import summary
from zoogen.schedule import SerialExecutor, StopFlag
from zoogen.store.verify import verify
from zoogen.tasks.places import cache_root

TASK = {"size": 28, "val": 200, "test": 400}
KINDS = {
    "t1": config(optim__lr=0.003),
    "t2": config(seed=2, optim__lr=0.001, model__dropout=0.3),
    "t3": config(seed=3, optim__optimizer="SGD", optim__momentum=0.9, training__batchsize=100, model__nlin="relu"),
}


class Silent:
    """Reports nowhere."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


@pytest.fixture(scope="module")
def trained():
    return find_task_of(TASK)


def find_task_of(arguments):
    task = TASKS.make("digits", arguments)
    return Trained(task, task.load(Path("nowhere"), cache_root()))


@pytest.fixture(scope="module")
def published(tmp_path_factory, trained):
    """Three trials that were trained on the task's own samples, by code that is not ours."""
    folder = tmp_path_factory.mktemp("published") / "digits"
    parts = [trained.data.tensors(part, "cpu") for part in ("train", "test")]
    samples = tuple(t for inputs, targets in parts for t in (trained.data.prepare(inputs), targets))
    for name, settings in KINDS.items():
        write_trial(folder / name, settings, epochs=2, samples=samples)
    return folder


@pytest.fixture
def source(published, tmp_path):
    return shutil.copytree(published, tmp_path / "source")


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory, trained):
    done = import_zoo(published, None, tmp_path_factory.mktemp("imported") / "zoo", lambda text: None, trained)
    return zoogen.open(done.path)


def twins_of(zoo, out, *overrides, text="method: {name: magnitude, sparsity: {grid: [0.5, 0.9]}}"):
    return SparsifyOptions(
        zoo, None, text, ("training.epochs=1", *overrides), BuildOptions(blueprint=Path("b.yaml"), out=out)
    )


def run(options):
    return sparsify(options, SerialExecutor(), Silent(), StopFlag())


def test_recorded_accuracies_are_computed_again_and_told(published, trained, tmp_path):
    done = import_zoo(published, None, tmp_path / "zoo", lambda text: None, trained)
    assert done.check.models == 3
    assert done.check.difference < 1e-9
    assert re.search(r"test accuracy of \d states of 3 models computed again: as recorded, within 0.0000", str(done))


def rewrite_results(trial, change):
    """``change`` each line of a trial's results, a dictionary."""
    lines = [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]
    (trial / "result.json").write_text("".join(json.dumps(change(line)) + "\n" for line in lines))


def test_scores_that_are_those_of_the_next_epoch_are_refused_though_the_last_one_is_right(source, trained, tmp_path):
    for name in KINDS:
        told = results(source / name)
        moved = {epoch: told[min(epoch + 1, 2)]["test_acc"] for epoch in told}
        rewrite_results(source / name, lambda line, moved=moved: line | {"test_acc": moved[line["training_iteration"]]})
    with pytest.raises(UserError, match="do not score on task 'digits' what their records say"):
        import_zoo(source, None, tmp_path / "zoo", lambda text: None, trained)
    assert not (tmp_path / "zoo").exists()


def test_percentages_are_no_accuracies_and_that_nothing_was_checked_is_said(source, trained, tmp_path):
    before = {name: results(source / name) for name in KINDS}
    for name in KINDS:
        rewrite_results(source / name, lambda line: line | {"test_acc": 100 * line["test_acc"]})
    done = import_zoo(source, None, tmp_path / "zoo", lambda text: None, trained)
    assert "no test accuracy was computed again" in str(done)
    assert "3 models: has test_acc outside [0, 1], so it is called source.result.test_acc" in str(done)
    zoo = zoogen.open(done.path)
    assert "test_acc" not in zoo.checkpoints.columns
    keys = dict(zip(zoo.models["model_id"], zoo.models["source.key"], strict=True))
    for row in zoo.checkpoints.to_dict("records"):
        assert row["source.result.test_acc"] == 100 * before[keys[row["model_id"]]][row["epoch"]]["test_acc"]


def test_the_zoo_evaluates_to_what_is_recorded_at_every_epoch(published, imported):
    scores = imported.evaluate(imported.select(), "test")
    keys = dict(zip(imported.models["model_id"], imported.models["source.key"], strict=True))
    assert len(scores) == 9
    for row in scores.itertuples():
        told = results(published / keys[row.model_id])[row.epoch]
        assert row.acc == pytest.approx(told["test_acc"], abs=1e-9)
        assert row.loss == pytest.approx(told["test_loss"], rel=1e-5)


def test_the_zoo_knows_the_data(imported, trained):
    assert imported.task().data.fingerprint == trained.data.fingerprint
    (told,) = imported.manifest["tasks"].values()
    assert told["fingerprint"] == trained.data.fingerprint
    assert summary(imported).tasks[0]["models"] == 3


def test_records_that_say_something_else_are_refused_before_anything_is_written(source, trained, tmp_path):
    place = source / "t2" / "result.json"
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    lines[-1]["test_acc"] += 0.02
    place.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"1 of 3 models do not score on task 'digits'.*t2 has .* off by 0.0200"):
        import_zoo(source, None, tmp_path / "zoo", lambda text: None, trained)
    assert not (tmp_path / "zoo").exists()


def test_another_transform_is_noticed(published, tmp_path):
    other = find_task_of({**TASK, "normalise": "mnist"})
    with pytest.raises(UserError, match="do not score on task 'digits'"):
        import_zoo(published, None, tmp_path / "zoo", lambda text: None, other)


def test_a_task_of_other_samples_is_refused(published, tmp_path):
    with pytest.raises(UserError, match=r"takes inputs \[1, 28, 28\] .* 'digits' gives \[1, 8, 8\]"):
        import_zoo(published, None, tmp_path / "zoo", lambda text: None, find_task_of({}))


def test_without_data_nothing_is_compared_and_that_is_said(source, tmp_path, trained):
    place = source / "t2" / "result.json"
    place.write_text(place.read_text().replace('"test_acc": 0.', '"test_acc": 0.0'))
    without = Trained(trained.task, None, missing="digits: nothing in /nowhere")
    done = import_zoo(source, None, tmp_path / "zoo", lambda text: None, without)
    assert done.check.models == 0
    assert (
        "no test accuracy was computed again, so nothing says that this is their task: the data are not at hand "
        "(digits: nothing in /nowhere)"
    ) in str(done)
    (task,) = zoogen.open(done.path).manifest["tasks"].values()
    assert "fingerprint" not in task


def test_a_folder_that_is_named_for_the_data_must_have_them(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOOGEN_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("ZOOGEN_CACHE", str(tmp_path / "cache"))
    assert find_task("mnist", None, False).data is None
    assert str(tmp_path / "nowhere") in find_task("mnist", None, False).missing
    with pytest.raises(EnvironmentFault, match="elsewhere"):
        find_task("mnist", tmp_path / "elsewhere", False)


def test_data_that_come_later_are_recorded_then(published, trained, tmp_path):
    import_zoo(published, None, tmp_path / "zoo", lambda text: None, Trained(trained.task, None))
    done = import_zoo(published, None, tmp_path / "zoo", lambda text: None, trained)
    (told,) = zoogen.open(done.path).manifest["tasks"].values()
    assert told["fingerprint"] == trained.data.fingerprint


def test_going_on_with_another_task_is_refused(published, trained, tmp_path):
    import_zoo(published, None, tmp_path / "zoo", lambda text: None, trained)
    with pytest.raises(UserError, match="holds an import whose task is 'digits'"):
        import_zoo(published, None, tmp_path / "zoo", lambda text: None)


def test_a_blueprint_names_the_task_with_its_arguments(trained, tmp_path):
    file = tmp_path / "zoo.yaml"
    head = "zoo: some\nversion: 1\narchitecture: {name: cnn-s}\n"
    rest = "training: {epochs: 1, batch_size: 10, optimizer: {name: sgd, lr: 0.1}}\nseeds: {range: [0, 2]}\n"
    file.write_text(f"{head}task: {{name: digits, size: 28, val: 200, test: 400}}\n{rest}")
    assert find_task(str(file), None, False).task == trained.task
    file.write_text(f"{head}task: {{name: digits, size: 28, val: {{grid: [100, 200]}}}}\n{rest}")
    with pytest.raises(UserError, match="has several tasks"):
        find_task(str(file), None, False)
    with pytest.raises(UserError, match="unknown task 'digit'"):
        find_task("digit", None, False)


def test_a_blueprint_stands_in_where_records_say_nothing(source, tmp_path, monkeypatch):
    for name in ("t1", "t2"):
        settings = {k: v for k, v in KINDS[name].items() if k != "training::batchsize" and "optim::" not in k}
        settings |= {"optim::optimizer": "Adam", "optim::lr": 0.5} if name == "t2" else {}
        (source / name / "params.json").write_text(json.dumps(settings))
    monkeypatch.setenv("ZOOGEN_DATA", str(tmp_path))
    file = tmp_path / "zoo.yaml"
    file.write_text(
        "zoo: some\nversion: 1\narchitecture: {name: cnn-s}\ntask: {name: digits, size: 28, val: 200, test: 400}\n"
        "training:\n  epochs: 1\n  batch_size: 25\n  label_smoothing: {grid: [0.0, 0.1]}\n"
        "  optimizer: {name: sgd, lr: 0.1, momentum: 0.5}\nseeds: {range: [0, 2]}\n"
    )
    zoo = zoogen.open(
        import_zoo(source, None, tmp_path / "zoo", lambda text: None, find_task(str(file), None, False)).path
    )
    rows = {row["source.key"]: row for row in zoo.models.to_dict("records")}
    assert [rows[t]["training.batch_size"] for t in KINDS] == [25, 25, 100]
    assert [rows[t]["training.optimizer.name"] for t in KINDS] == ["sgd", "adam", "sgd"]
    assert [rows[t]["training.optimizer.lr"] for t in KINDS] == [0.1, 0.5, 0.003]
    assert rows["t1"]["training.optimizer.momentum"] == 0.5
    assert np.isnan(rows["t2"]["training.optimizer.momentum"])
    assert "training.label_smoothing" not in zoo.models  # the blueprint says two values
    assert set(zoo.models["task.name"]) == {"digits"}
    assert json.loads(rows["t1"]["source.record"]).get("training::batchsize") is None


def test_a_model_that_diverged_does_not_speak_against_the_task(source, trained, tmp_path):
    state = torch.load(source / "t2/checkpoint_000002/checkpoints", weights_only=True)
    torch.save({k: t * torch.nan for k, t in state.items()}, source / "t2/checkpoint_000002/checkpoints")
    done = import_zoo(source, None, tmp_path / "zoo", lambda text: None, trained)
    assert (done.check.models, done.diverged) == (3, 1)


@pytest.mark.parametrize("count", [1, 5, 8, 9, 15, 23, 1000])
def test_the_models_that_are_evaluated_lie_evenly(count):
    order = list(_spread(range(count)))
    assert sorted(order) == list(range(count))
    first = sorted(order[:8])
    assert (first[0], first[-1]) == (0, count - 1)
    steps = np.diff(first)
    assert count < 3 or steps.max() - steps.min() <= 1


def test_a_task_that_cannot_be_made_by_its_name_alone_says_what_it_needs():
    with pytest.raises(UserError, match=r"task 'image-folder' needs .*size.*\nname a blueprint"):
        find_task("image-folder", None, False)


def test_twins_of_imported_models_train_on_as_their_records_say(imported, tmp_path):
    outcome = run(twins_of(imported.path, tmp_path / "twins"))
    assert (outcome.trained, outcome.failed) == (6, {})
    assert verify(tmp_path / "twins").complete
    twins = zoogen.open(tmp_path / "twins")
    parents = imported.models.set_index("model_id")
    for row in twins.models.to_dict("records"):
        parent = parents.loc[row["parent_id"]]
        record = json.loads(parent["source.record"])
        assert row["training.optimizer.lr"] == record["optim::lr"]
        assert row["training.optimizer.name"] == record["optim::optimizer"].lower()
        assert row["training.optimizer.weight_decay"] == record["optim::wd"]
        assert row["training.batch_size"] == record["training::batchsize"]
        assert (row["seed"], row["split"]) == (record["seed"], parent["split"])
        start, dense = (
            torch.cat([t.flatten() for name, t in zoo.state_dict(i, epoch).items() if "weight" in name])
            for zoo, i, epoch in ((twins, row["model_id"], 0), (imported, row["parent_id"], 2))
        )
        kept = start != 0
        assert torch.equal(start[kept], dense[kept])
        assert kept.double().mean() == pytest.approx(1 - row["training.sparsify.sparsity"], abs=1e-3)
        assert dense[~kept].abs().max() <= dense[kept].abs().min()


def test_variational_twins_are_held_against_the_recorded_accuracy(imported, tmp_path):
    text = "method: {name: variational-dropout}"
    outcome = run(twins_of(imported.path, tmp_path / "twins", "parents.where=seed == 1", text=text))
    assert (outcome.trained, outcome.failed) == (1, {})
    told = zoogen.open(tmp_path / "twins").with_parent("test_acc")
    start = told[told["epoch"] == 0]
    assert np.allclose(start["test_acc"], start["parent.test_acc"], atol=0.01)


def test_the_same_parents_give_the_same_twins_from_another_import(published, trained, imported, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "digits"), "zip", published)
    again = import_zoo(Path(archive), None, tmp_path / "again", lambda text: None, trained).path
    ids = [set(plan_of(twins_of(zoo, None))[0].table["model_id"]) for zoo in (imported.path, again)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 6


def test_an_import_without_its_task_gets_no_twins(published, tmp_path):
    path = import_zoo(published, None, tmp_path / "zoo", lambda text: None).path
    with pytest.raises(UserError, match=r"does not say what its models were trained on\n.*--task"):
        plan_of(twins_of(path, tmp_path / "twins"))


def test_models_whose_record_says_too_little_are_named(source, trained, tmp_path):
    settings = dict(KINDS["t2"])
    del settings["training::batchsize"]
    (source / "t2" / "params.json").write_text(json.dumps(settings))
    zoo = import_zoo(source, None, tmp_path / "zoo", lambda text: None, trained).path
    told = r"1 of the 3 chosen models .* its record names no batch size\nchoose others with --where$"
    with pytest.raises(UserError, match=told):
        plan_of(twins_of(zoo, tmp_path / "twins"))
    plan, _ = plan_of(twins_of(zoo, tmp_path / "twins", "parents.where=seed != 2"))
    assert len(plan) == 4


@pytest.mark.parametrize(
    ("gone", "reason", "remedy"),
    [
        (
            ("training::batchsize",),
            "its record names no batch size",
            "import again with --task BLUEPRINT.yaml that has training.batch_size",
        ),
        (
            ("training::batchsize", "optim::optimizer"),
            "its record names no batch size and no optimizer",
            "import again with --task BLUEPRINT.yaml that has training.batch_size and training.optimizer",
        ),
        (("optim::lr",), "its record names no lr", "import again with training.optimizer.lr in its records"),
        (("model::nlin",), "its network is none of ours", "import again with architecture.* in its records, where"),
    ],
)
def test_where_no_model_can_be_trained_on_it_is_said_what_helps(source, trained, tmp_path, gone, reason, remedy):
    for name, settings in KINDS.items():
        told = {key: value for key, value in settings.items() if key not in gone}
        (source / name / "params.json").write_text(json.dumps(told))
    zoo = import_zoo(source, None, tmp_path / "zoo", lambda text: None, Trained(trained.task, None)).path
    told = rf"3 of the 3 chosen models .*: {re.escape(reason)}[^\n]*\n{re.escape(remedy)}[^\n]*$"
    with pytest.raises(UserError, match=told):
        plan_of(twins_of(zoo, tmp_path / "twins"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"optim::lr": "fast"}, "its lr is 'fast', not a number > 0"),
        ({"optim::lr": True}, "its lr is 'True', not a number > 0"),
        ({"optim::lr": 0.0}, "its lr is 0, not a number > 0"),
        ({"optim::lr": float("inf")}, "its lr is 'inf'"),
        ({"optim::wd": -1}, "its weight decay is -1"),
        ({"training::batchsize": "full"}, "its batch size is 'full', not a whole number >= 1"),
        ({"training::batchsize": 0}, "its batch size is 0"),
        ({"training::batchsize": 32.5}, "its batch size is 32.5"),
        ({"training::epochs_train": "many"}, "its epochs is 'many'"),
        ({"optim::optimizer": "LAMB"}, "its optimizer 'lamb' is unknown here"),
        ({"optim::optimizer": "SGD", "optim::nesterov": "yes"}, "its nesterov is 'yes', not true or false"),
        ({"optim::optimizer": "SGD", "optim::nesterov": True}, "cannot be made: nesterov needs momentum above 0"),
        ({"optim::scheduler": {"name": "StepLR"}}, 'its schedule \'{"name": "StepLR"}\' is unknown here'),
    ],
    ids=str,
)
def test_a_record_that_cannot_be_trained_with_is_told_and_others_are_not_held_up(
    source, trained, tmp_path, change, reason
):
    (source / "t2" / "params.json").write_text(json.dumps(KINDS["t2"] | change))
    zoo = import_zoo(source, None, tmp_path / "zoo", lambda text: None, Trained(trained.task, None)).path
    with pytest.raises(UserError, match=re.escape(reason)):
        plan_of(twins_of(zoo, tmp_path / "twins"))
    plan, _ = plan_of(twins_of(zoo, tmp_path / "twins", "parents.where=seed != 2"))
    assert sorted(set(plan.table["training.optimizer.lr"])) == [0.003]
    assert sorted(set(plan.table["training.batch_size"])) == [50, 100]


def test_everything_that_is_recorded_of_the_training_goes_into_the_twins(source, trained, tmp_path):
    change = {"optim::nesterov": True, "training.label_smoothing": 0.1, "training.clip_norm": 2, "optim::momentum": 0.8}
    (source / "t3" / "params.json").write_text(json.dumps(KINDS["t3"] | change))
    zoo = import_zoo(source, None, tmp_path / "zoo", lambda text: None, Trained(trained.task, None)).path
    plan, _ = plan_of(twins_of(zoo, tmp_path / "twins", "parents.where=seed == 3"))
    training = plan.job(0).training
    assert (training.label_smoothing, training.clip_norm) == (0.1, 2.0)
    assert (training.optimizer.nesterov, training.optimizer.momentum) == (True, 0.8)


def test_an_optimizer_has_its_own_arguments_only(source, trained, tmp_path):
    (source / "t1" / "params.json").write_text(json.dumps(KINDS["t1"] | {"optim::momentum": 0.9}))  # as the Hyp zoos
    zoo = zoogen.open(import_zoo(source, None, tmp_path / "zoo", lambda text: None, Trained(trained.task, None)).path)
    rows = {row["source.key"]: row for row in zoo.models.to_dict("records")}
    assert np.isnan(rows["t1"]["training.optimizer.momentum"])
    assert rows["t1"]["source.config.optimizer.momentum"] == 0.9
    assert rows["t3"]["training.optimizer.momentum"] == 0.9


def test_a_model_without_a_recorded_seed_has_streams_of_its_own(source, trained, tmp_path):
    for name in ("t1", "t2"):
        settings = {k: v for k, v in KINDS[name].items() if k != "seed"}
        (source / name / "params.json").write_text(json.dumps(settings))
    zoo = import_zoo(source, None, tmp_path / "zoo", lambda text: None, trained).path
    plan, _ = plan_of(twins_of(zoo, tmp_path / "twins", text="method: {name: magnitude, sparsity: 0.5}"))
    assert len(set(plan.table["seed"])) == 3
    assert plan.table["seed"].min() >= 0


def test_a_residual_network_is_recognised_where_the_task_says_its_images(tmp_path):
    from torchvision.models import resnet18

    task = TASKS.make("cifar10", {})
    network = resnet18(num_classes=10)
    network.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = torch.nn.Identity()
    with torch.no_grad():  # running statistics that are not those of a new network
        network.train()(torch.rand(4, 3, 32, 32))
    trial = tmp_path / "source" / "r18"
    (trial / "checkpoint_000001").mkdir(parents=True)
    kind = {"model::type": "Resnet18", "model::nlin": "gelu", "model::dropout": 0.5, "model::channels_in": 3}
    (trial / "params.json").write_text(json.dumps(config() | kind))
    torch.save({f"module.{k}": t for k, t in network.state_dict().items()}, trial / "checkpoint_000001/checkpoints")
    done = import_zoo(tmp_path / "source", None, tmp_path / "zoo", lambda text: None, Trained(task, None))
    assert not any("without code" in s.reason for s in done.skipped)
    zoo = zoogen.open(done.path)
    (row,) = zoo.models.to_dict("records")
    assert (row["architecture.name"], row["architecture.width"]) == ("resnet18", 64)
    assert "architecture.activation" not in row  # always ReLU, whatever the record says
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(zoo.module(row["model_id"])(images), network.eval()(images))
    told = str(import_zoo(tmp_path / "source", None, tmp_path / "blind", lambda text: None))
    why = "the size of its images is not recorded; name what it was trained on (--task)"
    assert f"  1 model: is imported without code: {why}\n" in told


def test_safetensors_whose_record_names_our_network_are_made_sparse(imported, trained, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "source").mkdir()
    rows = {row["source.key"]: row for row in imported.models.to_dict("records")}
    for name, row in rows.items():
        told = {key: row[f"architecture.{key}"] for key in ("name", "activation", "init", "dropout")}
        told = {f"architecture.{key}": str(value) for key, value in told.items()}
        told |= {"input_shape": "1x28x28", "outputs": "10", "lr": "0.002", "optimizer": "adam", "batch_size": "50"}
        save_file(imported.state_dict(row["model_id"]), tmp_path / f"source/{name}.safetensors", metadata=told)
    done = import_zoo(tmp_path / "source", None, tmp_path / "zoo", lambda text: None, trained)
    outcome = run(twins_of(done.path, tmp_path / "twins"))
    assert (outcome.trained, outcome.failed) == (6, {})
    zoo, twins = zoogen.open(done.path), zoogen.open(tmp_path / "twins")
    keys = dict(zip(zoo.models["model_id"], zoo.models["source.key"], strict=True))
    for row in twins.models.to_dict("records"):
        assert (row["training.optimizer.lr"], row["training.batch_size"]) == (0.002, 50)
        start = twins.state_dict(row["model_id"], 0)["conv1.weight"]
        dense = imported.state_dict(rows[keys[row["parent_id"]]]["model_id"])["conv1.weight"]
        assert 0 < (start != 0).double().mean() < 1
        assert torch.equal(start[start != 0], dense[start != 0])

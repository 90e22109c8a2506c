"""Twin zoos end to end: what is stored of them, and that they resume, extend and heal like any build."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import twin_runs
from build_runs import Recorder, everything, leftovers, shards
from sklearn.metrics import cohen_kappa_score
from torch import nn
from torch.nn.utils import prune
from twin_runs import digests, recipe, rows, sparsify

from zoogen.build.parents import ParentZoo
from zoogen.build.programs import Wish
from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.layout import Layout
from zoogen.core.registry import TASKS
from zoogen.store.read import ShardReader
from zoogen.store.verify import verify
from zoogen.store.zoo import ZooFolder
from zoogen.tasks.places import cache_root
from zoogen.twins import trainer as twin_trainer

ALLOWED = ("twin_networks:with_norm",)
MASKS = recipe(
    "{name: magnitude, sparsity: {grid: [0.5, 0.9]}, scope: {grid: [global, layerwise, channels]}}",
    training={"epochs": 2},
)
RANDOM = recipe("{name: random, sparsity: 0.8}", training={"epochs": 1})
NOISE = recipe("{name: variational-dropout, beta: 0.02}", training={"epochs": 2}, checkpoints={"log_alpha": True})
PLAIN = recipe("{name: magnitude, sparsity: {grid: [0.5, 0.9]}}", training={"epochs": 2})


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """Makes ``twin_networks`` importable, as a user's own module is."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "twin_networks.py").write_text(twin_runs.NETWORKS)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("twin_networks", None)


@pytest.fixture(scope="session")
def optimizers(tmp_path_factory):
    return twin_runs.grow(tmp_path_factory.mktemp("optimizers"), twin_runs.OPTIMIZERS)


@pytest.fixture(scope="session")
def convolutions(tmp_path_factory, networks):
    return twin_runs.grow(tmp_path_factory.mktemp("convolutions"), twin_runs.CONVOLUTIONS)


@pytest.fixture(scope="session")
def resnets(tmp_path_factory):
    return twin_runs.grow(tmp_path_factory.mktemp("resnets"), twin_runs.RESNETS)


@pytest.fixture(scope="session")
def twins(tmp_path_factory, optimizers):
    """The plain twins of all six networks; copied by those who change them."""
    zoo = tmp_path_factory.mktemp("twins") / "zoo"
    assert sparsify(optimizers, zoo, PLAIN).exit_code == 0
    return zoo


@pytest.fixture
def copied(twins, tmp_path):
    return shutil.copytree(twins, tmp_path / "twins")


class Stored:
    """Everything a zoo stores, by (model id, epoch)."""

    def __init__(self, zoo) -> None:
        self.manifest = ZooFolder(zoo).manifest()
        self.weights: dict[tuple[str, int], np.ndarray] = {}
        self.kept: dict[tuple[str, int], np.ndarray] = {}
        self.side: dict[tuple[str, int], np.ndarray] = {}
        self.layout: dict[str, Layout] = {}
        for folder in ZooFolder(zoo).shard_folders():
            with ShardReader(folder) as shard:
                layout = Layout.from_json(self.manifest["layouts"][shard.info.layout_id])
                keys = list(zip(shard.model_ids(), shard.epochs().tolist(), strict=True))
                kept = shard.kept(len(layout.prunable_places))
                side = shard.side("int64") if "int64" in layout.side_dtypes else None
                for i, (key, weights) in enumerate(zip(keys, shard.weights(), strict=True)):
                    self.weights[key] = weights
                    self.layout[key[0]] = layout
                    if kept is not None:
                        self.kept[key] = kept[i]
                    if side is not None:
                        self.side[key] = side[i]
        self.checkpoints = pd.read_parquet(zoo / "checkpoints.parquet").set_index(["model_id", "epoch"])
        self.models = pd.read_parquet(zoo / "models.parquet").set_index("model_id")


def network_of(job, weights: np.ndarray, side: np.ndarray | None, layout: Layout) -> nn.Module:
    """The plain network of a job with these weights, in evaluation."""
    module = job.architecture.build(job.task.input_shape, job.task.outputs)
    module.load_state_dict(layout.unflatten({"float32": weights, **({} if side is None else {"int64": side})}))
    return module.eval()


def predictions(module: nn.Module, data) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean test loss, predicted and true classes."""
    inputs, targets = data.tensors("test", "cpu")
    with torch.no_grad():
        scores = module(data.prepare(inputs))
    loss = nn.functional.cross_entropy(scores.double(), targets).item()
    return loss, scores.argmax(1).numpy(), targets.numpy()


def pruned_by_torch(module: nn.Module, method) -> None:
    """Magnitude pruning of a whole network by torch.nn.utils.prune."""
    prunable = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if method.scope == "global":
        parts = [(m, "weight") for m in prunable]
        prune.global_unstructured(parts, prune.L1Unstructured, amount=method.sparsity)
    elif method.scope == "layerwise":
        for m in prunable:
            prune.l1_unstructured(m, "weight", method.sparsity)
    else:
        for m in prunable[:-1]:
            prune.ln_structured(m, "weight", method.sparsity, n=2, dim=0)
    for m in prunable:
        if hasattr(m, "weight_mask"):
            prune.remove(m, "weight")


def check_twins(zoo, parent_zoo, *, allow=()) -> Stored:
    """Everything stored of every twin, computed again from its weights, its parent's, and the data of its task."""
    found, parents = Stored(zoo), Stored(parent_zoo)
    plan = ParentZoo(parent_zoo, allow).plan
    jobs = {plan.job(c).model_id: plan.job(c) for c in range(len(plan))}
    data = next(iter(jobs.values())).task.load(None, cache_root())
    for (model_id, epoch), weights in found.weights.items():
        row, model = found.checkpoints.loc[model_id, epoch], found.models.loc[model_id]
        origin = (model["parent_id"], int(model["parent_epoch"]))
        assert model["split"] == parents.models.loc[origin[0], "split"]
        job, layout, kept = jobs[origin[0]], found.layout[model_id], found.kept[model_id, epoch]
        assert layout == parents.layout[origin[0]]
        values = weights[layout.prunable_places]
        assert not values[~kept].view(np.uint32).any(), "removed weights are exactly +0"
        ends = np.cumsum([e.size for e in layout.prunable])[:-1]
        assert row["sparsity"] == (~kept).sum() / kept.size
        assert row["layer_sparsity"].tolist() == [(~p).sum() / p.size for p in np.split(kept, ends)]
        before = network_of(job, parents.weights[origin], parents.side.get(origin), layout)
        after = network_of(job, weights, found.side.get((model_id, epoch)), layout)
        loss, classes, targets = predictions(after, data)
        _, expected, _ = predictions(before, data)
        assert row["test_loss"] == pytest.approx(loss, rel=1e-4)
        # One test sample may stand on the border of two classes in float32.
        assert row["test_acc"] == pytest.approx((classes == targets).mean(), abs=1.01 / len(targets))
        assert row["agreement"] == pytest.approx((classes == expected).mean(), abs=1.01 / len(targets))
        kappa = cohen_kappa_score(classes, expected)
        assert row["kappa"] == pytest.approx(1.0 if np.isnan(kappa) else kappa, abs=2.5 / len(targets))
        trained = slice(0, layout.trainable)
        own, other = weights[trained].astype(float), parents.weights[origin][trained].astype(float)
        assert row["distance"] == pytest.approx(np.linalg.norm(own - other), rel=1e-9)
        cosine = own @ other / np.linalg.norm(own) / np.linalg.norm(other)
        assert row["cosine_distance"] == pytest.approx(1 - cosine, abs=1e-9)
        assert row["weight_norm"] == pytest.approx(np.linalg.norm(own), rel=1e-9)
    return found


def check_first_states(found: Stored, parent_zoo, *, allow=()) -> None:
    """State 0 of pruned twins is what torch.nn.utils.prune makes of the parent; nothing else has moved."""
    parents, plan = Stored(parent_zoo), ParentZoo(parent_zoo, allow).plan
    jobs = {plan.job(c).model_id: plan.job(c) for c in range(len(plan))}
    for model_id, model in found.models.iterrows():
        origin, layout = (model["parent_id"], int(model["parent_epoch"])), found.layout[model_id]
        module = network_of(jobs[origin[0]], parents.weights[origin], parents.side.get(origin), layout)
        pruned_by_torch(module, method_of(model))
        weights = found.weights[model_id, 0]
        assert np.array_equal(layout.flatten(module.state_dict()).numpy(), weights), (
            "weights, biases, norms, statistics"
        )
        if origin in parents.side:
            assert np.array_equal(found.side[model_id, 0], parents.side[origin])


def method_of(model):
    from zoogen.core.registry import SPARSIFIERS

    told = {k.rpartition(".")[2]: v for k, v in model.items() if k.startswith("training.sparsify.")}
    name = told.pop("name")
    return SPARSIFIERS.get(name)(**{k: v for k, v in told.items() if not pd.isna(v)})


def test_pruned_mlps_of_several_optimizers_are_what_torch_and_scikit_learn_say(twins, optimizers):
    found = check_twins(twins, optimizers)
    check_first_states(found, optimizers)
    assert len(found.models) == 12
    assert set(found.checkpoints.index.get_level_values("epoch")) == {0, 1, 2}
    for model_id, model in found.models.iterrows():
        size = len(found.layout[model_id].prunable_places)
        for epoch in range(3):
            assert (~found.kept[model_id, epoch]).sum() == round(model["training.sparsify.sparsity"] * size)
    moved = [np.abs(found.weights[m, 2] - found.weights[m, 0]).max() for m in found.models.index]
    assert min(moved) > 1e-4, "every twin trains"


def test_each_twin_trains_with_its_own_parents_optimizer(twins, optimizers):
    own, parents = Stored(twins).models, Stored(optimizers).models
    inherited = [c for c in parents.columns if c.startswith(("architecture.", "training.optimizer.")) or c == "seed"]
    inherited += ["training.batch_size"]
    assert {own[c].nunique() for c in ("training.optimizer.name", "training.batch_size")} == {2, 3}
    for _, twin in own.iterrows():
        parent = parents.loc[twin["parent_id"]]
        for column in inherited:
            same = twin[column] == parent[column] or (pd.isna(twin[column]) and pd.isna(parent[column]))
            assert same, column
        assert twin["training.schedule.name"] == "constant"
    assert set(parents["training.schedule.name"]) == {"constant", "one_cycle"}


def test_convolutions_with_batch_norm_and_dropout_in_every_scope(tmp_path, convolutions):
    assert sparsify(convolutions, tmp_path / "zoo", MASKS, allow=ALLOWED).exit_code == 0
    found = check_twins(tmp_path / "zoo", convolutions, allow=ALLOWED)
    check_first_states(found, convolutions, allow=ALLOWED)
    assert len(found.models) == 12
    channels = found.models[found.models["training.sparsify.scope"] == "channels"]
    for model_id in channels.index:
        layout = found.layout[model_id]
        ends = np.cumsum([e.size for e in layout.prunable])[:-1]
        parts = np.split(found.kept[model_id, 2], ends)
        for entry, part in zip(layout.prunable[:-1], parts[:-1], strict=True):
            whole = part.reshape(entry.shape[0], -1)
            assert (whole.all(axis=1) | ~whole.any(axis=1)).all()
            share = channels.loc[model_id, "training.sparsify.sparsity"]
            assert (~whole.any(axis=1)).sum() == round(share * entry.shape[0])
        assert parts[-1].all(), "the classes stay"


def test_residual_networks_of_any_depth(tmp_path, resnets):
    text = recipe("{name: magnitude, sparsity: 0.9, scope: {grid: [global, channels]}}", training={"epochs": 1})
    assert sparsify(resnets, tmp_path / "zoo", text).exit_code == 0
    check_first_states(check_twins(tmp_path / "zoo", resnets), resnets)


def test_random_twins_have_exact_counts_and_are_their_parents_but_for_their_masks_at_first(tmp_path, convolutions):
    assert sparsify(convolutions, tmp_path / "zoo", RANDOM, allow=ALLOWED).exit_code == 0
    found, parents = check_twins(tmp_path / "zoo", convolutions, allow=ALLOWED), Stored(convolutions)
    for model_id, model in found.models.iterrows():
        layout, kept = found.layout[model_id], found.kept[model_id, 0]
        assert (~kept).sum() == round(0.8 * kept.size)
        expected = parents.weights[model["parent_id"], 2].copy()
        expected[layout.prunable_places[~kept]] = 0
        assert np.array_equal(found.weights[model_id, 0], expected)
        assert np.array_equal(found.kept[model_id, 1], kept)


@pytest.mark.parametrize("zoo", ["optimizers", "convolutions", "resnets"])
def test_variational_twins_begin_as_their_parents_and_move_towards_their_prior(tmp_path, request, zoo):
    parent_zoo = request.getfixturevalue(zoo)
    allow = ALLOWED if zoo == "convolutions" else ()
    assert sparsify(parent_zoo, tmp_path / "zoo", NOISE, allow=allow).exit_code == 0
    found, parents = check_twins(tmp_path / "zoo", parent_zoo, allow=allow), Stored(parent_zoo)
    for model_id, model in found.models.iterrows():
        start = parents.weights[model["parent_id"], int(model["parent_epoch"])]
        removed = found.weights[model_id, 0] != start
        assert np.abs(start[removed]).max(initial=0) < 0.0016, "only what is below its noise from the start"
        assert found.checkpoints.loc[model_id, 0]["kl"] > 0
        assert found.checkpoints.loc[model_id, 0]["test_loss"] == pytest.approx(
            parents.checkpoints.loc[model["parent_id"], int(model["parent_epoch"])]["test_loss"], rel=1e-2
        )
    # The divergence weighs nothing in the first epoch. Its gradient, 1 / w, throws small weights far off under SGD.
    losses = found.checkpoints["kl"].unstack()
    adaptive = found.models["training.optimizer.name"].reindex(losses.index).astype(str) != "sgd"
    assert (losses[2] < losses[1])[adaptive].all()
    for folder in ZooFolder(tmp_path / "zoo").shard_folders():
        with ShardReader(folder) as shard:
            width = len(found.layout[shard.model_ids([0])[0]].prunable_places)
            alpha = shard.log_alpha(width)
            assert np.array_equal(alpha < 3, shard.kept(width))
            if zoo == "optimizers":  # biases of convolutions have noise too, and no place among the weights
                keys = list(zip(shard.model_ids(), shard.epochs().tolist(), strict=True))
                told = found.checkpoints.loc[keys, "kl"].to_numpy()
                assert divergence(alpha.astype(float)).sum(axis=1) == pytest.approx(told, rel=1e-5)


def divergence(alpha: np.ndarray) -> np.ndarray:
    """KL of a weight by its log alpha, as the published code has it."""
    return -(0.63576 / (1 + np.exp(-(1.8732 + 1.48695 * alpha))) - 0.5 * np.log1p(np.exp(-alpha)) - 0.63576)


@pytest.mark.parametrize(
    ("schedule", "shares"), [("geometric", [1 - 0.1**0.5, 1 - 0.1**0.5, 0.9]), ("cubic", [0.7875, 0.7875, 0.9])]
)
def test_iterative_pruning_reaches_its_sparsity_round_by_round(tmp_path, optimizers, schedule, shares):
    method = f"{{name: magnitude, sparsity: 0.9, rounds: 2, schedule: {schedule}}}"
    text = recipe(method, training={"epochs": 2}, parents={"where": "dropout > 0"})
    assert sparsify(optimizers, tmp_path / "zoo", text).exit_code == 0
    found = check_twins(tmp_path / "zoo", optimizers)
    for model_id in found.models.index:
        size = found.kept[model_id, 0].size
        # Pruned before the first and before the second epoch; stored after epochs 0, 1 and 2.
        assert [(~found.kept[model_id, e]).sum() for e in range(3)] == [round(s * size) for s in shares]
        assert not (found.kept[model_id, 2] & ~found.kept[model_id, 0]).any(), "what is removed stays removed"


@pytest.mark.parametrize("back", [0, 2])
def test_rewound_twins_have_the_parents_mask_and_its_earlier_weights(tmp_path, convolutions, back):
    """Also to the very epoch they start from (2), where rewinding changes nothing."""
    text = recipe(f"{{name: magnitude, sparsity: 0.5, rewind: {back}}}", training={"epochs": 1})
    outcome = sparsify(convolutions, tmp_path / "zoo", text, allow=ALLOWED)
    assert (outcome.exit_code, outcome.failed) == (0, {})
    found, parents = check_twins(tmp_path / "zoo", convolutions, allow=ALLOWED), Stored(convolutions)
    for model_id, model in found.models.iterrows():
        places = found.layout[model_id].prunable_places
        last, early = (parents.weights[model["parent_id"], e] for e in (2, back))
        smallest = np.argsort(np.abs(last[places]), kind="stable")[: round(0.5 * len(places))]
        expected = early.copy()
        expected[places[smallest]] = 0
        assert np.array_equal(found.weights[model_id, 0], expected)
        assert np.array_equal(found.side[model_id, 0], parents.side[model["parent_id"], back])


def test_the_parents_bytes_never_change_and_the_twins_name_them(tmp_path, optimizers):
    before = digests(optimizers)
    sparsify(optimizers, tmp_path / "zoo", PLAIN, until=1)
    sparsify(optimizers, tmp_path / "zoo", PLAIN)
    with pytest.raises(UserError):
        sparsify(optimizers, tmp_path / "zoo", PLAIN, overrides=("method.rewind=9",))
    assert digests(optimizers) == before
    (told,) = ZooFolder(tmp_path / "zoo").manifest()["parents"]
    assert (told["name"], told["version"]) == ("optimizers", 3)
    assert (tmp_path / "zoo" / told["path"]).resolve() == optimizers.resolve()
    assert told["shards"] == {i: s.digest for i, s in ZooFolder(optimizers).sealed().items()}


def test_a_second_run_trains_nothing_and_changes_no_file(copied, optimizers):
    before, reporter = everything(copied), Recorder()
    # The folder has moved, and with it the way to the parent.
    assert sparsify(optimizers, copied, PLAIN, reporter=reporter).exit_code == 0
    assert reporter.steps == []
    after = everything(copied)
    assert {name for name in before if before[name] != after.get(name)} <= {"zoo.json"}
    assert sparsify(optimizers, copied, PLAIN).exit_code == 0
    assert everything(copied) == after


@pytest.mark.parametrize(
    "method", ["{name: magnitude, sparsity: {grid: [0.5, 0.9]}, rounds: 2, rewind: 1}", "{name: variational-dropout}"]
)
def test_twins_stopped_at_an_epoch_and_gone_on_with_are_byte_identical(tmp_path, optimizers, method):
    text = recipe(method, training={"epochs": 2}, parents={"where": "dropout > 0"})
    stopped = sparsify(optimizers, tmp_path / "zoo", text, until=1)
    assert (stopped.exit_code, stopped.trained) == (3, 0)
    assert not verify(tmp_path / "zoo").damaged
    assert sparsify(optimizers, tmp_path / "zoo", text).exit_code == 0
    sparsify(optimizers, tmp_path / "undisturbed", text)
    assert shards(tmp_path / "zoo") == shards(tmp_path / "undisturbed")
    assert leftovers(tmp_path / "zoo") == []
    assert verify(tmp_path / "zoo").complete


@pytest.mark.parametrize("text", [PLAIN, NOISE], ids=["masks", "noise"])
def test_twins_trained_many_at_once_are_those_trained_one_by_one(tmp_path, optimizers, text):
    text = text.replace("training:", "parents: {where: \"optimizer.name != 'sgd'\"}\ntraining:")
    zoos = {}
    for name, wish in {"plain": Wish("plain"), "population": Wish("population", {"engine": "stacked"})}.items():
        assert sparsify(optimizers, tmp_path / name, text, wish=wish).exit_code == 0
        zoos[name] = check_twins(tmp_path / name, optimizers)
        programs = [json.loads(p.read_bytes()) for p in (tmp_path / name / "programs").glob("*.json")]
        assert {p["program"]["trainer"] for p in programs} == {name}
    for key, weights in zoos["plain"].weights.items():
        # Sums are taken in another order; Adam divides small gradients by small numbers.
        assert zoos["population"].weights[key] == pytest.approx(weights, abs=5e-3)
        different = zoos["population"].kept[key] != zoos["plain"].kept[key]
        assert different.sum() <= (0 if key[1] == 0 or text.count("magnitude") else 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_twins_go_on_to_the_bytes_of_undisturbed_ones(tmp_path, optimizers, command, number):
    zoo, file = tmp_path / "zoo", tmp_path / "recipe.yaml"
    method = "{name: magnitude, sparsity: {grid: [0.5, 0.9]}, rounds: 3}"
    file.write_text(recipe(method, training={"epochs": 3}, parents={"where": "dropout > 0"}))
    before = digests(optimizers)
    run = command("sparsify", optimizers, "--recipe", file, "-o", zoo, "--executor", "serial", slow=0.2)
    run.reach("train", 5)
    os.kill(run.process.pid, number)
    assert run.wait() == (3 if number == signal.SIGINT else -number), run.output
    assert "Traceback" not in run.output
    report = verify(zoo)
    assert report.missing
    assert not report.damaged
    assert sparsify(optimizers, zoo, file.read_text()).exit_code == 0
    sparsify(optimizers, tmp_path / "undisturbed", file.read_text())
    assert shards(zoo) == shards(tmp_path / "undisturbed")
    assert leftovers(zoo) == []
    assert digests(optimizers) == before


def test_more_sparsities_and_more_parents_train_only_the_difference(tmp_path, optimizers, twins):
    some = recipe("{name: magnitude, sparsity: 0.5}", training={"epochs": 2}, parents={"where": "dropout > 0"})
    zoo = tmp_path / "zoo"
    assert sparsify(optimizers, zoo, some).trained == 3
    sealed = shards(zoo)
    outcome = sparsify(optimizers, zoo, PLAIN)
    assert (outcome.exit_code, outcome.trained) == (0, 12)
    assert sealed.items() <= shards(zoo).items()
    epochs = [json.loads(line) for log in (zoo / "logs").glob("*.jsonl") for line in log.read_text().splitlines()]
    trained = [(line["cohort_id"], line["epoch"]) for line in epochs if line["event"] == "epoch"]
    assert len(trained) == len(set(trained)), "an epoch was trained twice"
    assert rows(zoo) == rows(twins), "weights depend on how the zoo grew"
    assert verify(zoo).complete


def test_longer_twins_are_retrained_and_keep_every_byte_that_is_stored(tmp_path, optimizers, copied):
    sealed, stored = shards(copied), rows(copied)
    longer = PLAIN.replace("epochs: 2", "epochs: 3")
    assert longer != PLAIN
    assert sparsify(optimizers, copied, longer).exit_code == 0
    assert sealed.items() <= shards(copied).items()
    sparsify(optimizers, tmp_path / "at-once", longer)
    assert rows(copied) == rows(tmp_path / "at-once")
    assert stored.items() <= rows(copied).items()
    assert {e for _, e in rows(copied)} == {0, 1, 2, 3}
    assert verify(copied).complete


def test_twins_whose_length_shapes_them_are_not_prolonged(tmp_path, optimizers):
    text = recipe("{name: variational-dropout}", training={"epochs": 1}, parents={"where": "dropout > 0"})
    sparsify(optimizers, tmp_path / "zoo", text)
    before = everything(tmp_path / "zoo")
    with pytest.raises(UserError, match="--out DIR") as refused:
        sparsify(optimizers, tmp_path / "zoo", text.replace("epochs: 1", "epochs: 2"))
    assert "- training.epochs: 1" in str(refused.value)
    assert everything(tmp_path / "zoo") == before


def test_a_damaged_shard_is_made_anew_alone_with_the_same_bytes(optimizers, copied, monkeypatch):
    before = shards(copied)
    lost = sorted({name.partition("/")[0] for name in before})[0]
    path = copied / "shards" / lost / "weights.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert [d.shard_id for d in verify(copied).damaged] == [lost]
    ZooFolder(copied).remove_damaged(lost)
    made = []
    construct = twin_trainer.TwinTrainer.__init__
    monkeypatch.setattr(
        twin_trainer.TwinTrainer, "__init__", lambda self, *given: (made.append(given[0]), construct(self, *given))[1]
    )
    assert sparsify(optimizers, copied, PLAIN).exit_code == 0
    assert shards(copied) == before
    assert [s.shard_id for cohort in made for s in cohort.segments] == [lost]
    assert verify(copied).complete


def test_any_of_several_shards_of_a_trajectory_is_made_anew_with_the_same_bytes(tmp_path, optimizers, monkeypatch):
    monkeypatch.setattr("zoogen.plan.cohorts.SHARD_BYTES", 1)  # every epoch a shard of its own
    text = recipe(
        "{name: magnitude, sparsity: 0.9, rounds: 2}",
        training={"epochs": 2},
        parents={"where": "training.optimizer.name == 'adamw'"},
    )
    zoo = tmp_path / "zoo"
    assert sparsify(optimizers, zoo, text).exit_code == 0
    before = shards(zoo)
    names = sorted({name.partition("/")[0] for name in before})
    assert len(names) == 3
    for shard_id in names:
        ZooFolder(zoo).remove_damaged(shard_id)
        assert sparsify(optimizers, zoo, text).exit_code == 0
        assert shards(zoo) == before
    assert verify(zoo).complete


@pytest.mark.parametrize("epoch", ["last", "best", 0, 1])
def test_twins_start_from_the_epoch_asked_for(tmp_path, optimizers, epoch):
    text = recipe("{name: random, sparsity: 0.0}", training={"epochs": 1}, parents={"epoch": epoch})
    assert sparsify(optimizers, tmp_path / "zoo", text, until=0).exit_code == 3
    models = pd.read_parquet(tmp_path / "zoo" / "plan.parquet")
    scores = pd.read_parquet(optimizers / "checkpoints.parquet").sort_values("epoch", kind="stable")
    for parent, found in zip(models["parent_id"], models["parent_epoch"], strict=True):
        own = scores[scores["model_id"] == parent]
        best = int(own["epoch"].iloc[int(np.argmax(own["val_acc"].to_numpy()))])
        assert found == {"last": 2, "best": best}.get(epoch, epoch)


def test_diverged_parents_get_no_twins_and_twins_may_diverge(tmp_path):
    text = twin_runs.CONVOLUTIONS.replace('name: import, path: "twin_networks:with_norm"', "name: mlp, hidden: [4]")
    (tmp_path / "a").mkdir()
    parent = twin_runs.grow(tmp_path / "a", text.replace("lr: 0.1", "lr: {grid: [0.1, 1.0e+30]}"))
    assert set(Stored(parent).models["status"]) == {"trained", "diverged"}
    wild = recipe("{name: magnitude, sparsity: 0.5}", training={"epochs": 2, "lr_scale": 1e30})
    outcome = sparsify(parent, tmp_path / "zoo", wild)
    assert (outcome.exit_code, outcome.planned, outcome.diverged) == (0, 2, 2)
    assert {e for _, e in rows(tmp_path / "zoo")} == {0}
    assert verify(tmp_path / "zoo").complete
    with pytest.raises(UserError, match="diverged"):
        sparsify(parent, tmp_path / "none", recipe("{name: random, sparsity: 0.5}", parents={"where": "lr > 1"}))
    assert not (tmp_path / "none").exists()


def test_a_task_without_test_samples_has_twins_whose_scores_are_unknown(tmp_path):
    text = twin_runs.RESNETS.replace("name: resnet18, width: 2", "name: mlp, hidden: [4]")
    parent = twin_runs.grow(tmp_path, text.replace("{name: digits}", "{name: digits, test: 0}"))
    assert sparsify(parent, tmp_path / "twins", PLAIN).exit_code == 0
    found = Stored(tmp_path / "twins").checkpoints
    assert found[["agreement", "kappa", "test_acc"]].isna().all(axis=None)
    assert found["sparsity"].notna().all()


def test_other_data_than_the_parents_are_refused_before_anything_is_written(tmp_path, optimizers, monkeypatch):
    load = TASKS.get("digits").load

    def other(self, *given, **more):
        data = load(self, *given, **more)
        object.__setattr__(data, "fingerprint", "0" * 32)
        return data

    with monkeypatch.context() as patched:
        patched.setattr(TASKS.get("digits"), "load", other)
        with pytest.raises(IntegrityError, match="fingerprint"):
            sparsify(optimizers, tmp_path / "zoo", PLAIN)
    assert not (tmp_path / "zoo").exists()

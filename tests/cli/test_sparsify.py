"""``zoogen sparsify``: what it makes, says and refuses; a refusal names the way out and leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from zoogen.core.registry import TASKS
from zoogen.store.zoo import ZooFolder

MAGNITUDE = ("--method", "magnitude", "--sparsity", "0.5", "--epochs", "1")
TABLES = """
from torch import nn

class Table(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.shift = nn.Parameter(nn.init.normal_(nn.Embedding(1, outputs).weight))

    def forward(self, x):
        return self.norm(x).mean(dim=(1, 2, 3))[:, None] * self.shift

def linear(outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
"""
OWN = """
zoo: own
version: 1
task: {name: digits}
architecture: {name: import, path: "cli_networks:NAME"}
training: {epochs: 1, batch_size: 256, optimizer: {name: sgd, lr: 0.1}}
seeds: {range: [0, 2]}
"""
TINY = OWN.replace('{name: import, path: "cli_networks:NAME"}', "{name: mlp, hidden: [4]}").replace(
    "zoo: own", "zoo: tiny"
)


@pytest.fixture
def sparsify(zoogen):
    return lambda zoo, *arguments: zoogen("sparsify", zoo, *arguments, "--executor", "serial")


@pytest.fixture
def build(zoogen, tmp_path):
    """Build the zoo of a blueprint's text."""

    def grow(text: str, name: str = "parent", *arguments: object) -> Path:
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        code, _, err = zoogen("build", file, "-o", tmp_path / name, "--executor", "serial", *arguments)
        assert code in (0, 3), err
        return tmp_path / name

    return grow


@pytest.fixture
def zoo(small_zoo, tmp_path):
    """A parent zoo that a test may change, alone in its folder."""
    return Path(shutil.copytree(small_zoo, tmp_path / "zoos" / "parent"))


@pytest.fixture
def networks(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "cli_networks.py").write_text(TABLES)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield
    sys.modules.pop("cli_networks", None)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the lock and the token, which whoever opens a zoo for writing leaves anew."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("lock", "token"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_twins_go_beside_their_parent_and_every_command_reads_them(sparsify, zoogen, zoo, tmp_path):
    before = digests(zoo)
    code, out, err = sparsify(zoo, "--method", "magnitude", "--sparsity", ".5,0.9", "--epochs", 2)
    twins = zoo.parent / "small-magnitude-v1"
    assert code == 0, err
    assert f"{twins}: 16 models: 16 trained" in out.replace("\n", " ")
    assert sorted(p.name for p in zoo.parent.iterdir()) == ["parent", "small-magnitude-v1"]
    assert digests(zoo) == before
    code, out, _ = zoogen("verify", twins)
    assert code == 0
    assert "16 models, 48 states" in out
    code, out, _ = zoogen("status", twins, "--json")
    assert json.loads(out)["by_status"] == {"stored": 16, "training": 0, "planned": 0, "failed": 0}
    code, out, _ = zoogen("info", twins, "--picture", tmp_path / "picture.svg")
    assert code == 0
    assert "small-magnitude" in out
    code, _, err = sparsify(zoo, "--method", "magnitude", "--sparsity", ".5,0.9", "--epochs", 2)
    assert code == 0
    assert "nothing to train" in err


def test_options_and_a_recipe_that_says_the_same_give_the_same_bytes(sparsify, zoo, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "twins: named\nmethod: {name: random, sparsity: {grid: [0.5, 0.9]}, scope: layerwise}\n"
        'training: {epochs: 1, lr_scale: 0.5}\nparents: {epoch: 2, where: "test_acc > 0.2 and seed == 0"}\n'
    )
    code, _, err = sparsify(zoo, "--recipe", recipe, "-o", tmp_path / "file")
    assert code == 0, err
    given = ("--method", "random", "--sparsity", "0.5,0.9", "--epochs", 1, "--from-epoch", 2)
    changes = ("--set", "method.scope=layerwise", "--set", "training.lr_scale=0.5", "--set", "twins=named")
    where = ("--where", "test_acc > 0.2 and seed == 0")
    code, _, err = sparsify(zoo, *given, *changes, *where, "-o", tmp_path / "options")
    assert code == 0, err
    assert digests(tmp_path / "file" / "shards") == digests(tmp_path / "options" / "shards")
    on_top = ("--recipe", recipe, "--sparsity", "0.5", "--epochs", 1, "--set", "parents.epoch=2")
    code, _, err = sparsify(zoo, *on_top, "-o", tmp_path / "both")
    assert code == 0, err
    ids = [set(ZooFolder(tmp_path / name).read_plan()["model_id"]) for name in ("both", "file")]
    assert ids[0] < ids[1]


def test_where_chooses_parents_by_settings_and_scores_and_the_diverged_get_no_twins(sparsify, zoo, tmp_path):
    models = pd.read_parquet(zoo / "models.parquet").set_index("model_id")
    assert set(models["status"]) == {"trained", "diverged"}
    median = models["test_acc"].where(models["status"] == "trained").median()
    code, _, err = sparsify(zoo, *MAGNITUDE, "--where", f"test_acc > {median}", "-o", tmp_path / "good", "--until", 0)
    assert code == 3, err
    chosen = set(ZooFolder(tmp_path / "good").read_plan()["parent_id"])
    assert chosen == set(models.index[(models["test_acc"] > median) & (models["status"] == "trained")])
    assert 0 < len(chosen) < (models["status"] == "trained").sum()


@pytest.mark.parametrize("epoch", ["last", "best", "1"])
def test_from_epoch_names_the_parents_checkpoint(sparsify, zoo, tmp_path, epoch):
    code, _, err = sparsify(zoo, *MAGNITUDE, "--from-epoch", epoch, "-o", tmp_path / "twins", "--sample", 1)
    assert code == 3, err
    found = ZooFolder(tmp_path / "twins").read_plan()
    scores = pd.read_parquet(zoo / "checkpoints.parquet").sort_values("epoch", kind="stable")
    for parent, start in zip(found["parent_id"], found["parent_epoch"], strict=True):
        own = scores[scores["model_id"] == parent]
        best = int(own["epoch"].iloc[int(np.argmax(own["val_acc"].to_numpy()))])
        assert start == {"last": 3, "best": best, "1": 1}[epoch]


def test_a_dry_run_shows_the_plan_and_writes_nothing(sparsify, zoo):
    before = digests(zoo.parent)
    code, out, _ = sparsify(zoo, "--method", "magnitude", "--sparsity", "0.1,0.2,0.3", "--dry-run")
    assert code == 0
    for part in ("small-magnitude v1", "24", f"{24 * 16}", "training.sparsify.sparsity (3)", "15"):
        assert part in out, out
    assert digests(zoo.parent) == before
    code, _, err = sparsify(zoo, *MAGNITUDE, "--set", "method.rewind=9", "--dry-run")
    assert code == 2
    assert "epoch 9 of 8 chosen models is not stored" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), ["missing key 'method'", "--method"]),
        (("--method", "magnitude"), ["missing key 'sparsity'", "--sparsity"]),
        (("--method", "magnitud", "--sparsity", "0.5"), ["Did you mean 'magnitude'?"]),
        (("--method", "magnitude", "--sparsity", "1.0"), [">= 0 and < 1", "1.0"]),
        (("--method", "magnitude", "--sparsity", "-0.1"), [">= 0 and < 1", "-0.1"]),
        (("--method", "magnitude", "--sparsity", "0.5,abc"), ["'abc' is no number", "0.5,0.9"]),
        (("--method", "magnitude", "--sparsity", "50%"), ["'50%' is no number"]),
        (("--method", "magnitude", "--sparsity", "0.5,"), ["is no number"]),
        (("--method", "magnitude", "--sparsity", "nan"), ["sparsity"]),
        (("--method", "magnitude", "--sparsity", "0.5,.5"), ["stands twice"]),
        (("--method", "variational-dropout", "--sparsity", "0.5"), ["unknown key 'sparsity'"]),
        ((*MAGNITUDE, "--epochs", "0"), ["--epochs"]),
        ((*MAGNITUDE, "--from-epoch", "7"), ["epoch 7 of 8 chosen models is not stored", "stored epochs: 0, 1, 2, 3"]),
        ((*MAGNITUDE, "--from-epoch", "frist"), ["'frist'", "last, best or a whole number"]),
        ((*MAGNITUDE, "--from-epoch", "-1"), ["-1"]),
        ((*MAGNITUDE, "--set", "method.rewind=12"), ["epoch 12", "stored epochs: 0, 1, 2, 3"]),
        ((*MAGNITUDE, "--set", "method.rounds=2"), ["2 rounds", "training.epochs"]),
        ((*MAGNITUDE, "--set", "method.scop=channels"), ["Did you mean 'scope'?"]),
        ((*MAGNITUDE, "--set", "abc"), ["key=value"]),
        ((*MAGNITUDE, "--where", "tset_acc > 0.5"), ["unknown name 'tset_acc'", "Did you mean 'test_acc'?"]),
        ((*MAGNITUDE, "--where", "seed <"), ["seed <"]),
        ((*MAGNITUDE, "--where", "seed > 99"), ["selects none of the 12 models"]),
        ((*MAGNITUDE, "--where", "lr > 100"), ["diverged"]),
        ((*MAGNITUDE, "--kernel", "engine=magic"), ["magic"]),
        ((*MAGNITUDE, "--recipe", "gone.yaml"), ["gone.yaml"]),
        ((*MAGNITUDE, "--cpus", "2"), ["--executor ray"]),
        ((*MAGNITUDE, "--sample", "0"), ["--sample"]),
        ((*MAGNITUDE, "--set", "twins=Bad Name"), ["Bad Name"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_a_mistake_in_what_is_asked_for_is_told_and_leaves_nothing(sparsify, zoo, arguments, says):
    before = digests(zoo.parent)
    code, _, err = sparsify(zoo, *arguments)
    assert code == 2, err
    assert [part for part in says if part not in err] == [], err
    assert digests(zoo.parent) == before
    assert [p.name for p in zoo.parent.iterdir()] == ["parent"]


def remove(zoo: Path) -> None:
    shutil.rmtree(zoo)


def no_zoo(zoo: Path) -> None:
    (zoo / "zoo.json").unlink()


def cut_manifest(zoo: Path) -> None:
    (zoo / "zoo.json").write_bytes((zoo / "zoo.json").read_bytes()[:-200])


def newer_manifest(zoo: Path) -> None:
    text = (zoo / "zoo.json").read_text()
    (zoo / "zoo.json").write_text(text.replace('"format_version": 1', '"format_version": 99'))


def other_layout(zoo: Path) -> None:
    told = json.loads((zoo / "zoo.json").read_text())
    next(iter(told["layouts"].values()))["entries"][0]["shape"] = [3, 3]
    (zoo / "zoo.json").write_text(json.dumps(told))


def flipped_weights(zoo: Path) -> None:
    for path in zoo.glob("shards/*/weights.h5"):
        flip(path)


def flipped_shard_info(zoo: Path) -> None:
    for path in zoo.glob("shards/*/shard.json"):
        flip(path)


def lost_shards(zoo: Path) -> None:
    for path in zoo.glob("shards/*"):
        shutil.rmtree(path)


def lost_file(zoo: Path) -> None:
    for path in zoo.glob("shards/*/weights.h5"):
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "code", "says"),
    [
        (remove, 2, ["no zoo at"]),
        (no_zoo, 2, ["no zoo at"]),
        (cut_manifest, 4, ["zoo.json", "not readable as JSON"]),
        (newer_manifest, 4, ["format version 99"]),
        (flipped_weights, 4, ["weights.h5", "SHA-256", "zoogen verify"]),
        (flipped_shard_info, 4, ["shard.json"]),
        (lost_shards, 4, ["shard"]),
        (lost_file, 4, ["weights.h5", "is missing", "zoogen verify"]),
    ],
)
def test_a_parent_that_is_missing_or_damaged_is_refused_and_nothing_is_written(sparsify, zoo, harm, code, says):
    harm(zoo)
    before = digests(zoo.parent)
    found, _, err = sparsify(zoo, *MAGNITUDE)
    assert found == code, err
    assert [part for part in says if part not in err] == [], err
    assert digests(zoo.parent) == before
    assert {p.name for p in zoo.parent.iterdir()} <= {"parent"}


def test_an_unfinished_parent_is_refused_with_both_ways_out_and_the_second_works(sparsify, zoogen, build, tmp_path):
    parent = build(TINY.replace("epochs: 1", "epochs: 2"), "parent", "--where", "seed == 0")
    code, _, err = sparsify(parent, *MAGNITUDE)
    assert code == 2
    assert "unfinished: 1 of the 2 chosen models are planned" in err
    assert "`zoogen build`" in err
    assert not (tmp_path / "tiny-magnitude-v1").exists()
    code, _, err = sparsify(parent, *MAGNITUDE, "--where", 'status == "trained"')
    assert code == 0, err
    assert ZooFolder(tmp_path / "tiny-magnitude-v1").exists()


def test_a_parent_stopped_in_the_middle_of_its_training_is_unfinished(sparsify, build, tmp_path):
    parent = build(TINY.replace("epochs: 1", "epochs: 2"), "parent", "--until", 1)
    code, _, err = sparsify(parent, *MAGNITUDE)
    assert code == 2
    assert "unfinished" in err
    assert not (tmp_path / "tiny-magnitude-v1").exists()


def test_best_without_a_validation_part_is_refused(sparsify, build, tmp_path):
    parent = build(TINY.replace("{name: digits}", "{name: digits, val: 0}"))
    code, _, err = sparsify(parent, *MAGNITUDE, "--from-epoch", "best")
    assert code == 2
    assert [part for part in ("needs validation scores", "--from-epoch last", "task.val") if part not in err] == []
    assert not (tmp_path / "tiny-magnitude-v1").exists()


def test_an_out_that_holds_something_else_is_refused_and_left_as_it_is(sparsify, build, zoo, tmp_path):
    other_parent = build(TINY)
    other_twins, files = tmp_path / "twins", tmp_path / "files"
    assert sparsify(other_parent, *MAGNITUDE, "-o", other_twins)[0] == 0
    files.mkdir()
    (files / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    same_name = ("--set", "twins=tiny")  # the name and version of the zoo that lies there
    for out, more, says in (
        (zoo, (), "parents' zoo"),
        (zoo / "below" / "it", (), "parents' zoo"),
        (other_parent, (), "'tiny'"),
        (other_parent, same_name, "holds no twins"),
        (other_twins, (), "'tiny-magnitude'"),
        (other_twins, ("--set", "twins=tiny-magnitude"), "twins of zoo 'tiny' version 1, not of 'small' version 1"),
        (files, (), "thesis.tex"),
        (tmp_path / "file", (), "is a file"),
        (tmp_path / "file" / "below", (), "is a file"),
    ):
        before = digests(tmp_path)
        code, _, err = sparsify(zoo, *MAGNITUDE, *more, "-o", out)
        assert code == 2, (out, err)
        assert says in err, err
        assert "--out" in err or "another folder" in err, err
        assert digests(tmp_path) == before


def test_other_twins_of_the_same_zoo_are_refused_with_the_difference(sparsify, zoo):
    assert sparsify(zoo, *MAGNITUDE)[0] == 0
    before = digests(zoo.parent / "small-magnitude-v1" / "shards")
    code, _, err = sparsify(zoo, "--method", "magnitude", "--sparsity", "0.7", "--epochs", 1)
    assert code == 2
    for part in ("- training.sparsify.sparsity: 0.5", "+ training.sparsify.sparsity: 0.7", "--out DIR"):
        assert part in err, err
    code, _, err = sparsify(zoo, *MAGNITUDE, "--set", "training.lr_scale=2")
    assert code == 2
    assert "training.optimizer.lr" in err
    assert digests(zoo.parent / "small-magnitude-v1" / "shards") == before


def test_twins_have_no_twins(sparsify, zoo):
    assert sparsify(zoo, *MAGNITUDE)[0] == 0
    twins = zoo.parent / "small-magnitude-v1"
    code, _, err = sparsify(twins, "--method", "random", "--sparsity", "0.5")
    assert code == 2
    assert "is a twin zoo itself" in err
    assert "'small'" in err
    assert sorted(p.name for p in zoo.parent.iterdir()) == ["parent", "small-magnitude-v1"]


@pytest.mark.usefixtures("networks")
def test_code_that_a_zoo_names_runs_only_where_it_is_allowed(sparsify, build, tmp_path):
    parent = build(OWN.replace("NAME", "linear"))
    sys.modules.pop("cli_networks")
    for more in ((), ("--allow", "other:thing"), ("--dry-run",)):
        code, _, err = sparsify(parent, *MAGNITUDE, *more)
        assert code == 2
        assert "--allow cli_networks:linear" in err
        assert not (tmp_path / "own-magnitude-v1").exists()
        assert "cli_networks" not in sys.modules, "it was imported all the same"
    code, _, err = sparsify(parent, *MAGNITUDE, "--allow", "cli_networks:linear")
    assert code == 0, err


@pytest.mark.usefixtures("networks")
def test_an_architecture_with_nothing_to_remove_is_refused(sparsify, build, tmp_path):
    parent = build(OWN.replace("NAME", "Table"))
    for method in (MAGNITUDE, ("--method", "variational-dropout")):
        code, _, err = sparsify(parent, *method, "--allow", "cli_networks:Table")
        assert code == 2
        assert "no weights of convolutions or linear layers" in err
        assert "--where" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["code", "parent", "parent.yaml"]


def test_missing_data_are_the_machines_lack_and_nothing_is_written(sparsify, build, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for part, n in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            for k in range(n):
                path = tmp_path / "data" / "pets" / part / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    task = "{name: image-folder, folder: pets, size: 8, classes: 2, train: 12, test: 6}"
    monkeypatch.setenv("ZOOGEN_CACHE", str(tmp_path / "cache"))
    parent = build(TINY.replace("{name: digits}", task), "parent", "--data", tmp_path / "data")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    code, _, err = sparsify(parent, *MAGNITUDE, "--data", tmp_path / "empty")
    assert code == 5, err
    assert "pets" in err
    assert not (tmp_path / "tiny-magnitude-v1").exists()
    code, _, err = sparsify(parent, *MAGNITUDE, "--data", tmp_path / "data")
    assert code == 0, err


def test_a_parent_whose_weights_were_replaced_since_the_twins_were_begun_is_refused(sparsify, build, tmp_path, zoogen):
    parent = build(TINY)
    assert sparsify(parent, *MAGNITUDE, "--until", 0)[0] == 3
    twins = tmp_path / "tiny-magnitude-v1"
    with pytest.MonkeyPatch.context() as patched:
        # The same models trained again somewhere else, on a machine that gets other numbers.
        task = TASKS.get("digits")
        loss = type(task().load(None, tmp_path / "other-cache")).loss
        patched.setattr(type(task().load(None, tmp_path / "other-cache")), "loss", lambda *given: loss(*given) * 1.5)
        other = build(TINY, "other")
    before = digests(twins)
    shutil.rmtree(parent)
    other.rename(parent)
    assert zoogen("verify", parent)[0] == 0
    code, _, err = sparsify(parent, *MAGNITUDE)
    assert code == 4, err
    assert "another digest than when these twins were begun" in err
    assert "--out DIR" in err
    assert digests(twins) == before


def test_a_blueprint_is_no_recipe_and_a_recipe_no_blueprint(sparsify, zoogen, zoo, tmp_path):
    (tmp_path / "blueprint.yaml").write_text(TINY)
    code, _, err = sparsify(zoo, "--recipe", tmp_path / "blueprint.yaml")
    assert code == 2
    assert "this is a blueprint, not a twin recipe" in err
    (tmp_path / "recipe.yaml").write_text("method: {name: magnitude, sparsity: 0.5}\n")
    for command in ("build", "plan"):
        more = ("-o", tmp_path / "never", "--executor", "serial") if command == "build" else ()
        code, _, err = zoogen(command, tmp_path / "recipe.yaml", *more)
        assert code == 2
        assert f"zoogen sparsify ZOO --recipe {tmp_path / 'recipe.yaml'}" in err
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_twins_grown_by_ray_are_those_of_this_process(zoogen, sparsify, zoo, tmp_path):
    code, _, err = sparsify(zoo, *MAGNITUDE, "-o", tmp_path / "serial")
    assert code == 0, err
    code, _, err = zoogen("sparsify", zoo, *MAGNITUDE, "-o", tmp_path / "ray", "--cpus", 2)
    assert code == 0, err
    assert digests(tmp_path / "ray" / "shards") == digests(tmp_path / "serial" / "shards")

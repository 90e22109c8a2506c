"""Models that go back to one another are on one side of every split, whether or not their parent was fetched."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "importers"))  # published_zoos

from published_zoos import config, write_trial

import zoogen
from zoogen.build.imported_kin import roots_of
from zoogen.build.imported_task import Trained
from zoogen.build.importing import import_zoo
from zoogen.build.pipeline import BuildOptions
from zoogen.build.sparsify import SparsifyOptions, sparsify
from zoogen.core.errors import UserError
from zoogen.core.registry import TASKS
from zoogen.importers.relatives import Kin
from zoogen.importers.source import SourceModel
from zoogen.schedule import SerialExecutor, StopFlag


class Silent:
    """Reports nowhere."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial") / "t"
    write_trial(folder, config(), epochs=0)
    return folder


def take(source, out, trained=None):
    return import_zoo(source, "ray-tune", out, lambda text: None, trained)


def write_tunings(trial, root, parents=8):
    """Three fine-tunings of each of some pretrained models, which are not there."""
    for parent in range(parents):
        for child in range(3):
            shutil.copytree(trial, root / f"finetuning/p{parent}/c{child}")


def side_of_name(name):
    """Where a model is put whose parent is known by name alone."""
    place = int(hashlib.blake2b(name.encode(), digest_size=16).hexdigest()[17:], 16) / 16**15
    return "train" if place < 0.7 else "val" if place < 0.85 else "test"


@pytest.mark.parametrize("fetched", ["vit", "vit/finetuning", "."], ids=["zoo", "finetuning", "above"])
def test_siblings_stay_together_where_their_parent_was_not_fetched(trial, tmp_path, fetched):
    root = tmp_path / "published"
    write_tunings(trial, root / "vit")
    models = zoogen.open(take(root / fetched, tmp_path / "out").path).models
    assert len(models) == 24
    for parent, siblings in models.groupby("source.parent"):
        assert len(siblings) == 3
        assert siblings["source.key"].str.contains(f"{parent}/").all()
        assert set(siblings["split"]) == {side_of_name(parent)}
    assert models["split"].nunique() > 1
    assert models["source.root"].nunique() == models["source.parent"].nunique() == 8


def test_fine_tunings_of_one_parent_alone_know_it_by_the_path_of_their_folder(trial, tmp_path):
    write_tunings(trial, tmp_path / "vit", parents=1)
    models = zoogen.open(take(tmp_path / "vit/finetuning/p0", tmp_path / "out").path).models
    assert models["source.parent"].tolist() == ["p0"] * 3
    assert set(models["split"]) == {side_of_name("p0")}


@pytest.mark.parametrize("end", ["", "/checkpoint_000050", "/checkpoint_000050/checkpoints"])
def test_sparse_twins_are_on_the_side_of_the_trials_they_began_from_also_of_another_source(trial, tmp_path, end):
    names = [f"NN_tune_trainable_{i:05d}" for i in range(12)]
    for name in names:
        shutil.copytree(trial, tmp_path / f"zoo/{name}")
        began = {"training::init_checkpoint_path": f"/netscratch/zoo/{name}{end}", "training::sample_epoch": 50}
        shutil.copytree(trial, tmp_path / f"twins/twin_of_{name}")
        (tmp_path / f"twins/twin_of_{name}/params.json").write_text(json.dumps(config() | began))
    parents = zoogen.open(take(tmp_path / "zoo", tmp_path / "parents").path).models.set_index("source.key")
    twins = zoogen.open(take(tmp_path / "twins", tmp_path / "apart").path).models
    assert twins["source.parent"].tolist() == names
    assert parents["split"].nunique() > 1
    assert twins["split"].tolist() == parents.loc[names, "split"].tolist()
    shutil.copytree(tmp_path / "zoo", tmp_path / "both/zoo")
    shutil.copytree(tmp_path / "twins", tmp_path / "both/twins")
    both = zoogen.open(take(tmp_path / "both", tmp_path / "together").path).models.set_index("source.key")
    for name in names:
        twin, parent = both.loc[f"twins/twin_of_{name}"], both.loc[f"zoo/{name}"]
        assert twin["source.parent"] == f"zoo/{name}"
        assert twin["source.root"] == parent["model_id"]
        assert twin["split"] == parent["split"] == parents.loc[name, "split"]


def test_siblings_stay_together_where_their_parent_is_unusable(trial, tmp_path):
    root = tmp_path / "vit"
    write_tunings(trial, root)
    for parent in range(8):
        shutil.copytree(trial, root / f"pretraining/p{parent}", ignore=lambda *_: ["checkpoint_000000"])
        for file in (root / f"pretraining/p{parent}").glob("*/checkpoints"):
            file.write_bytes(b"damaged")
    shutil.copytree(trial, root / "pretraining/p8")
    models = zoogen.open(take(root, tmp_path / "out").path).models
    assert len(models) == 25
    (pretrained,) = models.query("`source.key` == 'pretraining/p8'").to_dict("records")
    assert pretrained["source.root"] == pretrained["model_id"]
    for parent, siblings in models.groupby("source.parent"):
        assert len(siblings) == 3
        assert set(siblings["split"]) == {side_of_name(parent.removeprefix("pretraining/"))}


def named(key, parent=None):
    return SourceModel(key, {}, "{}", None, (), parent=parent)


def test_chains_go_up_to_the_oldest_and_families_to_their_first():
    chain = [named("child", "mother"), named("mother", "grandmother"), named("aunt", "grandmother"), named("other")]
    circle = [named("x", "y"), named("y", "x"), named("z", "x")]
    ids = {m.key: m.key.rjust(32, "0") for m in [*chain, *circle]}

    def roots(models, kin):
        found = roots_of(models, ids, kin)
        assert all(root.id == root.split_key for root in found.values())
        return {key: root.id for key, root in found.items()}

    absent = hashlib.blake2b(b"grandmother", digest_size=16).hexdigest()
    assert roots(chain, {}) == {"child": absent, "mother": absent, "aunt": absent, "other": ids["other"]}
    present = [*chain, named("grandmother", "gone")]
    assert set(list(roots(present, {}).values())[:3]) == {hashlib.blake2b(b"gone", digest_size=16).hexdigest()}
    assert roots(circle, {}) == dict.fromkeys("xyz", ids["x"])
    kin = {m.key: Kin(None, None, "other" if m.key == "child" else m.key) for m in chain}
    assert roots(chain, kin) == {k: ids["other" if k == "child" else k] for k in kin}


@pytest.mark.parametrize("fetched", ["all", "children"])
def test_other_splits_keep_lineages_whole_too(trial, tmp_path, fetched):
    """Every child has a value of its own; that of the parent, or of the first child, decides."""
    root = tmp_path / "vit"
    write_tunings(trial, root, parents=4)
    if fetched == "all":
        for parent in range(4):
            shutil.copytree(trial, root / f"pretraining/p{parent}")
    for trial in root.glob("finetuning/*/c*"):
        (trial / "params.json").write_text(json.dumps(config(optim__lr=[0.1, 0.2, 0.4][int(trial.name[1])])))
    for parent, rate in enumerate([0.1, 0.2, 0.1, 0.2]):
        place = root / (f"pretraining/p{parent}" if fetched == "all" else f"finetuning/p{parent}/c0")
        (place / "params.json").write_text(json.dumps(config(optim__lr=rate)))
    zoo = zoogen.open(take(root, tmp_path / "out").path)
    found = zoo.resplit("lr", test=[0.1])
    expected = zoo.models["source.key"].str.contains("p0|p2").to_numpy(bool)
    assert found.mask("test").tolist() == expected.tolist()
    assert found.mask("train").tolist() == (~expected).tolist()
    assert list(zoo.leave_one_out("lr")) == [0.1, 0.2]
    with pytest.raises(UserError, match=r"left for test: .* 0\.1, 0\.2 among the 4 models that decide"):
        zoo.resplit("lr", test=[0.4])
    with pytest.raises(UserError, match="left for val"):
        zoo.resplit("lr", test=[0.1], val=[0.4])


def test_twins_of_children_are_on_the_side_of_their_lineage_in_every_split(trial, tmp_path):
    write_tunings(trial, tmp_path / "vit", parents=2)
    for child in (tmp_path / "vit").glob("*/*/c*"):
        rate = 0.2 if child.parent.name == "p1" or child.name == "c2" else 0.1
        (child / "params.json").write_text(json.dumps(config(optim__lr=rate)))
    trained = Trained(TASKS.make("digits", {"size": 28, "val": 200, "test": 400}), None)
    zoo = zoogen.open(take(tmp_path / "vit", tmp_path / "zoo", trained).path)
    text = "method: {name: magnitude, sparsity: 0.5}"
    options = SparsifyOptions(
        zoo.path, None, text, ("training.epochs=1",), BuildOptions(blueprint=Path("b.yaml"), out=tmp_path / "twins")
    )
    assert sparsify(options, SerialExecutor(), Silent(), StopFlag()).failed == {}
    twins = zoogen.open(tmp_path / "twins")
    parents = zoo.models.set_index("model_id").loc[twins.models["parent_id"]]
    assert len(twins.models) == 6
    assert twins.models["split"].tolist() == parents["split"].tolist()
    found = twins.resplit("training.optimizer.lr", test=[0.1])
    assert found.mask("test").tolist() == parents["source.key"].str.contains("p0").tolist()
    for value, split in twins.leave_one_out("lr").items():
        assert split.sides.tolist() == zoo.leave_one_out("lr")[value].of(twins).sides.tolist()

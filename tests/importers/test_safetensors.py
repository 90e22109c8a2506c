"""Repositories of the Hugging Face hub as zoos: tensors, settings, copies and relatives, lists."""

import json
import shutil

import pytest
import torch
from published_repositories import COMMIT, cache, card, convolutions, note_download, vit, write_model, write_sharded
from safetensors.torch import load_file, save_file

import zoogen
from zoogen.build.importing import import_zoo
from zoogen.core.errors import UserError
from zoogen.core.modules import build_model
from zoogen.core.registry import ARCHITECTURES
from zoogen.importers.containers.files import open_files
from zoogen.importers.opening import open_source
from zoogen.importers.relatives import Prints, kin_of
from zoogen.importers.safetensors import SafeTensors
from zoogen.importers.source import Skipped
from zoogen.store.verify import verify

RESULTS = [
    {"name": "t", "results": [{"dataset": {"type": "cifar10"}, "metrics": [{"type": "accuracy", "value": 0.93}]}]}
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Seven models of four layouts, and what was written: cached, mirrored, in parts, copied, fine-tuned, in halves."""
    hub = tmp_path_factory.mktemp("repositories") / "hub"
    base = vit(0)
    torch.manual_seed(9)
    written = {
        f"google/vit@{COMMIT['a']}": base,
        "me/tuned": base | {"head.weight": torch.randn(10, 16)},
        "me/half": {n: t.bfloat16() if t.is_floating_point() else t for n, t in vit(5).items()},
        "them/cnn": convolutions(1),
        "them/copy": convolutions(1),
        "them/other": convolutions(2),
        "them/descendant": convolutions(3),
    }
    said = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": 16,
        "id2label": {"0": "cat"},
    }
    front = {"license": "apache-2.0", "pipeline_tag": "image-classification", "datasets": ["imagenet-1k"]}
    write_model(hub / "google/vit", base, said, card(**front))
    cache(hub, "google/vit", COMMIT["a"])
    write_sharded(hub / "me/tuned", written["me/tuned"], parts=3)
    (hub / "me/tuned/README.md").write_text(card(license="mit", base_model="google/vit", model__index=RESULTS))
    write_model(hub / "me/half", written["me/half"], said)
    for name in ("them/cnn", "them/copy", "them/other"):
        write_model(hub / name, written[name], {"model_type": "cnn"})
    write_model(hub / "them/descendant", written["them/descendant"], {}, card(base_model=["elsewhere/cnn", "them/cnn"]))
    note_download(hub / "them/cnn", COMMIT["b"])
    return hub, written


@pytest.fixture(scope="module")
def zoo(hub, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "zoo"
    said = []
    imported = import_zoo(hub[0], None, out, said.append)
    assert (imported.models, imported.states, imported.skipped) == (7, 7, ())
    assert said[:2] == ["safetensors: 7 models", "comparing the tensors of 7 models"]
    return zoogen.open(out)


def models(path, kind=None):
    with open_source(path, kind) as source:
        return list(source.models())


def test_every_tensor_is_the_one_that_was_written_in_its_own_dtype(hub, zoo):
    table = zoo.models.set_index("source.key")
    for key, state in hub[1].items():
        read = zoo.state_dict(table.loc[key, "model_id"])
        assert read.keys() == state.keys()
        for name, tensor in state.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)
    assert verify(zoo.path).complete


def test_licence_revision_task_and_configuration_are_settings_and_the_record_is_whole(hub, zoo):
    table = zoo.models.set_index("source.key")
    first = table.loc[f"google/vit@{COMMIT['a']}"]
    told = {
        n: first[f"source.config.{n}"] for n in ("license", "pipeline_tag", "datasets", "model_type", "hidden_size")
    }
    assert told == {
        "license": "apache-2.0", "pipeline_tag": "image-classification", "datasets": "imagenet-1k", "model_type": "vit",
        "hidden_size": 16,
    }  # fmt: skip
    assert first["source.config.revision"] == COMMIT["a"]
    assert table.loc["them/cnn", "source.config.revision"] == COMMIT["b"]
    assert first["architecture.name"] == "ViTForImageClassification"
    assert json.loads(first["source.record"])["config"]["id2label"] == {"0": "cat"}
    assert table.loc["me/tuned", "source.result.cifar10.accuracy"] == 0.93


def test_copies_and_relatives_are_told_and_stand_on_one_side(zoo):
    table = zoo.models.set_index("source.key")
    base, tuned = table.loc[f"google/vit@{COMMIT['a']}"], table.loc["me/tuned"]
    assert tuned["source.parent"] == f"google/vit@{COMMIT['a']}"
    assert table.loc["them/descendant", "source.parent"] == "them/cnn"
    assert table.loc["them/cnn", "source.digest"] == table.loc["them/copy", "source.digest"]
    assert table["source.digest"].nunique() == 6
    assert table.loc["them/copy", "source.shared"] == 1
    size = sum(t.nbytes for t in vit(0).values())
    assert tuned["source.shared"] == pytest.approx(1 - 640 / (size - 640 + 640), abs=640 / size)
    assert base["source.family"] == tuned["source.family"]
    families = table.groupby("source.family")
    assert sorted(families.size()) == [1, 1, 2, 3]
    assert (families["split"].nunique() == 1).all()


def test_other_splits_keep_families_whole_too(zoo):
    table = zoo.models.set_index("source.key")
    base, tuned = f"google/vit@{COMMIT['a']}", "me/tuned"
    licences = table["source.config.license"].dropna()
    assert licences.to_dict() == {base: "apache-2.0", tuned: "mit"}
    first = table.loc[tuned, "source.family"]
    found = zoo.resplit("source.config.license", test=[licences[first]])
    assert table.index[found.mask("test")].tolist() == table.index[table["source.family"] == first].tolist()
    assert set(table.index[found.mask("test")]) == {base, tuned}
    with pytest.raises(UserError, match="left for test"):
        zoo.resplit("source.config.license", test=[licences[base if first == tuned else tuned]])


def test_models_of_several_layouts_are_read_layout_by_layout(zoo):
    states = zoo.select()
    with pytest.raises(UserError, match=r"3 different layouts.*\n(.*\n)*.*by_layout"):
        states.weights()
    assert sorted(len(part) for part in states.by_layout()) == [1, 2, 4]
    (half,) = (part for part in states.by_layout() if not part.layout.parameters)
    with pytest.raises(UserError, match=r"no float32 weights \(their tensors are bfloat16, int64\)"):
        half.weights()
    others = (part for part in states.by_layout() if part.layout.parameters)
    assert {part.weights().shape[1] for part in others} == {sum(t.numel() for t in vit(0).values()) - 5, 298}


class Counting:
    """Files that count what is read of them."""

    def __init__(self, files):
        self.__dict__ |= {"files": files, "read_of": {}}

    def __getattr__(self, name):
        return getattr(self.files, name)

    def read(self, name, at_most=None):
        self.read_of[name] = self.read_of.get(name, 0) + self.files.sizes[name]
        return self.files.read(name, at_most)

    def read_range(self, name, start, length):
        self.read_of[name] = self.read_of.get(name, 0) + length
        return self.files.read_range(name, start, length)


def test_listing_reads_headers_and_no_tensor(hub):
    files = Counting(open_files(hub[0]))
    source = SafeTensors(files)
    assert len(list(source.models())) == 7
    weights = [n for n in files.read_of if n.endswith(".safetensors") or ("/blobs/" in n and files.sizes[n] > 4000)]
    assert len(weights) == 1 + 3 + 5
    for name in weights:
        with (hub[0] / name).open("rb") as file:
            assert files.read_of[name] == 8 + int.from_bytes(file.read(8), "little")


def test_an_archive_and_its_folder_give_the_same_models(hub, tmp_path):
    folder = tmp_path / "mirror"
    shutil.copytree(hub[0] / "them", folder / "them")
    archive = shutil.make_archive(str(tmp_path / "m"), "zip", tmp_path, "mirror")
    assert [m.key for m in models(folder)] == ["them/cnn", "them/copy", "them/descendant", "them/other"]
    told = {m.key: (m.settings, m.layout.layout_id) for m in models(folder)}
    assert {
        f"them/{m.key.removeprefix('them/')}": (m.settings, m.layout.layout_id) for m in models(tmp_path / archive)
    } == told
    with open_source(tmp_path / archive) as source:
        model = next(source.models())
        read = source.state(model, model.checkpoints[0]).tensors
    assert all(torch.equal(read[n], t) for n, t in load_file(folder / "them/cnn/model.safetensors").items())


def test_numbered_checkpoints_are_one_model_and_numbers_in_names_are_none(tmp_path):
    for step in (500, 1000):
        write_model(tmp_path / f"me/run/checkpoint-{step}", convolutions(step))
    write_model(tmp_path / "me/run", convolutions(1000))
    for name in ("net_epoch_3", "net_epoch_12", "seed_1", "seed_2", "vit-b-16"):
        save_file(convolutions(len(name)), tmp_path / f"{name}.safetensors")
    found = {m.key: [s.epoch for s in m.checkpoints] for m in models(tmp_path)}
    assert found == {
        "me/run": [0], "me/run/checkpoint-*": [500, 1000], "net": [3, 12],
        "seed_1": [0], "seed_2": [0], "vit-b-16": [0],
    }  # fmt: skip


def test_results_come_from_the_log_of_a_checkpoint_and_from_the_card_of_one_model(tmp_path):
    front = card(license="mit", model__index=RESULTS)
    log = [{"step": 500, "loss": 0.5, "epoch": 1}, {"step": 500, "eval_accuracy": 0.7}, {"step": 750, "loss": 0.3}]
    log += [{"step": 1000, "eval_accuracy": 0.8, "note": "x", "bad": float("nan")}, 3, {"loss": 1.0}]
    for step in (500, 1000):
        write_model(tmp_path / f"me/run/checkpoint-{step}", convolutions(step))
        told = json.dumps({"global_step": step, "log_history": log})
        (tmp_path / f"me/run/checkpoint-{step}/trainer_state.json").write_text(told)
    write_model(tmp_path / "me/run", convolutions(1000), {}, front)
    write_model(tmp_path / "me/two", convolutions(2), {}, front)
    save_file(convolutions(3), tmp_path / "me/two/other.safetensors")
    with open_source(tmp_path) as source:
        found = {m.key: source.measured(m) for m in source.models()}
    assert found["me/run"].by_epoch == {0: {"source.result.cifar10.accuracy": 0.93}}
    assert found["me/run/checkpoint-*"].by_epoch == {
        500: {"source.result.loss": 0.5, "source.result.epoch": 1.0, "source.result.eval_accuracy": 0.7},
        1000: {"source.result.eval_accuracy": 0.8},
    }
    for key in ("me/two", "me/two/other"):
        assert found[key].by_epoch == {0: {}}
        assert "shares its README.md" in found[key].notes[0]


def test_parts_and_one_file_of_the_same_tensors_have_one_layout(tmp_path):
    write_model(tmp_path / "a/whole", vit(0))
    write_sharded(tmp_path / "a/parts", vit(1), parts=4)
    whole, parts = sorted(models(tmp_path), key=lambda m: m.key == "a/parts")
    assert whole.layout == parts.layout
    names = [e.name for e in whole.layout.entries if e.name.startswith("blocks.")]
    assert names.index("blocks.2.weight") < names.index("blocks.10.weight")


def test_an_interrupted_import_compares_once_and_ends_alike(hub, tmp_path):
    said = []

    def stop(text):
        said.append(text)
        if text.startswith("unit 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_zoo(hub[0], None, tmp_path / "zoo", stop)
    import_zoo(hub[0], None, tmp_path / "zoo", said.append)
    assert sum("comparing" in text for text in said) == 1
    again = zoogen.open(tmp_path / "zoo").models.set_index("source.key")
    import_zoo(hub[0], None, tmp_path / "other", said.append)
    assert again.equals(zoogen.open(tmp_path / "other").models.set_index("source.key"))


def test_only_listed_repositories_are_read_and_missing_ones_say_how_to_get_them(hub, tmp_path):
    shutil.copytree(hub[0], tmp_path / "hub", symlinks=True)
    listed = tmp_path / "hub/vision.txt"
    listed.write_text(
        f"# chosen\ngoogle/vit@main\nthem/cnn@{COMMIT['b']}  # noted\nme/tuned\n\n"
        f"nobody/nothing@v1\nthem/other@{COMMIT['a']}\ngoogle/vit@{COMMIT['c']}\n"
    )
    (tmp_path / "hub/stranger").symlink_to("/etc")  # what is not listed is not looked at
    found = models(listed)
    assert sorted(m.key for m in found if not isinstance(m, Skipped)) == [
        f"google/vit@{COMMIT['a']}", "me/tuned", "them/cnn",
    ]  # fmt: skip
    skipped = {s.key: s.reason for s in found if isinstance(s, Skipped)}
    assert skipped.keys() == {"nobody/nothing@v1", f"them/other@{COMMIT['a']}", f"google/vit@{COMMIT['c']}"}
    assert skipped["nobody/nothing@v1"] == (
        "is not beside the list; fetch it: hf download nobody/nothing --revision v1 --include "
        '"*.safetensors" --include "*.json" --include "README.md" --local-dir nobody/nothing'
    )
    assert skipped[f"them/other@{COMMIT['a']}"].startswith("lies beside the list, and its revision is not known; fetch")
    assert skipped[f"google/vit@{COMMIT['c']}"].startswith(f"lies beside the list in another revision ({COMMIT['a']})")


def test_a_mirror_that_was_fetched_by_a_branch_or_tag_is_taken_and_its_commit_said(tmp_path):
    write_model(tmp_path / "org/base", convolutions(1))
    note_download(tmp_path / "org/base", COMMIT["a"])
    taken = {"main": True, "v1.0": True, COMMIT["a"]: True, COMMIT["a"][:8]: True, COMMIT["b"]: False}
    for revision, expected in taken.items():
        (tmp_path / "list.txt").write_text(f"org/base@{revision}\n")
        found = models(tmp_path / "list.txt")
        assert [m.settings["source.config.revision"] for m in found if not isinstance(m, Skipped)] == (
            [COMMIT["a"]] * expected
        )
        told = [s.reason for s in found if isinstance(s, Skipped)]
        if revision in ("main", "v1.0"):
            (note,) = told
            assert note.startswith("is taken as it lies there, its branch or tag is not checked")
            assert COMMIT["a"] in note
        elif expected:
            assert told == []
        else:
            assert told[0].startswith(f"lies beside the list in another revision ({COMMIT['a']}); fetch it: ")


def test_the_cache_notes_which_snapshot_a_branch_is(tmp_path):
    for name, main in (("a", True), ("b", False)):
        write_model(tmp_path / "org/base", convolutions(ord(name)))
        cache(tmp_path, "org/base", COMMIT[name], main=main)
    (tmp_path / "models--org--base/refs/old").write_text(COMMIT["b"])
    for revision, expected in {"@main": "a", "": "a", "@old": "b", f"@{COMMIT['b']}": "b", "@lost": None}.items():
        (tmp_path / "list.txt").write_text(f"org/base{revision}\n")
        found = models(tmp_path / "list.txt")
        assert [m.key for m in found if not isinstance(m, Skipped)] == (
            [f"org/base@{COMMIT[expected]}"] if expected else []
        )
        assert len(found) == 1


def test_families_come_from_large_shares_and_records_but_not_from_tables():
    def prints(**tensors):
        return Prints(repr(tensors), sum(tensors.values()), tensors)

    own = {
        "base": prints(body=900, head=100, table=5),
        "tuned": prints(body=900, head2=100, table=5),
        "large": prints(other=100_000, head2=100, table=5),
        "stranger": prints(x=1000, table=5),
        "said": prints(y=1000),
        "lost": None,
    }
    kin = kin_of(own, [("said", "hub/base"), ("lost", "hub/base"), ("base", "hub/first")])
    assert {key: one.family for key, one in kin.items()} == {
        "base": "base", "tuned": "base", "large": "large", "stranger": "stranger", "said": "said", "lost": "said",
    }  # fmt: skip
    assert kin["tuned"].shared == pytest.approx(1)
    assert kin["stranger"].shared == pytest.approx(5 / 1005)
    assert (kin["lost"].digest, kin["lost"].shared) == (None, None)


CNN = {"activation": "tanh", "init": "kaiming_uniform", "dropout": 0.25}
TOLD = {f"architecture.{name}": value for name, value in {"name": "cnn-s", **CNN}.items()}
TOLD |= {"input_shape": [1, 28, 28], "outputs": 10}


def own_network(seed, kind="cnn-s", shape=(1, 28, 28), **arguments):
    return build_model(ARCHITECTURES.make(kind, arguments or CNN), shape, 10, seed).eval()


def test_networks_that_a_record_calls_by_our_names_are_built(tmp_path):
    networks = {"me/configured": own_network(1), "me/own": own_network(2), "me/mlp": own_network(3, "mlp", hidden=(6,))}
    write_model(tmp_path / "zoo/me/configured", networks["me/configured"].state_dict(), TOLD | {"lr": 0.1, "seed": 4})
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in TOLD.items()}
    texts |= {"lr": "0.01", "seed": "5", "input_shape": "1x28x28", "format": "pt"}
    save_file(networks["me/own"].state_dict(), tmp_path / "zoo/me/own.safetensors", metadata=texts)
    told = {"name": "mlp", "hidden": [6], "activation": "relu", "init": "torch", "dropout": 0.0}
    told = {f"architecture.{name}": value for name, value in told.items()}
    write_model(tmp_path / "zoo/me/mlp", networks["me/mlp"].state_dict(), TOLD | told | {"model_type": "perceptron"})
    done = import_zoo(tmp_path / "zoo", None, tmp_path / "out", lambda text: None)
    assert done.skipped == ()
    zoo = zoogen.open(done.path)
    rows = zoo.models.set_index("source.key")
    assert rows["architecture.name"].to_dict() == {"me/configured": "cnn-s", "me/own": "cnn-s", "me/mlp": "mlp"}
    assert rows["training.optimizer.lr"].dropna().to_dict() == {"me/configured": 0.1, "me/own": 0.01}
    assert rows["seed"].to_dict() == {"me/configured": 4, "me/own": 5, "me/mlp": -1}
    images = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        for key, network in networks.items():
            assert torch.equal(zoo.module(rows.loc[key, "model_id"])(images), network(images)), key


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture.name": "vgg"}, "architecture 'vgg' is unknown"),
        ({"architecture.activation": None}, "its record has no architecture.activation"),
        ({"input_shape": None}, "its record has no input_shape"),
        ({"outputs": 7}, "the tensors are not those of its architecture: fc2.weight is float32 (10, 20), not"),
        ({"architecture.name": "import", "architecture.path": "os:system"}, "would run code that its record names"),
        ({"input_shape": [[1]]}, "architecture 'cnn-s' cannot be built"),
        (
            {"architecture.name": "torchvision", "architecture.model": "vit_b_16", "architecture.arguments": {"x": 1}},
            "its architecture.arguments is no value or list",
        ),
        (
            {"architecture.name": "mlp", "architecture.hidden": [1] * 1_001},
            "its architecture.hidden is no value or list of up to 1,000 values",
        ),
        ({"architecture.activation": {"tanh": 1}}, "its architecture.activation is no value or list"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_network_that_does_not_fit_its_record_is_imported_without_code_and_that_is_said(tmp_path, change, says):
    told = {name: value for name, value in (TOLD | change).items() if value is not None}
    write_model(tmp_path / "zoo/me/cnn", own_network(1).state_dict(), told)
    (model,) = models(tmp_path / "zoo")
    assert model.network is None
    (note,) = model.notes
    assert note.startswith("is imported without code: ")
    assert says in note
    assert [e.name for e in model.layout.entries] == sorted(own_network(1).state_dict())

"""The page "Load a published zoo": its commands, run one after the other on small zoos of these names and layouts."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "importers"))  # the writers of published layouts

from preprocessed_zoos import write_dataset
from published_matrices import CONFIGS, write_small_cnn_zoo
from published_repositories import COMMIT, cache, convolutions, write_model
from published_zoos import Published, config, write_trial

import zoogen
import zoogen.core.modules
from zoogen.build.importing import import_zoo
from zoogen.core.registry import ARCHITECTURES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/published-zoos.md"
TEXT = PAGE.read_text(encoding="utf-8")
_BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for kind, block in _BLOCKS for line in (block.splitlines() if kind == "sh" else [block])]
_FETCH = ("zenodo_get", "curl", "hf")
COMMANDS = [line for line in LINES if "zoos/NAME" not in line and not line.startswith(_FETCH)]
BLUEPRINTS = {path.stem for path in (ROOT / "blueprints/model-zoos-2022").glob("*.yaml")}
# Records that the papers' own pages name.
RECORDS = {
    6632086, 6632104, 6632120, 6633626, 6620868, 6631783, 6634138, 6974028, 6977381, 7023277, 7023335, 7027566, 8141666,
    5645138, 12797219,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the files that the page's commands name."""
    home = tmp_path_factory.mktemp("home")
    for seed in (1, 2):
        write_trial(home / "raw" / f"NN_tune_trainable_{seed}", config(seed=seed), epochs=1)
    for name in ("mnist", "usps"):
        shutil.make_archive(str(home / name), "zip", home / "raw")
    colour = config(model__channels_in=3)
    trial_folder = home / "cifar/NN_tune_trainable_1"
    write_trial(trial_folder, colour, epochs=1, samples=(torch.rand(50, 3, 28, 28), torch.arange(50) % 10) * 2)
    shutil.make_archive(str(home / "cifar10/cifar_small_hyp_rand"), "zip", home / "cifar")
    settings = config(model__channels_in=3)
    trial = (
        settings,
        {1: Published(settings).state_dict()},
        {1: {"train_acc": 0.6, "test_acc": 0.5, "training_iteration": 1}},
    )
    parts = {f"{part}set": {f"NN_tune_trainable_{part}": trial} for part in ("train", "val", "test")}
    write_dataset(home / "dataset_cifar_small_hyp_fix.pt", parts)
    (home / "zoos-2021").mkdir()
    write_dataset(home / "zoos-2021/dataset_21_mnist_seed.pt", parts, keys=(), mode="vectors")
    write_wild_park(home / "wild-park")
    write_small_cnn_zoo(home / "small/mnist", dict(list(CONFIGS.items())[:1]))
    subprocess.run(["tar", "-cJf", home / "mnist.tar.xz", "-C", home / "small", "mnist"], check=True)
    write_model(home / "mirror/them/cnn", convolutions(1))
    (home / "mirror/repos.txt").write_text("them/cnn\nthem/missing\n")
    shutil.copytree(home / "mirror/them", home / ".cache/huggingface/hub/them")
    cache(home / ".cache/huggingface/hub", "them/cnn", COMMIT["a"])
    table = re.search(r"```text\n(file,.*?)```", TEXT, re.DOTALL)
    (home / "my-models/run0").mkdir(parents=True)
    (home / "my-models/table.csv").write_text(table[1])
    for name in ("start", "end"):
        torch.save(torch.nn.Linear(3, 2).state_dict(), home / f"my-models/run0/{name}.pt")
    (home / "blueprints").symlink_to(ROOT / "blueprints")
    return home


def write_wild_park(folder):
    """Two CNNs of other shapes, two checkpoints each, and the lists of their paths, scores and steps."""
    splits = {}
    for side, width in (("train", 4), ("test", 6)):
        told = splits[side] = {"path": [], "score": [], "step": []}
        for step in (10, 20):
            file = f"zoo/trial_{width}/checkpoint_{step:06d}/checkpoint.pt"
            network = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.Flatten(), torch.nn.Linear(width, 10))
            (folder / file).parent.mkdir(parents=True)
            whole = {
                "model": network.state_dict(),
                "iteration": step,
                "config": {"activation": ["relu"], "residual": [-1]},
            }
            torch.save(whole, folder / file)
            for name, value in (("path", file), ("score", step / 100), ("step", step)):
                told[name].append(value)
    (folder / "cnn_park_splits.json").write_text(json.dumps(splits))


@pytest.fixture(scope="module")
def outputs(home):
    """What each command printed."""
    from click.testing import CliRunner

    from zoogen.cli.main import cli

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("HOME", str(home))
        patch.setenv("ZOOGEN_DATA", str(home / "nowhere"))
        for command in COMMANDS:
            if command.startswith("import "):
                exec(command, {})
                continue
            words = [str(Path(word).expanduser()) for word in shlex.split(command, comments=True)]
            if words[0] == "tar":
                subprocess.run(words, check=True)
                continue
            result = CliRunner().invoke(cli, words[1:], catch_exceptions=False)
            assert result.exit_code == 0, (command, result.output)
            found[command.partition("#")[0].strip()] = result.output
    return found


def test_every_kind_has_a_command_that_makes_a_whole_zoo(home, outputs):
    expected = {
        "mnist-published": (2, 4, "ray-tune"),
        "usps-published": (2, 4, "ray-tune"),
        "cifar10-s-hyp-10-rand": (1, 2, "ray-tune"),
        "mnist-seed-2021": (3, 3, "modelzoo-pt"),
        "wild-park": (2, 4, "torch"),
        "cifar-small": (3, 3, "modelzoo-pt"),
        "small-cnn-mnist": (1, 9, "small-cnn-zoo"),
        "hub": (1, 1, "safetensors"),
        "vision": (1, 1, "safetensors"),
        "my-models": (1, 2, "torch"),
    }
    assert {place.name for place in (home / "zoos").iterdir()} == set(expected)
    for name, (models, states, kind) in expected.items():
        zoo = zoogen.open(home / "zoos" / name)
        assert (len(zoo), len(zoo.checkpoints), zoo.manifest["imported"]["kind"]) == (models, states, kind)
        for alike in zoo.select().by_layout():
            assert np.isfinite(alike.weights()).all()
            assert (alike.weights() != 0).any(axis=1).all()


def test_a_list_of_checkpoints_by_column_becomes_a_table_of_files(home, outputs):
    zoo = zoogen.open(home / "zoos/wild-park")
    told = zoo.models.set_index("source.key")["split"].astype(str).to_dict()
    assert told == {"zoo/trial_4": "train", "zoo/trial_6": "test"}
    assert zoo.checkpoints.sort_values("epoch")["test_acc"].tolist() == [0.1, 0.1, 0.2, 0.2]


def test_a_table_of_networks_with_the_tensors_of_the_page_is_built(tmp_path):
    """Zeros of the listed names and shapes, a file per row of the example."""
    table = re.search(r"```text\n(file,architecture.name.*?)```", TEXT, re.DOTALL)[1]
    (tmp_path / "table.csv").write_text(table)
    for file, name in (("mlp.pt", "mlp"), ("cnn.pt", "cnn-s")):
        (row,) = re.findall(rf"^\| network `{name}`.*? \| (`fc1|`conv1)(.*) \|$", TEXT, re.MULTILINE)
        listed = re.findall(r"`([a-z0-9]+\.(?:weight|bias))` (\d+(?:x\d+)*)", "".join(row))
        tensors = {tensor: torch.zeros([int(n) for n in shape.split("x")]) for tensor, shape in listed}
        torch.save(tensors, tmp_path / file)
    zoo = zoogen.open(import_zoo(tmp_path, "torch", tmp_path / "zoo", lambda _: None).path)
    models = zoo.models.set_index("architecture.name")["model_id"]
    for name in ("mlp", "cnn-s"):
        assert zoo.module(models[name])(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    code = re.search(r"^Others: `(.*)` lists", TEXT, re.MULTILINE)[1]
    entries = eval(code, {"zoogen": zoogen, "ARCHITECTURES": ARCHITECTURES})
    assert "conv1.weight" in [entry.name for entry in entries]


def test_the_commands_say_what_the_page_says(outputs):
    assert "complete; 2 models" in outputs["zoogen verify zoos/mnist-published"]
    assert "cnn-s with 2,464 parameters" in outputs["zoogen info zoos/mnist-published"]
    (listed,) = (told for command, told in outputs.items() if "repos.txt" in command)
    assert "1 model: is not beside the list" in listed
    for told in (told for command, told in outputs.items() if "--task" in command):
        assert "no test accuracy was computed again" in told


def test_every_kind_of_source_stands_in_the_table():
    from zoogen.importers.source import SOURCES

    listed = re.findall(r"^\| `([a-z][a-z-]+)` \|", TEXT, re.MULTILINE)
    assert sorted(listed) == SOURCES.names()


def test_every_zoo_of_2022_is_fetched_and_imported_with_a_blueprint_that_exists():
    table = re.search(r"^\| fetch \|.*?\n\n", TEXT, re.MULTILINE | re.DOTALL)[0]
    rows = [row.split("|") for row in table.splitlines()[2:-1]]
    named = [name for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row[-2])]
    assert set(named) == BLUEPRINTS
    assert len(BLUEPRINTS) == 27
    for path in re.findall(r"blueprints/[\w/.-]+\.yaml", TEXT):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("name", sorted(BLUEPRINTS))
def test_a_row_of_the_table_has_the_number_of_models_of_its_blueprints(name):
    from zoogen.blueprint import load
    from zoogen.plan import make_plan

    (row, *_) = (row.split("|") for row in TEXT.splitlines() if f"`{name}`" in row)
    models = int(row[-3].strip().removeprefix("of ").removeprefix("2 x ").replace(",", ""))
    assert len(make_plan(load(ROOT / f"blueprints/model-zoos-2022/{name}.yaml"))) == models


def test_what_is_fetched_are_records_that_are_known():
    fetched = re.findall(r"zenodo_get (\d+)((?: -\w \S+)*)", TEXT)
    assert {int(record) for record, _ in fetched} == RECORDS
    assert {option for _, options in fetched for option in re.findall(r" -(\w)", options)} == {"o", "g", "w"}

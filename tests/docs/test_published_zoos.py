"""The page "Load a published zoo": its commands, run one after the other on small zoos of these names and layouts."""

from __future__ import annotations

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

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/published-zoos.md"
_BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in _BLOCKS for line in block.splitlines() if "zoos/NAME" not in line]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the files that the page's commands name."""
    home = tmp_path_factory.mktemp("home")
    for seed in (1, 2):
        write_trial(home / "raw" / f"NN_tune_trainable_{seed}", config(seed=seed), epochs=1)
    for name in ("mnist", "usps"):
        shutil.make_archive(str(home / name), "zip", home / "raw")
    settings = config(model__channels_in=3)
    trial = (
        settings,
        {1: Published(settings).state_dict()},
        {1: {"train_acc": 0.6, "test_acc": 0.5, "training_iteration": 1}},
    )
    parts = {f"{part}set": {f"NN_tune_trainable_{part}": trial} for part in ("train", "val", "test")}
    write_dataset(home / "dataset_cifar_small_hyp_fix.pt", parts)
    write_small_cnn_zoo(home / "small/mnist", dict(list(CONFIGS.items())[:1]))
    subprocess.run(["tar", "-cJf", home / "mnist.tar.xz", "-C", home / "small", "mnist"], check=True)
    write_model(home / "mirror/them/cnn", convolutions(1))
    (home / "mirror/repos.txt").write_text("them/cnn\nthem/missing\n")
    shutil.copytree(home / "mirror/them", home / ".cache/huggingface/hub/them")
    cache(home / ".cache/huggingface/hub", "them/cnn", COMMIT["a"])
    table = re.search(r"```text\n(file,.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (home / "my-models/run0").mkdir(parents=True)
    (home / "my-models/table.csv").write_text(table[1])
    for name in ("start", "end"):
        torch.save(torch.nn.Linear(3, 2).state_dict(), home / f"my-models/run0/{name}.pt")
    (home / "blueprints").symlink_to(ROOT / "blueprints")
    return home


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
        assert np.isfinite(zoo.select().weights()).all()
        assert (zoo.select().weights() != 0).any(axis=1).all()


def test_the_commands_say_what_the_page_says(outputs):
    assert "complete; 2 models" in outputs["zoogen verify zoos/mnist-published"]
    assert "cnn-s with 2,464 parameters" in outputs["zoogen info zoos/mnist-published"]
    (listed,) = (told for command, told in outputs.items() if "repos.txt" in command)
    assert "1 model: is not beside the list" in listed
    (task,) = (told for command, told in outputs.items() if "--task" in command)
    assert "recorded accuracies are not checked" in task


def test_every_kind_of_source_stands_in_the_table():
    from zoogen.importers.source import SOURCES

    listed = re.findall(r"^\| `([a-z][a-z-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == SOURCES.names()

"""What tests of several rooms share: a small zoo, built once per session by the real pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

SMALL_BLUEPRINT = """\
zoo: small
version: 1
description: A dozen small networks on scikit-learn's digits.
task: {name: digits, split_seed: 42}
architecture:
  name: mlp
  hidden: [8]
  activation: {grid: [tanh, relu]}
  dropout: {grid: [0.0, 0.25]}
training:
  epochs: 3
  batch_size: 64
  optimizer: {name: sgd, weight_decay: 0.0195, lr: {grid: [1.0e-1, 1.0e-3, 1.0e+3]}}  # the last one diverges
seeds: {range: [0, 1]}
checkpoints: {test_predictions: true}
"""


PARENT_BLUEPRINT = """\
zoo: parents
version: 2
description: Six small networks on scikit-learn's digits.
task: {name: digits, split_seed: 42}
architecture:
  name: mlp
  hidden: [8]
  activation: {grid: [tanh, relu]}
training:
  epochs: 2
  batch_size: 64
  optimizer: {name: adam, lr: 1.0e-2}
seeds: {range: [0, 3]}
"""

TWIN_RECIPES = {
    "magnitude": """\
method: {name: magnitude, sparsity: {grid: [0.5, 0.9]}, scope: {grid: [global, layerwise]}}
training: {epochs: 2}
""",
    "random": "{method: {name: random, sparsity: {grid: [0.5, 0.9]}}, training: {epochs: 2}}\n",
    "variational": """\
method: {name: variational-dropout, log_sigma2: -6.0, beta: 0.3}
training: {epochs: 4}
checkpoints: {log_alpha: true}
""",
}


class SilentReporter:
    """Hears what a build does and says nothing."""

    def begin(self, *_: object) -> None: ...

    def progress(self, *_: object) -> None: ...

    def note(self, *_: object) -> None: ...


def build_zoo(folder: Path, blueprint: str, *overrides: str) -> Path:
    """Build the zoo of a blueprint's text in this process; returns its folder."""
    from zoogen.build.pipeline import BuildOptions, build
    from zoogen.schedule import SerialExecutor, StopFlag

    file = folder / "blueprint.yaml"
    file.write_text(blueprint)
    options = BuildOptions(blueprint=file, out=folder / "zoo", overrides=overrides)
    outcome = build(options, SerialExecutor(), SilentReporter(), StopFlag())
    assert outcome.exit_code == 0, outcome
    return outcome.path


def make_twins(parent: Path, out: Path, recipe: str, sample: int | None = None) -> Path:
    """Make the twins of a recipe's text in this process; returns their folder."""
    from zoogen.build.pipeline import BuildOptions
    from zoogen.build.sparsify import SparsifyOptions, sparsify
    from zoogen.schedule import SerialExecutor, StopFlag

    build = BuildOptions(blueprint=Path("blueprint.yaml"), out=out, sample=sample)
    outcome = sparsify(SparsifyOptions(parent, None, recipe, (), build), SerialExecutor(), SilentReporter(), StopFlag())
    assert not outcome.failed, outcome
    return outcome.path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> Iterator[Path]:
    """Decoded data go to a folder of this run: tests neither use nor change the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOOGEN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def small_zoo(tmp_path_factory) -> Path:
    """Folder of a zoo of 12 small networks on digits: 3 epochs, some of them diverged. Copy it to change it."""
    return build_zoo(tmp_path_factory.mktemp("small"), SMALL_BLUEPRINT)


@pytest.fixture(scope="session")
def mixed_zoo(tmp_path_factory) -> Path:
    """Folder of a zoo with two layouts (4 and 6 hidden units), 8 networks, 1 epoch, no stored predictions."""
    text = (
        SMALL_BLUEPRINT.replace("zoo: small", "zoo: mixed")
        .replace("hidden: [8]", "hidden: {grid: [[4], [6]]}")
        .replace("{grid: [1.0e-1, 1.0e-3, 1.0e+3]}", "0.1")
        .replace("epochs: 3", "epochs: 1")
        .replace("test_predictions: true", "test_predictions: false")
    )
    return build_zoo(tmp_path_factory.mktemp("mixed"), text)


@pytest.fixture(scope="session")
def twin_zoos(tmp_path_factory) -> Path:
    """Folder of ``parents``, 6 small networks on digits, and their twins ``magnitude`` (2 sparsities x 2 scopes),
    ``random`` (2 sparsities; 10 of 12 are trained) and ``variational`` (4 epochs). Copy them to change them.
    """
    folder = tmp_path_factory.mktemp("twins")
    build_zoo(folder, PARENT_BLUEPRINT).rename(folder / "parents")
    for name, recipe in TWIN_RECIPES.items():
        make_twins(folder / "parents", folder / name, recipe, sample=10 if name == "random" else None)
    return folder


@pytest.fixture(scope="session")
def few_twins(twin_zoos, tmp_path_factory) -> Path:
    """Folder of twins of those ``parents`` that have seed 0 or 1: others have none."""
    recipe = "{method: {name: random, sparsity: 0.5}, training: {epochs: 1}, parents: {where: seed != 2}}\n"
    return make_twins(twin_zoos / "parents", tmp_path_factory.mktemp("few") / "twins", recipe)

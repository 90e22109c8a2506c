"""Parent zoos on digits, and runs of ``zoogen sparsify`` in this process."""

from __future__ import annotations

import hashlib
import textwrap
from pathlib import Path
from typing import Any

import yaml
from build_runs import Recorder, build

from zoogen.build.pipeline import BuildOptions, Outcome
from zoogen.build.sparsify import SparsifyOptions
from zoogen.build.sparsify import sparsify as run_sparsify
from zoogen.schedule import SerialExecutor, StopFlag
from zoogen.store.read import ShardReader
from zoogen.store.zoo import ZooFolder

OPTIMIZERS = """
zoo: optimizers
version: 3
task: {name: digits, split_seed: 7}
architecture: {name: mlp, hidden: [8], dropout: {grid: [0.0, 0.25]}}
training: {epochs: 2, batch_size: 256}
coupled:
  recipes:
    - training: {optimizer: {name: adam, lr: 0.01, weight_decay: 0.001}}
    - training: {batch_size: 128, optimizer: {name: sgd, lr: 0.1, momentum: 0.9}, schedule: {name: one_cycle}}
    - training: {optimizer: {name: adamw, lr: 0.02, weight_decay: 0.1}}
seeds: {range: [3, 4]}
"""
"""Six models of three optimizers; each pair differs in its dropout, a pair in its batch size."""

NETWORKS = '''
"""Networks of one's own, as a user would name them."""

from torch import nn


def with_norm(input_shape, outputs):
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2),
        nn.Flatten(), nn.Linear(6, outputs),
    )


class Table(nn.Module):
    """Scores without a convolution or linear layer."""

    def __init__(self, input_shape, outputs):
        super().__init__()
        self.norm = nn.BatchNorm2d(input_shape[0])
        self.shift = nn.Parameter(nn.init.normal_(nn.Embedding(1, outputs).weight))

    def forward(self, x):
        return self.norm(x).mean(dim=(1, 2, 3))[:, None] * self.shift
'''
CONVOLUTIONS = """
zoo: own
version: 1
task: {name: digits}
architecture: {name: import, path: "twin_networks:with_norm"}
training: {epochs: 2, batch_size: 128, optimizer: {name: sgd, lr: 0.1, momentum: 0.9, nesterov: true}}
seeds: {range: [0, 2]}
"""
RESNETS = """
zoo: residual
version: 1
task: {name: digits}
architecture: {name: resnet18, width: 2}
training: {epochs: 1, batch_size: 256, optimizer: {name: adam, lr: 0.01}}
seeds: {range: [0, 1]}
"""
TABLES = CONVOLUTIONS.replace("with_norm", "Table").replace("zoo: own", "zoo: tables").replace("epochs: 2", "epochs: 1")


def grow(folder: Path, blueprint: str) -> Path:
    """The zoo of a blueprint's text; returns its folder."""
    file = folder / "blueprint.yaml"
    file.write_text(blueprint)
    outcome = build(file, folder / "zoo")
    assert outcome.exit_code == 0, outcome
    return outcome.path


def recipe(method: dict[str, Any] | str, **sections: Any) -> str:
    """A recipe's text; a method given as text is YAML."""
    given = yaml.safe_load(textwrap.dedent(method)) if isinstance(method, str) else method
    return yaml.safe_dump({"method": given, **sections}, sort_keys=False)


def sparsify(
    parent: Path,
    out: Path | None,
    text: str,
    *,
    reporter: Recorder | None = None,
    allow: tuple[str, ...] = (),
    overrides: tuple[str, ...] = (),
    **options: Any,
) -> Outcome:
    """One run in this process, one cohort after the other."""
    built = BuildOptions(blueprint=Path("unused"), out=out, **options)
    wanted = SparsifyOptions(parent, None, text, overrides, built, allow)
    return run_sparsify(wanted, SerialExecutor(), reporter or Recorder(), StopFlag())


def rows(zoo: Path) -> dict[tuple[str, int], bytes]:
    """(model id, epoch) -> its weights; fails where one is stored twice."""
    found: dict[tuple[str, int], bytes] = {}
    for folder in ZooFolder(zoo).shard_folders():
        with ShardReader(folder) as shard:
            keys = list(zip(shard.model_ids(), shard.epochs().tolist(), strict=True))
            assert not set(keys) & found.keys(), "a state is stored twice"
            found |= {key: weights.tobytes() for key, weights in zip(keys, shard.weights(), strict=True)}
    return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a zoo, hidden ones included."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

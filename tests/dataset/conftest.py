"""An independent reader of stored weights, and zoos of networks to run, for the tests of this room."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

import zoogen


@pytest.fixture(scope="session")
def stored_rows():
    """(path of a zoo, checkpoints) -> weights, row by row with h5py alone, found by (model, epoch) in the shards."""

    def read(path, checkpoints):
        found = {}
        for file in sorted((path / "shards").glob("*/weights.h5")):
            with h5py.File(file, locking=False) as shard:  # some tests keep the file open the same way
                ids = [m.decode() for m in shard["model_id"][:]]
                found |= dict(zip(zip(ids, shard["epoch"][:].tolist(), strict=True), shard["weights"][:], strict=True))
        return np.stack([found[key] for key in zip(checkpoints["model_id"], checkpoints["epoch"], strict=True)])

    return read


@pytest.fixture
def zoo(small_zoo):
    return zoogen.open(small_zoo)


# --- Zoos of networks of every sort, to run them ---------------------------------------------------------------------

NETWORKS = """
import torch
from torch import nn

class Tied(nn.Module):
    # Two layers of one matrix, and a buffer that each network draws for itself and no state dict holds.
    def __init__(self, outputs, branching=False):
        super().__init__()
        self.first = nn.Linear(64, 12)
        self.inner = nn.Linear(12, 12)
        self.again = nn.Linear(12, 12)
        self.again.weight = self.inner.weight
        self.last = nn.Linear(12, outputs)
        self.register_buffer("mixed", torch.rand(64), persistent=False)
        self.branching = branching

    def forward(self, x):
        x = x.flatten(1) * self.mixed
        x = self.again(torch.tanh(self.inner(torch.tanh(self.first(x)))))
        if self.branching and x.sum() > 1e9:
            return self.last(-x)
        return self.last(x)
"""

BLUEPRINT = """\
zoo: running
version: 1
description: A few networks to run.
task: {name: digits, split_seed: 42, val: 270}
architecture: {name: mlp, hidden: [8]}
training:
  epochs: 1
  batch_size: 64
  optimizer: {name: adam, lr: 1.0e-2}
seeds: {range: [0, 3]}
"""

KINDS = {
    "cnn": [("val: 270", "size: 28"), ("name: mlp, hidden: [8]", "name: cnn-s, dropout: {grid: [0.0, 0.3]}"),
            ("[0, 3]", "[0, 1]")],
    "resnet": [("name: mlp, hidden: [8]", "name: resnet18, width: 2")],
    "tied": [("name: mlp, hidden: [8]", "name: import, path: networks_to_run:Tied")],
    "branching": [("name: mlp, hidden: [8]", "name: import, path: networks_to_run:Tied, arguments: {branching: true}")],
    "bfloat16": [("batch_size: 64", "batch_size: 64\n  precision: bfloat16")],
    "no-val": [("val: 270", "val: 0")],
}  # fmt: skip


@pytest.fixture(scope="session")
def running_zoos(tmp_path_factory, own_cache):
    """Folder of the zoos ``KINDS``, 2 or 3 networks of 1 epoch each; ``networks_to_run`` can be imported."""
    from zoogen.build.pipeline import BuildOptions, build
    from zoogen.schedule import SerialExecutor, StopFlag

    folder = tmp_path_factory.mktemp("running")
    (folder / "networks_to_run.py").write_text(NETWORKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name, changes in KINDS.items():
            text = BLUEPRINT
            for old, new in changes:
                assert old in text
                text = text.replace(old, new)
            file = folder / f"{name}.yaml"
            file.write_text(text)
            options = BuildOptions(blueprint=file, out=folder / name)
            outcome = build(options, SerialExecutor(), Silent(), StopFlag())
            assert outcome.exit_code == 0, outcome
        yield folder


class Silent:
    """Hears what a build does and says nothing."""

    def begin(self, *_: object) -> None: ...

    def progress(self, *_: object) -> None: ...

    def note(self, *_: object) -> None: ...

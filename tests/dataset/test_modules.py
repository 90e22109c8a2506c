"""State dicts and modules: the network that comes back is the one that was trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import zoogen
from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import IntegrityError, UserError
from zoogen.tasks.places import cache_root


@pytest.fixture
def zoo(small_zoo):
    return zoogen.open(small_zoo)


@pytest.fixture(scope="module")
def data():
    from zoogen.core.registry import TASKS

    return TASKS.make("digits", {"split_seed": 42}).load(None, cache_root())


@torch.no_grad()
def test_a_module_has_the_accuracy_and_loss_that_were_stored(zoo, data):
    inputs, targets = data.tensors("test", "cpu")
    for row in zoo.select(epochs=[0, 3]).checkpoints.itertuples():
        network = zoo.module(row.model_id, row.epoch)
        assert not network.training
        outputs = network(data.prepare(inputs))
        assert (outputs.argmax(1) == targets).double().mean().item() == pytest.approx(row.test_acc, abs=1e-6)
        # One float32 ulp of a loss near 1 is 1e-7; sums of 64 products may differ in the last bits.
        loss = torch.nn.functional.cross_entropy(outputs.double(), targets)
        assert loss.item() == pytest.approx(row.test_loss, rel=1e-5)


def test_a_module_has_its_own_settings(zoo):
    for row in zoo.models.to_dict("records"):
        network = zoo.module(row["model_id"])
        assert network.dropout1.p == row["architecture.dropout"]
        assert type(network.act1) is {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[row["architecture.activation"]]


def test_a_state_dict_is_its_row_of_the_weights(zoo):
    selection = zoo.select(epochs="last")
    weights = selection.weights()
    for row, model_id in zip(weights, selection.checkpoints["model_id"], strict=True):
        state = zoo.state_dict(model_id)
        assert np.array_equal(np.concatenate([t.numpy().ravel() for t in state.values()]), row)
        assert zoo.module(model_id).state_dict().keys() == state.keys()


def test_the_beginning_of_an_id_will_do(zoo):
    model_id = zoo.models["model_id"][4]
    whole = zoo.state_dict(model_id, 1)
    short = zoo.state_dict(model_id[:6].upper(), 1)
    assert all(torch.equal(whole[name], short[name]) for name in whole)
    with pytest.raises(UserError, match="at least 6"):
        zoo.state_dict(model_id[:5])
    with pytest.raises(UserError, match="no model"):
        zoo.state_dict("zzzzzzzz")


def test_a_beginning_of_several_ids_lists_them(small_zoo, monkeypatch):
    zoo = zoogen.open(small_zoo)
    ids = zoo.models["model_id"].tolist()
    ids[1] = ids[0][:8] + ids[1][8:]
    zoo.tables.models["model_id"] = ids
    with pytest.raises(UserError) as error:
        zoo.state_dict(ids[0][:7])
    assert ids[0] in str(error.value)
    assert ids[1] in str(error.value)


def test_an_epoch_that_is_not_stored_is_answered_with_those_that_are(zoo):
    diverged = zoo.models.query("status == 'diverged'").iloc[0]
    with pytest.raises(UserError, match=f"diverged in epoch {diverged['diverged_epoch']}"):
        zoo.module(diverged["model_id"], 3)
    assert zoo.module(diverged["model_id"], "last")
    with pytest.raises(UserError, match="stored epochs: 0, 1, 2, 3"):
        zoo.state_dict(zoo.select("status == 'trained'").models["model_id"][0], 99)


def test_side_tensors_come_back_with_their_own_dtypes(tmp_path):
    """A batch-norm counter (int64) lies beside the float32 row; the network must get both."""
    import pandas as pd

    from zoogen.architectures.resnet import ResNet18
    from zoogen.core.modules import build_model, describe
    from zoogen.core.records import Checkpoint, Cohort, CohortState, Job, Recording, Seeds, Segment
    from zoogen.core.registry import ARCHITECTURES
    from zoogen.store.cohorts import CohortRecord
    from zoogen.store.derive import rebuild_tables
    from zoogen.store.shard import seal_shard
    from zoogen.store.zoo import ZooFolder

    architecture = ResNet18(width=2)
    layout = describe(architecture, (3, 32, 32), 10)
    network = build_model(architecture, (3, 32, 32), 10, seed=5)
    network(torch.randn(4, 3, 32, 32))  # moves running statistics and counters
    state = network.state_dict()
    row = layout.flatten(state).numpy()[None]
    side = {d: layout.flatten(state, d).numpy()[None] for d in layout.side_dtypes}
    cohort = Cohort(
        "c0", (Job("a" * 32, architecture, None, None, Seeds(0, 0, 0, 0)),), 1, Recording((1,)),
        (Segment("s0", 0, 1),), layout.layout_id,
    )  # fmt: skip
    described = {
        **ARCHITECTURES.describe(architecture), "input_shape": [3, 32, 32], "outputs": 10, "layout": layout.layout_id,
    }  # fmt: skip
    folder = ZooFolder(tmp_path / "zoo")
    folder.create(
        {"name": "x", "version": 1, "factors": [], "architectures": {"a1": described}, "tasks": {},
         "layouts": {layout.layout_id: layout.to_json()}}
    )  # fmt: skip
    folder.write_cohorts([CohortRecord("c0", layout.layout_id, cohort.model_ids, 1, (1,), cohort.segments)])
    folder.write_plan(
        pd.DataFrame(
            {
                "model_id": ["a" * 32],
                "split": "train",
                "seed": 0,
                "cohort_id": "c0",
                "architecture_id": "a1",
                "task_id": "t",
            }
        )
    )
    stored = Checkpoint(1, cohort.model_ids, row, side, {"test_acc": np.array([0.5])})
    token = folder.new_token()
    seal_shard(
        folder.path, "s0", cohort, layout, [stored], state=CohortState(1, cohort.model_ids, row, side), token=token
    )
    rebuild_tables(folder, {})
    found = zoogen.open(folder.path).module("a" * 32).state_dict()
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert any(t.dtype == torch.int64 and t.item() == 1 for t in found.values() if t.ndim == 0)


def with_architecture(zoo_path, target, change):
    """A copy of a zoo whose manifest describes other architectures under the same ids."""
    copy = shutil.copytree(zoo_path, target)
    manifest = json.loads((copy / "zoo.json").read_text())
    for entry in manifest["architectures"].values():
        change(entry)
    (copy / "zoo.json").write_text(json.dumps(manifest))
    return zoogen.open(copy)


def test_code_that_the_zoo_names_runs_only_when_allowed(small_zoo, tmp_path, monkeypatch):
    module = tmp_path / "someones_networks.py"
    module.write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "from zoogen.architectures.mlp import MLP\n"
        "def factory(input_shape, outputs):\n"
        "    return MLP(hidden=(8,)).build(input_shape, outputs)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def imported(entry):
        shape, outputs, layout = entry["input_shape"], entry["outputs"], entry["layout"]
        entry.clear()
        entry.update(name="import", path="someones_networks:factory", input_shape=shape, outputs=outputs, layout=layout)

    zoo = with_architecture(small_zoo, tmp_path / "zoo", imported)
    model_id = zoo.models["model_id"][0]
    for allow in ((), ("someones_networks",), ("someones_networks:other",)):
        with pytest.raises(UserError, match="someones_networks:factory"):
            zoo.module(model_id, allow=allow)
    assert zoo.state_dict(model_id)
    assert not (tmp_path / "ran").exists()
    network = zoo.module(model_id, allow=("someones_networks:factory",))
    assert (tmp_path / "ran").exists()
    assert torch.equal(network.fc1.weight, zoo.state_dict(model_id)["fc1.weight"])


def test_another_network_than_the_stored_one_is_refused(small_zoo, tmp_path):
    zoo = with_architecture(small_zoo, tmp_path / "zoo", lambda entry: entry.update(hidden=[9]))
    with pytest.raises(UserError, match=r"fc1\.bias"):
        zoo.module(zoo.models["model_id"][0])


@pytest.mark.parametrize(
    "change",
    [{"hidden": ["eight"]}, {"hidden": 3}, {"outputs": "ten"}, {"input_shape": None}, {"activation": ["x"]}],
    ids=str,
)
def test_a_nonsense_description_is_an_error_of_ours(small_zoo, tmp_path, change):
    model_id = zoogen.open(small_zoo).models["model_id"][0]
    with pytest.raises((IntegrityError, UserError)):
        with_architecture(small_zoo, tmp_path / "zoo", lambda entry: entry.update(change)).module(model_id)


def test_a_description_of_a_giant_network_takes_no_memory(small_zoo, tmp_path):
    zoo = with_architecture(small_zoo, tmp_path / "zoo", lambda entry: entry.update(hidden=[1 << 20, 1 << 20]))  # 4 TB
    with pytest.raises(UserError, match="another network"):
        zoo.module(zoo.models["model_id"][0])


def test_split_indices_part_the_published_samples(zoo, data):
    split = zoo.split_indices()
    assert {part: len(index) for part, index in split.items()} == {"train": 1257, "val": 270, "test": 270}
    for part, index in data.split().items():
        assert np.array_equal(split[part], index)
    assert zoo.split_indices("digits").keys() == split.keys()
    with pytest.raises(UserError, match="digits"):
        zoo.split_indices("mnist")


def test_architecture_ids_are_digests_of_what_they_name(zoo):
    for name in zoo.models["architecture_id"]:
        assert digest(canonical_json(zoo.architecture(name))) == name


def loaded_after(code: str) -> set[str]:
    probe = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    return {name.split(".")[0] for name in out.split()}


def test_importing_loads_nothing_heavy_and_opening_loads_no_torch_or_ray(small_zoo):
    loaded = loaded_after("import zoogen; zoogen.__version__")
    assert not loaded & {"torch", "pandas", "h5py", "ray", "torchvision", "pyarrow"}
    reading = (
        f"import zoogen; z = zoogen.open({str(small_zoo)!r}); repr(z); z.models\n"
        "s = z.select('lr < 1', epochs='last', activation='tanh'); s.weights(); s.joined()"
    )
    assert not loaded_after(reading) & {"torch", "ray", "torchvision", "sklearn", "matplotlib"}


def test_the_version_is_that_of_the_installed_package():
    from importlib.metadata import version

    assert zoogen.__version__ == version("zoogen")
    with pytest.raises(AttributeError):
        _ = zoogen.no_such_thing

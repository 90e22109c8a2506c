"""Preprocessed zoos in the published layout: objects of classes that exist only while they are pickled.

What the classes keep is what the published loaders keep (all arguments, roots and paths as ``pathlib`` objects, states
twice, labels, properties); what they do is not needed to read them.
"""

from __future__ import annotations

import copy
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import torch

LAYERS = {
    "CNN": [(0, "conv2d"), (3, "conv2d"), (6, "conv2d"), (9, "fc"), (11, "fc")],
    "CNN3": [(0, "conv2d"), (4, "conv2d"), (8, "conv2d"), (13, "fc"), (16, "fc")],
}
RESULT_KEYS = ("test_acc", "training_iteration", "ggap")
HYP_KEYS = (
    "model::nlin",
    "model::init_type",
    "optim::optimizer",
    "model::dropout",
    "optim::lr",
    "optim::wd",
)
SPLITS = {"trainset": "train", "valset": "val", "testset": "test"}


@contextmanager
def loaders(package: str = "checkpoints_to_datasets"):
    """The module of the datasets' class, importable until the end of the block."""
    parts = package.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    names += [f"{package}.dataset_base", f"{package}.dataset_simclr", f"{package}.random_erasing"]
    modules = {name: types.ModuleType(name) for name in names}

    def defined(module, name, base):
        cls = type(name, (base,), {"__module__": module, "__qualname__": name})
        setattr(modules[module], name, cls)
        return cls

    base = defined(f"{package}.dataset_base", "ModelDatasetBase", torch.utils.data.Dataset)
    defined(f"{package}.dataset_simclr", "SimCLRDataset", base)
    defined(f"{package}.random_erasing", "RandomErasingVector", torch.nn.Module)
    sys.modules.update(modules)
    try:
        yield modules
    finally:
        for name in modules:
            del sys.modules[name]


def vector_of(state, layers):
    return torch.cat([state[f"module_list.{i}.{leaf}"].flatten() for i, _ in layers for leaf in ("weight", "bias")])


def dataset(cls, name, trials, *, mode, kind="CNN", keys=HYP_KEYS, root="/netscratch/zoo"):
    """One dataset object.

    Args:
        trials: ``{folder: (settings, {epoch: state dict}, {epoch: results})}``.
        mode: ``checkpoint`` (state dicts), ``vector`` (one tensor of all), ``vectors`` (a list, as in 2021).
    """
    found = cls.__new__(cls)
    rows = [(Path(root, trial), e, state) for trial, (_, states, _) in trials.items() for e, state in states.items()]
    states = [OrderedDict((n, t.clone()) for n, t in state.items()) for _, _, state in rows]
    for state in states:
        state._metadata = OrderedDict([("", {"version": 1})])
    labels = [f"{path}#_#epoch_{epoch}#_#layer_{LAYERS[kind]}" for path, epoch, _ in rows]
    told = [trials[path.name][2][epoch] for path, epoch, _ in rows]
    settings = [trials[path.name][0] for path, _, _ in rows]
    properties = {key: [line[key] for line in told] for key in RESULT_KEYS[:2]}
    properties |= {key: [own[key] for own in settings] for key in keys}
    properties["ggap"] = [line["train_acc"] - line["test_acc"] for line in told]
    found.__dict__.update(
        layer_lst=LAYERS[kind],
        epoch_lst=sorted({epoch for _, epoch, _ in rows}),
        mode="checkpoint" if mode == "checkpoint" else "vector",
        task="reconstruction",
        use_bias=True,
        verbosity=0,
        weight_threshold=float("inf"),
        property_keys={"result_keys": list(RESULT_KEYS), "config_keys": list(keys)},
        train_val_test=SPLITS[name],
        ds_split=[0.7, 0.15, 0.15],
        root=[Path(root)],
        path_list=[Path(root, trial) for trial in trials],
        data_in=states,
        data_out=copy.deepcopy(states),
        labels_in=labels,
        labels_out=list(labels),
        paths=[path for path, _, _ in rows],
        epochs=[epoch for _, epoch, _ in rows],
        properties=properties,
    )
    if mode != "checkpoint":
        found.checkpoint_base = states[0]
        found.data_in = [vector_of(state, LAYERS[kind]) for state in states]
        found.data_out = [vector.clone() for vector in found.data_in]
    if mode == "vector":
        found.data_in = found.weights_in = torch.stack(found.data_in)
        found.data_out = states
    return found


def write_dataset(
    path, trials_of, *, mode="checkpoint", new=True, package="checkpoints_to_datasets", change=None, **how
):
    """Write ``{"trainset": trials, ...}`` as such a file; ``change`` is given the datasets before they are written."""
    with loaders(package) as modules:
        simclr = mode == "vectors"
        module = modules[f"{package}.dataset_simclr" if simclr else f"{package}.dataset_base"]
        cls = module.SimCLRDataset if simclr else module.ModelDatasetBase
        found = {name: dataset(cls, name, trials, mode=mode, **how) for name, trials in trials_of.items()}
        if simclr:
            for one in found.values():
                one.erase_augment = modules[f"{package}.random_erasing"].RandomErasingVector()
                one.permutation_index_list = [torch.randperm(2464).tolist() for _ in range(2)]
                one.permutations_dct = {"layer_0": [list(range(8))]}
        if change is not None:
            change(found)
        torch.save(found, path, _use_new_zipfile_serialization=new)
    return path

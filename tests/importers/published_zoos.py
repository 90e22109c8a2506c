"""Small zoos in the layouts that are published, made of real training on digits resized to 28x28 (or 32x32).

The networks here are written from their description alone (pool before activation, a dropout module only where the rate
is above 0), so that they can tell whether what an import gives back is the same function.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "leakyrelu": nn.LeakyReLU, "sigmoid": nn.Sigmoid}


class Published(nn.Module):
    """``CNN`` (28x28) or ``CNN3`` (32x32), with the keys ``module_list.N``."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        act, rate = ACTIVATIONS[config["model::nlin"]], config["model::dropout"]
        channels = config["model::channels_in"]
        if config["model::type"] == "CNN":
            drop = [nn.Dropout(rate)] if rate > 0 else []
            layers = [nn.Conv2d(channels, 8, 5), nn.MaxPool2d(2), act(), *drop]
            layers += [nn.Conv2d(8, 6, 5), nn.MaxPool2d(2), act(), *drop]
            layers += [nn.Conv2d(6, 4, 2), act(), nn.Flatten(), nn.Linear(36, 20), act(), *drop, nn.Linear(20, 10)]
        else:
            drop = [nn.Dropout(rate)]
            layers = [nn.Conv2d(channels, 16, 3), nn.MaxPool2d(2), act(), *drop]
            layers += [nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), act(), *drop]
            layers += [nn.Conv2d(32, 15, 3), nn.MaxPool2d(2), act(), *drop]
            layers += [nn.Flatten(), nn.Linear(60, 20), act(), *drop, nn.Linear(20, 10)]
        self.module_list = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.module_list:
            x = layer(x)
        return x


def digits(side: int, count: int = 200):
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images[:count], dtype=torch.float32)[:, None] / 16
    return interpolate(images, side), torch.tensor(found.target[:count])


def config(**changes) -> dict:
    """``params.json`` as the published zoos have it."""
    base = {
        "model::type": "CNN",
        "model::channels_in": 1,
        "model::o_dim": 4,
        "model::nlin": "tanh",
        "model::dropout": 0,
        "model::init_type": "kaiming_uniform",
        "model::use_bias": False,
        "optim::optimizer": "Adam",
        "optim::lr": 0.003,
        "optim::wd": 0.001,
        "training::batchsize": 50,
        "training::epochs_train": 2,
        "training::mode": "train",
        "dataset::dump": "/somewhere/dataset.pt",
        "seed": 1,
        "cuda": False,
    }
    return base | {key.replace("__", "::"): value for key, value in changes.items()}


def write_trial(
    folder: Path,
    settings: dict,
    *,
    epochs: int = 2,
    digits_in_name: int = 6,
    prefix: str = "",
    samples: tuple | None = None,
) -> dict:
    """Train a trial and write it; returns ``{epoch: state dict as written}``.

    ``samples`` are inputs and targets for training, then those for the test; by default the first 200 digits for both.
    """
    torch.manual_seed(settings["seed"])
    network = Published(settings)
    own = digits(28 if settings["model::type"] == "CNN" else 32)
    images, targets, test_images, test_targets = samples or (*own, *own)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings["optim::lr"], weight_decay=settings["optim::wd"])
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(settings))
    written, lines = {}, []
    for epoch in range(epochs + 1):
        losses = []
        for part in torch.arange(len(images)).split(settings["training::batchsize"]) if epoch else ():
            loss = cross_entropy(network.train()(images[part]), targets[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            outputs = network.eval()(images)
            tested = network(test_images)
        state = {f"{prefix}{name}": tensor.clone() for name, tensor in network.state_dict().items()}
        place = folder / f"checkpoint_{epoch:0{digits_in_name}d}"
        place.mkdir()
        torch.save(state, place / "checkpoints")
        torch.save(optimizer.state_dict(), place / "optimizer")
        (place / ".is_checkpoint").touch()
        written[epoch] = state
        lines.append(
            {
                "train_loss": sum(losses) / len(losses) if losses else cross_entropy(outputs, targets).item(),
                "train_acc": (outputs.argmax(1) == targets).double().mean().item(),
                "test_loss": cross_entropy(tested, test_targets).item(),
                "test_acc": (tested.argmax(1) == test_targets).double().mean().item(),
                "training_iteration": epoch,
                "time_this_iter_s": 0.25,
                "trial_id": "abc",
                "hostname": "somewhere",
                "config": settings,
            }
        )
    (folder / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    header = [k for k in lines[0] if k != "config"]
    rows = [",".join(header), *(",".join(str(line[k]) for k in header) for line in lines)]
    (folder / "progress.csv").write_text("\n".join(rows) + "\n")
    return written


def results(folder: Path) -> dict[int, dict]:
    lines = (folder / "result.json").read_text().splitlines()
    return {told["training_iteration"]: told for told in map(json.loads, lines)}


def write_zoo(folder: Path) -> dict[str, dict]:
    """Six trials: CNN-s with and without dropout, CNN-l, and every numbering and prefix."""
    kinds = {
        "NN_tune_trainable_a_1": (config(), {}),
        "NN_tune_trainable_a_2": (config(seed=2, model__dropout=0.5, model__nlin="gelu"), {"digits_in_name": 2}),
        "NN_tune_trainable_a_3": (config(seed=3, model__nlin="leakyrelu"), {"digits_in_name": 4, "prefix": "module."}),
        "NN_tune_trainable_a_4": (config(seed=4), {"digits_in_name": 1, "prefix": "module.model."}),
        "NN_tune_trainable_b_5": (config(seed=5, model__type="CNN3", model__nlin="relu"), {}),
        "NN_tune_trainable_b_6": (config(seed=6, model__type="CNN3", model__dropout=0.3), {}),
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"seed": "grid_search(...)"}))
    (folder / "index_dict.json").write_text("{}")
    (folder / "readme.md").touch()
    return {name: write_trial(folder / name, settings, **how) for name, (settings, how) in kinds.items()}

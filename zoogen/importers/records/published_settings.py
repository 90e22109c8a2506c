"""Records of the published zoos (``params.json``, properties of datasets) as settings under our keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoogen.importers.records.settings import CONFIG, own_arguments, settings_of
from zoogen.importers.source import Network

_NAMES = {
    "model::nlin": "architecture.activation",
    "model::dropout": "architecture.dropout",
    "model::init_type": "architecture.init",
    "optim::optimizer": "training.optimizer.name",
    "optim::lr": "training.optimizer.lr",
    "optim::wd": "training.optimizer.weight_decay",
    "optim::momentum": "training.optimizer.momentum",
    "optim::nesterov": "training.optimizer.nesterov",
    "optim::scheduler": "training.schedule.name",
    "training::batchsize": "training.batch_size",
    "training::epochs_train": "training.epochs",
}


def published_settings(record: Mapping[str, Any], network: Network | None, notes: list[str]) -> dict[str, Any]:
    """A record by our keys; names of networks, activations, optimizers and schedules as blueprints write them."""
    told = {name: value for name, value in record.items() if name in _NAMES or not isinstance(value, dict)}
    settings = settings_of(told, _NAMES, notes)
    kind = settings.pop(f"{CONFIG}model.type", None)
    if network is not None:
        architecture = network.architecture
        settings["architecture.name"] = architecture.registered_name
        # As the network has it: some write other words, and residual networks ignore activation and dropout.
        for name in ("activation", "dropout"):
            settings.pop(f"architecture.{name}", None)
            if hasattr(architecture, name):
                settings[f"architecture.{name}"] = getattr(architecture, name)
        if hasattr(architecture, "width"):
            settings["architecture.width"] = architecture.width
    elif kind is not None:
        settings["architecture.name"] = str(kind)
    optimizer, schedule = settings.get("training.optimizer.name"), settings.get("training.schedule.name")
    if isinstance(optimizer, str):
        settings["training.optimizer.name"] = optimizer.lower()
    if schedule == "OneCycleLR":
        settings["training.schedule.name"] = "one_cycle"
    return own_arguments(settings)

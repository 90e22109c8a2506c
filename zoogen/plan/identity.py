"""Content-derived ids: the digest of everything that determines a model's weights, and of nothing else (design, 4).

The identity is one flat mapping of dotted keys, encoded as canonical JSON. Because it is flat, the id of a grid cell
can be put together from fragments that are encoded once per factor value; ``cells.py`` does so and is tested equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.contracts import describe_task
from zoogen.core.recipe import Training
from zoogen.core.records import Parent, Seeds
from zoogen.core.registry import ARCHITECTURES

# Raised when the same settings would give other weights (another order of batches, another initialisation code, ...).
RECIPE_VERSION = 1


def settings_identity(architecture: Any, task: Any, training: Training) -> dict[str, Any]:
    """The flat identity of the settings, without seeds and parents: ``{"training.optimizer.lr": 0.001, ...}``."""
    flat: dict[str, Any] = {"recipe": RECIPE_VERSION}
    for section, described in (
        ("architecture", ARCHITECTURES.describe(architecture)),
        ("task", describe_task(task)),
        ("training", training.identity()),
    ):
        for key, value in described.items():
            if section == "training" and key in ("optimizer", "schedule", "sparsify"):
                flat |= {f"training.{key}.{k}": v for k, v in value.items()}
            else:
                flat[f"{section}.{key}"] = value
    return flat


def identity(
    architecture: Any, task: Any, training: Training, seeds: Seeds, parents: tuple[Parent, ...] = ()
) -> dict[str, Any]:
    """Everything that determines a model's weights, as one flat JSON-able mapping."""
    return {
        **settings_identity(architecture, task, training),
        "parents": [{"id": p.model_id, "epoch": p.epoch, "role": p.role} for p in parents],
        "seeds": [seeds.init, seeds.order, seeds.augment, seeds.dropout],
    }


def model_id(full_identity: Mapping[str, Any]) -> str:
    """32 hex digits (128 bits) of the canonical JSON of ``identity(...)``."""
    return digest(canonical_json(full_identity))

"""From a stored state back to a network: its tensors by name, and the module they belong to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoogen.core.errors import IntegrityError, UserError
from zoogen.core.layout import Layout, describe_module
from zoogen.core.modules import build_model, describe
from zoogen.core.registry import ARCHITECTURES
from zoogen.dataset.shards import Shards, States

if TYPE_CHECKING:
    from torch import Tensor, nn

WITHOUT_CODE = " (imported without code)"
"""Stands behind the name of an architecture of which there are tensors only."""

_OF_THE_TASK = ("input_shape", "outputs", "layout")
_INIT = "init"  # may be unrecorded: it plays no part in a network whose weights are given


def state_dict(shards: Shards, states: States, layout: Layout) -> dict[str, Tensor]:
    """The tensors of one state by name, of their own dtypes, on the CPU.

    Raises:
        IntegrityError: the shard is damaged.
    """
    import torch

    rows: dict[str, Any] = {"float32": shards.weights(states, None, layout.parameters)[0]}
    for dtype in layout.side_dtypes:
        found = torch.from_numpy(shards.side(states, dtype)[0])
        rows[dtype] = found.view(getattr(torch, dtype))  # bfloat16 and float8 are stored as integers of the same bits
    return layout.unflatten(rows)


def restore_architecture(described: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
    """The architecture of one model: the manifest's entry, with this model's own values where models may differ.

    Args:
        described: The entry in ``zoo.json``.
        row: The model's settings by dotted key.

    Raises:
        UserError: this zoogen does not know it, or it was imported without code.
        IntegrityError: the entry is damaged.
    """
    name, mark, _ = str(described.get("name")).partition(WITHOUT_CODE)
    if mark:
        raise UserError(
            f"this model was imported without code: nothing here says how to build its network ({name!r:.100})\n"
            "zoo.state_dict(model_id) and weights() give its tensors; a network of ours is built where the source is "
            "imported again with architecture.name, each of its arguments, input_shape and outputs in its record"
        )
    try:
        architecture = ARCHITECTURES.restore({k: v for k, v in described.items() if k not in _OF_THE_TASK})
        own = {
            field: _typed(row[f"architecture.{field}"], getattr(architecture, field))
            for field in sorted(architecture.per_model)
            if f"architecture.{field}" in row and not (field == _INIT and _is_missing(row[f"architecture.{field}"]))
        }
        return dataclasses.replace(architecture, **own)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"zoo.json: architecture {dict(described)} is damaged ({error!r})") from error


def _is_missing(value: Any) -> bool:
    return value is None or value != value


def build_network(
    architecture: Any,
    described: Mapping[str, Any],
    layout: Layout,
    state: Mapping[str, Tensor],
    seed: int,
    allow: Sequence[str],
) -> nn.Module:
    """The network in eval mode with these tensors; ``seed`` draws what its state dict does not hold.

    Raises:
        UserError: its code may not run, or no longer makes the network that was stored.
        IntegrityError: the manifest describes no network.
    """
    if architecture.runs_code:
        name = getattr(architecture, "path", architecture.registered_name)
        if name not in ([allow] if isinstance(allow, str) else allow):
            raise UserError(
                f"this model is made by code that the zoo names: {name}\n"
                f"if you trust that code, allow it: zoo.module(model_id, allow=({name!r},)); "
                "zoo.state_dict(model_id) gives the tensors without running anything"
            )
    try:
        shape, outputs = tuple(described["input_shape"]), described["outputs"]
        # On the meta device first: what zoo.json asks for takes no memory until it is known to be what is stored.
        found = describe(architecture, shape, outputs)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        if architecture.runs_code:
            raise
        raise IntegrityError(f"zoo.json: {dict(described)} describes no network ({error!r})") from error
    _check(found, layout, architecture)
    module = build_model(architecture, shape, outputs, seed)
    _check(describe_module(module), layout, architecture)
    module.load_state_dict(dict(state), strict=True)
    return module.eval()


def _check(found: Layout, stored: Layout, architecture: Any) -> None:
    if found.layout_id == stored.layout_id:
        return
    ours = {e.name: e.shape for e in found.entries}
    theirs = {e.name: e.shape for e in stored.entries}
    differing = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    raise UserError(
        f"architecture {architecture.registered_name!r} makes another network here than the one that was stored"
        + (f": {', '.join(differing[:5])} differ" if differing else " (roles, dtypes or order differ)")
        + "\nuse the version of its code that built the zoo (zoo.manifest['software']), or zoo.state_dict(model_id)"
    )


def _typed(value: Any, like: Any) -> Any:
    """A table's value as the architecture's field had it: tables hold text, numbers, and lists as JSON text."""
    import pandas as pd

    if isinstance(value, str):
        return _tuples(json.loads(value)) if isinstance(like, (tuple, dict)) else value
    if pd.isna(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    if type(like) is int and type(value) is float and value.is_integer():
        return int(value)  # a column with gaps, or with floats in other rows
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value

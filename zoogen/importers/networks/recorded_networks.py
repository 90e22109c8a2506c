"""Networks that a record calls by our own names: ``architecture.name``, its arguments, ``input_shape``, ``outputs``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from zoogen.core.errors import UserError
from zoogen.core.layout import Layout
from zoogen.core.modules import describe
from zoogen.core.registry import ARCHITECTURES
from zoogen.importers.records.json_records import read_json
from zoogen.importers.source import Network
from zoogen.importers.tensors.state_dicts import misfit

if TYPE_CHECKING:
    from torch import Tensor

NAME = "architecture.name"
OF_THE_INPUT = ("input_shape", "outputs")
_PREFIX = "architecture."
_INIT = "init"
_MOST_LAYERS = 1_000


def recorded_network(
    record: Mapping[str, Any], tensors: Mapping[str, Tensor], notes: list[str]
) -> tuple[Network, Layout] | None:
    """The network that a record describes, with its layout; None where it describes none that has these tensors.

    Args:
        record: By dotted key; lists perhaps as JSON text, and ``input_shape`` perhaps as ``1x28x28``.
        tensors: A state, or what has its names, dtypes and shapes.
        notes: Is told why there is no network.
    """
    network, why = _network(record)
    if network is not None:
        layout = describe(network.architecture, network.input_shape, network.outputs)
        other = misfit(layout, tensors)
        if other is None:
            return network, layout
        why = f"the tensors are not those of its architecture: {other}"
    notes.append(f"is imported without code: {why}")
    return None


def _network(record: Mapping[str, Any]) -> tuple[Network | None, str]:
    """The architecture that the record names, or why there is none."""
    name = record.get(NAME)
    if name not in ARCHITECTURES.names():
        return None, f"architecture {name!r:.60} is unknown" if name else f"its record has no {NAME}"
    if ARCHITECTURES.get(name).runs_code:  # type: ignore[attr-defined]
        return None, f"architecture {name!r} would run code that its record names"
    arguments = {k.removeprefix(_PREFIX): v for k, v in record.items() if k.startswith(_PREFIX)}
    # No defaults: an activation that nobody recorded cannot be seen in the weights. How they began plays no role.
    wanted = [f.name for f in fields(ARCHITECTURES.get(name)) if f.name != _INIT]
    missing = [f"{_PREFIX}{argument}" for argument in sorted(wanted) if argument not in arguments]
    missing += [n for n in OF_THE_INPUT if record.get(n) is None]
    if missing:
        return None, f"its record has no {', '.join(missing)}"
    try:
        arguments = {argument: _parsed(value) for argument, value in arguments.items()}
        if large := sorted(name for name, value in arguments.items() if not _is_plain(value)):
            return None, f"its {_PREFIX}{large[0]} is no value or list of up to {_MOST_LAYERS:,} values"
        network = Network(ARCHITECTURES.restore(arguments), _shape(record["input_shape"]), int(record["outputs"]))
        describe(network.architecture, network.input_shape, network.outputs)
    except (UserError, TypeError, ValueError, RuntimeError, KeyError, AttributeError, OverflowError) as error:
        return None, f"architecture {name!r} cannot be built: {error}".partition("\n")[0]
    return network, ""


def _parsed(value: Any) -> Any:
    """Lists stand in tables as JSON text."""
    return read_json(value) if isinstance(value, str) and value.startswith("[") else value


def _is_plain(value: Any) -> bool:
    """Whether this is what a table could hold: a network of millions of layers takes hours to be described."""
    values = value if isinstance(value, list) else [value]
    return len(values) <= _MOST_LAYERS and not any(isinstance(one, (list, dict)) for one in values)


def _shape(value: Any) -> tuple[int, ...]:
    parts = value.replace("[", "").replace("]", "").replace("x", ",").split(",") if isinstance(value, str) else value
    return tuple(int(part) for part in parts)

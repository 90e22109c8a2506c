"""Networks as functions of their tensors: for ``torch.func``, and for many stored states at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zoogen.core.errors import UserError, suggest
from zoogen.core.layout import Layout
from zoogen.dataset.layouts import only_architecture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zoogen.dataset.selection import Selection
    from zoogen.dataset.zoo import Zoo

_BUFFERS = ("running_statistic", "buffer")

Tensors = dict[str, Tensor]


class Function(Protocol):
    """(params, buffers, x) -> outputs [B, C]; x float32 [B, *input_shape], prepared as the task does."""

    def __call__(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor) -> Tensor: ...


class Functional(NamedTuple):
    """A network as a function.

    Attributes:
        function: Pure, in eval mode; works under ``torch.func.vmap``, ``grad`` and the others. Tensors that it is not
            given are those of ``template``; of tied tensors one name is enough.
        template: The network, whose ``named_parameters()`` and ``named_buffers()`` are what the function takes.
    """

    function: Function
    template: nn.Module


class Stacked(NamedTuple):
    """Tensors of n states by name, [n, *shape] each and of their own dtypes; a tied tensor stands once."""

    params: Tensors
    buffers: Tensors


def make_functional(zoo: Zoo, name: str, allow: Sequence[str]) -> Functional:
    """See ``Zoo.functional``."""
    return functional_of(zoo.module(model_like(zoo, name), allow=allow))


def functional_of(template: nn.Module) -> Functional:
    """The function of a network that exists."""

    def function(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(template, (dict(params), dict(buffers)), (x,))

    return Functional(function, template)


def model_like(zoo: Zoo, name: str | None) -> str:
    """Id of a stored model of the architecture ``name``, or the model ``name``; None: of the only architecture.

    Raises:
        UserError: nothing of that name is stored, or the zoo has several architectures and none is named.
    """
    models = zoo.tables.models[zoo.tables.last_epoch >= 0]
    known = models["architecture_id"].unique().tolist()
    if name is None:
        if len(known) != 1:
            raise UserError(
                f"zoo {zoo.name!r} has stored models of {len(known)} architectures; name one by its id "
                f"(column architecture_id): {', '.join(known) or 'none'}"
            )
        name = known[0]
    if name in zoo.manifest["architectures"]:
        if name not in known:
            raise UserError(f"no model of architecture {name!r} is stored yet\n{suggest(name, known)}")
        return str(models.loc[models["architecture_id"] == name, "model_id"].iloc[0])
    return str(zoo.tables.ids[zoo._model(name)])


def stack_states(selection: Selection, device: torch.device | str = "cpu") -> Stacked:
    """See ``Zoo.stacked``."""
    layout = selection.layout
    only_architecture(selection.zoo, selection.zoo.tables.model_of[selection.rows])
    rows = {"float32": torch.from_numpy(selection.weights()).to(device)}
    rows |= {dtype: _side(selection, dtype).to(device) for dtype in layout.side_dtypes}
    return stack_rows(layout, rows)


def stack_rows(layout: Layout, rows: Mapping[str, Tensor]) -> Stacked:
    """Tensors by name as views of one matrix [n, K] per dtype; those of dtypes that are not given are left out.

    Raises:
        ValueError: a matrix has another width than the layout says.
    """
    for dtype, matrix in rows.items():
        if matrix.ndim != 2 or matrix.shape[1] != layout.row_size(dtype):
            raise ValueError(
                f"rows of {dtype} are {tuple(matrix.shape)}, the layout says {layout.row_size(dtype)} wide"
            )
    stacked = Stacked({}, {})
    for e in layout.entries:
        if e.dtype not in rows:
            continue
        matrix = rows[e.dtype]
        found = matrix[:, e.offset : e.offset + e.size].unflatten(1, e.shape) if e.shape else matrix[:, e.offset]
        (stacked.buffers if e.role in _BUFFERS else stacked.params)[e.name] = found
    return stacked


def unstored(template: nn.Module) -> list[str]:
    """Buffers that no state dict holds: each network has those of its own construction."""
    held = template.state_dict().keys()
    return [name for name, _ in template.named_buffers() if name not in held]


def stack_unstored(zoo: Zoo, model_ids: Sequence[Any], names: Sequence[str], allow: Sequence[str]) -> Tensors:
    """Buffers that no state dict holds, of these models: [n, *shape] each. Every model is built for it."""
    own = {model_id: dict(zoo.module(model_id, allow=allow).named_buffers()) for model_id in dict.fromkeys(model_ids)}
    return {name: torch.stack([own[model_id][name] for model_id in model_ids]) for name in names}


def _side(selection: Selection, dtype: str) -> Tensor:
    """[n, K] of another dtype, rows as in the selection."""
    states = selection.states()
    found = np.empty(0)
    with selection.zoo.shards as shards:
        for number, places in enumerate(states.by_shard()):
            part = shards.side(states.take(places), dtype)
            if not number:
                found = np.empty((len(states), part.shape[1]), part.dtype)
            found[places] = part
    return torch.from_numpy(found).view(getattr(torch, dtype))  # bfloat16 and float8 are stored as integers

"""How a model's tensors lie in one flat row: names, roles, shapes, offsets; a row and a state dict tell the same.

A layout is plain data (it stands in ``zoo.json`` and outlives the code of its architecture); its id is its digest.
Trainable float32 parameters come first, in the order of ``module.named_parameters()``, then float32 buffers (running
statistics); tensors of other dtypes lie in side rows, one per dtype. A tied tensor is stored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from zoogen.core.canonical import canonical_json, digest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

TensorRole = Literal["weight", "bias", "norm_scale", "norm_shift", "running_statistic", "buffer", "parameter"]


@dataclass(frozen=True)
class Entry:
    """One tensor of a model.

    Attributes:
        name: State-dict name, stable under hyperparameters.
        role: What it is to a learner of weights.
        module: Type of the module that owns it, e.g. ``Conv2d``.
        shape: Tensor shape.
        dtype: torch dtype name, e.g. ``float32``.
        offset: First position in its dtype's row.
        order: Rank of the owning module in execution (registration) order, from 0.
        trainable: A parameter that requires gradients.
    """

    name: str
    role: TensorRole
    module: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    order: int
    trainable: bool

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """All tensors of one model shape; ``aliases`` maps a tied tensor's further names to the stored one."""

    entries: tuple[Entry, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def layout_id(self) -> str:
        return digest(canonical_json(self.to_json()))

    @cached_property
    def parameters(self) -> int:
        """Length P of a float32 row: parameters and float32 buffers."""
        return self.row_size("float32")

    @cached_property
    def trainable(self) -> int:
        """Number of trainable float32 parameters; they fill the start of a row."""
        return sum(e.size for e in self.entries if e.trainable and e.dtype == "float32")

    @cached_property
    def side_dtypes(self) -> tuple[str, ...]:
        """Dtypes stored beside ``weights``, sorted."""
        return tuple(sorted({e.dtype for e in self.entries} - {"float32"}))

    def row_size(self, dtype: str) -> int:
        return sum(e.size for e in self.entries if e.dtype == dtype)

    def to_json(self) -> dict[str, Any]:
        return {"entries": [asdict(e) for e in self.entries], "aliases": dict(self.aliases)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        entries = tuple(Entry(**{**e, "shape": tuple(e["shape"])}) for e in data["entries"])
        return cls(entries, dict(data["aliases"]))

    def flatten(self, tensors: Mapping[str, Tensor], dtype: str = "float32") -> Tensor:
        """The row of one dtype from a state dict: [P], on the tensors' device, detached."""
        import torch

        parts = [tensors[e.name].detach().reshape(-1) for e in self.entries if e.dtype == dtype]
        return torch.cat(parts) if parts else torch.empty(0, dtype=getattr(torch, dtype))

    def unflatten(self, rows: Mapping[str, np.ndarray | Tensor]) -> dict[str, Tensor]:
        """A state dict from one row per dtype (``{"float32": [P], "int64": [K]}``); aliases share their tensor."""
        import torch

        state: dict[str, Tensor] = {}
        for e in self.entries:
            row = torch.as_tensor(rows[e.dtype])
            state[e.name] = row[e.offset : e.offset + e.size].reshape(e.shape).clone()
        for alias, name in self.aliases.items():
            state[alias] = state[name]
        return state


_NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")


def describe_module(module: nn.Module) -> Layout:
    """The layout of a module; works on the meta device, where no memory is taken."""
    orders = {name: i for i, name in enumerate(n for n, m in module.named_modules() if m._parameters or m._buffers)}
    stored: dict[int, str] = {}
    aliases: dict[str, str] = {}
    found: list[tuple[str, Tensor, bool]] = []
    persistent = set(module.state_dict(keep_vars=True))
    for is_parameter, named in (
        (True, module.named_parameters(remove_duplicate=False)),
        (False, module.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in named:
            if name not in persistent:
                continue
            if id(tensor) in stored:
                aliases[name] = stored[id(tensor)]
            else:
                stored[id(tensor)] = name
                found.append((name, tensor, is_parameter and tensor.requires_grad))
    # Trainable first, so that ``weights[:, :layout.trainable]`` is what an optimizer moves.
    found.sort(key=lambda item: not item[2])
    offsets: dict[str, int] = {}
    entries = []
    for name, tensor, trainable in found:
        owner, _, leaf = name.rpartition(".")
        kind = type(module.get_submodule(owner)).__name__
        dtype = str(tensor.dtype).removeprefix("torch.")
        is_parameter = leaf in module.get_submodule(owner)._parameters
        role = _role(leaf, kind, is_parameter)
        offset = offsets.get(dtype, 0)
        entries.append(Entry(name, role, kind, tuple(tensor.shape), dtype, offset, orders[owner], trainable))
        offsets[dtype] = offset + tensor.numel()
    return Layout(tuple(entries), aliases)


def _role(leaf: str, kind: str, is_parameter: bool) -> TensorRole:
    if not is_parameter:
        return "running_statistic" if leaf in ("running_mean", "running_var", "num_batches_tracked") else "buffer"
    if kind.startswith(_NORMS):
        return "norm_scale" if leaf == "weight" else "norm_shift"
    if "bias" in leaf:
        return "bias"
    return "weight" if "weight" in leaf else "parameter"

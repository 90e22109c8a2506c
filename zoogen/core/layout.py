"""How a model's tensors lie in one flat row: names, roles, shapes, offsets; a row and a state dict tell the same.

A layout is plain data (it stands in ``zoo.json`` and outlives the code of its architecture); its id is its digest.
Trainable float32 parameters come first, in the order of ``module.named_parameters()``, then frozen ones, then float32
buffers (running statistics); tensors of other dtypes lie in side rows, one per dtype. A tied tensor is stored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args

from zoogen.core.canonical import canonical_json, digest
from zoogen.core.errors import IntegrityError, UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

TensorRole = Literal["weight", "bias", "norm_scale", "norm_shift", "running_statistic", "buffer", "parameter"]


PRUNABLE = frozenset({"Linear", "NonDynamicallyQuantizableLinear", "Conv1d", "Conv2d", "Conv3d"})
"""Types of modules whose weights sparsification removes."""


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
        order: Rank of the owning module in registration order (execution order, where it was written so), from 0.
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

    @cached_property
    def prunable(self) -> tuple[Entry, ...]:
        """The tensors whose elements sparsification removes: trained weights of convolutions and linear layers.

        Biases, norms and embeddings are not among them. Their elements, in this order, are what a mask counts.
        """
        return tuple(e for e in self.entries if e.trainable and e.role == "weight" and e.module in PRUNABLE)

    @cached_property
    def prunable_places(self) -> np.ndarray:
        """Positions in a float32 row of all prunable elements, int64 [W]."""
        import numpy as np

        return np.concatenate([np.arange(0), *(np.arange(e.offset, e.offset + e.size) for e in self.prunable)])

    def row_size(self, dtype: str) -> int:
        return sum(e.size for e in self.entries if e.dtype == dtype)

    def to_json(self) -> dict[str, Any]:
        return {"entries": [{**asdict(e), "shape": list(e.shape)} for e in self.entries], "aliases": dict(self.aliases)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """The layout that ``to_json`` wrote.

        Raises:
            IntegrityError: this is no layout, or its rows have gaps, overlaps, repeated names or dangling aliases.
        """
        try:
            entries = tuple(Entry(**{**e, "shape": tuple(e["shape"])}) for e in data["entries"])
            layout = cls(entries, dict(data["aliases"]))
            _check_rows(layout)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(f"not a layout of tensors: {error}") from error
        return layout

    def flatten(self, tensors: Mapping[str, Tensor], dtype: str = "float32") -> Tensor:
        """The row of one dtype from a state dict: [P], on the tensors' device, detached.

        Raises:
            ValueError: a tensor is missing or has another shape than the layout says.
        """
        import torch

        parts = []
        for e in self.entries:
            if e.dtype == dtype:
                shape = tuple(tensors[e.name].shape) if e.name in tensors else "missing"
                if shape != e.shape:
                    raise ValueError(f"tensor {e.name!r} is {shape}, the layout says {e.shape}")
                parts.append(tensors[e.name].detach().reshape(-1))
        return torch.cat(parts) if parts else torch.empty(0, dtype=getattr(torch, dtype))

    def unflatten(self, rows: Mapping[str, np.ndarray | Tensor]) -> dict[str, Tensor]:
        """A state dict from one row per dtype (``{"float32": [P], "int64": [K]}``), copied; aliases share their tensor.

        Raises:
            ValueError: a row is missing or has another length than the layout says.
        """
        import torch

        for dtype in {e.dtype for e in self.entries}:
            shape = tuple(rows[dtype].shape) if dtype in rows else "missing"
            if shape != (self.row_size(dtype),):
                raise ValueError(f"the row of {dtype} is {shape}, the layout says ({self.row_size(dtype)},)")
        state: dict[str, Tensor] = {}
        for e in self.entries:
            part = rows[e.dtype][e.offset : e.offset + e.size].reshape(e.shape)
            # torch.tensor copies an array without the warning that as_tensor gives for a read-only one.
            state[e.name] = part.clone() if isinstance(part, torch.Tensor) else torch.tensor(part)
        for alias, name in self.aliases.items():
            state[alias] = state[name]
        return state


def describe_module(module: nn.Module) -> Layout:
    """The layout of a module; works on the meta device, where no memory is taken.

    Raises:
        UserError: the module's state dict holds something that is no parameter or buffer, which a row cannot keep.
    """
    tensors, aliases = _stored_tensors(module)
    owning = {name.rpartition(".")[0] for name in tensors}
    order = {owner: i for i, owner in enumerate(name for name, _ in module.named_modules() if name in owning)}
    offsets: dict[str, int] = {}
    entries = []
    # Trainable first, so that ``weights[:, :layout.trainable]`` is what an optimizer moves.
    for name in sorted(tensors, key=lambda name: not _is_trained(tensors[name])):
        tensor = tensors[name]
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        dtype = str(tensor.dtype).removeprefix("torch.")
        offset = offsets.get(dtype, 0)
        offsets[dtype] = offset + tensor.numel()
        entries.append(
            Entry(
                name=name,
                role=_role(leaf, owner, tensor),
                module=type(owner).__name__,
                shape=tuple(tensor.shape),
                dtype=dtype,
                offset=offset,
                order=order[owner_name],
                trainable=_is_trained(tensor),
            )
        )
    return Layout(tuple(entries), aliases)


def _stored_tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor of the state dict once, parameters first, and the further names of tied ones."""
    state = module.state_dict(keep_vars=True)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        if name not in state:  # a buffer that is computed anew on construction
            continue
        if id(tensor) in names:
            aliases[name] = names[id(tensor)]
        else:
            names[id(tensor)] = name
            tensors[name] = tensor
    if left := sorted(set(state) - set(tensors) - set(aliases)):
        raise UserError(
            f"{type(module).__name__}: {', '.join(left)} in its state dict is neither parameter nor buffer\n"
            "register it as a buffer, or leave it out of the state dict"
        )
    return tensors, aliases


def _is_trained(tensor: Tensor) -> bool:
    from torch import nn

    return isinstance(tensor, nn.Parameter) and tensor.requires_grad


def _role(leaf: str, owner: nn.Module, tensor: Tensor) -> TensorRole:
    from torch import nn

    # The base class of batch and instance norms of every dimension, which has no public name.
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    if leaf not in owner._parameters:
        return "running_statistic" if leaf in ("running_mean", "running_var", "num_batches_tracked") else "buffer"
    if isinstance(owner, norms) and leaf in ("weight", "bias"):
        return "norm_scale" if leaf == "weight" else "norm_shift"
    if "bias" in leaf:
        return "bias"
    # One-dimensional "weights" scale (PReLU, norms of one's own); they connect no units.
    return "weight" if "weight" in leaf and tensor.ndim >= 2 else "parameter"


def _check_rows(layout: Layout) -> None:
    ends: dict[str, int] = {}
    for e in layout.entries:
        if not all(type(n) is int and n >= 0 for n in (*e.shape, e.order)) or type(e.trainable) is not bool:
            raise ValueError(f"entry {e.name!r} has shape {e.shape}, order {e.order}, trainable {e.trainable}")
        if e.role not in get_args(TensorRole):
            raise ValueError(f"entry {e.name!r} has the unknown role {e.role!r}")
        if e.offset != ends.get(e.dtype, 0):
            raise ValueError(f"entry {e.name!r} starts at {e.offset}, the one before it ends at {ends.get(e.dtype, 0)}")
        ends[e.dtype] = e.offset + e.size
    names = {e.name for e in layout.entries}
    if len(names) < len(layout.entries):
        raise ValueError("a name occurs twice")
    if wrong := sorted(a for a, name in layout.aliases.items() if a in names or name not in names):
        raise ValueError(f"aliases without a tensor of their own: {', '.join(wrong)}")

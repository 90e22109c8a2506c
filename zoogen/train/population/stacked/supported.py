"""Which networks the stacked engine takes: made of torch's layers on this list, and of modules of anyone else's.

What a module of one's own does, ``vmap`` decides when the network is tried out; a layer of torch's must stand here,
because some would be batched wrongly or draw random numbers from torch's generator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoogen.train.population.engine import Unsupported

_LAYERS: frozenset[type[nn.Module]] = frozenset(
    {
        # Structure
        nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.Identity,
        nn.Flatten, nn.Unflatten, nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d,
        nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d,
        # Layers with parameters
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding, nn.PReLU,
        nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear,
        nn.TransformerEncoder, nn.TransformerEncoderLayer,
        # Norms
        nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
        # Pooling
        nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
        # Activations
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.GLU, nn.Tanh,
        nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign, nn.Softshrink,
        nn.Hardshrink, nn.Tanhshrink, nn.Threshold, nn.Softmax, nn.LogSoftmax,
        # Random numbers from counters
        nn.Dropout,
    }
)  # fmt: skip

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def check_layers(module: nn.Module) -> None:
    """Refuse what cannot be batched.

    Raises:
        Unsupported: naming the layer.
    """
    for name, layer in module.named_modules():
        if type(layer).__module__.startswith("torch.") and type(layer) not in _LAYERS:
            raise _refused(name, layer, "is not among the layers that are trained stacked")
        if any(getattr(layer, hooks) for hooks in _HOOKS):
            raise _refused(name, layer, "has hooks")
        if reason := _setting(layer):
            raise _refused(name, layer, reason)


def _setting(layer: Any) -> str | None:
    """What about a layer on the list is not supported."""
    if type(layer) is nn.MultiheadAttention and layer.dropout > 0:
        return "draws its dropout from torch's generator; set its dropout to 0"
    if type(layer) in (nn.MaxPool1d, nn.MaxPool2d) and layer.return_indices:
        return "returns indices"
    if type(layer) is nn.Embedding and (layer.max_norm is not None or layer.sparse or layer.scale_grad_by_freq):
        return "has max_norm, sparse or scale_grad_by_freq"
    return None


def _refused(name: str, layer: nn.Module, reason: str) -> Unsupported:
    return Unsupported(f"layer {name!r} ({type(layer).__name__}) {reason}")


def constants(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that belong to no row: buffers left out of the state dict, and plain attributes."""
    kept = set(module.state_dict(keep_vars=True))
    found = {name: b for name, b in module.named_buffers(remove_duplicate=False) if name not in kept}
    for name, layer in module.named_modules():
        found |= {f"{name}.{key}": value for key, value in vars(layer).items() if isinstance(value, Tensor)}
    return found


def check_constants(module: nn.Module, other: nn.Module) -> None:
    """Refuse a network that draws constants: they would have to differ between the models, but stand in no row.

    Args:
        other: The same network, initialised from another seed.

    Raises:
        Unsupported: naming the tensor.
    """
    others = constants(other)
    for name, tensor in constants(module).items():
        if name not in others or not torch.equal(tensor, others[name]):
            raise Unsupported(f"the tensor {name!r} differs between seeds and is not part of the state dict")

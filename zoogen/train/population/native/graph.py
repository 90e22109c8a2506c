"""A network as a list of operations on one sample, traced from its module; what cannot be traced is `Unsupported`.

Values are numbered; each has a shape without the batch dimension. Parameters are named by the layout.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from zoogen.train.dropout import CounterDropout
from zoogen.train.population.engine import Unsupported

PROBE = 3  # a batch size that no shape of a network is likely to have by accident


@dataclass(frozen=True)
class Operation:
    """One operation: ``out`` (a value) from ``inputs`` (values).

    Attributes:
        kind: ``conv``, ``linear``, ``max_pool``, ``avg_pool``, an activation, ``dropout``, ``batch_norm``, ``add``.
        settings: Integers and floats that the code of the operation depends on.
        tensors: Parameters and buffers by role (``weight``, ``bias``, ...), as state-dict names.
    """

    kind: str
    inputs: tuple[int, ...]
    out: int
    settings: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)


@dataclass
class Graph:
    """Operations in execution order; ``shapes`` of all values, the first of which is the input."""

    shapes: list[tuple[int, ...]]
    operations: list[Operation]
    output: int
    dropouts: int

    def size(self, value: int) -> int:
        """Elements of one sample."""
        return prod(self.shapes[value])


ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.GELU: "gelu",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    torch.relu: "relu",
    torch.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    nn.functional.relu: "relu",
    nn.functional.tanh: "tanh",
    nn.functional.sigmoid: "sigmoid",
    nn.functional.silu: "silu",
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}


KINDS = {"relu": 0, "tanh": 1, "sigmoid": 2, "gelu": 3, "leaky_relu": 4, "silu": 5}
"""Numbers of the activations in activations.h."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, CounterDropout) or super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module, input_shape: tuple[int, ...], names: dict[str, str]) -> Graph:
    """The graph of a network whose dropout layers are ``CounterDropout``.

    Args:
        module: The network; it is run once, in eval mode, on a batch of zeros.
        input_shape: Of one sample.
        names: Every state-dict name to the name under which the layout stores it (tied tensors).

    Raises:
        Unsupported: with the layer or function that is why.
    """
    try:
        traced = fx.GraphModule(module, _Tracer().trace(module))
    except Exception as error:  # whatever a user's forward does with a tracing proxy
        raise Unsupported(f"its forward cannot be traced: {_first_line(error)}") from error
    training = module.training
    try:
        return _Builder(module.eval(), traced, names).build(torch.zeros(PROBE, *input_shape))
    finally:
        module.train(training)


class _Builder:
    """Runs the traced nodes one by one and writes down what each did to a batch."""

    def __init__(self, module: nn.Module, traced: fx.GraphModule, names: dict[str, str]) -> None:
        self._modules = dict(module.named_modules(remove_duplicate=False))
        self._traced = traced
        self._names = names
        self._interpreter = fx.Interpreter(traced)
        self._values: dict[fx.Node, int] = {}
        self.graph = Graph([], [], -1, 0)
        self._dropped: dict[nn.Module, int] = {}
        layers = [m for m in module.modules() if isinstance(m, CounterDropout)]
        self._layer_numbers = {m: i for i, m in enumerate(layers)}
        self.graph.dropouts = len(layers)

    @torch.no_grad()
    def build(self, inputs: Tensor) -> Graph:
        env = self._interpreter.env
        for node in self._traced.graph.nodes:
            if node.op == "placeholder":
                if node.users and env:
                    raise Unsupported("its forward takes more than one input")
                env[node] = inputs
                self._values[node] = self._new_value(inputs)
                continue
            result = env[node] = self._run(node)
            if node.op == "output":
                (source,) = node.all_input_nodes
                self.graph.output = self._value(source, "output")
            elif isinstance(result, Tensor) and any(n in self._values for n in node.all_input_nodes):
                self._values[node] = self._operation(node, result)
        return self.graph

    def _run(self, node: fx.Node) -> Any:
        try:
            return self._interpreter.run_node(node)
        except Exception as error:
            raise Unsupported(f"its forward fails at {node.name!r}: {_first_line(error)}") from error

    def _new_value(self, tensor: Tensor) -> int:
        if tensor.ndim < 2 or tensor.shape[0] != PROBE:
            raise Unsupported(f"a value of shape {tuple(tensor.shape)} has no batch dimension in front")
        self.graph.shapes.append(tuple(tensor.shape[1:]))
        return len(self.graph.shapes) - 1

    def _value(self, node: Any, what: str) -> int:
        if node not in self._values:
            raise Unsupported(f"{what}: its operand {node} is not a batch of samples")
        return self._values[node]

    def _operation(self, node: fx.Node, result: Tensor) -> int:
        if node.op == "call_module":
            return self._layer(node, self._modules[str(node.target)], result)
        target = node.target
        if target in (operator.add, torch.add, "add", operator.iadd) and not node.kwargs:
            left, right = (self._value(n, node.name) for n in node.args[:2])
            if self.graph.shapes[left] != self.graph.shapes[right]:
                raise Unsupported(f"function {node.name!r} adds values of different shapes")
            return self._emit("add", (left, right), result)
        if target in ACTIVATIONS and len(node.args) == 1 and set(node.kwargs) <= {"inplace"}:
            return self._emit(ACTIVATIONS[target], (self._value(node.args[0], node.name),), result)
        if target in (torch.flatten, "flatten", "view", "reshape", torch.reshape):
            return self._reshaped(node, result)
        if target in (torch.mean, "mean"):
            return self._mean(node, result)
        raise Unsupported(f"function {_name(target)!r} has no generated code")

    def _reshaped(self, node: fx.Node, result: Tensor) -> int:
        """Another shape for the same elements: no operation, but a value of its own."""
        source = self._value(node.args[0], node.name)
        value = self._new_value(result)
        if self.graph.size(value) != self.graph.size(source):
            raise Unsupported(f"function {node.name!r} mixes samples")
        self.graph.operations.append(Operation("reshape", (source,), value))
        return value

    def _mean(self, node: fx.Node, result: Tensor) -> int:
        """The mean over all pixels: one pooling window."""
        source = self._value(node.args[0], node.name)
        shape = self.graph.shapes[source]
        dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
        pixels = {d % (len(shape) + 1) for d in ((dims,) if isinstance(dims, int) else dims)}
        if len(shape) not in (2, 3) or pixels != set(range(2, len(shape) + 1)) or "dtype" in node.kwargs:
            raise Unsupported(f"function {node.name!r} is not a mean over all pixels")
        window = shape[1:] if len(shape) == 3 else (1, *shape[1:])
        settings = {"kernel": window, "stride": window, "padding": (0, 0)}
        return self._emit("avg_pool", (source,), result, settings=settings)

    def _emit(self, kind: str, inputs: tuple[int, ...], result: Tensor, **rest: Any) -> int:
        value = self._new_value(result)
        self.graph.operations.append(Operation(kind, inputs, value, **rest))
        return value

    def _layer(self, node: fx.Node, layer: nn.Module, result: Tensor) -> int:
        name = str(node.target)
        source = self._value(node.args[0], name)
        told = f"layer {name!r} ({type(layer).__name__})"
        if type(layer) is nn.Flatten:
            return self._reshaped(node, result)
        if type(layer) is nn.Identity:
            return source
        if type(layer) in ACTIVATIONS:
            return self._emit(ACTIVATIONS[type(layer)], (source,), result, settings=_activation(layer, told))
        maker = _LAYERS.get(type(layer))
        if maker is None:
            raise Unsupported(f"{told} has no generated code")
        if isinstance(layer, CounterDropout):
            if layer in self._dropped:
                raise Unsupported(f"{told} is used twice")
            self._dropped[layer] = self._layer_numbers[layer]
            return self._emit("dropout", (source,), result, settings={"layer": self._layer_numbers[layer]})
        kind, settings = maker(layer, told, self.graph.shapes[source])
        tensors = {
            role: self._names[f"{name}.{role}"]
            for role in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            if getattr(layer, role, None) is not None
        }
        return self._emit(kind, (source,), result, settings=settings, tensors=tensors)


def _activation(layer: nn.Module, told: str) -> dict[str, Any]:
    if isinstance(layer, nn.GELU) and layer.approximate != "none":
        raise Unsupported(f"{told} with the tanh approximation has no generated code")
    return {"slope": float(layer.negative_slope)} if isinstance(layer, nn.LeakyReLU) else {}


def _two(value: Any) -> tuple[int, int]:
    """A layer's setting for height and width; one-dimensional layers have height 1."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _plane(value: Any, ndim: int, neutral: int) -> tuple[int, int]:
    if ndim == 2:
        return _two(value)
    return (neutral, int(value if isinstance(value, int) else value[0]))


def _conv(layer: Any, told: str, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    ndim = 2 if isinstance(layer, nn.Conv2d) else 1
    if layer.padding_mode != "zeros" and any(layer._reversed_padding_repeated_twice):
        raise Unsupported(f"{told} with padding_mode {layer.padding_mode!r} has no generated code")
    padding = layer.padding
    if isinstance(padding, str):
        twice = layer._reversed_padding_repeated_twice  # last dimension first: left, right, top, bottom
        if any(a != b for a, b in zip(twice[::2], twice[1::2], strict=True)):
            raise Unsupported(f"{told} pads one side more than the other")
        padding = tuple(reversed(twice[::2]))
    return "conv", {
        "kernel": _plane(layer.kernel_size, ndim, 1),
        "stride": _plane(layer.stride, ndim, 1),
        "padding": _plane(padding, ndim, 0),
        "dilation": _plane(layer.dilation, ndim, 1),
        "groups": layer.groups,
    }


def _linear(layer: nn.Linear, told: str, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    return "linear", {"inputs": layer.in_features, "outputs": layer.out_features}


def _pool(layer: Any, told: str, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    ndim = 2 if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)) else 1
    is_max = isinstance(layer, (nn.MaxPool1d, nn.MaxPool2d))
    if layer.ceil_mode:
        raise Unsupported(f"{told} with ceil_mode has no generated code")
    settings = {
        "kernel": _plane(layer.kernel_size, ndim, 1),
        "stride": _plane(layer.stride if layer.stride is not None else layer.kernel_size, ndim, 1),
        "padding": _plane(layer.padding, ndim, 0),
    }
    if is_max:
        if layer.return_indices or _plane(layer.dilation, ndim, 1) != (1, 1):
            raise Unsupported(f"{told} with dilation or return_indices has no generated code")
        return "max_pool", settings
    if getattr(layer, "divisor_override", None) is not None or (
        not layer.count_include_pad and settings["padding"] != (0, 0)
    ):
        raise Unsupported(f"{told} with another divisor than its window has no generated code")
    return "avg_pool", settings


def _adaptive(layer: Any, told: str, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    ndim = 2 if isinstance(layer, nn.AdaptiveAvgPool2d) else 1
    sides = shape[1:] if ndim == 2 else (1, *shape[1:])
    out = _plane(layer.output_size, ndim, 1)
    if any(side % o for side, o in zip(sides, out, strict=True)):
        raise Unsupported(f"{told}: {sides} is no multiple of {out}")
    kernel = tuple(side // o for side, o in zip(sides, out, strict=True))
    return "avg_pool", {"kernel": kernel, "stride": kernel, "padding": (0, 0)}


def _batch_norm(layer: Any, told: str, shape: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    if not layer.track_running_stats or layer.momentum is None:
        raise Unsupported(f"{told} without running statistics, or with their plain average, has no generated code")
    return "batch_norm", {"eps": float(layer.eps), "momentum": float(layer.momentum)}


_LAYERS: dict[type[nn.Module], Callable[..., tuple[str, dict[str, Any]]]] = {
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.MaxPool1d: _pool,
    nn.MaxPool2d: _pool,
    nn.AvgPool1d: _pool,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool1d: _adaptive,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    CounterDropout: lambda *_: ("dropout", {}),
}


def _name(target: Any) -> str:
    return getattr(target, "__name__", str(target))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

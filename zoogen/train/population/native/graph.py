"""A network as a list of operations on one sample, traced from its module; what cannot be traced is `Unsupported`.

Values are numbered; each has a shape without the batch dimension. Parameters are named by the layout.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from zoogen.train.dropout import CounterDropout
from zoogen.train.population.engine import Unsupported
from zoogen.train.population.native.readers import LAYERS, activation
from zoogen.train.sparsify.variational import Variational, variational_layers

PROBE = 3  # a batch size that no shape of a network is likely to have by accident


@dataclass(frozen=True)
class Noise:
    """That a layer's weights have noise: see ``zoogen.train.sparsify.variational``.

    Attributes:
        number: Of the layer among all such layers, in module order.
        bound: Of |log alpha|.
        threshold: Log alpha from which a weight is 0 in evaluation.
    """

    number: int
    bound: float
    threshold: float


@dataclass(frozen=True)
class Operation:
    """One operation: ``out`` (a value) from ``inputs`` (values).

    Attributes:
        kind: ``conv``, ``linear``, ``max_pool``, ``avg_pool``, an activation, ``dropout``, ``batch_norm``, ``add``.
        settings: Integers and floats that the code of the operation depends on.
        tensors: Parameters and buffers by role (``weight``, ``bias``, ...), as state-dict names.
        noise: Of a ``conv`` or ``linear`` whose weights have noise.
    """

    kind: str
    inputs: tuple[int, ...]
    out: int
    settings: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    noise: Noise | None = None


@dataclass
class Graph:
    """Operations in execution order; ``shapes`` of all values, the first of which is the input."""

    shapes: list[tuple[int, ...]]
    operations: list[Operation]
    output: int
    dropouts: int

    @property
    def noisy(self) -> list[int]:
        """Operations whose weights have noise."""
        return [number for number, o in enumerate(self.operations) if o.noise]

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


MOST_BOUND = 80.0
"""Beyond, alpha may leave the range of float32, where generated code rounds otherwise than torch."""

_ROLES = (
    "weight", "bias", "log_sigma2", "log_sigma2_bias", "running_mean", "running_var", "num_batches_tracked",
)  # fmt: skip


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, CounterDropout | Variational) or super().is_leaf_module(m, module_qualified_name)


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
        self._drawing: set[nn.Module] = set()
        layers = [m for m in module.modules() if isinstance(m, CounterDropout)]
        self._layer_numbers = {m: i for i, m in enumerate(layers)}
        self.graph.dropouts = len(layers)
        self._noisy = {m: i for i, m in enumerate(variational_layers(module))}

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
            return self._emit(ACTIVATIONS[type(layer)], (source,), result, settings=activation(layer, told))
        maker = LAYERS.get(type(layer))
        if maker is None:
            raise Unsupported(f"{told} has no generated code")
        if isinstance(layer, CounterDropout | Variational):
            if layer in self._drawing:
                raise Unsupported(f"{told} is used twice")
            self._drawing.add(layer)
        if isinstance(layer, CounterDropout):
            return self._emit("dropout", (source,), result, settings={"layer": self._layer_numbers[layer]})
        kind, settings = maker(layer, told, self.graph.shapes[source])
        tensors = {role: self._names[f"{name}.{role}"] for role in _ROLES if getattr(layer, role, None) is not None}
        return self._emit(kind, (source,), result, settings=settings, tensors=tensors, noise=self._noise(layer, told))

    def _noise(self, layer: nn.Module, told: str) -> Noise | None:
        if not isinstance(layer, Variational):
            return None
        if layer.bound > MOST_BOUND:
            raise Unsupported(f"{told}: alpha as large as e**{layer.bound} has no generated code")
        return Noise(self._noisy[layer], layer.bound, layer.threshold)


def _name(target: Any) -> str:
    return getattr(target, "__name__", str(target))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

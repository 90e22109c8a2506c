"""Calls of the C functions of convolutions and linear layers, with and without noise on their weights.

Of a noisy layer means pass as without noise; variances pass through the same functions, as products of the squared
inputs with the weights' variances. Names of ``source``, ``to``, ``dout`` and ``din`` are C pointers.
"""

from __future__ import annotations

from zoogen.train.population.native import convolution, layers
from zoogen.train.population.native.convolution import Convolution
from zoogen.train.population.native.graph import Graph, Operation
from zoogen.train.population.native.memory import Memory
from zoogen.train.population.native.noisy import NoisyWeights

PRODUCTS = frozenset({"conv", "linear"})
"""Kinds of operations whose code is here."""


class Products:
    """Writes calls, and the functions that they call.

    Args:
        graph: The network.
        offsets: Where each tensor starts in a row, by name.
        memory: Where values lie.
        noisy: Where weights with noise lie.
        chunk: Samples that pass through together.
        registers: Vector registers of the machine.

    Attributes:
        functions: C text of the functions called so far.
    """

    def __init__(
        self, graph: Graph, offsets: dict[str, int], memory: Memory, noisy: NoisyWeights, chunk: int, registers: int
    ) -> None:
        self._graph = graph
        self._offsets = offsets
        self._memory = memory
        self._noisy = noisy
        self._chunk = chunk
        self._registers = registers
        self._input_gradients: set[str] = set()
        self.functions: list[str] = []

    def define(self, number: int, o: Operation) -> None:
        """Write the functions of one operation; the input gradient of a convolution comes where it is called."""
        name = f"op{number}"
        if o.kind == "conv":
            c = self._convolution(o)
            self.functions += [convolution.forward(f"{name}_f", c), convolution.weight_gradient(f"{name}_w", c)]
            return
        sizes = o.settings["inputs"], o.settings["outputs"]
        self.functions.append(layers.linear(name, *sizes, "bias" in o.tensors, self._registers))
        if o.noise and _on_squares(number, o) != name:
            self.functions.append(layers.linear(_on_squares(number, o), *sizes, False, self._registers))

    # In each pass

    def train(self, number: int, o: Operation, source: str, to: str) -> list[str]:
        """Forward in training; of a noisy layer the factors of the variances' gradients are kept."""
        means = self._product(o, f"op{number}", source, self._weight(o, "weight"), self._weight(o, "bias"), to)
        if o.noise is None:
            return [means]
        n_in, n_out = self._sizes(o)
        squares, kept = f"s + {self._memory.squares}", f"s + {self._memory.kept(number, n_out * self._chunk)}"
        variances = self._noisy.place(number, "weight"), self._noisy.place(number, "bias")
        key = f"a->noise_keys + ({o.noise.number} * a->key_steps + step) * LANES"
        return [
            means,
            f"square({source}, {squares}, nb * {n_in});",
            self._product(o, _on_squares(number, o), squares, *variances, kept),
            f"add_noise({to}, {kept}, at * {n_out}, nb * {n_out}, {key});",
        ]

    def evaluate(self, number: int, o: Operation, source: str, to: str) -> list[str]:
        """Forward in evaluation; of a noisy layer with the weights that are left."""
        weight, bias = (self._noisy.place(number, role, self._weight(o, role)) for role in ("weight", "bias"))
        return [self._product(o, f"op{number}", source, weight, bias, to)]

    def weights_back(self, number: int, o: Operation, source: str, dout: str) -> list[str]:
        """Gradients of weights and biases; those of their variances gather where log sigma2 has its own."""
        own = self._product_back(o, f"op{number}", source, dout, self._slope(o, "weight"), self._slope(o, "bias"))
        if o.noise is None:
            return [own]
        n_in, n_out = self._sizes(o)
        squares, kept = f"s + {self._memory.squares}", f"s + {self._memory.kept(number, 0)}"
        slopes = self._slope(o, "log_sigma2"), self._slope(o, "log_sigma2_bias")
        return [
            own,
            f"multiply({kept}, {dout}, nb * {n_out});",
            f"square({source}, {squares}, nb * {n_in});",
            self._product_back(o, _on_squares(number, o), squares, kept, *slopes),
        ]

    def inputs_back(self, number: int, o: Operation, source: str, dout: str, din: str, add: bool) -> list[str]:
        """Gradient of the inputs, after ``weights_back``: added to ``din`` or written there."""
        own = self._source_back(o, f"op{number}", dout, self._weight(o, "weight"), din, add)
        if o.noise is None:
            return [own]
        n_in, _ = self._sizes(o)
        squares, kept = f"s + {self._memory.squares}", f"s + {self._memory.kept(number, 0)}"
        variances = self._noisy.place(number, "weight")
        return [
            own,
            self._source_back(o, _on_squares(number, o), kept, variances, squares, add=False),
            f"add_square_back({source}, {squares}, {din}, nb * {n_in});",
        ]

    # Single calls

    def _product(self, o: Operation, name: str, source: str, weight: str, bias: str, to: str) -> str:
        n_in, n_out = self._sizes(o)
        if o.kind == "conv":
            call = f"{name}_f({source} + b * {n_in}, {weight}, {bias}, {to} + b * {n_out});"
            return f"for (int64_t b = 0; b < nb; b++) {call}"
        return f"{name}_f({source}, {weight}, {to}, nb * {n_in // o.settings['inputs']}, {bias});"

    def _product_back(self, o: Operation, name: str, source: str, dout: str, dweight: str, dbias: str) -> str:
        n_in, n_out = self._sizes(o)
        if o.kind == "conv":
            call = f"{name}_w({source} + b * {n_in}, {dout} + b * {n_out}, {dweight}, {dbias});"
            return f"for (int64_t b = 0; b < nb; b++) {call}"
        return f"{name}_w({source}, {dout}, {dweight}, {dbias}, nb * {n_in // o.settings['inputs']});"

    def _source_back(self, o: Operation, name: str, dout: str, weight: str, din: str, add: bool) -> str:
        """A convolution has one function that adds, and one that writes."""
        n_in, n_out = self._sizes(o)
        if o.kind == "conv":
            own = f"{name}_{'a' if add else 'x'}"
            if own not in self._input_gradients:
                self._input_gradients.add(own)
                self.functions.append(convolution.input_gradient(own, self._convolution(o), add))
            return f"for (int64_t b = 0; b < nb; b++) {own}({dout} + b * {n_out}, {weight}, {din} + b * {n_in});"
        return f"{name}_x({dout}, {weight}, {din}, nb * {n_in // o.settings['inputs']}, {int(add)});"

    def _sizes(self, o: Operation) -> tuple[int, int]:
        return self._graph.size(o.inputs[0]), self._graph.size(o.out)

    def _weight(self, o: Operation, role: str) -> str:
        return f"w + {self._offsets[o.tensors[role]]}" if role in o.tensors else "0"

    def _slope(self, o: Operation, role: str) -> str:
        return f"g + {self._offsets[o.tensors[role]]}" if role in o.tensors else "0"

    def _convolution(self, o: Operation) -> Convolution:
        channels, size = image(self._graph.shapes[o.inputs[0]])
        out_channels, out_size = image(self._graph.shapes[o.out])
        return Convolution(
            channels,
            size,
            out_channels,
            out_size,
            bias="bias" in o.tensors,
            registers=self._registers,
            **o.settings,
        )


def _on_squares(number: int, o: Operation) -> str:
    """The functions that variances pass through: the layer's own, unless it has a bias without noise."""
    return f"op{number}v" if "bias" in o.tensors and "log_sigma2_bias" not in o.tensors else f"op{number}"


def image(shape: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    """Channels, and height and width; sequences have height 1, single numbers also width 1."""
    channels, *sides = shape
    height, width = [1] * (2 - len(sides)) + sides
    return channels, (height, width)

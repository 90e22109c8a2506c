"""The whole C program of a graph: forward, loss, backward and update of LANES models, for as many steps as asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from zoogen.core.layout import Layout
from zoogen.train.population.native import layers
from zoogen.train.population.native.graph import ACTIVATIONS, Graph, Operation
from zoogen.train.population.native.memory import Memory
from zoogen.train.population.native.noisy import NoisyWeights
from zoogen.train.population.native.products import PRODUCTS, Products, image

CACHE_VECTORS = 1 << 13
"""Scratch vectors of one chunk of samples: with 8 float32 lanes 256 KiB, which stay in a core's second-level cache
beside weights and gradients. The same on every machine, since sums over a batch are cut where chunks end."""


@dataclass(frozen=True)
class Settings:
    """What a program is generated for, beside its graph.

    Attributes:
        batch_size: Samples per optimizer step.
        micro_batch: Samples whose statistics a batch norm sees.
        dropout: Some model drops something.
        registers: Vector registers of the machine.
    """

    batch_size: int
    micro_batch: int
    dropout: bool
    registers: int


@dataclass(frozen=True)
class Source:
    """Generated C and what its caller has to provide.

    Attributes:
        text: The program, without the prelude.
        scratch: Vectors of scratch memory.
    """

    text: str
    scratch: int


def prelude() -> str:
    """The C that every program starts with."""
    return _c_code("prelude.h", "activations.h", "updates.h")


def variational_code() -> str:
    """The C that programs with noisy weights have besides, after the numbers it needs are defined."""
    return _c_code("variational.h")


def _c_code(*names: str) -> str:
    return "".join((Path(__file__).parent / name).read_text() for name in names)


def generate(graph: Graph, layout: Layout, settings: Settings) -> Source:
    """The program of a graph; weights lie as in the layout's rows, one vector per element."""
    if any(o.kind == "batch_norm" for o in graph.operations):
        return _Writer(graph, layout, settings, settings.micro_batch).write()
    # As if some model dropped something, so that a model's sums do not depend on whether its neighbours do.
    one = _Writer(graph, layout, replace(settings, dropout=True), chunk=1)
    one.write()
    chunk = min(settings.batch_size, max(1, CACHE_VECTORS // one.activations))
    return _Writer(graph, layout, settings, chunk).write()


class _Writer:
    def __init__(self, graph: Graph, layout: Layout, settings: Settings, chunk: int) -> None:
        self._graph = graph
        self._settings = settings
        self._offsets = {e.name: e.offset for e in layout.entries if e.dtype == "float32"}
        self._layout = layout
        self._functions: list[str] = []
        self._chunk = chunk
        self._skipped = {"reshape"} if settings.dropout else {"reshape", "dropout"}
        self._memory = Memory(graph, chunk, self._skipped)
        self._learns = self._values_that_learn()
        self._noisy = NoisyWeights(graph, layout)
        self._products = Products(graph, self._offsets, self._memory, self._noisy, chunk, settings.registers)

    @property
    def activations(self) -> int:
        """Vectors of scratch memory for what a chunk of samples leaves on its way."""
        return self._memory.vectors

    def _values_that_learn(self) -> set[int]:
        """Values that depend on a trainable parameter: those whose gradients are wanted."""
        found: set[int] = set()
        for o in self._graph.operations:
            if o.tensors or found & set(o.inputs):
                found.add(o.out)
        return found

    def write(self) -> Source:
        graph = self._graph
        forward_train = self._forward(training=True)
        forward_evaluate = self._forward(training=False)
        backward = self._backward()
        shape = graph.shapes[0]
        constants: dict[str, int | str] = {
            "BATCH": self._settings.batch_size,
            "CHUNK": self._chunk,
            "P": self._layout.parameters,
            "TRAINABLE": self._layout.trainable,
            "FEATURES": prod(shape),
            "PIXELS": prod(shape[1:]) if len(shape) > 1 else prod(shape),
            "CLASSES": graph.size(graph.output),
            "INPUT": self._memory.value(0),
            "OUTPUT": self._memory.value(graph.output),
            "OUTPUT_GRADIENT": self._memory.gradient(graph.output),
        }
        functions = [*self._functions, *self._products.functions]
        parts = [_c_code("loss.h"), *functions, forward_train, forward_evaluate, backward]
        if graph.noisy:
            constants |= {"NOISY": self._memory.vectors, **self._noisy.constants}
            parts = [variational_code(), self._noisy.functions(), *parts]
        defined = [f"#define {name} {value}" for name, value in constants.items()]
        text = "\n".join([*defined, *parts, _c_code("entry.h")])
        return Source(text, self._memory.vectors + self._noisy.vectors)

    def _weight(self, o: Operation, role: str) -> str:
        return f"w + {self._offsets[o.tensors[role]]}" if role in o.tensors else "0"

    def _slope(self, o: Operation, role: str) -> str:
        return f"g + {self._offsets[o.tensors[role]]}" if role in o.tensors else "0"

    # The three passes

    def _forward(self, training: bool) -> str:
        name = "forward_train" if training else "forward_evaluate"
        lines = [f"static void {name}(const Args *a, V *s, int64_t nb, int64_t at, int64_t step) {{"]
        lines += ["V *w = (V *)a->weights;", "(void)w; (void)at; (void)step;"]
        for number, o in enumerate(self._graph.operations):
            if o.kind not in self._skipped:
                lines.append(self._forward_call(number, o, training))
        return "\n".join([*lines, "}"])

    def _forward_call(self, number: int, o: Operation, training: bool) -> str:
        graph, name = self._graph, f"op{number}"
        source, to = f"s + {self._memory.value(o.inputs[0])}", f"s + {self._memory.value(o.out)}"
        n_in, n_out = graph.size(o.inputs[0]), graph.size(o.out)
        weight, bias = self._weight(o, "weight"), self._weight(o, "bias")
        if training:
            self._define(number, o)
        if o.kind in PRODUCTS:
            run = self._products.train if training else self._products.evaluate
            return "\n".join(run(number, o, source, to))
        if o.kind in ("max_pool", "avg_pool"):
            return f"{name}_f({source}, {to}, nb);"
        if o.kind == "add":
            other = f"(s + {self._memory.value(o.inputs[1])})"
            return f"for (int64_t i = 0; i < nb * {n_out}; i++) ({to})[i] = ({source})[i] + {other}[i];"
        if o.kind == "batch_norm":
            saved = self._memory.kept(number, 2 * graph.shapes[o.inputs[0]][0])
            running = f"{self._weight(o, 'running_mean')}, {self._weight(o, 'running_var')}"
            return f"{name}_f({source}, {to}, nb, {weight}, {bias}, {running}, s + {saved}, {int(training)});"
        if o.kind == "dropout":
            if not training:
                return f"memcpy({to}, {source}, nb * {n_in} * sizeof(V));"
            mask = self._memory.kept(number, n_in * self._chunk)
            layer = o.settings["layer"]
            key = f"a->dropout_keys + ({layer} * a->key_steps + step) * LANES"
            rate = f"a->dropout_thresholds + {layer} * LANES, a->dropout_scales + {layer} * LANES"
            return (
                f"mask_fill(s + {mask}, at * {n_in}, nb * {n_in}, {key}, {rate});\n"
                f"for (int64_t i = 0; i < nb * {n_in}; i++) ({to})[i] = ({source})[i] * (s + {mask})[i];"
            )
        assert o.kind in ACTIVATIONS.values(), o.kind
        return f"activate(a->activations[{number}], a->slopes[{number}], {source}, {to}, nb * {n_in});"

    def _backward(self) -> str:
        lines = ["static void backward(const Args *a, V *s, int64_t nb) {"]
        lines += ["V *w = (V *)a->weights, *g = (V *)a->gradients;", "(void)w; (void)g;"]
        written = {self._memory.root(self._graph.output)}
        for number, o in reversed(list(enumerate(self._graph.operations))):
            if o.kind not in self._skipped and self._memory.root(o.out) in written and o.out in self._learns:
                lines += self._backward_call(number, o, written)
        return "\n".join([*lines, "}"])

    def _backward_call(self, number: int, o: Operation, written: set[int]) -> list[str]:
        graph, name = self._graph, f"op{number}"
        n_in, n_out = graph.size(o.inputs[0]), graph.size(o.out)
        source, to = f"s + {self._memory.value(o.inputs[0])}", f"s + {self._memory.value(o.out)}"
        dout = f"s + {self._memory.gradient(o.out)}"
        weight, dweight, dbias = self._weight(o, "weight"), self._slope(o, "weight"), self._slope(o, "bias")
        lines: list[str] = []
        if o.kind in PRODUCTS:
            lines += self._products.weights_back(number, o, source, dout)
        for value in o.inputs:
            wanted = self._wants_gradient(value)
            if not wanted and o.kind != "batch_norm":
                continue
            din = f"s + {self._memory.gradient(value)}"
            root = self._memory.root(value)
            add = int(root in written)
            written.add(root)
            if o.kind in PRODUCTS:
                lines += self._products.inputs_back(number, o, source, dout, din, bool(add))
            elif o.kind in ("max_pool", "avg_pool"):
                if not add and not self._memory.writes_once(o):
                    lines.append(f"memset({din}, 0, nb * {n_in} * sizeof(V));")
                lines.append(f"{name}_b({source}, {to}, {dout}, {din}, nb);")
            elif o.kind == "add":
                sign = "+=" if add else "="
                lines.append(f"for (int64_t i = 0; i < nb * {n_out}; i++) ({din})[i] {sign} ({dout})[i];")
            elif o.kind == "batch_norm":
                saved = f"s + {self._memory.kept(number, 0)}"
                lines.append(f"{name}_b({source}, {dout}, {din}, nb, {weight}, {saved}, {dweight}, {dbias}, {add});")
            elif o.kind == "dropout":
                sign, mask = "+=" if add else "=", f"(s + {self._memory.kept(number, 0)})"
                lines.append(f"for (int64_t i = 0; i < nb * {n_in}; i++) ({din})[i] {sign} ({dout})[i] * {mask}[i];")
            else:
                kind = f"a->activations[{number}], a->slopes[{number}]"
                lines.append(f"activate_back({kind}, {source}, {to}, {dout}, {din}, nb * {n_in}, {add});")
        return lines

    def _wants_gradient(self, value: int) -> bool:
        return self._memory.root(value) in {self._memory.root(v) for v in self._learns}

    # Functions of single operations

    def _define(self, number: int, o: Operation) -> None:
        """Write the functions of one operation (those of products are kept there)."""
        name, graph = f"op{number}", self._graph
        if o.kind in PRODUCTS:
            self._products.define(number, o)
        elif o.kind in ("max_pool", "avg_pool"):
            channels, size = image(graph.shapes[o.inputs[0]])
            _, out_size = image(graph.shapes[o.out])
            writes = self._memory.writes_once(o)
            self._functions.append(layers.pool(name, o.kind, channels, size, out_size, writes=writes, **o.settings))
        elif o.kind == "batch_norm":
            channels, *sides = graph.shapes[o.inputs[0]]
            affine = "weight" in o.tensors
            self._functions.append(layers.batch_norm(name, channels, prod(sides), affine=affine, **o.settings))

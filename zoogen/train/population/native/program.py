"""The whole C program of a graph: forward, loss, backward and update of LANES models, for as many steps as asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from zoogen.core.layout import Layout
from zoogen.train.population.native import convolution, layers
from zoogen.train.population.native.convolution import Convolution
from zoogen.train.population.native.graph import ACTIVATIONS, Graph, Operation
from zoogen.train.population.native.memory import Memory

CACHE_VECTORS = 1 << 13
"""Scratch vectors of one chunk of samples: with 8 float32 lanes 256 KiB, which stay in a core's second-level cache
beside weights and gradients. The same on every machine, since sums over a batch are cut where chunks end."""

_ENTRY_POINTS = """
void zoogen_train(const Args *a) {
    FLUSH_BEGIN;
    V *s = (V *)a->scratch;
    int64_t step = 0;
    for (int64_t done = 0; done < a->samples; done += BATCH, step++) {
        const int64_t n = a->samples - done < BATCH ? a->samples - done : BATCH;
        const int last = done + n == a->samples;
        memset(a->gradients, 0, P * sizeof(V));
        for (int64_t at = 0; at < n; at += CHUNK) {
            const int64_t nb = n - at < CHUNK ? n - at : CHUNK;
            gather(a, (real *)(s + INPUT), a->first + done + at, nb, FEATURES, PIXELS);
            forward_train(a, s, nb, at, step);
            loss(a, s + OUTPUT, s + OUTPUT_GRADIENT, a->first + done + at, nb, n);
            backward(a, s, nb);
        }
        if (a->masks)
            for (int64_t i = 0; i < TRAINABLE; i++) ((V *)a->gradients)[i] *= ((const V *)a->masks)[i];
        if (last || a->clip) norms(a, last);
        update(a, TRAINABLE, step);
    }
    FLUSH_END;
}

void zoogen_evaluate(const Args *a) {
    FLUSH_BEGIN;
    V *s = (V *)a->scratch;
    for (int64_t at = 0; at < a->samples; at += CHUNK) {
        const int64_t nb = a->samples - at < CHUNK ? a->samples - at : CHUNK;
        gather(a, (real *)(s + INPUT), a->first + at, nb, FEATURES, PIXELS);
        forward_evaluate(a, s, nb, 0, 0);
        memcpy(a->outputs + at * CLASSES * LANES, s + OUTPUT, nb * CLASSES * sizeof(V));
    }
    FLUSH_END;
}
"""

_LOSS = """
// Cross-entropy with label smoothing; the gradient of its mean over the `batch` samples of the step.
static void loss(const Args *a, const V *outputs, V *gradients, int64_t from, int64_t nb, int64_t batch) {
    const V smooth = lanes_of(a->smoothing);
    for (int64_t b = 0; b < nb; b++) {
        const V *z = outputs + b * CLASSES;
        V *d = gradients + b * CLASSES;
        M target, best_class = (M){0};
        for (int l = 0; l < LANES; l++)
            target[l] = (word)a->targets[l][a->order ? a->order[l * a->n_order + from + b] : from + b];
        V best = z[0], sum = splat(0), own = splat(0), all = splat(0);
        for (int c = 1; c < CLASSES; c++) {
            const M better = z[c] > best;
            best = sel(better, z[c], best);
            best_class = (better & ((M){0} + c)) | (~better & best_class);
        }
        for (int c = 0; c < CLASSES; c++) {
            const V e = vexp(z[c] - best);
            d[c] = e;
            sum += e;
            all += z[c] - best;
            own = sel(target == c, z[c] - best, own);
        }
        const V log_sum = vlog(sum), scale = 1 / sum;
        const V loss = (log_sum - own) * (1 - smooth) + (log_sum - all / CLASSES) * smooth;
        for (int l = 0; l < LANES; l++) {
            a->loss_sums[l] += loss[l];
            a->hits[l] += best_class[l] == target[l];
        }
        for (int c = 0; c < CLASSES; c++) {
            const V aim = sel(target == c, 1 - smooth, splat(0)) + smooth / CLASSES;
            d[c] = (d[c] * scale - aim) / (real)batch;
        }
    }
}

// L2 norms of all trainable gradients; where they exceed the bound, gradients are scaled down to it.
static void norms(const Args *a, int last) {
    const V *g = (const V *)a->gradients;
    double sums[LANES] = {0};
    for (int64_t i = 0; i < TRAINABLE; i++)
        for (int l = 0; l < LANES; l++) sums[l] += (double)g[i][l] * g[i][l];
    V factor;
    for (int l = 0; l < LANES; l++) {
        const double norm = sqrt(sums[l]);
        if (last) a->gradient_norms[l] = norm;
        const double share = a->clip ? a->clip[l] / (norm + 1e-6) : 1;
        factor[l] = (real)(share < 1 ? share : 1);
    }
    if (a->clip)
        for (int64_t i = 0; i < TRAINABLE; i++) ((V *)a->gradients)[i] *= factor;
}
"""


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
    return "".join((Path(__file__).parent / name).read_text() for name in ("prelude.h", "activations.h", "updates.h"))


def generate(graph: Graph, layout: Layout, settings: Settings) -> Source:
    """The program of a graph; weights lie as in the layout's rows, one vector per element."""
    if any(o.kind == "batch_norm" for o in graph.operations):
        return _Writer(graph, layout, settings, settings.micro_batch).write()
    # As if some model dropped something, so that a model's sums do not depend on whether its neighbours do.
    per_sample = _Writer(graph, layout, replace(settings, dropout=True), chunk=1).write().scratch
    chunk = min(settings.batch_size, max(1, CACHE_VECTORS // per_sample))
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
        constants = {
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
        text = "\n".join(
            [
                *(f"#define {name} {value}" for name, value in constants.items()),
                _LOSS,
                *self._functions,
                forward_train,
                forward_evaluate,
                backward,
                _ENTRY_POINTS,
            ]
        )
        return Source(text, self._memory.vectors)

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
        if o.kind == "conv":
            call = f"{name}_f({source} + b * {n_in}, {weight}, {bias}, {to} + b * {n_out});"
            return f"for (int64_t b = 0; b < nb; b++) {call}"
        if o.kind == "linear":
            return f"{name}_f({source}, {weight}, {to}, nb * {n_in // o.settings['inputs']}, {bias});"
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
        lines = []
        if o.kind == "conv":
            call = f"{name}_w({source} + b * {n_in}, {dout} + b * {n_out}, {dweight}, {dbias});"
            lines.append(f"for (int64_t b = 0; b < nb; b++) {call}")
        if o.kind == "linear":
            rows = n_in // o.settings["inputs"]
            lines.append(f"{name}_w({source}, {dout}, {dweight}, {dbias}, nb * {rows});")
        for value in o.inputs:
            wanted = self._wants_gradient(value)
            if not wanted and o.kind != "batch_norm":
                continue
            din = f"s + {self._memory.gradient(value)}"
            root = self._memory.root(value)
            add = int(root in written)
            written.add(root)
            if o.kind == "conv":
                self._functions.append(convolution.input_gradient(f"{name}_x", self._convolution(o), bool(add)))
                call = f"{name}_x({dout} + b * {n_out}, {weight}, {din} + b * {n_in});"
                lines.append(f"for (int64_t b = 0; b < nb; b++) {call}")
            elif o.kind == "linear":
                lines.append(f"{name}_x({dout}, {weight}, {din}, nb * {n_in // o.settings['inputs']}, {add});")
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
        """Write the functions of one operation (the input gradient of a convolution comes with the backward pass)."""
        name, graph, registers = f"op{number}", self._graph, self._settings.registers
        if o.kind == "conv":
            c = self._convolution(o)
            self._functions += [convolution.forward(f"{name}_f", c), convolution.weight_gradient(f"{name}_w", c)]
        elif o.kind == "linear":
            sizes = o.settings["inputs"], o.settings["outputs"]
            self._functions.append(layers.linear(name, *sizes, "bias" in o.tensors, registers))
        elif o.kind in ("max_pool", "avg_pool"):
            channels, size = _image(graph.shapes[o.inputs[0]])
            _, out_size = _image(graph.shapes[o.out])
            writes = self._memory.writes_once(o)
            self._functions.append(layers.pool(name, o.kind, channels, size, out_size, writes=writes, **o.settings))
        elif o.kind == "batch_norm":
            channels, *sides = graph.shapes[o.inputs[0]]
            affine = "weight" in o.tensors
            self._functions.append(layers.batch_norm(name, channels, prod(sides), affine=affine, **o.settings))

    def _convolution(self, o: Operation) -> Convolution:
        channels, size = _image(self._graph.shapes[o.inputs[0]])
        out_channels, out_size = _image(self._graph.shapes[o.out])
        return Convolution(
            channels,
            size,
            out_channels,
            out_size,
            bias="bias" in o.tensors,
            registers=self._settings.registers,
            **o.settings,
        )


def _image(shape: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    """Channels, and height and width; sequences have height 1, single numbers also width 1."""
    channels, *sides = shape
    height, width = [1] * (2 - len(sides)) + sides
    return channels, (height, width)

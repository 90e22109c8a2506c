"""C code of convolutions on one sample: forward, gradient of the input, gradient of the weights.

Each is a loop over tiles of accumulators; the taps of a tile that fall outside the image are left out when the code is
generated, so nothing is padded. Sums run over channels, then kernel rows, then kernel columns (forward), or over image
rows, then columns (weights), whatever the tile, so the bytes do not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from zoogen.train.population.native.tiles import Run, best_tile, cut, runs


@dataclass(frozen=True)
class Convolution:
    """Sizes of one convolution; pairs are (rows, columns)."""

    channels: int
    size: tuple[int, int]
    out_channels: int
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool
    registers: int

    @property
    def group(self) -> tuple[int, int]:
        """Input and output channels of one group."""
        return self.channels // self.groups, self.out_channels // self.groups

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return self.out_channels * self.group[0] * self.kernel[0] * self.kernel[1]


def _source(c: Convolution, x: int, k: int, axis: int) -> int:
    """Input position that output position x reads through kernel position k; may lie outside."""
    return x * c.stride[axis] - c.padding[axis] + k * c.dilation[axis]


def forward(name: str, c: Convolution) -> str:
    """``name(in, w, bias, out)``."""
    per_in, per_out = c.group
    (height, width), (out_height, out_width), (kh, kw) = c.size, c.out_size, c.kernel
    rows, columns = best_tile(per_out, out_width, c.registers)
    pairs = [[(k, at) for k in range(kw) if 0 <= (at := _source(c, x, k, 1)) < width] for x in range(out_width)]
    lines = [
        f"static void {name}(const V *restrict in, const V *restrict w, const V *restrict bias, V *restrict out) {{",
        f"for (int g = 0; g < {c.groups}; g++) for (int y = 0; y < {out_height}; y++) {{",
        *_rows_in_image(c, "y"),
    ]
    for o, n in cut(per_out, rows):
        for run in runs(out_width, columns, width, pairs, columns * c.stride[1]):
            lines += _forward_tile(c, o, n, run)
    return "\n".join([*lines, "}}"])


def _rows_in_image(c: Convolution, y: str) -> list[str]:
    """Kernel rows ``lo`` to ``hi`` - 1 that lie inside the image for output row ``y``; ``top`` is where row 0 lies."""
    kh, d = c.kernel[0], c.dilation[0]
    lines = [f"const int top = {y} * {c.stride[0]} - {c.padding[0]};"]
    if c.padding[0] == 0:
        return [*lines, f"const int lo = 0, hi = {kh};"]
    return [
        *lines,
        f"const int lo = top < 0 ? ({d - 1} - top) / {d} : 0;",
        f"const int fit = top < {c.size[0]} ? ({c.size[0] - 1} - top) / {d} + 1 : 0;",
        f"const int hi = fit < {kh} ? fit : {kh};",
    ]


def _tiles_loop(run: Run) -> list[str]:
    return [f"for (int t = 0; t < {run.count}; t++) {{"]


def _forward_tile(c: Convolution, o: int, n: int, run: Run) -> list[str]:
    per_in, per_out = c.group
    (height, width), (out_height, out_width), (kh, kw) = c.size, c.out_size, c.kernel
    lines = _tiles_loop(run)
    for j in range(n):
        start = f"bias[g * {per_out} + {o + j}]" if c.bias else "splat(0)"
        lines += [f"V a{j}_{i} = {start};" for i in range(run.length)]
    lines += [
        f"for (int ci = 0; ci < {per_in}; ci++) for (int k = lo; k < hi; k++) {{",
        f"const V *row = in + ((g * {per_in} + ci) * {height} + top + k * {c.dilation[0]}) * {width}"
        f" + {run.base} + t * {run.step};",
        f"const V *wk = w + ((g * {per_out} + {o}) * {per_in} + ci) * {kh * kw} + k * {kw};",
    ]
    per_output = per_in * kh * kw
    for k, taps in enumerate(run.taps):
        if taps:
            lines.append("{")
            lines += [f"const V w{j} = wk[{j * per_output + k}];" for j in range(n)]
            for i, at in taps:
                lines.append(f"{{ const V x = row[{at}];" + " ".join(f"a{j}_{i} += w{j} * x;" for j in range(n)) + " }")
            lines.append("}")
    lines.append("}")
    at = f"{run.start} + t * {run.length}"
    for j in range(n):
        place = f"out + ((g * {per_out} + {o + j}) * {out_height} + y) * {out_width} + {at}"
        lines.append(f"{{ V *to = {place};" + " ".join(f"to[{i}] = a{j}_{i};" for i in range(run.length)) + " }")
    return [*lines, "}"]


def input_gradient(name: str, c: Convolution, accumulate: bool) -> str:
    """``name(dout, w, din)``: adds to ``din`` or writes it."""
    per_in, per_out = c.group
    (height, width), (_, out_width), (kh, kw) = c.size, c.out_size, c.kernel
    rows, columns = best_tile(per_in, width, c.registers)
    columns = max(c.stride[1], columns // c.stride[1] * c.stride[1])  # tiles that are alike start in step with it
    pairs: list[list[tuple[int, int]]] = [[] for _ in range(width)]
    for x in range(out_width):
        for k in range(kw):
            if 0 <= (at := _source(c, x, k, 1)) < width:
                pairs[at].append((k, x))
    lines = [
        f"static void {name}(const V *restrict dout, const V *restrict w, V *restrict din) {{",
        f"for (int g = 0; g < {c.groups}; g++) for (int y = 0; y < {height}; y++) {{",
    ]
    for i, n in cut(per_in, rows):
        for run in runs(width, columns, out_width, pairs, columns // c.stride[1]):
            lines += _input_tile(c, i, n, run, accumulate)
    return "\n".join([*lines, "}}"])


def _input_tile(c: Convolution, first: int, n: int, run: Run, accumulate: bool) -> list[str]:
    per_in, per_out = c.group
    (height, width), (out_height, out_width), (kh, kw) = c.size, c.out_size, c.kernel
    lines = _tiles_loop(run)
    for j in range(n):
        lines += [f"V a{j}_{i} = splat(0);" for i in range(run.length)]
    lines += [
        f"for (int o = 0; o < {per_out}; o++) for (int k = 0; k < {kh}; k++) {{",
        f"const int from = y + {c.padding[0]} - k * {c.dilation[0]};",
        f"if (from < 0 || from % {c.stride[0]} || from / {c.stride[0]} >= {out_height}) continue;",
        f"const V *row = dout + ((g * {per_out} + o) * {out_height} + from / {c.stride[0]}) * {out_width}"
        f" + {run.base} + t * {run.step};",
        f"const V *wk = w + ((g * {per_out} + o) * {per_in} + {first}) * {kh * kw} + k * {kw};",
    ]
    for k, taps in enumerate(run.taps):
        if taps:
            lines.append("{")
            lines += [f"const V w{j} = wk[{j * kh * kw + k}];" for j in range(n)]
            for i, at in taps:
                lines.append(f"{{ const V x = row[{at}];" + " ".join(f"a{j}_{i} += w{j} * x;" for j in range(n)) + " }")
            lines.append("}")
    lines.append("}")
    at = f"{run.start} + t * {run.length}"
    sign = "+=" if accumulate else "="
    for j in range(n):
        place = f"din + ((g * {per_in} + {first + j}) * {height} + y) * {width} + {at}"
        lines.append(f"{{ V *to = {place};" + " ".join(f"to[{i}] {sign} a{j}_{i};" for i in range(run.length)) + " }")
    return [*lines, "}"]


def weight_gradient(name: str, c: Convolution) -> str:
    """``name(in, dout, dw, dbias)``: adds to both."""
    per_in, per_out = c.group
    (height, width), (out_height, out_width), (kh, kw) = c.size, c.out_size, c.kernel
    rows, columns = best_tile(per_out, kw, c.registers)
    lines = [f"static void {name}(const V *restrict in, const V *restrict dout, V *restrict dw, V *restrict dbias) {{"]
    if c.bias:
        lines += [
            f"for (int o = 0; o < {c.out_channels}; o++) {{ V a = splat(0);",
            f"for (int i = 0; i < {out_height * out_width}; i++) a += dout[o * {out_height * out_width} + i];",
            "dbias[o] += a; }",
        ]
    lines.append(f"for (int g = 0; g < {c.groups}; g++) for (int ci = 0; ci < {per_in}; ci++)")
    lines.append(f"for (int k = 0; k < {kh}; k++) {{")
    for o, n in cut(per_out, rows):
        for k, m in cut(kw, columns):
            lines += _weight_tile(c, o, n, k, m)
    return "\n".join([*lines, "}}"])


def _weight_tile(c: Convolution, o: int, n: int, first: int, m: int) -> list[str]:
    """Kernel columns ``first`` to ``first`` + m - 1 of one kernel row, for n output channels."""
    per_in, per_out = c.group
    (height, width), (out_height, out_width), (kh, kw) = c.size, c.out_size, c.kernel
    lines = ["{", *(f"V a{j}_{i} = splat(0);" for j in range(n) for i in range(m))]
    lines += [
        f"for (int y = 0; y < {out_height}; y++) {{",
        f"const int from = y * {c.stride[0]} - {c.padding[0]} + k * {c.dilation[0]};",
        f"if (from < 0 || from >= {height}) continue;",
        f"const V *row = in + ((g * {per_in} + ci) * {height} + from) * {width};",
        f"const V *d = dout + ((g * {per_out} + {o}) * {out_height} + y) * {out_width};",
    ]
    pairs = [[(i, at) for i in range(m) if 0 <= (at := _source(c, x, first + i, 1)) < width] for x in range(out_width)]
    for run in runs(out_width, 1, width, pairs, c.stride[1]):
        lines += [f"for (int t = 0; t < {run.count}; t++) {{", f"const int at = {run.base} + t * {run.step};"]
        lines += [f"const V d{j} = d[{j * out_height * out_width} + {run.start} + t];" for j in range(n)]
        for i, taps in enumerate(run.taps):
            for _, offset in taps:
                lines.append(
                    f"{{ const V x = row[at + {offset}];" + " ".join(f"a{j}_{i} += d{j} * x;" for j in range(n)) + " }"
                )
        lines.append("}")
    lines.append("}")
    per_output = per_in * kh * kw
    place = f"dw + ((g * {per_out} + {o}) * {per_in} + ci) * {kh * kw} + k * {kw} + {first}"
    lines.append(f"V *to = {place};")
    lines += [f"to[{j * per_output + i}] += a{j}_{i};" for j in range(n) for i in range(m)]
    return [*lines, "}"]

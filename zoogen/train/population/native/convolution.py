"""C code of convolutions on one sample: forward, gradient of the input, gradient of the weights.

Each is a loop over tiles of accumulators; the taps of a tile that fall outside the image are left out when the code is
generated, so nothing is padded. Sums run over channels, then kernel rows, then kernel columns (forward), or over image
rows, then columns (weights), whatever the tile, so the bytes do not depend on it.

In the code, ``g`` is the group, ``y`` the row of the result, ``k`` the kernel row, ``t`` the tile within a run.
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
    def per_in(self) -> int:
        """Input channels of one group."""
        return self.channels // self.groups

    @property
    def per_out(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return self.kernel[0] * self.kernel[1]

    def source(self, x: int, k: int) -> int | None:
        """Input column that output column ``x`` reads through kernel column ``k``; None outside the image."""
        at = x * self.stride[1] - self.padding[1] + k * self.dilation[1]
        return at if 0 <= at < self.size[1] else None


def forward(name: str, c: Convolution) -> str:
    """``name(in, w, bias, out)``."""
    (height, width), (out_height, out_width), kw = c.size, c.out_size, c.kernel[1]
    rows, columns = best_tile(c.per_out, out_width, c.registers)
    pairs = [[(k, at) for k in range(kw) if (at := c.source(x, k)) is not None] for x in range(out_width)]
    lines = [
        f"static void {name}(const V *restrict in, const V *restrict w, const V *restrict bias, V *restrict out) {{",
        "(void)bias;",
        f"for (int g = 0; g < {c.groups}; g++) for (int y = 0; y < {out_height}; y++) {{",
        *_kernel_rows_inside(c),
    ]
    for o, n in cut(c.per_out, rows):
        for run in runs(out_width, columns, pairs, columns * c.stride[1]):
            channel = f"g * {c.per_out} + {o}"
            reduce = [
                f"for (int ci = 0; ci < {c.per_in}; ci++) for (int k = lo; k < hi; k++) {{",
                f"const V *row = in + ((g * {c.per_in} + ci) * {height} + top + k * {c.dilation[0]}) * {width};",
                f"const V *wk = w + (({channel}) * {c.per_in} + ci) * {c.taps} + k * {kw};",
            ]
            start = [f"bias[{channel} + {j}]" if c.bias else "splat(0)" for j in range(n)]
            to = [f"out + (({channel} + {j}) * {out_height} + y) * {out_width}" for j in range(n)]
            lines += _tile(run, start, reduce, c.per_in * c.taps, to, "=")
    return "\n".join([*lines, "}}"])


def input_gradient(name: str, c: Convolution, accumulate: bool) -> str:
    """``name(dout, w, din)``: adds to ``din`` or writes it."""
    (height, width), (out_height, out_width), (kh, kw) = c.size, c.out_size, c.kernel
    rows, columns = best_tile(c.per_in, width, c.registers)
    columns = max(c.stride[1], columns // c.stride[1] * c.stride[1])  # tiles that are alike start in step with it
    pairs: list[list[tuple[int, int]]] = [[] for _ in range(width)]
    for x in range(out_width):
        for k in range(kw):
            if (at := c.source(x, k)) is not None:
                pairs[at].append((k, x))
    lines = [
        f"static void {name}(const V *restrict dout, const V *restrict w, V *restrict din) {{",
        f"for (int g = 0; g < {c.groups}; g++) for (int y = 0; y < {height}; y++) {{",
    ]
    for i, n in cut(c.per_in, rows):
        for run in runs(width, columns, pairs, columns // c.stride[1]):
            reduce = [
                f"for (int o = 0; o < {c.per_out}; o++) for (int k = 0; k < {kh}; k++) {{",
                f"const int from = y + {c.padding[0]} - k * {c.dilation[0]};",
                f"if (from < 0 || from % {c.stride[0]} || from / {c.stride[0]} >= {out_height}) continue;",
                f"const V *row = dout + ((g * {c.per_out} + o) * {out_height} + from / {c.stride[0]}) * {out_width};",
                f"const V *wk = w + ((g * {c.per_out} + o) * {c.per_in} + {i}) * {c.taps} + k * {kw};",
            ]
            to = [f"din + ((g * {c.per_in} + {i + j}) * {height} + y) * {width}" for j in range(n)]
            lines += _tile(run, ["splat(0)"] * n, reduce, c.taps, to, "+=" if accumulate else "=")
    return "\n".join([*lines, "}}"])


def weight_gradient(name: str, c: Convolution) -> str:
    """``name(in, dout, dw, dbias)``: adds to both."""
    pixels = c.out_size[0] * c.out_size[1]
    rows, columns = best_tile(c.per_out, c.kernel[1], c.registers)
    lines = [
        f"static void {name}(const V *restrict in, const V *restrict dout, V *restrict dw, V *restrict dbias) {{",
        "(void)dbias;",
    ]
    if c.bias:
        total = f"V a = splat(0); for (int i = 0; i < {pixels}; i++) a += dout[o * {pixels} + i];"
        lines.append(f"for (int o = 0; o < {c.out_channels}; o++) {{ {total} dbias[o] += a; }}")
    lines.append(f"for (int g = 0; g < {c.groups}; g++) for (int ci = 0; ci < {c.per_in}; ci++)")
    lines.append(f"for (int k = 0; k < {c.kernel[0]}; k++) {{")
    for o, n in cut(c.per_out, rows):
        for k, m in cut(c.kernel[1], columns):
            lines += _weight_tile(c, o, n, k, m)
    return "\n".join([*lines, "}}"])


def _kernel_rows_inside(c: Convolution) -> list[str]:
    """Kernel rows ``lo`` to ``hi`` - 1 lie inside the image for output row y; ``top`` is where kernel row 0 lies."""
    kh, d = c.kernel[0], c.dilation[0]
    lines = [f"const int top = y * {c.stride[0]} - {c.padding[0]};"]
    if c.padding[0] == 0:
        return [*lines, f"const int lo = 0, hi = {kh};"]
    return [
        *lines,
        f"const int lo = top < 0 ? ({d - 1} - top) / {d} : 0;",
        f"const int fit = top < {c.size[0]} ? ({c.size[0] - 1} - top) / {d} + 1 : 0;",
        f"const int hi = fit < {kh} ? fit : {kh};",
    ]


def _tile(run: Run, start: list[str], reduce: list[str], pitch: int, to: list[str], sign: str) -> list[str]:
    """Tiles of len(start) rows x run.length columns: a[j][i] = start[j] + sum over the loop ``reduce`` of w[j] x[i].

    ``reduce`` opens a loop that sets ``row`` (operands) and ``wk`` (weights; those of row j lie j * pitch further).
    """
    rows, columns = range(len(start)), range(run.length)
    lines = [f"for (int t = 0; t < {run.count}; t++) {{"]
    lines += [f"V a{j}_{i} = {start[j]};" for j in rows for i in columns]
    lines += [*reduce, f"const V *x_at = row + {run.base} + t * {run.step};"]
    for k, taps in enumerate(run.taps):
        if taps:
            lines += ["{", *(f"const V w{j} = wk[{j * pitch + k}];" for j in rows)]
            for i, at in taps:
                terms = " ".join(f"a{j}_{i} += w{j} * x;" for j in rows)
                lines.append(f"{{ const V x = x_at[{at}]; {terms} }}")
            lines.append("}")
    lines.append("}")
    for j in rows:
        stores = " ".join(f"to[{i}] {sign} a{j}_{i};" for i in columns)
        lines.append(f"{{ V *to = {to[j]} + {run.start} + t * {run.length}; {stores} }}")
    return [*lines, "}"]


def _weight_tile(c: Convolution, o: int, n: int, first: int, m: int) -> list[str]:
    """Gradients of kernel columns ``first`` to ``first`` + m - 1 of one kernel row, for n output channels."""
    (height, width), (out_height, out_width) = c.size, c.out_size
    rows = range(n)
    pairs = [[(i, at) for i in range(m) if (at := c.source(x, first + i)) is not None] for x in range(out_width)]
    lines = ["{", *(f"V a{j}_{i} = splat(0);" for j in rows for i in range(m))]
    lines += [
        f"for (int y = 0; y < {out_height}; y++) {{",
        f"const int from = y * {c.stride[0]} - {c.padding[0]} + k * {c.dilation[0]};",
        f"if (from < 0 || from >= {height}) continue;",
        f"const V *row = in + ((g * {c.per_in} + ci) * {height} + from) * {width};",
        f"const V *d = dout + ((g * {c.per_out} + {o}) * {out_height} + y) * {out_width};",
    ]
    for run in runs(out_width, 1, pairs, c.stride[1]):
        lines += [f"for (int t = 0; t < {run.count}; t++) {{", f"const V *x_at = row + {run.base} + t * {run.step};"]
        lines += [f"const V d{j} = d[{j * out_height * out_width} + {run.start} + t];" for j in rows]
        for i, taps in enumerate(run.taps):
            for _, at in taps:
                terms = " ".join(f"a{j}_{i} += d{j} * x;" for j in rows)
                lines.append(f"{{ const V x = x_at[{at}]; {terms} }}")
        lines.append("}")
    lines.append("}")
    place = f"((g * {c.per_out} + {o}) * {c.per_in} + ci) * {c.taps} + k * {c.kernel[1]} + {first}"
    lines.append(f"V *to = dw + {place};")
    lines += [f"to[{j * c.per_in * c.taps + i}] += a{j}_{i};" for j in rows for i in range(m)]
    return [*lines, "}"]

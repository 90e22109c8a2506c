"""C code of linear layers, pooling and batch norm; each function works on a chunk of samples."""

from __future__ import annotations

from zoogen.train.population.native.tiles import best_tile


def linear(name: str, inputs: int, outputs: int, bias: bool, registers: int) -> str:
    """``name_f(in, w, out, rows, bias)``, ``name_x(dout, w, din, rows, add)``, ``name_w(in, dout, dw, dbias, rows)``.

    ``rows`` counts the vectors of ``inputs`` elements that pass through the layer.
    """
    return "\n".join(
        [
            _rows_product(f"{name}_f", inputs, outputs, registers, f"w[o * {inputs} + i]", bias),
            _rows_product(f"{name}_x", outputs, inputs, registers, f"w[i * {inputs} + o]", None),
            _weight_product(f"{name}_w", inputs, outputs, bias, registers),
        ]
    )


def _rows_product(name: str, inner: int, outer: int, registers: int, weight: str, bias: bool | None) -> str:
    """out[r][o] = sum_i weight(o, i) in[r][i]; the forward pass has a bias, the backward pass an ``add``."""
    last = "int add" if bias is None else "const V *restrict bias"
    lines = [f"static void {name}(const V *restrict in, const V *restrict w, V *restrict out, int64_t rows, {last}) {{"]
    if bias is not None:
        lines.append("(void)bias;")
    lines.append("int64_t r = 0;")
    # The rows' operands stay in registers, the weights pass through one more; both tiles fill what there is.
    for height in (3 if registers < 32 else 4, 1):
        step = min(outer, (registers - height - 1) // height, 12)
        lines.append(f"for (; r + {height} <= rows; r += {height}) {{")
        whole, rest = divmod(outer, step)
        if whole:
            lines.append(f"for (int base = 0; base < {whole * step}; base += {step}) {{")
            lines += [*_product_tile(inner, outer, step, height, weight, bias), "}"]
        if rest:
            lines.append(f"{{ const int base = {whole * step};")
            lines += [*_product_tile(inner, outer, rest, height, weight, bias), "}"]
        lines.append("}")
    return "\n".join([*lines, "}"])


def _product_tile(inner: int, outer: int, n: int, height: int, weight: str, bias: bool | None) -> list[str]:
    lines = []
    for j in range(n):
        start = f"bias[base + {j}]" if bias else "splat(0)"
        lines += [f"V a{j}_{r} = {start};" for r in range(height)]
    lines.append(f"for (int i = 0; i < {inner}; i++) {{")
    lines += [f"const V x{r} = in[(r + {r}) * {inner} + i];" for r in range(height)]
    for j in range(n):
        at = weight.replace("o", f"(base + {j})")
        lines.append(f"{{ const V k = {at};" + " ".join(f"a{j}_{r} += k * x{r};" for r in range(height)) + " }")
    lines.append("}")
    for j in range(n):
        for r in range(height):
            to = f"out[(r + {r}) * {outer} + base + {j}]"
            lines.append(f"{to} = add ? {to} + a{j}_{r} : a{j}_{r};" if bias is None else f"{to} = a{j}_{r};")
    return lines


def _weight_product(name: str, inputs: int, outputs: int, bias: bool, registers: int) -> str:
    rows, columns = best_tile(outputs, inputs, registers)
    lines = [
        f"static void {name}(const V *restrict in, const V *restrict dout, V *restrict dw, V *restrict dbias,"
        " int64_t rows) {",
        "(void)dbias;",
    ]
    for o, n in _pieces(outputs, rows):
        for i, m in _pieces(inputs, columns):
            lines += [f"for (int o = {o[0]}; o < {o[1]}; o += {n}) for (int i = {i[0]}; i < {i[1]}; i += {m}) {{"]
            lines += [f"V a{j}_{k} = splat(0);" for j in range(n) for k in range(m)]
            lines.append("for (int64_t r = 0; r < rows; r++) {")
            lines += [f"const V d{j} = dout[r * {outputs} + o + {j}];" for j in range(n)]
            for k in range(m):
                terms = " ".join(f"a{j}_{k} += d{j} * x;" for j in range(n))
                lines.append(f"{{ const V x = in[r * {inputs} + i + {k}]; {terms} }}")
            lines.append("}")
            lines += [f"dw[(o + {j}) * {inputs} + i + {k}] += a{j}_{k};" for j in range(n) for k in range(m)]
            lines.append("}")
    if bias:
        lines.append(
            f"for (int64_t r = 0; r < rows; r++) for (int o = 0; o < {outputs}; o++)"
            f" dbias[o] += dout[r * {outputs} + o];"
        )
    return "\n".join([*lines, "}"])


def _pieces(total: int, size: int) -> list[tuple[tuple[int, int], int]]:
    """((start, end), step) of the part that ``size`` divides, and of the rest."""
    whole = total // size * size
    return [((start, end), step) for start, end, step in ((0, whole, size), (whole, total, total - whole)) if step]


def pool(
    name: str,
    kind: str,
    channels: int,
    size: tuple[int, int],
    out_size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    writes: bool,
) -> str:
    """``name_f(in, out, n)`` and ``name_b(in, out, dout, din, n)``, which adds to ``din`` or ``writes`` all of it.

    A maximum gives its gradient to the first position that holds it, as torch does. Where it ``writes``, windows lie
    side by side and ``din`` may be ``in``.
    """
    (height, width), (out_height, out_width) = size, out_size
    loops = (
        f"for (int y = 0; y < {out_height}; y++) for (int x = 0; x < {out_width}; x++) {{\n"
        f"const int64_t top = y * {stride[0]} - {padding[0]}, left = x * {stride[1]} - {padding[1]};\n"
        f"const int64_t from = (c * {height} + top) * {width} + left;\n"
        f"const int64_t to = (c * {out_height} + y) * {out_width} + x;\n"
        f"{_clipped('y', 'top', kernel[0], height, padding[0])}\n"
        f"{_clipped('x', 'left', kernel[1], width, padding[1])}\n"
    )
    sign = "=" if writes else "+="
    window = (
        "for (int ky = lo_y; ky < hi_y; ky++) for (int kx = lo_x; kx < hi_x; kx++)"
        f" {{ const int64_t at = from + ky * {width} + kx;"
    )
    if kind == "max_pool":
        forward = f"V best = splat(-INFINITY); {window} best = vmax(in[at], best); }} out[to] = best;"
        hit = f"const M hit = (in[at] == best) & open; open &= ~hit; din[at] {sign} sel(hit, d, splat(0));"
        backward = f"M open = splat(0) == splat(0); const V best = out[to], d = dout[to]; {window} {hit} }}"
    else:
        share = f"(real){1 / (kernel[0] * kernel[1])!r}"
        forward = f"V sum = splat(0); {window} sum += in[at]; }} out[to] = sum * {share};"
        backward = f"const V d = dout[to] * {share}; {window} din[at] {sign} d; }}"
    # Rows and columns that no window reaches.
    rest = (
        f"for (int y = 0; y < {height}; y++) for (int x = y < {out_height * kernel[0]} ? {out_width * kernel[1]} : 0;"
        f" x < {width}; x++) din[(c * {height} + y) * {width} + x] = splat(0);"
    )
    return f"""
static void {name}_f(const V *in, V *out, int64_t n) {{
for (int64_t c = 0; c < n * {channels}; c++) {{
{loops}{forward} }} }}
}}
static void {name}_b(const V *in, const V *out, const V *dout, V *din, int64_t n) {{
(void)in; (void)out;
for (int64_t c = 0; c < n * {channels}; c++) {{
{loops}{backward} }}
{rest if writes else ""} }}
}}"""


def _clipped(axis: str, start: str, kernel: int, side: int, padding: int) -> str:
    """The part ``lo`` to ``hi`` of a window that lies inside the image."""
    if padding == 0:
        return f"const int lo_{axis} = 0, hi_{axis} = {kernel};"
    return (
        f"const int lo_{axis} = {start} < 0 ? -{start} : 0,"
        f" hi_{axis} = {start} + {kernel} > {side} ? {side} - {start} : {kernel};"
    )


def batch_norm(name: str, channels: int, pixels: int, eps: float, momentum: float, affine: bool) -> str:
    """``name_f(in, out, n, scale, shift, mean, var, saved, training)`` and ``name_b``.

    In training with the statistics of the n samples, which also move the running ones (the variance unbiased), as
    ``torch.nn.BatchNorm2d``. ``saved`` keeps mean and 1 / standard deviation for the backward pass.
    """
    scale = "scale[c]" if affine else "splat(1)"
    shift = "shift[c]" if affine else "splat(0)"
    each = f"for (int64_t b = 0; b < n; b++) for (int i = 0; i < {pixels}; i++)"
    at = f"(b * {channels} + c) * {pixels} + i"
    return f"""
static void {name}_f(const V *in, V *out, int64_t n, const V *scale, const V *shift, V *running_mean, V *running_var,
                     V *saved, int training) {{
    const real count = (real)(n * {pixels}), momentum = (real){momentum!r};
    (void)scale; (void)shift;
    for (int c = 0; c < {channels}; c++) {{
        V mean = running_mean[c], var = running_var[c];
        if (training) {{
            V sum = splat(0), squares = splat(0);
            {each} sum += in[{at}];
            mean = sum / count;
            {each} {{ const V d = in[{at}] - mean; squares += d * d; }}
            var = squares / count;
            running_mean[c] = running_mean[c] * (1 - momentum) + mean * momentum;
            running_var[c] = running_var[c] * (1 - momentum) + squares / (count - 1) * momentum;
        }}
        const V inverse = 1 / vsqrt(var + (real){eps!r});
        saved[c] = mean, saved[{channels} + c] = inverse;
        const V factor = inverse * {scale}, offset = {shift} - mean * factor;
        {each} out[{at}] = in[{at}] * factor + offset;
    }}
}}
static void {name}_b(const V *in, const V *dout, V *din, int64_t n, const V *scale, const V *saved, V *dscale,
                     V *dshift, int add) {{
    const real count = (real)(n * {pixels});
    (void)scale; (void)dscale; (void)dshift;
    for (int c = 0; c < {channels}; c++) {{
        const V mean = saved[c], inverse = saved[{channels} + c];
        V sum = splat(0), dot = splat(0);
        {each} {{ const V d = dout[{at}]; sum += d; dot += d * (in[{at}] - mean); }}
        dot *= inverse;
        {"dscale[c] += dot; dshift[c] += sum;" if affine else ""}
        const V factor = inverse * {scale}, mean_d = sum / count, slope = dot / count * inverse;
        {each} {{
            const V dx = factor * (dout[{at}] - mean_d - (in[{at}] - mean) * slope);
            din[{at}] = add ? din[{at}] + dx : dx;
        }}
    }}
}}"""

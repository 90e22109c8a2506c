"""C code of one optimizer step on all parameters of all lanes; the arithmetic of ``torch.optim``, with every setting per lane."""

from __future__ import annotations

# Code before the loop (per step), and per parameter: g gradient, p weight, m and v the two moments; d is weight decay.
_BEFORE = {
    "sgd": "",
    "adam": """
        V first_share, second_root;
        for (int l = 0; l < LANES; l++) {
            const double b1 = momenta ? momenta[l] : a->beta1[l], t = (double)(step + 1);
            first_share[l] = (real)(rate[l] / (1 - pow(b1, t)));
            second_root[l] = (real)sqrt(1 - pow(a->beta2[l], t));
        }
        const V b2 = lanes_of(a->beta2), eps = lanes_of(a->eps);
        const V b1 = momenta ? *(const V *)momenta : lanes_of(a->beta1);""",
    "rmsprop": "const V alpha = lanes_of(a->beta2), eps = lanes_of(a->eps);",
}
_ADAM = """
            m += (g - m) * (1 - b1);
            v = v * b2 + (1 - b2) * g * g;
            p -= first_share * (m / (vsqrt(v) / second_root + eps));"""
_EACH = {
    "adam": f"g += p * d;{_ADAM}",
    "adamw": f"p -= p * (rate_V * d);{_ADAM}",
}


def update(optimizer: str, *, momentum: bool, nesterov: bool) -> str:
    """``update(a, n, step, rate, momenta, decay)``: one step of n parameters; ``step`` from 0."""
    if optimizer == "sgd":
        moved = "m = m * mu + g; g = g + m * mu;" if nesterov else "m = m * mu + g; g = m;"
        each = f"g += p * d; {moved if momentum else ''} p -= rate_V * g;"
    elif optimizer == "rmsprop":
        each = "g += p * d; v = v * alpha + (1 - alpha) * g * g; g = g / (vsqrt(v) + eps);"
        each += " m = m * mu + g; p -= rate_V * m;" if momentum else " p -= rate_V * g;"
    else:
        each = _EACH[optimizer]
    before = _BEFORE["adam" if optimizer == "adamw" else optimizer]
    mu = "const V mu = momenta ? *(const V *)momenta : lanes_of(a->beta1); (void)mu;"
    second = optimizer != "sgd"
    first = optimizer in ("adam", "adamw") or momentum
    return f"""
static void update(const Args *a, int64_t n, int64_t step, const real *rate, const real *momenta) {{
    const V rate_V = *(const V *)rate, d = lanes_of(a->decay);
    (void)rate_V; (void)step;
    {mu}
    {before}
    V *weights = (V *)a->weights, *gradients = (V *)a->gradients;
    V *firsts = (V *)a->first_moment, *seconds = (V *)a->second_moment;
    (void)firsts; (void)seconds;
    for (int64_t i = 0; i < n; i++) {{
        V p = weights[i], g = gradients[i];
        {"V m = firsts[i];" if first else ""} {"V v = seconds[i];" if second else ""}
        {each}
        weights[i] = p;
        {"firsts[i] = m;" if first else ""} {"seconds[i] = v;" if second else ""}
    }}
}}"""

// Activations by number, so that networks which differ in nothing else share a compiled program.
enum { RELU = 0, TANH = 1, SIGMOID = 2, GELU = 3, LEAKY_RELU = 4, SILU = 5 };

#define EACH_OF(n, result) \
    for (int64_t i = 0; i < (n); i++) { \
        const V x = in[i]; \
        out[i] = result; \
    } \
    break

// out = f(in), n vectors.
static void activate(int kind, real slope, const V *in, V *out, int64_t n) {
    switch (kind) {
    case RELU: EACH_OF(n, sel(x <= 0, splat(0), x)); // NaN stays NaN
    case TANH: EACH_OF(n, vtanh(x));
    case SIGMOID: EACH_OF(n, 1 / (1 + vexp(-x)));
    case GELU: EACH_OF(n, x * (real)0.5 * (1 + verf(x * (real)M_SQRT1_2)));
    case LEAKY_RELU: EACH_OF(n, sel(x > 0, x, x * slope));
    case SILU: EACH_OF(n, x / (1 + vexp(-x)));
    }
}

INLINE V gelu_slope(V x) {
    const V density = vexp(x * x * (real)-0.5) * (real)(M_2_SQRTPI * M_SQRT1_2 / 2);
    return (real)0.5 * (1 + verf(x * (real)M_SQRT1_2)) + x * density;
}

INLINE V silu_slope(V x) {
    const V s = 1 / (1 + vexp(-x));
    return s * (1 + x * (1 - s));
}

#define EACH_SLOPE(n, result) \
    for (int64_t i = 0; i < (n); i++) { \
        const V x = in[i], y = out[i], dy = dout[i]; \
        (void)x; \
        (void)y; \
        const V dx = result; \
        din[i] = add ? din[i] + dx : dx; \
    } \
    break

// din = f'(in) dout, or added to din; din may be dout.
static void activate_back(int kind, real slope, const V *in, const V *out, const V *dout, V *din, int64_t n, int add) {
    switch (kind) {
    case RELU: EACH_SLOPE(n, sel(y > 0, dy, splat(0)));
    case TANH: EACH_SLOPE(n, dy * (1 - y * y));
    case SIGMOID: EACH_SLOPE(n, dy * (y * (1 - y)));
    case GELU: EACH_SLOPE(n, dy * gelu_slope(x));
    case LEAKY_RELU: EACH_SLOPE(n, sel(x > 0, dy, dy * slope));
    case SILU: EACH_SLOPE(n, dy * silu_slope(x));
    }
}

// Sparse variational dropout: zoogen/train/sparsify/variational.py, and its noise: zoogen/train/sparsify/noise.py.
// K1, K2, K3 (of the KL term) and TINY (which keeps logarithms off zero) are defined by the program.

typedef int32_t H __attribute__((vector_size(LANES * sizeof(int32_t))));

#ifdef DOUBLE
EACH(vcos, cos)
EACH(vsin, sin)
INLINE void sine_cosine(V half, V *sine, V *cosine) { *sine = vsin(2 * half), *cosine = vcos(2 * half); }
#else
// Of twice the angle, |half| <= pi / 2. The polynomials interpolate sin and cos at Chebyshev nodes; their errors are
// 2.7e-8 and 9e-10.
INLINE void sine_cosine(V half, V *sine, V *cosine) {
    const V z = half * half;
    V p = z * 2.634756391811781e-06f - 0.00019822739488631103f;
    p = p * z + 0.008333242135096938f;
    p = p * z - 0.16666665963821187f;
    V q = z * -2.6297517416492886e-07f + 2.4774579745194932e-05f;
    q = q * z - 0.001388865164726139f;
    q = q * z + 0.04166665936002493f;
    q = q * z - 0.49999999963953023f;
    const V s = half + half * z * p, c = 1 + z * q;
    *sine = 2 * s * c, *cosine = (c - s) * (c + s);
}
#endif

// Box and Muller's transform of the two halves of a draw: as signed integers h, h / 2^32 + 1/2 gives the radius (the
// low half) and 2 pi h / 2^32 the angle.
INLINE void normals(U bits, V *even, V *odd) {
    const V low = __builtin_convertvector(__builtin_convertvector(bits, H), V);
    const V high = __builtin_convertvector(__builtin_convertvector(bits >> 32, H), V);
    const real smallest = (real)0x1p-33;
    V uniform = low * (real)0x1p-32 + (real)0.5, sine, cosine;
    uniform = sel(uniform < smallest, splat(smallest), uniform);
    const V radius = vsqrt(-2 * vlog(uniform));
    sine_cosine(high * (real)(M_PI * 0x1p-32), &sine, &cosine);
    *even = radius * cosine, *odd = radius * sine;
}

// One output: its mean and variance become a draw, and the factor from its gradient to that of its variance.
INLINE void draw(V *out, V *variance, V normal) {
    const V deviation = vsqrt(*variance + TINY);
    *out += deviation * normal;
    *variance = normal / (2 * deviation);
}

// The outputs at positions first .. first + count of a layer.
static void add_noise(V *out, V *variance, int64_t first, int64_t count, const uint64_t *key) {
    U keys;
    for (int l = 0; l < LANES; l++) keys[l] = key[l];
    uint64_t pair = (uint64_t)first / 2;
    for (int64_t at = -(first % 2); at < count; at += 2, pair++) {
        V even, odd;
        normals(squares(keys, pair), &even, &odd);
        if (at >= 0) draw(out + at, variance + at, even);
        if (at + 1 < count) draw(out + at + 1, variance + at + 1, odd);
    }
}

static void square(const V *x, V *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = x[i] * x[i];
}

static void multiply(V *x, const V *by, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] *= by[i];
}

// The gradient d of x * x, added to that of x.
static void add_square_back(const V *x, const V *d, V *dx, int64_t n) {
    for (int64_t i = 0; i < n; i++) dx[i] += 2 * x[i] * d[i];
}

// Before it is clamped.
INLINE V log_alpha(V w, V log_sigma2) { return log_sigma2 - 2 * vlog(sel(w < 0, -w, w) + TINY); }

INLINE V clamp(V x, real bound) { return sel(x < -bound, splat(-bound), sel(x > bound, splat(bound), x)); }

// What noise adds to a square of weights: alpha w^2.
static void find_variances(const V *w, const V *log_sigma2, V *to, int64_t n, real bound) {
    for (int64_t i = 0; i < n; i++) to[i] = vexp(clamp(log_alpha(w[i], log_sigma2[i]), bound)) * w[i] * w[i];
}

// The weights that evaluation sees: 0 for those that are little but noise.
static void remove_noisy(const V *w, const V *log_sigma2, V *to, int64_t n, real bound, real threshold) {
    for (int64_t i = 0; i < n; i++)
        to[i] = sel(clamp(log_alpha(w[i], log_sigma2[i]), bound) < threshold, w[i], splat(0));
}

// `d` comes in as the gradient of alpha w^2 and leaves as that of log sigma2; that of w is added to dw. Both with the
// gradient of kl_weight times the KL term. Where log alpha is clamped it has no gradient.
static void variances_back(const V *w, const V *log_sigma2, V *dw, V *d, int64_t n, real bound, V kl_weight) {
    for (int64_t i = 0; i < n; i++) {
        const V raw = log_alpha(w[i], log_sigma2[i]), own = clamp(raw, bound), alpha = vexp(own);
        const M negative = w[i] < 0, free = (raw >= -bound) & (raw <= bound);
        const V size = sel(negative, -w[i], w[i]) + TINY, sign = sel(negative, splat(-1), sel(w[i] > 0, splat(1), splat(0)));
        const V s = 1 / (1 + vexp(-(K2 + K3 * own)));
        const V pull = sel(free, kl_weight * (-K1 * K3 * s * (1 - s) - (real)0.5 / (1 + alpha)), splat(0));
        // alpha w^2 is sigma2 where it is free, up to TINY: what w has by alpha and by w^2 cancels.
        dw[i] += 2 * alpha * w[i] * d[i] * sel(free, TINY / size, splat(1)) - 2 * sign / size * pull;
        d[i] = sel(free, d[i] * alpha * w[i] * w[i], splat(0)) + pull;
    }
}

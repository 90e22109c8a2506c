// Vectors of LANES models, and elementwise functions on them. The generated program follows below.
// LANES and DOUBLE (float64, for tests) are defined by the compiler's command line.
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef DOUBLE
typedef double real;
typedef int64_t word;
#else
typedef float real;
typedef int32_t word;
#endif

typedef real V __attribute__((vector_size(LANES * sizeof(real))));
typedef word M __attribute__((vector_size(LANES * sizeof(word)))); // all ones: true
typedef uint64_t U __attribute__((vector_size(LANES * sizeof(uint64_t))));

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    // Samples: for the one at position i (from `first` on), lane l reads row order[l * n_order + i] of inputs[l] and of
    // targets[l]; row i where order is null. Where `gathered`, inputs[l] begins with the sample at `first`.
    const void *inputs[LANES]; // uint8 or real, [*, FEATURES]
    const int64_t *order;
    int64_t n_order, gathered;
    const int64_t *targets[LANES];
    const real *lut; // [channels, 256]: what a byte becomes; null where inputs are real
    int64_t first, samples;
    int64_t optimizer, nesterov;
    const int32_t *activations; // kind and slope of every operation, see activations.h
    const real *slopes;
    // State, [P, LANES] each.
    real *weights, *gradients, *first_moment, *second_moment;
    const double *updates; // [LANES], that the moments have seen before this call
    // Settings: rates and momenta [S, LANES], of the steps of this call; the rest [LANES].
    const real *rates, *momenta;
    const double *beta1, *beta2, *eps, *decay, *smoothing, *clip;
    const int64_t *dropout_thresholds; // [layers, LANES], see mask_fill
    const real *dropout_scales;
    const uint64_t *dropout_keys; // [layers, S, LANES]
    int64_t key_steps;
    const real *masks; // [TRAINABLE, LANES], 0 for a pruned weight; null where nothing is pruned
    // Results.
    double *loss_sums, *gradient_norms;
    int64_t *hits;
    real *outputs; // [samples, C, LANES], evaluation only
    real *scratch;
    // Sparse variational dropout: keys [layers, S, LANES], and the weight of the KL term [LANES].
    const uint64_t *noise_keys;
    const double *kl_weights;
} Args;

INLINE V splat(real x) { return x - (V){0}; }
INLINE V sel(M mask, V a, V b) { return (V)((mask & (M)a) | (~mask & (M)b)); }
INLINE V vmax(V a, V b) { return sel((a > b) | (a != a), a, b); } // NaN stays NaN, as in torch's pooling

INLINE V lanes_of(const double *p) {
    V v;
    for (int l = 0; l < LANES; l++) v[l] = (real)p[l];
    return v;
}

#ifdef DOUBLE
#define EACH(name, f)                                                                                                  \
    INLINE V name(V x) {                                                                                               \
        for (int l = 0; l < LANES; l++) x[l] = f(x[l]);                                                                \
        return x;                                                                                                      \
    }
EACH(vexp, exp)
EACH(vlog, log)
EACH(vtanh, tanh)
EACH(verf, erf)
EACH(vsqrt, sqrt)
#else
// x = n ln 2 + r with |r| <= ln 2 / 2: returns 2^n and r. The sum with 1.5 * 2^23 rounds to an integer.
INLINE V split_exponent(V x, V *r) {
    const V magic = splat(12582912.0f);
    V n = x * 1.44269504088896341f + magic;
    M bits = (M)n << 23;
    n -= magic;
    *r = (x - n * 0.693359375f) + n * 2.12194440054690583e-4f; // ln 2 in two parts, the first exact in n * part
    return (V)(bits + (M)splat(1.0f));
}

// e^r - 1 by Taylor's series to r^8: below 1e-9 relative for |r| <= ln 2 / 2.
INLINE V series_expm1(V r) {
    V q = r * (1.0f / 40320) + 1.0f / 5040;
    q = q * r + 1.0f / 720;
    q = q * r + 1.0f / 120;
    q = q * r + 1.0f / 24;
    q = q * r + 1.0f / 6;
    q = q * r + 0.5f;
    return r + r * r * q;
}

INLINE V vexp(V x) {
    V r, scale, clamped = sel(x < -87.0f, splat(-87.0f), sel(x > 88.0f, splat(88.0f), x));
    scale = split_exponent(clamped, &r);
    V y = scale + scale * series_expm1(r);
    return sel(x < -87.0f, splat(0.0f), sel(x > 88.0f, splat(INFINITY), y));
}

// For x > 0, normal. x = 2^e m with m in [sqrt 1/2, sqrt 2); log m = 2 atanh((m - 1) / (m + 1)).
INLINE V vlog(V x) {
    M bits = (M)x;
    M e = (bits - 0x3f3504f3) >> 23;
    V m = (V)(bits - (e << 23));
    V k;
    for (int l = 0; l < LANES; l++) k[l] = (float)e[l];
    V s = (m - 1.0f) / (m + 1.0f), z = s * s;
    V p = z * (1.0f / 9) + 1.0f / 7;
    p = p * z + 0.2f;
    p = p * z + 1.0f / 3;
    V y = 2 * s + 2 * s * z * p;
    return k * 0.693359375f + (y - k * 2.12194440054690583e-4f);
}

// (e^2x - 1) / (e^2x + 1); through expm1, so that small x keep their relative precision.
INLINE V vtanh(V x) {
    V r, y = 2 * x;
    y = sel(y < -30.0f, splat(-30.0f), sel(y > 30.0f, splat(30.0f), y));
    V scale = split_exponent(y, &r);
    V e = scale * series_expm1(r) + (scale - 1);
    return e / (e + 2);
}

// |x| <= 1: x P(x^2); beyond: 1 - exp(-x^2) Q(1 / (x + 3/2)). P and Q interpolate at Chebyshev nodes; the
// approximation errors are 1.3e-9 and 8e-9 relative.
INLINE V verf(V x) {
    V a = sel(x < 0, -x, x), u = x * x;
    V p = u * 7.875875062685488e-05f - 0.000801686428716587f;
    p = p * u + 0.005189087423433974f;
    p = p * u - 0.026854212010626412f;
    p = p * u + 0.11283594715160218f;
    p = p * u - 0.37612626666720334f;
    p = p * u + 1.1283791658483509f;
    V t = 1.0f / (a + 1.5f);
    V q = t * 2.4369884691935138f - 4.755028468683194f;
    q = q * t + 2.35246017301851f;
    q = q * t + 0.5921381129810919f;
    q = q * t + 0.8998006553455711f;
    q = q * t + 0.5601950589008977f;
    q = q * t + 0.0001272182798472527f;
    V tail = 1.0f - vexp(-u) * q;
    tail = sel(a > 4.0f, splat(1.0f), tail);
    V far = sel(x < 0, -tail, tail);
    return sel(a <= 1.0f, x * p, far);
}

INLINE V vsqrt(V x) {
    for (int l = 0; l < LANES; l++) x[l] = sqrtf(x[l]);
    return x;
}
#endif

// Counter-based random bits: zoogen/core/streams.py.
#if defined(__AVX2__) && !defined(__AVX512DQ__) && LANES % 4 == 0
// The square of numbers whose lower and upper halves are the lower halves of these. Without an instruction for 64-bit
// products the compiler computes the mixed one twice.
INLINE U squared(U low, U high) {
    typedef long long Q __attribute__((vector_size(32)));
    union { U all; Q part[sizeof(U) / sizeof(Q)]; } l = {low}, h = {high};
    for (unsigned i = 0; i < sizeof(U) / sizeof(Q); i++) {
        const Q own = (Q)_mm256_mul_epu32((__m256i)l.part[i], (__m256i)l.part[i]);
        const Q mixed = (Q)_mm256_mul_epu32((__m256i)l.part[i], (__m256i)h.part[i]);
        l.part[i] = own + (mixed << 33);
    }
    return l.all;
}
#else
INLINE U squared(U low, U high) {
    const U x = (low & 0xffffffff) | (high << 32);
    return x * x;
}
#endif

// Five rounds, between which halves change places, on place = key * counter.
INLINE U squares_at(U place, U key) {
    const U next = place + key;
    U x = squared(place, place >> 32) + place;
    x = squared(x >> 32, x) + next;
    x = squared(x >> 32, x) + place;
    x = squared(x >> 32, x) + next;
    return x ^ ((squared(x >> 32, x) + place) >> 32);
}

INLINE U squares(U key, uint64_t counter) { return squares_at(key * counter, key); }

// The dropout factors (0 or the scale) of elements first .. first + count: zoogen/train/dropout.py, keep_mask.
static void mask_fill(V *mask, int64_t first, int64_t count, const uint64_t *key, const int64_t *threshold, const real *scale) {
    U keys;
    V scales;
    for (int l = 0; l < LANES; l++) keys[l] = key[l], scales[l] = scale[l];
    for (int64_t pair = first / 2; 2 * pair < first + count; pair++) {
        U bits = squares(keys, (uint64_t)pair);
        V low, high;
        for (int l = 0; l < LANES; l++) {
            low[l] = (int32_t)(uint32_t)bits[l] >= threshold[l] ? scales[l] : 0;
            high[l] = (int32_t)(uint32_t)(bits[l] >> 32) >= threshold[l] ? scales[l] : 0;
        }
        int64_t at = 2 * pair - first;
        if (at >= 0) mask[at] = low;
        if (at + 1 < count) mask[at + 1] = high;
    }
}

// Gather n samples of `features` values into [n, features, LANES].
static void gather(const Args *a, real *to, int64_t from, int64_t n, int64_t features, int64_t pixels) {
    for (int64_t b = 0; b < n; b++) {
        int64_t row[LANES];
        for (int l = 0; l < LANES; l++)
            row[l] = features * (a->gathered ? from + b - a->first : a->order ? a->order[l * a->n_order + from + b] : from + b);
        real *out = to + b * features * LANES;
        if (a->lut) {
            const uint8_t *in[LANES];
            for (int l = 0; l < LANES; l++) in[l] = (const uint8_t *)a->inputs[l] + row[l];
            for (int64_t c = 0; c < features / pixels; c++) {
                const real *lut = a->lut + 256 * c;
                for (int64_t i = c * pixels; i < (c + 1) * pixels; i++)
                    for (int l = 0; l < LANES; l++) out[i * LANES + l] = lut[in[l][i]];
            }
        } else {
            const real *in[LANES];
            for (int l = 0; l < LANES; l++) in[l] = (const real *)a->inputs[l] + row[l];
            for (int64_t i = 0; i < features; i++)
                for (int l = 0; l < LANES; l++) out[i * LANES + l] = in[l][i];
        }
    }
}

// Numbers too small for float32's full precision become 0 while the program runs: a moment that decays towards 0
// would otherwise stay denormal for ever, and slow every step down.
#if defined(__SSE__) && !defined(DOUBLE)
#define FLUSH_BEGIN unsigned csr = __builtin_ia32_stmxcsr(); __builtin_ia32_ldmxcsr(csr | 0x8040)
#define FLUSH_END __builtin_ia32_ldmxcsr(csr)
#else
#define FLUSH_BEGIN
#define FLUSH_END
#endif

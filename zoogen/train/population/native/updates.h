// One optimizer step on all parameters of all lanes: the arithmetic of torch.optim, with every setting per lane.
// Moments that an optimizer does not keep are null pointers.
enum { SGD = 0, ADAM = 1, ADAMW = 2, RMSPROP = 3 };

static void sgd(const Args *a, int64_t n, V rate, V momentum) {
    V *p = (V *)a->weights, *m = (V *)a->first_moment;
    const V *g = (const V *)a->gradients, decay = lanes_of(a->decay);
    for (int64_t i = 0; i < n; i++) {
        V d = g[i] + p[i] * decay;
        if (m) {
            m[i] = m[i] * momentum + d;
            d = a->nesterov ? d + m[i] * momentum : m[i];
        }
        p[i] -= rate * d;
    }
}

static void adam(const Args *a, int64_t n, int64_t at, V rate, V beta1) {
    V *p = (V *)a->weights, *m = (V *)a->first_moment, *v = (V *)a->second_moment;
    const V *g = (const V *)a->gradients, decay = lanes_of(a->decay), beta2 = lanes_of(a->beta2), eps = lanes_of(a->eps);
    const int decoupled = a->optimizer == ADAMW;
    V size, root; // the rate and the second moment's root, corrected for their start at 0
    for (int l = 0; l < LANES; l++) {
        const double b1 = a->momenta ? (double)beta1[l] : a->beta1[l];
        const double step = a->updates[l] + (double)at + 1;
        size[l] = (real)(rate[l] / (1 - pow(b1, step)));
        root[l] = (real)sqrt(1 - pow(a->beta2[l], step));
    }
    for (int64_t i = 0; i < n; i++) {
        V d = g[i], w = p[i];
        if (decoupled)
            w -= w * (rate * decay);
        else
            d += w * decay;
        m[i] += (d - m[i]) * (1 - beta1);
        v[i] = v[i] * beta2 + (1 - beta2) * d * d;
        p[i] = w - size * (m[i] / (vsqrt(v[i]) / root + eps));
    }
}

static void rmsprop(const Args *a, int64_t n, V rate, V momentum) {
    V *p = (V *)a->weights, *m = (V *)a->first_moment, *v = (V *)a->second_moment;
    const V *g = (const V *)a->gradients, decay = lanes_of(a->decay), alpha = lanes_of(a->beta2), eps = lanes_of(a->eps);
    for (int64_t i = 0; i < n; i++) {
        V d = g[i] + p[i] * decay;
        v[i] = v[i] * alpha + (1 - alpha) * d * d;
        d /= vsqrt(v[i]) + eps;
        if (m) d = m[i] = m[i] * momentum + d;
        p[i] -= rate * d;
    }
}

// Step number `at` of this call, on the first n parameters.
static void update(const Args *a, int64_t n, int64_t at) {
    const V rate = *(const V *)(a->rates + at * LANES);
    const V momentum = a->momenta ? *(const V *)(a->momenta + at * LANES) : lanes_of(a->beta1);
    if (a->optimizer == SGD)
        sgd(a, n, rate, momentum);
    else if (a->optimizer == RMSPROP)
        rmsprop(a, n, rate, momentum);
    else
        adam(a, n, at, rate, momentum);
}

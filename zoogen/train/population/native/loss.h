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

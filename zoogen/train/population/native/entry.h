// What Python calls: training steps on consecutive batches, and evaluation. NOISY is where the weights with noise lie.
void zoogen_train(const Args *a) {
    FLUSH_BEGIN;
    V *s = (V *)a->scratch;
    int64_t step = 0;
    for (int64_t done = 0; done < a->samples; done += BATCH, step++) {
        const int64_t n = a->samples - done < BATCH ? a->samples - done : BATCH;
        const int last = done + n == a->samples;
        memset(a->gradients, 0, P * sizeof(V));
#ifdef NOISY
        start_step(a, s + NOISY);
#endif
        for (int64_t at = 0; at < n; at += CHUNK) {
            const int64_t nb = n - at < CHUNK ? n - at : CHUNK;
            gather(a, (real *)(s + INPUT), a->first + done + at, nb, FEATURES, PIXELS);
            forward_train(a, s, nb, at, step);
            loss(a, s + OUTPUT, s + OUTPUT_GRADIENT, a->first + done + at, nb, n);
            backward(a, s, nb);
        }
#ifdef NOISY
        finish_step(a);
#endif
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
#ifdef NOISY
    start_evaluation(a, s + NOISY);
#endif
    for (int64_t at = 0; at < a->samples; at += CHUNK) {
        const int64_t nb = a->samples - at < CHUNK ? a->samples - at : CHUNK;
        gather(a, (real *)(s + INPUT), a->first + at, nb, FEATURES, PIXELS);
        forward_evaluate(a, s, nb, 0, 0);
        memcpy(a->outputs + at * CLASSES * LANES, s + OUTPUT, nb * CLASSES * sizeof(V));
    }
    FLUSH_END;
}

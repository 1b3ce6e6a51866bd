/* The divergences besides the forward KL, compiled once per TARGET after kl_rows_body.h, whose names it uses.
 *
 * Two sweeps over a row that is in cache: values and the mean slope sum q psi, then the gradient q (psi - mean). Ratios to
 * a mixture m are taken as log1p of a difference of the two probabilities as they were computed, so that what their
 * normalizers are off by cancels and a student near its teacher keeps its digits. Log-probabilities are cut at -87.
 */

/* log(1 + x) for 1 + x > 0, error below 1e-7 of the result (Cephes' logf; the rounding of 1 + x is made up for). */
INLINE vf NAME(log1p)(vf x) {
    vf u = NAME(at_least)(1.0f + x, 1.2e-38f);
    vf lost = x - (u - 1.0f);
    vi exponent = (((vi)u >> 23) & 0xff) - 126;
    vf m = (vf)(((vi)u & 0x007fffff) | 0x3f000000); /* in [0.5, 1) */
    vi under = m < 0.70710678118654752f;
    exponent += under; /* a true lane is -1 */
    vf f = (vf)((vi)m & under) + m - 1.0f;
    vf e = __builtin_convertvector(exponent, vf), z = f * f;
    vf y = f * 7.0376836292e-2f - 1.1514610310e-1f;
    y = y * f + 1.1676998740e-1f;
    y = y * f - 1.2420140846e-1f;
    y = y * f + 1.4249322787e-1f;
    y = y * f - 1.6668057665e-1f;
    y = y * f + 2.0000714765e-1f;
    y = y * f - 2.4999993993e-1f;
    y = y * f + 3.3333331174e-1f;
    y = y * f * z - e * 2.12194440e-4f - 0.5f * z;
    return f + y + e * 0.693359375f + lost / u;
}

typedef struct {
    vf p, q, kl, weighted, psi;
} NAME(point);

INLINE NAME(point) NAME(divergences_at)(const NAME(row_state) *state, const terms_of *w, vf s, vf t) {
    vf s_raw = (s - state->s_max) * state->inverse_temperature - state->s_log;
    vf t_logp = NAME(at_least)((t - state->t_max) * state->inverse_temperature - state->t_log, -87.0f);
    vf s_logp = NAME(at_least)(s_raw, -87.0f);
    NAME(point) x = {.p = NAME(exponential)(t_logp), .q = NAME(exponential)(s_logp), .psi = {0}};
    vf p = x.p, q = x.q, excess = q - p;
    x.kl = p * (t_logp - s_raw) + excess;
    x.weighted = w->kl * x.kl;
    if (w->reverse_kl != 0.0f) {
        vf ratio = s_logp - t_logp;
        x.weighted += w->reverse_kl * (q * ratio - excess);
        x.psi += w->reverse_kl * ratio;
    }
    if (w->js != 0.0f) {
        float b = w->beta, rest = 1.0f - w->beta;
        vf of_q = -NAME(log1p)(-b * excess / q), of_p = -NAME(log1p)(rest * excess / p);
        x.weighted += w->js * (b * (p * of_p) + rest * (q * of_q));
        x.psi += w->js * rest * of_q;
    }
    float a = w->alpha, rest = 1.0f - w->alpha;
    if (w->skew_kl != 0.0f) {
        x.weighted += w->skew_kl * (rest * excess - p * NAME(log1p)(rest * excess / p));
        x.psi += w->skew_kl * rest * rest * excess / (p + rest * excess);
    }
    if (w->skew_reverse_kl != 0.0f) {
        vf of_q = -NAME(log1p)(-rest * excess / q);
        x.weighted += w->skew_reverse_kl * (q * of_q - rest * excess);
        x.psi += w->skew_reverse_kl * (of_q - a * rest * excess / (q - rest * excess));
    }
    return x;
}

typedef struct {
    double kl, weighted, mean;
} NAME(row_sums);

INLINE NAME(row_sums) NAME(values)(const void *student, const void *teacher, int64_t vocab, const NAME(row_state) *state,
                                   const terms_of *w, int s_dtype, int t_dtype) {
    NAME(row_sums) sums = {0.0, 0.0, 0.0};
    for (int64_t begin = 0; begin < vocab; begin += FLUSH) {
        int64_t end = begin + FLUSH < vocab ? begin + FLUSH : vocab, i = begin;
        vf kl = {0}, weighted = {0}, mean = {0};
        for (; i < end; i += LANES) {
            int64_t count = end - i < LANES ? end - i : LANES;
            vf s = NAME(load)(student, s_dtype, i, count, state->s_max), t = NAME(load)(teacher, t_dtype, i, count, state->t_max);
            NAME(point) x = NAME(divergences_at)(state, w, s, t);
            if (count == LANES) {
                kl += x.kl;
                weighted += x.weighted;
                mean += x.q * x.psi;
            } else {
                sums.kl += NAME(lane_sum)(x.kl, count);
                sums.weighted += NAME(lane_sum)(x.weighted, count);
                sums.mean += NAME(lane_sum)(x.q * x.psi, count);
            }
        }
        sums.kl += NAME(lane_sum)(kl, LANES);
        sums.weighted += NAME(lane_sum)(weighted, LANES);
        sums.mean += NAME(lane_sum)(mean, LANES);
    }
    return sums;
}

INLINE void NAME(gradients)(void *student, const void *teacher, int64_t vocab, const NAME(row_state) *state,
                            const terms_of *w, int64_t label, float mean, int s_dtype, int t_dtype) {
    for (int64_t i = 0; i < vocab; i += LANES) {
        int64_t count = vocab - i < LANES ? vocab - i : LANES;
        vf s = NAME(load)(student, s_dtype, i, count, state->s_max), t = NAME(load)(teacher, t_dtype, i, count, state->t_max);
        NAME(point) x = NAME(divergences_at)(state, w, s, t);
        vf gradient = (w->kl * (x.q - x.p) + x.q * (x.psi - mean)) * state->inverse_temperature;
        if (state->ce_scale != 0.0f) gradient += state->ce_scale * NAME(exponential)(s - state->s_max - state->s_plain_log);
        if (label >= i && label < i + count) gradient[label - i] -= state->ce_scale;
        NAME(store)(student, s_dtype, i, count, gradient);
    }
}

/* The row pass, compiled once per TARGET from GCC/Clang vector types that fill one register of it. */
#define INLINE TARGET static inline __attribute__((always_inline))
#define vf NAME(vec_float)
#define vi NAME(vec_int)
#define vu NAME(vec_unsigned)
#define vh NAME(vec_half)

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));

INLINE vf NAME(splat)(float x) { return x - (vf){0}; }

/* Lanes from `count` on are filled with `fill`. */
INLINE vf NAME(load)(const void *row, int dtype, int64_t i, int64_t count, float fill) {
    if (count >= LANES) {
        if (dtype == F32) {
            vf x;
            memcpy(&x, (const float *)row + i, sizeof x);
            return x;
        }
        vh half;
        memcpy(&half, (const uint16_t *)row + i, sizeof half);
        return (vf)(__builtin_convertvector(half, vu) << 16);
    }
    float buffer[LANES];
    for (int64_t lane = 0; lane < LANES; lane++) buffer[lane] = lane < count ? logit_at(row, dtype, i + lane) : fill;
    vf x;
    memcpy(&x, buffer, sizeof x);
    return x;
}

INLINE void NAME(store)(void *row, int dtype, int64_t i, int64_t count, vf x) {
    if (count < LANES) {
        for (int64_t lane = 0; lane < count; lane++) put_logit(row, dtype, i + lane, x[lane]);
    } else if (dtype == F32) {
        memcpy((float *)row + i, &x, sizeof x);
    } else {
        vu bits = (vu)x;
        vh half = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, vh);
        memcpy((uint16_t *)row + i, &half, sizeof half);
    }
}

/* `low` where x < low, else x; NaN stays NaN. */
INLINE vf NAME(at_least)(vf x, float low) {
    vi under = x < low;
    return (vf)(((vi)x & ~under) | ((vi)NAME(splat)(low) & under));
}

INLINE vf NAME(larger)(vf a, vf b) {
    vi take = b > a;
    return (vf)(((vi)a & ~take) | ((vi)b & take));
}

/* exp for x <= ~0, error below 2 units in the last place; x is cut at -87, where the result is 1.6e-38 (Cephes' expf). */
INLINE vf NAME(exponential)(vf x) {
    const float magic = 0x1.8p23f;
    x = NAME(at_least)(x, -87.0f);
    vf shifted = x * 1.44269504088896341f + magic;
    vi power = (vi)shifted << 23;
    vf n = shifted - magic;
    vf r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vf y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    return (vf)((vi)y + power);
}

INLINE double NAME(lane_sum)(vf x, int64_t count) {
    double total = 0.0;
    for (int64_t lane = 0; lane < count; lane++) total += x[lane];
    return total;
}

INLINE float NAME(row_maximum)(const void *row, int dtype, int64_t vocab) {
    vf a = NAME(splat)(-INFINITY), b = a;
    int64_t i = 0;
    for (; i + 2 * LANES <= vocab; i += 2 * LANES) {
        a = NAME(larger)(a, NAME(load)(row, dtype, i, LANES, 0.0f));
        b = NAME(larger)(b, NAME(load)(row, dtype, i + LANES, LANES, 0.0f));
    }
    for (; i < vocab; i += LANES) a = NAME(larger)(a, NAME(load)(row, dtype, i, vocab - i, -INFINITY));
    a = NAME(larger)(a, b);
    float maximum = a[0];
    for (int lane = 1; lane < LANES; lane++) maximum = a[lane] > maximum ? a[lane] : maximum;
    return maximum;
}

/* log sum exp((x - maximum) * scale) over the row */
INLINE float NAME(log_normalizer)(const void *row, int dtype, int64_t vocab, float maximum, float scale) {
    double total = 0.0;
    for (int64_t begin = 0; begin < vocab; begin += FLUSH) {
        int64_t end = begin + FLUSH < vocab ? begin + FLUSH : vocab, i = begin;
        vf a = {0}, b = {0};
        for (; i + 2 * LANES <= end; i += 2 * LANES) {
            a += NAME(exponential)((NAME(load)(row, dtype, i, LANES, 0.0f) - maximum) * scale);
            b += NAME(exponential)((NAME(load)(row, dtype, i + LANES, LANES, 0.0f) - maximum) * scale);
        }
        for (; i < end; i += LANES) {
            int64_t count = end - i < LANES ? end - i : LANES;
            vf e = NAME(exponential)((NAME(load)(row, dtype, i, count, maximum) - maximum) * scale);
            if (count == LANES) a += e;
            else total += NAME(lane_sum)(e, count);
        }
        total += NAME(lane_sum)(a + b, LANES);
    }
    return (float)log(total);
}

typedef struct {
    float s_max, t_max, s_log, t_log, s_plain_log; /* log normalizers relative to the maxima */
    float kl_scale, ce_scale, inverse_temperature;
} NAME(row_state);

INLINE vf NAME(divergence_at)(const NAME(row_state) *state, vf s, vf t, int plain, vf *gradient) {
    vf s_shifted = s - state->s_max, t_shifted = t - state->t_max;
    vf s_logp = s_shifted * state->inverse_temperature - state->s_log;
    vf t_logp = NAME(at_least)(t_shifted * state->inverse_temperature - state->t_log, -87.0f);
    vf q = NAME(exponential)(s_logp), p = NAME(exponential)(t_logp);
    vf excess = q - p;
    *gradient = state->kl_scale * excess;
    if (plain) *gradient += state->ce_scale * q;
    else if (state->ce_scale != 0.0f) *gradient += state->ce_scale * NAME(exponential)(s_shifted - state->s_plain_log);
    return p * (t_logp - s_logp) + excess;
}

INLINE float NAME(divergence)(void *student, const void *teacher, int64_t vocab, const NAME(row_state) *state,
                              int s_dtype, int t_dtype, int plain, int want_gradient) {
    double total = 0.0;
    for (int64_t begin = 0; begin < vocab; begin += FLUSH) {
        int64_t end = begin + FLUSH < vocab ? begin + FLUSH : vocab, i = begin;
        vf sum = {0}, gradient;
        for (; i + LANES <= end; i += LANES) {
            vf s = NAME(load)(student, s_dtype, i, LANES, 0.0f), t = NAME(load)(teacher, t_dtype, i, LANES, 0.0f);
            sum += NAME(divergence_at)(state, s, t, plain, &gradient);
            if (want_gradient) NAME(store)(student, s_dtype, i, LANES, gradient);
        }
        total += NAME(lane_sum)(sum, LANES);
        if (i < end) {
            vf s = NAME(load)(student, s_dtype, i, end - i, state->s_max);
            vf t = NAME(load)(teacher, t_dtype, i, end - i, state->t_max);
            total += NAME(lane_sum)(NAME(divergence_at)(state, s, t, plain, &gradient), end - i);
            if (want_gradient) NAME(store)(student, s_dtype, i, end - i, gradient);
        }
    }
    return (float)total;
}

#include "divergences_body.h"

INLINE void NAME(one_row)(const rows_job *job, int64_t index, int s_dtype, int t_dtype) {
    int64_t vocab = job->vocab;
    char *student = (char *)job->student + index * vocab * (s_dtype == F32 ? 4 : 2);
    const char *teacher = (const char *)job->teacher + index * vocab * (t_dtype == F32 ? 4 : 2);
    int64_t label = job->labels ? job->labels[index] : -1;
    int known = label >= 0 && label < vocab, plain = job->inverse_temperature == 1.0f;
    NAME(row_state) state = {.kl_scale = job->terms.kl * job->inverse_temperature, .ce_scale = known ? job->ce_scale : 0.0f,
                             .inverse_temperature = job->inverse_temperature};
    state.s_max = NAME(row_maximum)(student, s_dtype, vocab);
    state.t_max = NAME(row_maximum)(teacher, t_dtype, vocab);
    if (job->top1)
        job->top1[index] = first_equal(student, s_dtype, vocab, state.s_max) == first_equal(teacher, t_dtype, vocab, state.t_max);
    state.s_log = NAME(log_normalizer)(student, s_dtype, vocab, state.s_max, job->inverse_temperature);
    state.t_log = NAME(log_normalizer)(teacher, t_dtype, vocab, state.t_max, job->inverse_temperature);
    state.s_plain_log = state.s_log;
    float t_plain_log = state.t_log, s_label = 0.0f, t_label = 0.0f;
    if (known) {
        s_label = logit_at(student, s_dtype, label) - state.s_max;
        t_label = logit_at(teacher, t_dtype, label) - state.t_max;
        if (!plain) {
            state.s_plain_log = NAME(log_normalizer)(student, s_dtype, vocab, state.s_max, 1.0f);
            t_plain_log = NAME(log_normalizer)(teacher, t_dtype, vocab, state.t_max, 1.0f);
        }
    }
    job->nll_student[index] = known ? state.s_plain_log - s_label : 0.0f;
    job->nll_teacher[index] = known ? t_plain_log - t_label : 0.0f;
    if (job->others) {
        const terms_of *terms = &job->terms;
        NAME(row_sums) sums = NAME(values)(student, teacher, vocab, &state, terms, s_dtype, t_dtype);
        job->kl[index] = (float)sums.kl;
        job->weighted[index] = (float)sums.weighted;
        if (job->want_gradient)
            NAME(gradients)(student, teacher, vocab, &state, terms, known ? label : -1, (float)sums.mean, s_dtype, t_dtype);
        return;
    }
    if (!job->want_gradient) job->kl[index] = NAME(divergence)(student, teacher, vocab, &state, s_dtype, t_dtype, plain, 0);
    else if (plain) job->kl[index] = NAME(divergence)(student, teacher, vocab, &state, s_dtype, t_dtype, 1, 1);
    else job->kl[index] = NAME(divergence)(student, teacher, vocab, &state, s_dtype, t_dtype, 0, 1);
    job->weighted[index] = job->terms.kl * job->kl[index];
    if (job->want_gradient && known) { /* the one-hot of the cross entropy, before the entry is rounded */
        float q = expf(s_label * job->inverse_temperature - state.s_log);
        float p = expf(t_label * job->inverse_temperature - state.t_log);
        float own = expf(s_label - state.s_plain_log) - 1.0f;
        put_logit(student, s_dtype, label, state.kl_scale * (q - p) + state.ce_scale * own);
    }
}

TARGET static void NAME(divergence_rows)(void *data, int64_t begin, int64_t end) {
    const rows_job *job = data;
    for (int64_t row = begin; row < end; row++) {
        if (job->student_dtype == BF16 && job->teacher_dtype == BF16) NAME(one_row)(job, row, BF16, BF16);
        else if (job->student_dtype == F32 && job->teacher_dtype == F32) NAME(one_row)(job, row, F32, F32);
        else NAME(one_row)(job, row, job->student_dtype, job->teacher_dtype);
    }
}
#undef INLINE
#undef vf
#undef vi
#undef vu
#undef vh

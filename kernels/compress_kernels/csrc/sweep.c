/* Rounding columns one after the other, each seeing what the ones before it have cost: the inner loop of GPTQ and of
 * coordinate descent (see sweep.py). Rows are independent, so threads share them; a row's 128 columns, scales and errors
 * stay in L1, and the update of the columns still free is one multiply-add each: rows * b^2 / 2 in all.
 */
#include <math.h>
#include <stddef.h>

#include "parallel.h"

typedef struct {
    float *work;           /* [rows, b], in: what is left to place; out: where each column was aimed */
    const float *anchor;   /* [rows, b] or NULL */
    const float *coupling; /* [b, b] */
    const float *pivot, *gain; /* [b] */
    const float *scale, *offset; /* [rows, b]; offset may be NULL */
    const float *table;    /* ascending [entries] */
    float *levels, *moved; /* [rows, b] */
    int64_t columns;
    int entries, uniform;
} sweep_job;

static inline float nearest(float x, const sweep_job *job) {
    if (job->uniform) {
        float q = rintf(x), low = job->table[0], high = job->table[job->entries - 1];
        return q < low ? low : (q > high ? high : q);
    }
    int below = 0;
    for (int i = 0; i + 1 < job->entries; i++) below += x > (job->table[i] + job->table[i + 1]) / 2;
    return job->table[below];
}

__attribute__((optimize("no-math-errno"))) static void sweep_rows(void *opaque, int64_t begin, int64_t end) {
    const sweep_job *job = opaque;
    int64_t n = job->columns;
    for (int64_t r = begin; r < end; r++) {
        float *work = job->work + r * n, *levels = job->levels + r * n, *moved = job->moved + r * n;
        const float *scale = job->scale + r * n;
        const float *anchor = job->anchor ? job->anchor + r * n : NULL;
        const float *offset = job->offset ? job->offset + r * n : NULL;
        for (int64_t j = 0; j < n; j++) {
            float x = work[j] * job->pivot[j] + (anchor ? anchor[j] : 0.0f);
            float shift = offset ? offset[j] : 0.0f;
            float inverse = scale[j] == 0.0f ? 0.0f : 1.0f / scale[j];
            float level = nearest((x - shift) * inverse, job);
            float value = level * scale[j] + shift;
            float m = (anchor ? value - anchor[j] : x - value) * job->gain[j];
            const float *row = job->coupling + j * n;
            work[j] = x;
            levels[j] = level;
            moved[j] = m;
            for (int64_t k = j + 1; k < n; k++) work[k] -= m * row[k];
        }
    }
}

EXPORT void ck_sweep_columns(float *work, const float *anchor, const float *coupling, const float *pivot,
                             const float *gain, const float *scale, const float *offset, const float *table,
                             int entries, int uniform, float *levels, float *moved, int64_t rows, int64_t columns,
                             int threads) {
    sweep_job job = {work, anchor, coupling, pivot, gain, scale, offset, table, levels, moved, columns, entries, uniform};
    parallel_range(rows, 16, threads, sweep_rows, &job);
}

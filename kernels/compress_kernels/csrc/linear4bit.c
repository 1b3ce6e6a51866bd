/* A few rows times 4-bit weights, decoded in registers: y_n = sum_j (table[code_nj] * scale_b + offset_b) x_j + bias_n.
 *
 * Weights [outs, width] lie flattened, the first of a pair in the high nibble; block b = (n * width + j) / block has one
 * scale and maybe one offset. Within a block the scale is taken out of the sum, so a weight costs one look-up in a register
 * (a permutation of the 16 table values by the nibble) and one fused multiply-add; all sums are fp32.
 *
 * Eight weights are one 32-bit lane of codes. A vector of L lanes therefore holds 8 L weights, and its k-th nibbles belong to
 * the weights 8 l + k: the rows are put into that order first, once a call (order_rows), and padded with zeros. A lane never straddles two blocks
 * if width and block are multiples of 8; other widths take the portable loop.
 *
 * Bytes per weight at block 64 with fp32 scales: 0.5625, for one look-up and one FMA on 16 lanes: memory sets the pace. At
 * 10 GB/s 576 x 1536 take 50 us; bf16 weights take 177.
 */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "parallel.h"

enum { NIBBLES = 8, PIECE_WEIGHTS = 1 << 17 };

typedef struct {
    const float *x;    /* rows as the target wants them: [count, padded] */
    const float *sums; /* of the NIBBLES numbers of each lane, [count, padded / NIBBLES]; NULL without offsets */
    const uint8_t *codes;
    const void *scales;
    const float *offsets; /* or NULL */
    const float *table;   /* 16 */
    const void *bias;     /* or NULL */
    void *out;
    int64_t count, width, padded, outs, block;
    int shift; /* log2(block) */
    int scale_dtype, bias_dtype, dtype;
} gemv_job;

static inline void finish(const gemv_job *job, int64_t row, int64_t channel, float y) {
    if (job->bias) y += load_number(job->bias, job->bias_dtype, channel);
    store_number(job->out, job->dtype, row * job->outs + channel, y);
}

static void order_rows_portable(const void *source, int dtype, const gemv_job *job, float *x, float *sums) {
    (void)sums;
    for (int64_t row = 0; row < job->count; row++)
        for (int64_t i = 0; i < job->width; i++) x[row * job->padded + i] = load_number(source, dtype, row * job->width + i);
}

/* Any width, rows in their own order. */
static void gemv_portable(void *data, int64_t begin, int64_t end) {
    const gemv_job *job = data;
    float both[256][2]; /* the two weights of a byte: one look-up for them */
    for (int byte = 0; byte < 256; byte++) both[byte][0] = job->table[byte >> 4], both[byte][1] = job->table[byte & 15];
    for (int64_t channel = begin; channel < end; channel++) {
        for (int64_t row = 0; row < job->count; row++) {
            const float *x = job->x + row * job->padded;
            int64_t flat = channel * job->width, last = flat + job->width;
            float y = 0.0f;
            while (flat < last) {
                int64_t block = flat >> job->shift, stop = (block + 1) << job->shift;
                if (stop > last) stop = last;
                /* sums of their own for every nibble of a lane: one alone would wait for itself at every step */
                float products[NIBBLES] = {0}, sums[NIBBLES] = {0};
                if (flat % 2 == 0) {
                    for (; flat + NIBBLES <= stop; flat += NIBBLES, x += NIBBLES) {
                        const uint8_t *pairs = job->codes + flat / 2;
                        float weights[NIBBLES];
                        for (int i = 0; i < NIBBLES; i += 2) memcpy(weights + i, both[pairs[i / 2]], 2 * sizeof(float));
                        for (int i = 0; i < NIBBLES; i++) products[i] += weights[i] * x[i];
                        if (job->offsets)
                            for (int i = 0; i < NIBBLES; i++) sums[i] += x[i];
                    }
                }
                for (; flat < stop; flat++, x++) {
                    products[0] += job->table[job->codes[flat / 2] >> (flat % 2 ? 0 : 4) & 15] * *x;
                    sums[0] += *x;
                }
                float product = 0.0f, sum = 0.0f;
                for (int i = 0; i < NIBBLES; i++) product += products[i], sum += sums[i];
                y += product * load_number(job->scales, job->scale_dtype, block);
                if (job->offsets) y += sum * job->offsets[block];
            }
            finish(job, row, channel, y);
        }
    }
}

#if defined(__x86_64__)
#include <immintrin.h>
#define HALVES 1
#include "linear4bit_avx2.h"
#include "convert_body.h"
#include "linear4bit_body.h"
#undef TARGET
#undef NAME
#undef LANES
#include "linear4bit_avx512.h"
#include "convert_body.h"
#include "linear4bit_body.h"
#undef TARGET
#undef NAME
#undef LANES
#endif

/* Returns 0, or 1 if there is no memory for the reordered rows. block is a power of two, at least 32. */
EXPORT int ck_linear_4bit(const void *x, int dtype, int64_t rows, int64_t width, const uint8_t *codes, const void *scales,
                          int scale_dtype, const float *offsets, const float *table, int64_t block, const void *bias,
                          int bias_dtype, void *out, int64_t outs, int threads, int level) {
    if (width % NIBBLES) level = 0;
    const int64_t chunk = 16 * NIBBLES, padded = (width + chunk - 1) / chunk * chunk;
    float *ordered = malloc((size_t)(rows * padded) * sizeof(float) * 9 / 8);
    if (!ordered) return 1;
    float *sums = offsets ? ordered + rows * padded : NULL;
    int shift = 0;
    while ((int64_t)1 << shift < block) shift++;
    gemv_job job = {ordered, sums, codes, scales, offsets, table, bias, out, rows, width, padded, outs, block,
                    shift, scale_dtype, bias_dtype, dtype};
    range_fn fn = gemv_portable;
    void (*order)(const void *, int, const gemv_job *, float *, float *) = order_rows_portable;
#if defined(__x86_64__)
    if (level == 1) fn = gemv_avx2, order = order_rows_avx2;
    if (level >= 2) fn = gemv_avx512, order = order_rows_avx512;
#endif
    order(x, dtype, &job, ordered, sums);
    parallel_range(outs, 1 + PIECE_WEIGHTS / (width + 1), threads, fn, &job);
    free(ordered);
    return 0;
}

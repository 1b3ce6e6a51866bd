/* INT8 weights (one scale a row) times INT8 activations (one scale a token): the row pass, the small product, the scaling.
 *
 * Token x of K numbers: a = max|x|, q = clamp(round(x * ((1 / a) * 127)), -127, 127), ties to even; then
 *     y_n = (float)(sum_k q_k w_nk) * (a * b_n) * UNIT + bias_n
 * with every step rounded in this order (compiled with -ffp-contract=off), so that the bits are those of reference.py and of
 * bitsandbytes. A number that is not one gets code 0, and its token's absmax (NaN or infinity) carries it into every y.
 *
 * VNNI multiplies unsigned by signed bytes: w ^ 0x80 is w + 128 unsigned, and 128 * sum(q) is taken off at the end. All sums
 * are exact modulo 2^32, and the true one fits 31 bits up to K = 133,000.
 *
 * A few rows read each weight byte once and do 2 operations a row with it, so memory sets the pace: 576 x 1536 in 88 us at
 * 10 GB/s, of which the row pass is below 1.
 */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "parallel.h"

static const float LEVELS = 127.0f;
static const float INTEGER_MAGIC = 0x1.8p23f; /* adding it rounds to an integer, left in the low mantissa bits */
enum { CHUNK = 512, CHANNELS = 4, PIECE_BYTES = 1 << 16 };

typedef struct {
    const void *x;
    int dtype;
    int64_t width;
    int8_t *codes;
    float *absmax;
} quantize_rows_job;

typedef struct {
    const int32_t *product; /* [rows, outs] */
    const float *row_absmax, *absmax;
    const void *bias; /* or NULL */
    void *out;
    int64_t outs;
    float unit;
    int bias_dtype, dtype;
} scale_job;

typedef struct {
    const int8_t *rows, *codes; /* [count, width], [outs, width] */
    const int32_t *sums;        /* of each row's codes */
    int64_t count, width;
    scale_job scale;
} product_job;


#define TARGET
#define NAME(x) x##_portable
#define HALVES 0
#include "convert_body.h"
#include "int8_body.h"
#undef TARGET
#undef NAME
#undef HALVES

#if defined(__x86_64__)
#include <immintrin.h>
#define HALVES 1
#define TARGET __attribute__((target("avx2,f16c")))
#define NAME(x) x##_avx2
#include "convert_body.h"
#include "int8_body.h"
#undef TARGET
#undef NAME
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c" WIDE_VECTORS)))
#define NAME(x) x##_avx512
#include "convert_body.h"
#include "int8_body.h"
#undef TARGET
#undef NAME
#include "int8_vnni.h"
#endif

EXPORT void ck_quantize_rows_int8(const void *x, int dtype, int64_t rows, int64_t width, int8_t *codes, float *absmax,
                                  int threads, int level) {
    quantize_rows_job job = {x, dtype, width, codes, absmax};
    range_fn fn = quantize_rows_portable;
#if defined(__x86_64__)
    if (level == 1) fn = quantize_rows_avx2;
    if (level >= 2) fn = quantize_rows_avx512;
#endif
    parallel_range(rows, 1 + PIECE_BYTES / (width + 1), threads, fn, &job);
}

EXPORT void ck_scale_int8(const int32_t *product, const float *row_absmax, const float *absmax, const void *bias,
                          int bias_dtype, void *out, int dtype, int64_t rows, int64_t outs, float unit, int threads,
                          int level) {
    scale_job job = {product, row_absmax, absmax, bias, out, outs, unit, bias_dtype, dtype};
    range_fn fn = scale_rows_portable;
#if defined(__x86_64__)
    if (level == 1) fn = scale_rows_avx2;
    if (level >= 2) fn = scale_rows_avx512;
#endif
    parallel_range(rows, 1 + PIECE_BYTES / (outs + 1), threads, fn, &job);
}

/* All of it for a few rows. Returns 0, or 1 if there is no memory for the codes of the rows. */
EXPORT int ck_linear_int8(const void *x, int dtype, int64_t rows, int64_t width, const int8_t *codes, const float *absmax,
                          const void *bias, int bias_dtype, void *out, int64_t outs, float unit, int threads, int level) {
    float *row_absmax = malloc((size_t)rows * (8 + (size_t)width));
    if (!row_absmax) return 1;
    int32_t *sums = (int32_t *)(row_absmax + rows);
    int8_t *quantized = (int8_t *)(sums + rows);
    ck_quantize_rows_int8(x, dtype, rows, width, quantized, row_absmax, 1, level);
    for (int64_t row = 0; row < rows; row++) {
        int32_t sum = 0;
        for (int64_t i = 0; i < width; i++) sum += quantized[row * width + i];
        sums[row] = sum;
    }
    product_job job = {quantized, codes, sums, rows, width, {NULL, row_absmax, absmax, bias, out, outs, unit, bias_dtype, dtype}};
    range_fn fn = product_portable;
#if defined(__x86_64__)
    if (level == 1) fn = product_avx2;
    if (level == 2) fn = product_avx512;
    if (level >= 3) fn = product_vnni;
#endif
    int64_t blocks = (outs + CHANNELS - 1) / CHANNELS;
    parallel_range(blocks, 1 + PIECE_BYTES / (CHANNELS * width + 1), threads, fn, &job);
    free(row_absmax);
    return 0;
}

/* Blockwise 4-bit quantization (NF4, FP4) with the bits of bitsandbytes' CPU path.
 *
 * Per block of B weights: a = max|w|, r = 1 / max(a, 1e-38), code = number of bounds b_k with not (w * r <= b_k).
 * NaN therefore lands in the last bin, as torch.bucketize puts it there. A last, incomplete block divides by a instead of
 * multiplying by r, and stores max(a, 1e-38): bitsandbytes does so, and the bits must match. All products are rounded once
 * (this file is compiled with -ffp-contract=off).
 *
 * Bytes per weight: 2 (bf16) in, 0.5 + 4/B out; about one vector operation per weight and 16 lanes, so memory sets the pace.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "numbers.h"
#include "parallel.h"

static const float ABSMAX_FLOOR = 1e-38f;

typedef struct {
    const void *weights;
    const float *bounds;   /* 15, ascending */
    const uint8_t *order;  /* 16: position on the sorted axis -> code */
    const float *given;    /* absmax to encode for, or NULL to measure it */
    float *absmax;         /* measured absmax out, or NULL */
    uint8_t *codes;
    int64_t count, block;
    int dtype;
} quantize_job;

typedef struct {
    const uint8_t *codes;
    const void *scales;
    const float *offsets; /* one a block, or NULL */
    const float *table;   /* 16, by code */
    void *out;
    int64_t count, block;
    int scale_dtype, dtype;
} dequantize_job;

typedef struct {
    dequantize_job all;
    const int64_t *ids;
    int64_t width;
    range_fn blocks;
} decode_rows_job;

/* The scale divides with its sign: an effective absmax (offset + residual) can come out slightly negative. */
static inline float divisor_of(float absmax) {
    float magnitude = fabsf(absmax);
    if (magnitude < ABSMAX_FLOOR) magnitude = ABSMAX_FLOOR;
    return copysignf(magnitude, absmax);
}

static inline float scaled_value(const dequantize_job *job, int64_t index, int code) {
    float value = job->table[code] * load_number(job->scales, job->scale_dtype, index);
    return job->offsets ? value + job->offsets[index] : value;
}

#define TARGET
#define NAME(x) x##_portable
#include "blockwise4bit_loop.h"
#undef TARGET
#undef NAME

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx2")))
#define NAME(x) x##_avx2
#include "blockwise4bit_loop.h"
#undef TARGET
#undef NAME
#include "blockwise4bit_avx512.h"
#endif

/* level: 0 portable, 1 AVX2, 2 AVX-512, 3 with VNNI; the caller asks for the best with ck_cpu_level(), tests for each. */
EXPORT int ck_cpu_level(void) {
#if defined(__x86_64__)
    unsigned a, b, c = 0, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C)) return 0; /* older clang has no such word for the builtin */
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq"))
        return 1;
    return __builtin_cpu_supports("avx512vnni") ? 3 : 2;
#endif
    return 0;
}

EXPORT void ck_quantize_4bit(const void *weights, int dtype, int64_t count, int64_t block, const float *bounds,
                             const uint8_t *order, const float *given, float *absmax, uint8_t *codes, int threads,
                             int level) {
    quantize_job job = {weights, bounds, order, given, absmax, codes, count, block, dtype};
    range_fn fn = quantize_blocks_portable;
#if defined(__x86_64__)
    if (level == 1) fn = quantize_blocks_avx2;
    if (level >= 2) fn = quantize_blocks_avx512;
#endif
    prefer_huge_pages(codes, count / 2);
    parallel_range((count + block - 1) / block, 65536 / block, threads, fn, &job);
}

static range_fn dequantizer(int level) {
#if defined(__x86_64__)
    if (level == 1) return dequantize_blocks_avx2;
    if (level >= 2) return dequantize_blocks_avx512;
#endif
    (void)level;
    return dequantize_blocks_portable;
}

/* table[code] * scale, plus the block's offset if there are offsets: each step rounded, and once more to dtype. */
EXPORT void ck_dequantize_4bit(const uint8_t *codes, const void *scales, int scale_dtype, const float *offsets,
                               const float *table, void *out, int dtype, int64_t count, int64_t block, int threads,
                               int level) {
    dequantize_job job = {codes, scales, offsets, table, out, count, block, scale_dtype, dtype};
    prefer_huge_pages(out, count * bytes_of(dtype));
    parallel_range((count + block - 1) / block, 262144 / block, threads, dequantizer(level), &job);
}

static void decode_rows(void *data, int64_t begin, int64_t end) {
    const decode_rows_job *job = data;
    const int64_t blocks = job->width / job->all.block;
    for (int64_t row = begin; row < end; row++) {
        dequantize_job one = job->all;
        one.codes += job->ids[row] * job->width / 2;
        one.scales = (const char *)one.scales + job->ids[row] * blocks * bytes_of(one.scale_dtype);
        if (one.offsets) one.offsets += job->ids[row] * blocks;
        one.out = (char *)one.out + row * job->width * bytes_of(one.dtype);
        one.count = job->width;
        job->blocks(&one, 0, blocks);
    }
}

/* The same for chosen rows of a matrix [outs, width]; width is a multiple of block. Returns 1 if there is no such row. */
EXPORT int ck_decode_rows_4bit(const uint8_t *codes, const void *scales, int scale_dtype, const float *offsets,
                               const float *table, const int64_t *ids, int64_t rows, int64_t width, void *out, int64_t outs,
                               int dtype, int64_t block, int threads, int level) {
    for (int64_t row = 0; row < rows; row++)
        if (ids[row] < 0 || ids[row] >= outs) return 1;
    decode_rows_job job = {{codes, scales, offsets, table, out, 0, block, scale_dtype, dtype}, ids, width, dequantizer(level)};
    parallel_range(rows, 1 + 262144 / (width + 1), threads, decode_rows, &job);
    return 0;
}

/* The second level of double quantization: 8-bit codes of (absmax - offset), blocks of 256, no rounding beyond
 * bitsandbytes' own: the value is placed on a grid of 65,536 points, and `lut` holds the nearest code of each. */
EXPORT void ck_quantize_absmax(const float *residual, int64_t count, const uint8_t *lut, uint8_t *codes, float *nested) {
    for (int64_t begin = 0; begin < count; begin += 256) {
        int64_t end = begin + 256 < count ? begin + 256 : count;
        float largest = 0.0f;
        for (int64_t i = begin; i < end; i++) {
            float magnitude = fabsf(residual[i]);
            if (magnitude > largest) largest = magnitude; /* NaN is passed over here, as bitsandbytes does */
        }
        nested[begin / 256] = largest;
        float inverse = 1.0f / largest;
        for (int64_t i = begin; i < end; i++) {
            float x = residual[i] * inverse; /* NaN in a block of zeros, which gets code 0 */
            x = x < -1.0f ? -1.0f : x > 1.0f ? 1.0f : x;
            codes[i] = x == x ? lut[(uint32_t)((x + 1.0f) * 0.5f * 65535.0f + 0.5f)] : 0;
        }
    }
}

EXPORT void ck_dequantize_absmax(const uint8_t *codes, const float *nested, const float *table, float offset,
                                 int64_t count, float *absmax) {
    for (int64_t i = 0; i < count; i++) absmax[i] = table[codes[i]] * nested[i / 256] + offset;
}

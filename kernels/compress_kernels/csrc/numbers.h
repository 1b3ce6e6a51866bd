/* The floating-point formats of tensors, without a library: every conversion rounds to nearest, ties to even. */
#ifndef COMPRESS_NUMBERS_H
#define COMPRESS_NUMBERS_H

#include <stdint.h>
#include <string.h>

/* gcc would use half of a 512-bit register; clang knows no such word, and would ignore the target that has it. */
#ifdef __clang__
#define WIDE_VECTORS ""
#else
#define WIDE_VECTORS ",prefer-vector-width=512"
#endif

enum { F32 = 0, BF16 = 1, F16 = 2 };

static inline int64_t bytes_of(int dtype) { return dtype == F32 ? 4 : 2; }

static inline uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return float_of(sign | 0x7f800000u | (mantissa << 13));
    if (exponent) return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
    float magnitude = (float)mantissa * 0x1p-24f;
    return float_of(sign | bits_of(magnitude));
}

static inline uint16_t float_to_half(float x) {
    uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    /* Below 2^-14 the sum's last place is 2^-24, the step of a subnormal half, so the addition itself rounds. */
    if (magnitude < 0x38800000) return (uint16_t)(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000));
    uint32_t rounded = magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1);
    return (uint16_t)(sign | (rounded >> 13));
}

static inline uint16_t float_to_bfloat(float x) {
    uint32_t u = bits_of(x);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

static inline float load_number(const void *numbers, int dtype, int64_t i) {
    if (dtype == F32) return ((const float *)numbers)[i];
    uint16_t h = ((const uint16_t *)numbers)[i];
    return dtype == BF16 ? float_of((uint32_t)h << 16) : half_to_float(h);
}

static inline void store_number(void *numbers, int dtype, int64_t i, float x) {
    if (dtype == F32) ((float *)numbers)[i] = x;
    else ((uint16_t *)numbers)[i] = dtype == BF16 ? float_to_bfloat(x) : float_to_half(x);
}

#endif

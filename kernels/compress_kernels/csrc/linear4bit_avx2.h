/* AVX2: 8 lanes; the table is two registers, and bit 3 of a nibble says which. */

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define NAME(x) x##_avx2
#define LANES 8
#define INLINE_AVX2 TARGET static inline __attribute__((always_inline))

typedef struct {
    __m256 low, high;
} table_avx2;

INLINE_AVX2 table_avx2 load_table_avx2(const float *table) {
    return (table_avx2){_mm256_loadu_ps(table), _mm256_loadu_ps(table + 8)};
}

INLINE_AVX2 __m256 look_up_avx2(table_avx2 table, __m256i codes, int shift) {
    codes = _mm256_srli_epi32(codes, shift);
    __m256 low = _mm256_permutevar8x32_ps(table.low, codes), high = _mm256_permutevar8x32_ps(table.high, codes);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}

INLINE_AVX2 __m256i load_codes_avx2(const uint8_t *codes, int64_t lanes) {
    if (lanes == LANES) return _mm256_loadu_si256((const __m256i *)codes);
    uint8_t buffer[32] = {0};
    memcpy(buffer, codes, (size_t)lanes * 4);
    return _mm256_loadu_si256((const __m256i *)buffer);
}

/* Per lane, the number of the block it lies in; `flat`: the first weight's place among all. */
INLINE_AVX2 __m256 per_lane_avx2(const void *numbers, int dtype, int64_t flat, int shift, int64_t lanes) {
    float buffer[LANES] = {0};
    for (int64_t lane = 0; lane < lanes; lane++) buffer[lane] = load_number(numbers, dtype, (flat + lane * NIBBLES) >> shift);
    return _mm256_loadu_ps(buffer);
}

INLINE_AVX2 __m256 load_avx2(const float *x) { return _mm256_loadu_ps(x); }

INLINE_AVX2 __m256 fma_avx2(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }

INLINE_AVX2 float total_avx2(__m256 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

typedef __m256 vec_avx2;
typedef __m256i codes_avx2;

/* AVX-512: 16 lanes; the whole table is one register. */

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")))
#define NAME(x) x##_avx512
#define LANES 16
#define INLINE_AVX512 TARGET static inline __attribute__((always_inline))

typedef __m512 table_avx512;
typedef __m512 vec_avx512;
typedef __m512i codes_avx512;

INLINE_AVX512 __m512 load_table_avx512(const float *table) { return _mm512_loadu_ps(table); }

/* vpermps reads the low four bits of every index only, so the nibble need not be cut out */
INLINE_AVX512 __m512 look_up_avx512(__m512 table, __m512i codes, int shift) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, (unsigned)shift), table);
}

INLINE_AVX512 __m512i load_codes_avx512(const uint8_t *codes, int64_t lanes) {
    return _mm512_maskz_loadu_epi32((__mmask16)((1u << lanes) - 1), codes);
}

/* Per lane, the number of the block it lies in; `flat`: the first weight's place among all. At most five blocks. */
INLINE_AVX512 __m512 per_lane_avx512(const void *numbers, int dtype, int64_t flat, int shift, int64_t lanes) {
    int64_t first = flat >> shift, last = (flat + lanes * NIBBLES - 1) >> shift;
    __mmask8 present = (__mmask8)((1u << (last - first + 1)) - 1);
    __m256 found;
    if (dtype == F32) {
        found = _mm256_maskz_loadu_ps(present, (const float *)numbers + first);
    } else {
        __m128i halves = _mm_maskz_loadu_epi16(present, (const uint16_t *)numbers + first);
        if (dtype == F16) found = _mm256_cvtph_ps(halves);
        else found = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
    const __m512i lane = _mm512_setr_epi32(0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120);
    __m512i phase = _mm512_set1_epi32((int)(flat - (first << shift)));
    __m512i block = _mm512_srl_epi32(_mm512_add_epi32(lane, phase), _mm_cvtsi32_si128(shift));
    return _mm512_maskz_permutexvar_ps((__mmask16)((1u << lanes) - 1), block, _mm512_castps256_ps512(found));
}

INLINE_AVX512 __m512 load_avx512(const float *x) { return _mm512_loadu_ps(x); }

INLINE_AVX512 __m512 fma_avx512(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }

INLINE_AVX512 float total_avx512(__m512 x) { return _mm512_reduce_add_ps(x); }

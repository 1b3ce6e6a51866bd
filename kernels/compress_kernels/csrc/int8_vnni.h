/* AVX512-VNNI: 64 products an instruction, CHANNELS output channels at a time against one row or four. */

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")))
#define VNNI_INLINE VNNI static inline __attribute__((always_inline))

VNNI_INLINE __m128i lane_sum(__m512i x) {
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* sums: [count, CHANNELS]; weights: CHANNELS rows, a row that does not exist repeated. */
VNNI_INLINE void product_of(const int8_t *const *weights, const int8_t *rows, int64_t width, int count, int32_t *sums) {
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    __m512i total[4][CHANNELS];
    for (int m = 0; m < count; m++)
        for (int c = 0; c < CHANNELS; c++) total[m][c] = _mm512_setzero_si512();
    for (int64_t i = 0; i < width; i += 64) {
        __mmask64 inside = width - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (width - i)) - 1;
        __m512i w[CHANNELS];
        for (int c = 0; c < CHANNELS; c++) w[c] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(inside, weights[c] + i), flip);
        for (int m = 0; m < count; m++) {
            __m512i x = _mm512_maskz_loadu_epi8(inside, rows + m * width + i);
            for (int c = 0; c < CHANNELS; c++) total[m][c] = _mm512_dpbusd_epi32(total[m][c], w[c], x);
        }
    }
    for (int m = 0; m < count; m++) {
        __m128i low = _mm_hadd_epi32(lane_sum(total[m][0]), lane_sum(total[m][1]));
        __m128i high = _mm_hadd_epi32(lane_sum(total[m][2]), lane_sum(total[m][3]));
        _mm_storeu_si128((__m128i *)(sums + m * CHANNELS), _mm_hadd_epi32(low, high));
    }
}

VNNI static void product_vnni(void *data, int64_t begin, int64_t end) {
    const product_job *job = data;
    int32_t sums[4 * CHANNELS];
    for (int64_t block = begin; block < end; block++) {
        int64_t first = block * CHANNELS, left = job->scale.outs - first, channels = left < CHANNELS ? left : CHANNELS;
        const int8_t *weights[CHANNELS];
        for (int64_t c = 0; c < CHANNELS; c++)
            weights[c] = job->codes + (first + (c < channels ? c : channels - 1)) * job->width;
        for (int64_t row = 0; row < job->count;) {
            int together = job->count - row >= 4 ? 4 : 1;
            const int8_t *rows = job->rows + row * job->width;
            if (together == 4) product_of(weights, rows, job->width, 4, sums);
            else product_of(weights, rows, job->width, 1, sums);
            for (int m = 0; m < together; m++, row++) {
                for (int c = 0; c < CHANNELS; c++)
                    sums[m * CHANNELS + c] = (int32_t)((uint32_t)sums[m * CHANNELS + c] - 128u * (uint32_t)job->sums[row]);
                scale_chunk_avx512(&job->scale, sums + m * CHANNELS, row, first, channels);
            }
        }
    }
}

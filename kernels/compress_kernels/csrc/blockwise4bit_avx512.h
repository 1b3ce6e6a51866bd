/* AVX-512: 64 weights at a time. A weight's bin is found by one table look-up and one exact comparison: [-1, 1] is cut into
 * 31 cells narrower than the distance of two bounds, so each cell holds at most one bound to compare with. FP4 has three
 * bounds around zero closer than a cell; the outer two are compared on their own. */
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define AVX512_INLINE AVX512 static inline __attribute__((always_inline))

static const float CELLS_PER_UNIT = 15.25f;
static const float CELL_OF_ZERO = 16.0f;
static const float INTEGER_MAGIC = 0x1.8p23f; /* adding it leaves the rounded integer in the low mantissa bits */

typedef struct {
    float bound[32];
    int32_t below[32]; /* bounds under the cell, the two tiny ones of FP4 not counted */
    float tiny;        /* FP4's smallest positive bound, 0 for NF4 */
    int has_tiny;
    uint8_t order[16];
} cell_table;

static void make_cells(const quantize_job *job, cell_table *cells) {
    const float *bounds = job->bounds;
    cells->has_tiny = bounds[8] - bounds[6] < 1.0f / CELLS_PER_UNIT;
    cells->tiny = cells->has_tiny ? bounds[8] : 0.0f;
    memcpy(cells->order, job->order, 16);
    for (int cell = 0; cell < 32; cell++) {
        const float slack = 1e-4f; /* a bound next to a cell's edge belongs to both cells */
        float low = ((float)cell - 0.5f - CELL_OF_ZERO) / CELLS_PER_UNIT - slack;
        float high = ((float)cell + 0.5f - CELL_OF_ZERO) / CELLS_PER_UNIT + slack;
        cells->bound[cell] = 2.0f;
        cells->below[cell] = 0;
        for (int k = 0; k < 15; k++) {
            if (cells->has_tiny && (k == 6 || k == 8)) continue;
            if (bounds[k] < low) cells->below[cell]++;
            else if (bounds[k] <= high) cells->bound[cell] = bounds[k];
        }
    }
}

AVX512_INLINE __m512 load16(const void *weights, int dtype, int64_t i) {
    if (dtype == F32) return _mm512_loadu_ps((const float *)weights + i);
    __m256i half = _mm256_loadu_si256((const __m256i *)((const uint16_t *)weights + i));
    if (dtype == F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

AVX512_INLINE __m512i magnitude16(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

AVX512_INLINE __m512i max32(const void *weights, int dtype, int64_t i) {
    return _mm512_max_epi32(magnitude16(load16(weights, dtype, i)), magnitude16(load16(weights, dtype, i + 16)));
}

AVX512_INLINE __m512i position16(__m512 x, __m512 scale, const cell_table *cells, int has_tiny) {
    const __m512 one = _mm512_set1_ps(1.0f);
    x = _mm512_mul_ps(x, scale);
    x = _mm512_max_ps(_mm512_min_ps(x, one), _mm512_sub_ps(_mm512_setzero_ps(), one));
    __m512 place = _mm512_fmadd_ps(x, _mm512_set1_ps(CELLS_PER_UNIT), _mm512_set1_ps(INTEGER_MAGIC + CELL_OF_ZERO));
    __m512i cell = _mm512_castps_si512(place);
    __m512 bound = _mm512_permutex2var_ps(_mm512_loadu_ps(cells->bound), cell, _mm512_loadu_ps(cells->bound + 16));
    __m512i below = _mm512_permutex2var_epi32(_mm512_loadu_si512(cells->below), cell,
                                              _mm512_loadu_si512(cells->below + 16));
    const __m512i unit = _mm512_set1_epi32(1);
    below = _mm512_mask_add_epi32(below, _mm512_cmp_ps_mask(x, bound, _CMP_GT_OQ), below, unit);
    if (has_tiny) {
        const __m512 tiny = _mm512_set1_ps(cells->tiny);
        below = _mm512_mask_add_epi32(below, _mm512_cmp_ps_mask(x, tiny, _CMP_GT_OQ), below, unit);
        __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_sub_ps(_mm512_setzero_ps(), tiny), _CMP_GT_OQ);
        below = _mm512_mask_add_epi32(below, above, below, unit);
    }
    return below;
}

AVX512_INLINE void encode64(const quantize_job *job, int64_t i, float first, float second, const cell_table *cells,
                            int dtype, int has_tiny) {
    const __m512 head = _mm512_set1_ps(first), tail = _mm512_set1_ps(second);
    __m512i a = position16(load16(job->weights, dtype, i), head, cells, has_tiny);
    __m512i b = position16(load16(job->weights, dtype, i + 16), head, cells, has_tiny);
    __m512i c = position16(load16(job->weights, dtype, i + 32), tail, cells, has_tiny);
    __m512i d = position16(load16(job->weights, dtype, i + 48), tail, cells, has_tiny);
    __m512i all = _mm512_or_si512(_mm512_or_si512(a, _mm512_slli_epi32(b, 8)),
                                  _mm512_or_si512(_mm512_slli_epi32(c, 16), _mm512_slli_epi32(d, 24)));
    if (has_tiny) all = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)cells->order)), all);
    /* A 64-bit lane holds the codes of two neighbours, four groups deep: pack the pairs, then sort groups apart. */
    all = _mm512_or_si512(_mm512_srli_epi64(all, 32), _mm512_slli_epi64(all, 4));
    __m256i pairs = _mm512_cvtepi64_epi32(all);
    const __m256i transpose = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    pairs = _mm256_shuffle_epi8(pairs, transpose);
    pairs = _mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(job->codes + i / 2), pairs);
}

/* True if the block could be done here; a block with NaN or infinity takes the portable path. */
AVX512_INLINE int scale_of(const quantize_job *job, int64_t index, uint32_t largest, float *reciprocal) {
    if (largest >= 0x7f800000u) return 0;
    float absmax = float_of(largest);
    if (job->given) absmax = job->given[index];
    else job->absmax[index] = absmax;
    *reciprocal = 1.0f / divisor_of(absmax);
    return fabsf(absmax) <= 3.4028234e38f;
}

AVX512_INLINE void quantize_range(const quantize_job *job, int64_t begin, int64_t end, const cell_table *cells,
                                  int dtype, int has_tiny) {
    float weights[4096];
    uint8_t position[4096 + 1];
    int64_t block = job->block, index = begin, complete = job->count / block;
    if (complete > end) complete = end;
    while (index < complete) {
        int64_t i = index * block;
        float first, second;
        if (block == 32 && index + 1 < complete) {
            uint32_t m0 = (uint32_t)_mm512_reduce_max_epi32(max32(job->weights, dtype, i));
            uint32_t m1 = (uint32_t)_mm512_reduce_max_epi32(max32(job->weights, dtype, i + 32));
            if (scale_of(job, index, m0, &first) && scale_of(job, index + 1, m1, &second)) {
                encode64(job, i, first, second, cells, dtype, has_tiny);
                index += 2;
                continue;
            }
        } else if (block > 32) {
            __m512i largest = _mm512_setzero_si512();
            for (int64_t j = i; j < i + block; j += 64)
                largest = _mm512_max_epi32(largest, _mm512_max_epi32(max32(job->weights, dtype, j),
                                                                    max32(job->weights, dtype, j + 32)));
            if (scale_of(job, index, (uint32_t)_mm512_reduce_max_epi32(largest), &first)) {
                for (int64_t j = i; j < i + block; j += 64) encode64(job, j, first, first, cells, dtype, has_tiny);
                index++;
                continue;
            }
        }
        quantize_one_avx2(job, index++, weights, position);
    }
    for (; index < end; index++) quantize_one_avx2(job, index, weights, position);
}

AVX512 static void quantize_blocks_avx512(void *data, int64_t begin, int64_t end) {
    const quantize_job *job = data;
    cell_table cells;
    make_cells(job, &cells);
    if (job->dtype == BF16 && cells.has_tiny) quantize_range(job, begin, end, &cells, BF16, 1);
    else if (job->dtype == BF16) quantize_range(job, begin, end, &cells, BF16, 0);
    else if (job->dtype == F16 && cells.has_tiny) quantize_range(job, begin, end, &cells, F16, 1);
    else if (job->dtype == F16) quantize_range(job, begin, end, &cells, F16, 0);
    else if (cells.has_tiny) quantize_range(job, begin, end, &cells, F32, 1);
    else quantize_range(job, begin, end, &cells, F32, 0);
}

/* 32 nibbles, first weight of a byte in its high half, as 32 indices of 16 bits. */
AVX512_INLINE __m512i unpack32(const uint8_t *codes) {
    __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes));
    __m512i first = _mm512_srli_epi32(pairs, 4);
    __m512i second = _mm512_slli_epi32(_mm512_and_si512(pairs, _mm512_set1_epi32(15)), 16);
    return _mm512_or_si512(first, second);
}

/* A block has 16 possible values: they are scaled and rounded once, then every weight is a look-up. */
AVX512 static void dequantize_blocks_avx512(void *data, int64_t begin, int64_t end) {
    const dequantize_job *job = data;
    const __m512 table = _mm512_loadu_ps(job->table);
    int64_t block = job->block, complete = job->count / block;
    for (int64_t index = begin; index < end; index++) {
        if (index >= complete) {
            dequantize_one_avx2(job, index);
            continue;
        }
        int64_t i = index * block;
        const uint8_t *codes = job->codes + i / 2;
        __m512 scaled = _mm512_mul_ps(table, _mm512_set1_ps(load_number(job->scales, job->scale_dtype, index)));
        if (job->offsets) scaled = _mm512_add_ps(scaled, _mm512_set1_ps(job->offsets[index]));
        if (job->dtype == F32) {
            float *out = (float *)job->out + i;
            for (int64_t j = 0; j < block; j += 32) {
                __m512i both = unpack32(codes + j / 2);
                __m512i head = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
                __m512i tail = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
                _mm512_storeu_ps(out + j, _mm512_permutexvar_ps(head, scaled));
                _mm512_storeu_ps(out + j + 16, _mm512_permutexvar_ps(tail, scaled));
            }
            continue;
        }
        __m256i rounded;
        if (job->dtype == F16) {
            rounded = _mm512_cvtps_ph(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        } else {
            __m512i bits = _mm512_castps_si512(scaled);
            __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
            __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            up = _mm512_srli_epi32(up, 16);
            __mmask16 nan = _mm512_cmp_ps_mask(scaled, scaled, _CMP_UNORD_Q);
            rounded = _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc0)));
        }
        const __m512i lookup = _mm512_castsi256_si512(rounded);
        uint16_t *out = (uint16_t *)job->out + i;
        for (int64_t j = 0; j < block; j += 32)
            _mm512_storeu_si512(out + j, _mm512_permutexvar_epi16(unpack32(codes + j / 2), lookup));
    }
}

/* Rows of numbers to and from fp32, compiled once per TARGET. HALVES: the target has F16C. */

TARGET static void NAME(read_floats)(const void *source, int dtype, int64_t first, int64_t count, float *out) {
    if (dtype == F32) {
        memcpy(out, (const float *)source + first, (size_t)count * 4);
        return;
    }
    const uint16_t *numbers = (const uint16_t *)source + first;
    int64_t i = 0;
    if (dtype == BF16) {
        for (; i < count; i++) {
            uint32_t bits = (uint32_t)numbers[i] << 16;
            memcpy(out + i, &bits, 4);
        }
        return;
    }
#if HALVES
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(numbers + i))));
#endif
    for (; i < count; i++) out[i] = half_to_float(numbers[i]);
}

TARGET static void NAME(write_floats)(const float *source, int64_t count, void *out, int dtype, int64_t first) {
    if (dtype == F32) {
        memcpy((float *)out + first, source, (size_t)count * 4);
        return;
    }
    uint16_t *numbers = (uint16_t *)out + first;
    int64_t i = 0;
    if (dtype == BF16) {
        for (; i < count; i++) numbers[i] = float_to_bfloat(source[i]);
        return;
    }
#if HALVES
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i *)(numbers + i), _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; i++) numbers[i] = float_to_half(source[i]);
}

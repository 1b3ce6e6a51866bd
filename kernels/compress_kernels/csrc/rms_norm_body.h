/* Rows through the norm and back, compiled once per TARGET. */

TARGET static inline void NAME(fetch)(const void *numbers, int dtype, int64_t first, int count, float *out) {
    if (dtype == F32) memcpy(out, (const float *)numbers + first, (size_t)count * 4);
    else if (dtype == BF16)
        for (int i = 0; i < count; i++) out[i] = float_of((uint32_t)((const uint16_t *)numbers)[first + i] << 16);
    else
        for (int i = 0; i < count; i++) out[i] = half_to_float(((const uint16_t *)numbers)[first + i]);
}

TARGET static inline void NAME(put)(void *numbers, int dtype, int64_t first, int count, const float *values) {
    if (dtype == F32) memcpy((float *)numbers + first, values, (size_t)count * 4);
    else if (dtype == BF16)
        for (int i = 0; i < count; i++) ((uint16_t *)numbers)[first + i] = float_to_bfloat(values[i]);
    else
        for (int i = 0; i < count; i++) ((uint16_t *)numbers)[first + i] = float_to_half(values[i]);
}

TARGET static inline double NAME(dot)(const float *a, const float *b, int count) {
    float sums[16] = {0};
    int i = 0;
    for (; i + 16 <= count; i += 16)
        for (int k = 0; k < 16; k++) sums[k] += a[i + k] * b[i + k];
    for (int k = 0; i < count; i++, k++) sums[k] += a[i] * b[i];
    double total = 0.0;
    for (int k = 0; k < 16; k++) total += sums[k];
    return total;
}

#define EACH_CHUNK(first, count) \
    for (int64_t first = 0, count; first < width && (count = width - first < CHUNK ? width - first : CHUNK); first += CHUNK)

TARGET static void NAME(forward_rows)(void *opaque, int64_t begin, int64_t end) {
    const norm_job *job = opaque;
    int64_t width = job->width;
    float x[CHUNK];
    for (int64_t row = begin; row < end; row++) {
        double squares = 0.0;
        EACH_CHUNK(first, count) {
            NAME(fetch)(job->input, job->input_dtype, row * width + first, (int)count, x);
            squares += NAME(dot)(x, x, (int)count);
        }
        float inverse = (float)(1.0 / sqrt(squares / (double)width + (double)job->epsilon));
        job->inverse[row] = inverse;
        EACH_CHUNK(first, count) {
            NAME(fetch)(job->input, job->input_dtype, row * width + first, (int)count, x);
            for (int i = 0; i < count; i++) x[i] = x[i] * inverse * job->weight[first + i];
            NAME(put)(job->output, job->output_dtype, row * width + first, (int)count, x);
        }
    }
}

TARGET static void NAME(backward_rows)(void *opaque, int64_t begin, int64_t end) {
    const norm_job *job = opaque;
    int64_t width = job->width;
    float x[CHUNK], g[CHUNK];
    for (int64_t row = begin; row < end; row++) {
        double along = 0.0;
        EACH_CHUNK(first, count) {
            NAME(fetch)(job->input, job->input_dtype, row * width + first, (int)count, x);
            NAME(fetch)(job->gradient, job->gradient_dtype, row * width + first, (int)count, g);
            for (int i = 0; i < count; i++) g[i] *= job->weight[first + i];
            along += NAME(dot)(x, g, (int)count);
        }
        float inverse = job->inverse[row];
        float pull = (float)(along * (double)inverse * (double)inverse / (double)width);
        EACH_CHUNK(first, count) {
            NAME(fetch)(job->input, job->input_dtype, row * width + first, (int)count, x);
            NAME(fetch)(job->gradient, job->gradient_dtype, row * width + first, (int)count, g);
            for (int i = 0; i < count; i++) x[i] = inverse * (g[i] * job->weight[first + i] - x[i] * pull);
            NAME(put)(job->output, job->output_dtype, row * width + first, (int)count, x);
        }
    }
}

TARGET static void NAME(backward_columns)(void *opaque, int64_t begin, int64_t end) {
    const norm_job *job = opaque;
    int64_t width = job->width;
    float x[COLUMNS], g[COLUMNS];
    for (int64_t block = begin; block < end; block++) {
        int64_t first = block * COLUMNS;
        int count = width - first < COLUMNS ? (int)(width - first) : COLUMNS;
        double sums[COLUMNS] = {0};
        for (int64_t row = 0; row < job->rows; row++) {
            float inverse = job->inverse[row];
            NAME(fetch)(job->input, job->input_dtype, row * width + first, count, x);
            NAME(fetch)(job->gradient, job->gradient_dtype, row * width + first, count, g);
            for (int i = 0; i < count; i++) sums[i] += (double)(g[i] * x[i] * inverse);
        }
        for (int i = 0; i < count; i++) job->of_weight[first + i] = (float)sums[i];
    }
}
#undef EACH_CHUNK

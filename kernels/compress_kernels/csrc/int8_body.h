/* The INT8 loops, compiled once per TARGET and written so that a compiler vectorizes them. */

TARGET static void NAME(quantize_chunk)(const float *x, int64_t count, float scale, int8_t *codes) {
    for (int64_t i = 0; i < count; i++) {
        float v = x[i] * scale;
        v = v == v ? v : 0.0f;
        v = v > LEVELS ? LEVELS : v;
        v = v < -LEVELS ? -LEVELS : v;
        v += INTEGER_MAGIC;
        uint32_t bits;
        memcpy(&bits, &v, 4);
        codes[i] = (int8_t)(uint8_t)bits;
    }
}

TARGET static void NAME(quantize_rows)(void *data, int64_t begin, int64_t end) {
    const quantize_rows_job *job = data;
    float x[CHUNK];
    for (int64_t row = begin; row < end; row++) {
        int64_t first = row * job->width;
        uint32_t largest = 0; /* as integers: above infinity lie the NaNs, so a NaN wins, as in torch's max */
        for (int64_t i = 0; i < job->width; i += CHUNK) {
            int64_t count = job->width - i < CHUNK ? job->width - i : CHUNK;
            NAME(read_floats)(job->x, job->dtype, first + i, count, x);
            for (int64_t j = 0; j < count; j++) {
                uint32_t bits;
                memcpy(&bits, x + j, 4);
                bits &= 0x7fffffff;
                largest = bits > largest ? bits : largest;
            }
        }
        float absmax = float_of(largest), scale = absmax > 0.0f ? 1.0f / absmax * LEVELS : 0.0f;
        job->absmax[row] = absmax;
        for (int64_t i = 0; i < job->width; i += CHUNK) {
            int64_t count = job->width - i < CHUNK ? job->width - i : CHUNK;
            NAME(read_floats)(job->x, job->dtype, first + i, count, x);
            NAME(quantize_chunk)(x, count, scale, job->codes + first + i);
        }
    }
}

/* Channels [first, first + count) of one row; count <= CHUNK. */
TARGET static void NAME(scale_chunk)(const scale_job *job, const int32_t *product, int64_t row, int64_t first, int64_t count) {
    float y[CHUNK], bias[CHUNK];
    float token = job->row_absmax[row];
    const float *absmax = job->absmax + first;
    for (int64_t i = 0; i < count; i++) y[i] = (float)product[i] * (token * absmax[i]) * job->unit;
    if (job->bias) {
        NAME(read_floats)(job->bias, job->bias_dtype, first, count, bias);
        for (int64_t i = 0; i < count; i++) y[i] += bias[i];
    }
    NAME(write_floats)(y, count, job->out, job->dtype, row * job->outs + first);
}

TARGET static void NAME(scale_rows)(void *data, int64_t begin, int64_t end) {
    const scale_job *job = data;
    for (int64_t row = begin; row < end; row++)
        for (int64_t i = 0; i < job->outs; i += CHUNK)
            NAME(scale_chunk)(job, job->product + row * job->outs + i, row, i, job->outs - i < CHUNK ? job->outs - i : CHUNK);
}

/* Blocks of CHANNELS output channels, every row with each while its weights are in the nearest cache. */
TARGET static void NAME(product)(void *data, int64_t begin, int64_t end) {
    const product_job *job = data;
    int32_t sums[CHANNELS];
    for (int64_t block = begin; block < end; block++) {
        int64_t first = block * CHANNELS, left = job->scale.outs - first, channels = left < CHANNELS ? left : CHANNELS;
        for (int64_t row = 0; row < job->count; row++) {
            for (int64_t c = 0; c < channels; c++) {
                const int8_t *a = job->rows + row * job->width, *b = job->codes + (first + c) * job->width;
                int32_t total = 0;
                for (int64_t i = 0; i < job->width; i++) total += (int32_t)a[i] * (int32_t)b[i];
                sums[c] = total;
            }
            NAME(scale_chunk)(&job->scale, sums, row, first, channels);
        }
    }
}

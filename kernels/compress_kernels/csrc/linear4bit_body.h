/* The product on vectors of LANES * NIBBLES weights, compiled once per TARGET from its load_codes, look_up and per_lane. */

#define vec NAME(vec)

/* x in fp32, by chunks of LANES * NIBBLES numbers: the k-th of every lane together; zeros fill the last chunk. */
TARGET static void NAME(order_rows)(const void *source, int dtype, const gemv_job *job, float *x, float *sums) {
    const int64_t chunk = LANES * NIBBLES;
    for (int64_t row = 0; row < job->count; row++) {
        for (int64_t i = 0; i < job->padded; i += chunk, x += chunk) {
            float numbers[LANES * NIBBLES] = {0};
            int64_t left = job->width - i, present = left < 0 ? 0 : left < chunk ? left : chunk;
            NAME(read_floats)(source, dtype, row * job->width + i, present, numbers);
            for (int k = 0; k < NIBBLES; k++)
                for (int lane = 0; lane < LANES; lane++) x[k * LANES + lane] = numbers[lane * NIBBLES + k];
            for (int lane = 0; sums && lane < LANES; lane++) {
                float sum = 0.0f;
                for (int k = 0; k < NIBBLES; k++) sum += numbers[lane * NIBBLES + k];
                *sums++ = sum;
            }
        }
    }
}

/* One output channel with `count` rows from `row` on (1 or 4, known when compiled). */
TARGET static inline __attribute__((always_inline)) void NAME(channel_of)(const gemv_job *job, NAME(table) table, int64_t channel,
                                                                        int64_t row, int count, int scale_dtype) {
    vec total[4] = {{0}, {0}, {0}, {0}};
    const float *x = job->x + row * job->padded;
    for (int64_t i = 0; i < job->width; i += LANES * NIBBLES) {
        int64_t flat = channel * job->width + i, left = (job->width - i) / NIBBLES, lanes = left < LANES ? left : LANES;
        NAME(codes) codes = NAME(load_codes)(job->codes + flat / 2, lanes);
        vec scale = NAME(per_lane)(job->scales, scale_dtype, flat, job->shift, lanes), w[NIBBLES];
        for (int k = 0; k < NIBBLES; k++) w[k] = NAME(look_up)(table, codes, k % 2 ? 4 * k - 4 : 4 * k + 4);
        for (int m = 0; m < count; m++) {
            const float *at = x + m * job->padded + i;
            vec even = w[0] * NAME(load)(at), odd = w[1] * NAME(load)(at + LANES);
            for (int k = 2; k < NIBBLES; k += 2) {
                even = NAME(fma)(w[k], NAME(load)(at + k * LANES), even);
                odd = NAME(fma)(w[k + 1], NAME(load)(at + (k + 1) * LANES), odd);
            }
            total[m] = NAME(fma)(even + odd, scale, total[m]);
        }
        if (!job->offsets) continue;
        vec offset = NAME(per_lane)(job->offsets, F32, flat, job->shift, lanes);
        for (int m = 0; m < count; m++)
            total[m] = NAME(fma)(offset, NAME(load)(job->sums + ((row + m) * job->padded + i) / NIBBLES), total[m]);
    }
    for (int m = 0; m < count; m++) finish(job, row + m, channel, NAME(total)(total[m]));
}

TARGET static inline __attribute__((always_inline)) void NAME(channels)(const gemv_job *job, int64_t begin, int64_t end,
                                                                      int scale_dtype) {
    NAME(table) table = NAME(load_table)(job->table);
    for (int64_t channel = begin; channel < end; channel++) {
        int64_t row = 0;
        for (; row + 4 <= job->count; row += 4) NAME(channel_of)(job, table, channel, row, 4, scale_dtype);
        for (; row < job->count; row++) NAME(channel_of)(job, table, channel, row, 1, scale_dtype);
    }
}

TARGET static void NAME(gemv)(void *data, int64_t begin, int64_t end) {
    const gemv_job *job = data;
    if (job->scale_dtype == F32) NAME(channels)(job, begin, end, F32);
    else if (job->scale_dtype == F16) NAME(channels)(job, begin, end, F16);
    else NAME(channels)(job, begin, end, BF16);
}
#undef vec

/* The portable loops, compiled once per TARGET; the inner loops are written so that a compiler vectorizes them. */

TARGET static void NAME(quantize_one)(const quantize_job *job, int64_t index, float *weights, uint8_t *position) {
    int64_t begin = index * job->block;
    int64_t length = job->count - begin < job->block ? job->count - begin : job->block;
    int incomplete = length < job->block;
    if (job->dtype == F32) {
        memcpy(weights, (const float *)job->weights + begin, (size_t)length * 4);
    } else if (job->dtype == BF16) {
        const uint16_t *source = (const uint16_t *)job->weights + begin;
        for (int64_t i = 0; i < length; i++) weights[i] = float_of((uint32_t)source[i] << 16);
    } else {
        for (int64_t i = 0; i < length; i++) weights[i] = load_number(job->weights, F16, begin + i);
    }
    float absmax;
    if (job->given) {
        absmax = job->given[index];
    } else {
        uint32_t largest = 0; /* as integers: above infinity lie the NaNs, so a NaN wins, as in torch's max */
        for (int64_t i = 0; i < length; i++) {
            uint32_t magnitude = bits_of(weights[i]) & 0x7fffffff;
            largest = magnitude > largest ? magnitude : largest;
        }
        absmax = float_of(largest);
        if (incomplete && absmax < ABSMAX_FLOOR) absmax = ABSMAX_FLOOR;
        job->absmax[index] = absmax;
    }
    float divisor = divisor_of(absmax), reciprocal = 1.0f / divisor;
    if (incomplete) {
        for (int64_t i = 0; i < length; i++) weights[i] = weights[i] / divisor;
    } else {
        for (int64_t i = 0; i < length; i++) weights[i] = weights[i] * reciprocal;
    }
    int32_t above[64];
    for (int64_t start = 0; start < length; start += 64) {
        int64_t width = length - start < 64 ? length - start : 64;
        memset(above, 0, sizeof above);
        for (int k = 0; k < 15; k++) {
            float bound = job->bounds[k];
            for (int64_t i = 0; i < width; i++) above[i] += !(weights[start + i] <= bound);
        }
        for (int64_t i = 0; i < width; i++) position[start + i] = (uint8_t)above[i];
    }
    if (length % 2) position[length] = 7; /* the missing neighbour is packed as a zero weight, bin 7 of both kinds */
    uint8_t *codes = job->codes + begin / 2;
    for (int64_t i = 0; i < length; i += 2)
        codes[i / 2] = (uint8_t)(job->order[position[i]] << 4 | job->order[position[i + 1]]);
}

TARGET static void NAME(quantize_blocks)(void *data, int64_t begin, int64_t end) {
    const quantize_job *job = data;
    float weights[4096];
    uint8_t position[4096 + 1];
    for (int64_t index = begin; index < end; index++) NAME(quantize_one)(job, index, weights, position);
}

TARGET static void NAME(dequantize_one)(const dequantize_job *job, int64_t index) {
    int64_t begin = index * job->block;
    int64_t length = job->count - begin < job->block ? job->count - begin : job->block;
    const uint8_t *codes = job->codes + begin / 2;
    float scaled[16];
    for (int k = 0; k < 16; k++) scaled[k] = scaled_value(job, index, k);
    if (job->dtype == F32) {
        float *out = (float *)job->out + begin;
        for (int64_t i = 0; i < length; i++) out[i] = scaled[codes[i / 2] >> (i % 2 ? 0 : 4) & 15];
        return;
    }
    uint16_t rounded[16];
    for (int k = 0; k < 16; k++) rounded[k] = job->dtype == BF16 ? float_to_bfloat(scaled[k]) : float_to_half(scaled[k]);
    uint16_t *out = (uint16_t *)job->out + begin;
    int64_t pairs = length / 2;
    for (int64_t i = 0; i < pairs; i++) {
        uint16_t pair[2] = {rounded[codes[i] >> 4], rounded[codes[i] & 15]};
        memcpy(out + 2 * i, pair, 4);
    }
    if (length % 2) out[length - 1] = rounded[codes[pairs] >> 4];
}

TARGET static void NAME(dequantize_blocks)(void *data, int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; index++) NAME(dequantize_one)(data, index);
}

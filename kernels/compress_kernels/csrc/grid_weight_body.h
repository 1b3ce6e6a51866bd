/* Blocks of weights through their grid and back, compiled once per TARGET. */

TARGET static inline void NAME(find_codes)(const float *latent, int count, const grid_job *job, int32_t *code) {
    if (job->uniform) {
        float low = job->table[0], high = job->table[job->entries - 1];
        for (int i = 0; i < count; i++) {
            float q = rintf(latent[i]);
            q = q < low ? low : q;
            q = q > high ? high : q;
            code[i] = (int32_t)(q - low);
        }
        return;
    }
    for (int i = 0; i < count; i++) code[i] = 0;
    for (int k = 0; k + 1 < job->entries; k++) {
        float bound = job->bounds[k];
        for (int i = 0; i < count; i++) code[i] += latent[i] > bound;
    }
}

TARGET static void NAME(round_blocks)(void *opaque, int64_t begin, int64_t end) {
    const grid_job *job = opaque;
    int32_t code[CHUNK];
    for (int64_t b = begin; b < end; b++) {
        float scale = job->scale[b], shift = job->shift ? job->shift[b] : 0.0f;
        for (int64_t first = b * job->width; first < (b + 1) * job->width; first += CHUNK) {
            int64_t left = (b + 1) * job->width - first;
            int count = left < CHUNK ? (int)left : CHUNK;
            NAME(find_codes)(job->latent + first, count, job, code);
            float value[CHUNK];
            for (int i = 0; i < count; i++) value[i] = job->table[code[i]] * scale + shift;
            for (int i = 0; i < count; i++) job->codes[first + i] = (uint8_t)code[i];
            if (job->dtype == F32) memcpy((float *)job->weight + first, value, (size_t)count * 4);
            else if (job->dtype == BF16)
                for (int i = 0; i < count; i++) ((uint16_t *)job->weight)[first + i] = float_to_bfloat(value[i]);
            else
                for (int i = 0; i < count; i++) ((uint16_t *)job->weight)[first + i] = float_to_half(value[i]);
        }
    }
}

TARGET static void NAME(backward_blocks)(void *opaque, int64_t begin, int64_t end) {
    const grid_job *job = opaque;
    float gradient[CHUNK], product[CHUNK];
    for (int64_t b = begin; b < end; b++) {
        float scale = job->scale[b];
        double of_scale = 0.0, of_shift = 0.0;
        for (int64_t first = b * job->width; first < (b + 1) * job->width; first += CHUNK) {
            int64_t left = (b + 1) * job->width - first;
            int count = left < CHUNK ? (int)left : CHUNK;
            const float *latent = job->latent + first;
            float *out = job->of_latent + first;
            if (job->dtype == F32) memcpy(gradient, (const float *)job->gradient + first, (size_t)count * 4);
            else if (job->dtype == BF16)
                for (int i = 0; i < count; i++) gradient[i] = float_of((uint32_t)((const uint16_t *)job->gradient)[first + i] << 16);
            else
                for (int i = 0; i < count; i++) gradient[i] = half_to_float(((const uint16_t *)job->gradient)[first + i]);
            for (int i = 0; i < count; i++) product[i] = gradient[i] * job->table[job->codes[first + i]];
            for (int i = 0; i < count; i++)
                out[i] = (latent[i] >= job->low && latent[i] <= job->high) ? gradient[i] * scale : 0.0f;
            /* sixteen sums side by side: no order of addition is promised, but it is the same on every machine */
            float sums[16] = {0}, shifts[16] = {0};
            int i = 0;
            for (; i + 16 <= count; i += 16)
                for (int k = 0; k < 16; k++) sums[k] += product[i + k], shifts[k] += gradient[i + k];
            for (int k = 0; i < count; i++, k++) sums[k] += product[i], shifts[k] += gradient[i];
            for (int k = 0; k < 16; k++) of_scale += sums[k], of_shift += shifts[k];
        }
        job->of_scale[b] = (float)of_scale;
        job->of_shift[b] = (float)of_shift;
    }
}

/* Weights that train through their grid: rounding with scales applied, and the gradient back (see grid_weight.py).
 *
 * A block of `width` latents shares a scale and a shift. Forward reads 4 bytes a weight and writes 2 (bf16) and a code;
 * backward reads the gradient, latent and code (7 bytes in bf16) and writes 4. Finding a code in a table of 16 is 15
 * compares and adds of whole vectors, 30 operations a vector of 16: below what memory takes. CHUNK numbers at a time stay
 * in L1.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "numbers.h"
#include "parallel.h"

enum { CHUNK = 256 };

typedef struct {
    const float *latent;         /* [blocks, width] */
    const float *scale, *shift;  /* [blocks]; shift may be NULL */
    const float *table, *bounds; /* ascending [entries], [entries - 1] */
    const void *gradient;        /* backward: [blocks, width] */
    void *weight;                /* forward: [blocks, width] */
    uint8_t *codes;              /* [blocks, width], out of forward, into backward */
    float *of_latent;            /* backward: [blocks, width] */
    float *of_scale, *of_shift;  /* backward: [blocks] */
    int64_t width;
    float low, high; /* gradients pass to latents in between */
    int entries, uniform, dtype;
} grid_job;

#define BODY "grid_weight_body.h"
#include "every_target.h"

static void run(grid_job *job, int64_t blocks, int threads, range_fn fn) {
    parallel_range(blocks, 1 + 65536 / (job->width + 1), threads, fn, job);
}

EXPORT void ck_round_weight(const float *latent, const float *scale, const float *shift, const float *table,
                            const float *bounds, int entries, int uniform, int64_t blocks, int64_t width, void *weight,
                            int dtype, uint8_t *codes, int threads, int level) {
    grid_job job = {.latent = latent, .scale = scale, .shift = shift, .table = table, .bounds = bounds, .weight = weight,
                    .codes = codes, .width = width, .entries = entries, .uniform = uniform, .dtype = dtype};
    run(&job, blocks, threads, CHOSEN(round_blocks));
}

EXPORT void ck_round_weight_backward(const void *gradient, int dtype, const float *latent, const uint8_t *codes,
                                     const float *scale, const float *table, float low, float high, int64_t blocks,
                                     int64_t width, float *of_latent, float *of_scale, float *of_shift, int threads,
                                     int level) {
    grid_job job = {.gradient = gradient, .latent = latent, .codes = (uint8_t *)codes, .scale = scale, .table = table,
                    .of_latent = of_latent, .of_scale = of_scale, .of_shift = of_shift, .width = width, .low = low,
                    .high = high, .dtype = dtype};
    run(&job, blocks, threads, CHOSEN(backward_blocks));
}

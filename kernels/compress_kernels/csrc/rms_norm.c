/* Root-mean-square normalization of rows, and its gradients (see rms_norm.py). Rows are independent, columns of the
 * weight's gradient too: no sum is divided among threads, so their number changes no bit. CHUNK numbers at a time stay in
 * L1; sums are sixteen side by side, in double between chunks.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "numbers.h"
#include "parallel.h"

enum { CHUNK = 256, COLUMNS = 64 };

typedef struct {
    const void *input;    /* [rows, width] */
    const void *gradient; /* backward: [rows, width] */
    const float *weight;  /* [width] */
    float *inverse;       /* [rows], out of forward, into backward */
    void *output;         /* forward: normalized; backward: gradient of the input, [rows, width] */
    float *of_weight;     /* backward: [width] */
    int64_t rows, width;
    float epsilon;
    int input_dtype, gradient_dtype, output_dtype;
} norm_job;

#define BODY "rms_norm_body.h"
#include "every_target.h"

EXPORT void ck_rms_norm(const void *input, int input_dtype, const float *weight, float epsilon, int64_t rows,
                        int64_t width, void *output, int output_dtype, float *inverse, int threads, int level) {
    norm_job job = {.input = input, .weight = weight, .inverse = inverse, .output = output, .rows = rows, .width = width,
                    .epsilon = epsilon, .input_dtype = input_dtype, .output_dtype = output_dtype};
    parallel_range(rows, 1 + 16384 / (width + 1), threads, CHOSEN(forward_rows), &job);
}

/* of_weight may be NULL: not wanted. The input's gradient has the input's type. */
EXPORT void ck_rms_norm_backward(const void *gradient, int gradient_dtype, const void *input, int input_dtype,
                                 const float *weight, const float *inverse, int64_t rows, int64_t width,
                                 void *of_input, float *of_weight, int threads, int level) {
    norm_job job = {.input = input, .gradient = gradient, .weight = weight, .inverse = (float *)inverse,
                    .output = of_input, .of_weight = of_weight, .rows = rows, .width = width,
                    .input_dtype = input_dtype, .gradient_dtype = gradient_dtype, .output_dtype = input_dtype};
    parallel_range(rows, 1 + 16384 / (width + 1), threads, CHOSEN(backward_rows), &job);
    if (of_weight) parallel_range((width + COLUMNS - 1) / COLUMNS, 1, threads, CHOSEN(backward_columns), &job);
}

/* The row pass of the distillation loss: divergence, likelihoods and, in place over the student's logits, the gradient.
 *
 * One row of student logits s and teacher logits t, temperature T, p = softmax(t/T), q = softmax(s/T):
 *     KL = sum p (log p - log q)        d KL / d s = (q - p) / T        d CE / d s = softmax(s) - onehot(label)
 * The sum is taken as sum [p (log p - log q) - p + q]: the same value, but every term is >= 0 and the error of the two
 * normalizers cancels to first order, so a KL of 1e-5 keeps its digits in fp32. Sums go to double every FLUSH elements.
 *
 * The other divergences: divergences_body.h.
 *
 * Three sweeps over the row: maxima, normalizers, divergence with gradient; 2 x 49,152 bf16 logits are 192 kB and stay in L2.
 * So each logit is read from memory once and each gradient written once: 6 bytes per vocabulary entry in bf16, about 60
 * vector operations per 16 entries. The body is compiled for three instruction sets (kl_rows_body.h).
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "parallel.h"

enum { F32 = 0, BF16 = 1 };
enum { FLUSH = 2048 };

typedef struct {
    float kl, reverse_kl, js, skew_kl, skew_reverse_kl, beta, alpha;
} terms_of;

typedef struct {
    void *student;
    const void *teacher;
    const int64_t *labels; /* or NULL */
    int64_t vocab;
    float inverse_temperature, ce_scale;
    terms_of terms;
    int others; /* whether any divergence but the forward KL counts */
    int student_dtype, teacher_dtype, want_gradient;
    float *kl, *weighted, *nll_student, *nll_teacher;
    uint8_t *top1; /* or NULL */
} rows_job;

static inline float logit_at(const void *row, int dtype, int64_t i) {
    if (dtype == F32) return ((const float *)row)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)row)[i] << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline void put_logit(void *row, int dtype, int64_t i, float x) {
    if (dtype == F32) {
        ((float *)row)[i] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, 4);
    ((uint16_t *)row)[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline int64_t first_equal(const void *row, int dtype, int64_t vocab, float value) {
    for (int64_t i = 0; i < vocab; i++)
        if (logit_at(row, dtype, i) == value) return i;
    return -1;
}

#define TARGET
#define LANES 4
#define NAME(x) x##_portable
#include "kl_rows_body.h"
#undef TARGET
#undef LANES
#undef NAME

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define NAME(x) x##_avx2
#include "kl_rows_body.h"
#undef TARGET
#undef LANES
#undef NAME
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#define LANES 16
#define NAME(x) x##_avx512
#include "kl_rows_body.h"
#undef TARGET
#undef LANES
#undef NAME
#endif

/* `terms`: the five weights, beta and alpha. */
EXPORT void ck_divergence_rows(void *student, int student_dtype, const void *teacher, int teacher_dtype,
                               const int64_t *labels, int64_t rows, int64_t vocab, float temperature,
                               const float *terms, float ce_scale, int want_gradient, float *kl, float *weighted,
                               float *nll_student, float *nll_teacher, uint8_t *top1, int threads, int level) {
    terms_of weights;
    memcpy(&weights, terms, sizeof weights);
    int others = weights.reverse_kl != 0.0f || weights.js != 0.0f || weights.skew_kl != 0.0f || weights.skew_reverse_kl != 0.0f;
    rows_job job = {student, teacher, labels, vocab, 1.0f / temperature, ce_scale, weights, others,
                    student_dtype, teacher_dtype, want_gradient, kl, weighted, nll_student, nll_teacher, top1};
    range_fn fn = divergence_rows_portable;
#if defined(__x86_64__)
    if (level == 1) fn = divergence_rows_avx2;
    if (level >= 2) fn = divergence_rows_avx512;
#endif
    parallel_range(rows, 1 + 65536 / (vocab + 1), threads, fn, &job);
}

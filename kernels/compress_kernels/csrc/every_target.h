/* Compiles the file BODY once for each instruction set: every static function NAME(x) in it becomes x_portable, x_avx2 and
 * x_avx512, built for TARGET. CHOSEN(x) is the one for `level`, as levels.py numbers them. Included once for each BODY; the
 * file that includes it says `#define BODY "..._body.h"` before.
 */
#define TARGET
#define NAME(x) x##_portable
#include BODY
#undef TARGET
#undef NAME

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(x) x##_avx2
#include BODY
#undef TARGET
#undef NAME
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma" WIDE_VECTORS)))
#define NAME(x) x##_avx512
#include BODY
#undef TARGET
#undef NAME
#define CHOSEN(x) (level >= 2 ? x##_avx512 : level == 1 ? x##_avx2 : x##_portable)
#else
#define CHOSEN(x) ((void)level, x##_portable)
#endif

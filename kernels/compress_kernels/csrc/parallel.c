#include "parallel.h"

#include <pthread.h>
#include <stddef.h>
#include <sys/mman.h>

#define MAX_THREADS 256

typedef void (*gomp_parallel_fn)(void (*fn)(void *), void *data, unsigned threads, unsigned flags);

static gomp_parallel_fn gomp_parallel = NULL;

/* `address`: GOMP_parallel of the OpenMP runtime that is already in the process, or NULL. */
EXPORT void ck_set_gomp_parallel(void *address) { gomp_parallel = (gomp_parallel_fn)address; }

typedef struct {
    int64_t next, count, grain;
    range_fn fn;
    void *job;
} shared_work;

/* Pieces are handed out by a counter, so a core that somebody else is using delays only the piece it holds. */
static void drain(void *data) {
    shared_work *work = data;
    for (;;) {
        int64_t begin = __atomic_fetch_add(&work->next, work->grain, __ATOMIC_RELAXED);
        if (begin >= work->count) return;
        int64_t end = begin + work->grain;
        work->fn(work->job, begin, end < work->count ? end : work->count);
    }
}

static void *drain_thread(void *data) {
    drain(data);
    return NULL;
}

void parallel_range(int64_t count, int64_t grain, int threads, range_fn fn, void *job) {
    if (count <= 0) return;
    if (grain < 1) grain = 1;
    int64_t pieces = (count + grain - 1) / grain;
    if (threads > pieces) threads = (int)pieces;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads <= 1) {
        fn(job, 0, count);
        return;
    }
    shared_work work = {0, count, grain, fn, job};
    if (gomp_parallel) {
        gomp_parallel(drain, &work, (unsigned)threads, 0);
        return;
    }
    pthread_t ids[MAX_THREADS];
    int started = 0;
    while (started < threads - 1 && pthread_create(&ids[started], NULL, drain_thread, &work) == 0) started++;
    drain(&work);
    for (int i = 0; i < started; i++) pthread_join(ids[i], NULL);
}

void prefer_huge_pages(void *memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)1 << 21;
    uintptr_t begin = ((uintptr_t)memory + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)memory + (uintptr_t)bytes) & ~(page - 1);
    if (end > begin + page) madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

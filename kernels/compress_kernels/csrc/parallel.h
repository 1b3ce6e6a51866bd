/* Run a range of work items on several threads, without an OpenMP runtime of our own.
 *
 * torch already holds an OpenMP pool in the process. A second runtime (or fresh threads) would compete for the cores with
 * torch's workers, which spin for a while after each torch operation, so the caller hands us the address of torch's own
 * GOMP_parallel when the process has one. Otherwise plain pthreads are started and joined per call, which survives fork.
 */
#ifndef COMPRESS_PARALLEL_H
#define COMPRESS_PARALLEL_H

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef void (*range_fn)(void *job, int64_t begin, int64_t end);

/* Calls fn on disjoint pieces of [0, count), each of at most `grain` items, on at most `threads` threads. */
void parallel_range(int64_t count, int64_t grain, int threads, range_fn fn, void *job);

/* Ask for huge pages under a large fresh output: at 4 kB a page, the page faults cost more than the arithmetic. */
void prefer_huge_pages(void *memory, int64_t bytes);

#endif

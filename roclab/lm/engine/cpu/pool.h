/* A thread pool: threads go through a job's phases together, taking items of work from each. A phase is over when all its
   items are done, whoever did them: a thread whose core is busy with something else, or that wakes late, is missed by
   nobody unless it holds an item, and catches up by passing over what is done. A thread that finds nothing to do polls
   for some microseconds, as waking one takes as long, then sleeps: where cores are shared, spinning costs more than it
   saves (docs/log.md). */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

enum { MAX_THREADS = 64, PATIENCE = 30000 /* nanoseconds */, ITEM_BITS = 22, PHASES = 1 << 20 /* of a job, at most */ };

typedef struct pool {
    int made, threads; /* started; taking part in the next job. The caller is thread 0 */
    pthread_t handle[MAX_THREADS];
    pthread_mutex_t lock;
    pthread_cond_t changed, hired[MAX_THREADS];
    int jobs[MAX_THREADS];          /* the job each thread runs next */
    uint64_t phase[MAX_THREADS][8]; /* [0]: where each thread is; a cache line each */
    _Atomic uint64_t front;    /* the phase that all are to work at << ITEM_BITS | how many of its items are taken */
    atomic_int done, sleepers; /* items of that phase that are done; threads that wait for its end asleep */
    uint64_t first;            /* the job's first phase */
    void (*job)(void *, int);
    void *argument;
} pool;

static uint64_t phase_of(uint64_t front) { return front >> ITEM_BITS; }

/* The next items for this thread, *at to *end of its phase's `total`; 0: none are left. Long runs first, which stream
   well, short ones at the end, so that all threads finish at about the same time; at most `most`. */
static int take(pool *p, int thread, int total, int most, int *at, int *end) {
    uint64_t front = atomic_load(&p->front);
    int from, run;
    do {
        from = (int)(front & ((1 << ITEM_BITS) - 1));
        if (phase_of(front) != p->phase[thread][0] || from >= total) return 0;
        run = p->threads == 1 ? total : (total - from + 2 * p->threads - 1) / (2 * p->threads);
        if (run > most) run = most;
    } while (!atomic_compare_exchange_weak(&p->front, &front, front + (uint64_t)run));
    *at = from, *end = from + run;
    return 1;
}

/* `count` items that this thread took are done. */
static void finish(pool *p, int thread, int count, int total) {
    if (atomic_fetch_add(&p->done, count) + count < total) return;
    atomic_store(&p->done, 0);
    atomic_store(&p->front, (p->phase[thread][0] + 1) << ITEM_BITS);
    if (!atomic_load(&p->sleepers)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static long nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* On to the next phase, once all items of this one are done. */
static void next_phase(pool *p, int thread) {
    uint64_t here = p->phase[thread][0]++;
    long until = 0;
    do {
        for (int i = 0; i < 16; i++, pause_briefly())
            if (phase_of(atomic_load(&p->front)) != here) return;
        if (!until) until = nanoseconds() + PATIENCE;
    } while (nanoseconds() < until);
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (phase_of(atomic_load(&p->front)) == here) pthread_cond_wait(&p->changed, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

typedef struct { pool *p; int index; } seat;

static void *worker(void *start) {
    seat s = *(seat *)start;
    pool *p = s.p;
    free(start);
    for (int done = 0;; done++) {
        pthread_mutex_lock(&p->lock);
        while (p->jobs[s.index] == done) pthread_cond_wait(&p->hired[s.index], &p->lock);
        done = p->jobs[s.index] - 1; /* jobs that were over before this thread woke */
        p->phase[s.index][0] = p->first;
        void (*job)(void *, int) = p->job;
        void *argument = p->argument;
        pthread_mutex_unlock(&p->lock);
        if (!job) return NULL;
        job(argument, s.index);
    }
}

/* Start the workers below `threads` on a job. No thread that is still on its way through an earlier one takes its phases
   for that job's: all have other numbers. */
static void hire(pool *p, int threads, void (*job)(void *, int), void *argument) {
    pthread_mutex_lock(&p->lock);
    p->job = job, p->argument = argument;
    /* After four million jobs the numbers begin anew. */
    p->first = phase_of((phase_of(atomic_load(&p->front)) / PHASES + 1) * PHASES << ITEM_BITS);
    p->phase[0][0] = p->first;
    atomic_store(&p->front, p->first << ITEM_BITS);
    for (int i = 1; i < threads; i++) p->jobs[i]++, pthread_cond_signal(&p->hired[i]);
    pthread_mutex_unlock(&p->lock);
}

/* Returns when all items are done. A thread may still be on its way through `job` then, finding nothing to do: what it
   reads there must live as long as the pool, and the caller may change it, as the job's phases are closed. */
static void pool_run(pool *p, void (*job)(void *, int), void *argument) {
    hire(p, p->threads, job, argument);
    job(argument, 0);
    atomic_store(&p->front, (p->first + PHASES - 1) << ITEM_BITS);
    atomic_thread_fence(memory_order_seq_cst); /* closed before the caller changes anything */
}

static void pool_open(pool *p) {
    p->made = p->threads = 1;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
}

/* Change the number of threads between jobs; returns how many there are (fewer where the system gives no more). */
static int pool_resize(pool *p, int threads) {
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads < p->made) {
        hire(p, p->made, NULL, NULL);
        for (int i = 1; i < p->made; i++) {
            pthread_join(p->handle[i], NULL);
            pthread_cond_destroy(&p->hired[i]);
        }
        p->made = 1;
    }
    for (; p->made < threads; p->made++) {
        seat *s = malloc(sizeof *s);
        if (!s) break;
        *s = (seat){p, p->made};
        p->jobs[p->made] = 0;
        pthread_cond_init(&p->hired[p->made], NULL);
        if (pthread_create(&p->handle[p->made], NULL, worker, s)) {
            pthread_cond_destroy(&p->hired[p->made]);
            free(s);
            break;
        }
    }
    return p->threads = p->made;
}

static void pool_close(pool *p) {
    pool_resize(p, 1);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->changed);
}

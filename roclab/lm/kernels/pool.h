/* A few threads that run one function together and meet at barriers. Who waits looks a few hundred times, about two
   microseconds, then sleeps: on a machine whose cores are shared, spinning costs more than it saves (docs/log.md). */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { MAX_THREADS = 64, LOOKS = 200 };

typedef struct pool {
    int threads; /* the caller is thread 0 */
    pthread_t handle[MAX_THREADS];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_int arrived, round, sleepers, next; /* `next`: the work counter of the current phase */
    void (*job)(void *, int);
    void *argument;
} pool;

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_beyond(pool *p, int round, int looks) {
    for (int i = 0; i < looks; i++, pause_briefly())
        if (atomic_load_explicit(&p->round, memory_order_acquire) != round) return;
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->round) == round) pthread_cond_wait(&p->changed, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

/* arrive: true for the last thread to come, which may then do what only one shall do, and must call release; the
   others return false once it has. */
static int arrive(pool *p) {
    if (p->threads == 1) { atomic_store_explicit(&p->next, 0, memory_order_relaxed); return 1; }
    int round = atomic_load(&p->round);
    if (atomic_fetch_add(&p->arrived, 1) == p->threads - 1) {
        atomic_store(&p->next, 0);
        return 1;
    }
    wait_beyond(p, round, LOOKS);
    return 0;
}
static void release(pool *p) {
    if (p->threads == 1) return;
    atomic_store(&p->arrived, 0);
    atomic_fetch_add(&p->round, 1);
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->changed);
        pthread_mutex_unlock(&p->lock);
    }
}
static void barrier(pool *p) {
    if (arrive(p)) release(p);
}

typedef struct { pool *p; int index, round; } seat;

static void *worker(void *argument) {
    seat s = *(seat *)argument;
    free(argument);
    for (;;) {
        wait_beyond(s.p, s.round, 0); /* sleeps until the next job */
        if (!s.p->job) return NULL;
        s.p->job(s.p->argument, s.index);
        s.round = atomic_load(&s.p->round) + 1; /* what the closing barrier makes it */
        barrier(s.p);
    }
}

static void pool_run(pool *p, void (*job)(void *, int), void *argument) {
    p->job = job, p->argument = argument;
    atomic_store(&p->next, 0);
    if (p->threads > 1) release(p); /* wakes the workers, who wait at the round before */
    job(argument, 0);
    barrier(p);
}

/* Change the number of threads between jobs; returns how many there are (fewer where the system gives no more). */
static int pool_resize(pool *p, int threads) {
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads == p->threads) return threads;
    if (p->threads > 1) {
        p->job = NULL;
        release(p);
        for (int i = 1; i < p->threads; i++) pthread_join(p->handle[i], NULL);
    }
    int made = 1;
    for (; made < threads; made++) {
        seat *s = malloc(sizeof *s);
        if (!s) break;
        *s = (seat){p, made, atomic_load(&p->round)};
        if (pthread_create(&p->handle[made], NULL, worker, s)) { free(s); break; }
    }
    return p->threads = made;
}

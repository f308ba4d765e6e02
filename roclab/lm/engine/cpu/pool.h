/* A thread pool: a few threads run one function together and meet at barriers. A waiting thread polls for a few
   microseconds, then sleeps: where cores are shared, spinning costs more than it saves (docs/log.md). */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { MAX_THREADS = 64, LOOKS = 200 };

typedef struct pool {
    int made, threads; /* started; taking part in the next job. The caller is thread 0 */
    pthread_t handle[MAX_THREADS];
    pthread_mutex_t lock;
    pthread_cond_t changed, hired[MAX_THREADS];
    int jobs[MAX_THREADS]; /* the job each thread runs next */
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

static void wait_beyond(pool *p, int round) {
    for (int i = 0; i < LOOKS; i++, pause_briefly())
        if (atomic_load_explicit(&p->round, memory_order_acquire) != round) return;
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->round) == round) pthread_cond_wait(&p->changed, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

/* Barrier. arrive returns true to the last thread, which may do work for one thread and must call release; to the
   others it returns false after that. */
static int arrive(pool *p) {
    int threads = p->threads; /* read first: after the barrier the next job may change it */
    if (threads == 1) { atomic_store_explicit(&p->next, 0, memory_order_relaxed); return 1; }
    int round = atomic_load(&p->round);
    if (atomic_fetch_add(&p->arrived, 1) == threads - 1) {
        atomic_store(&p->next, 0);
        return 1;
    }
    wait_beyond(p, round);
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

typedef struct { pool *p; int index; } seat;

static void *worker(void *argument) {
    seat s = *(seat *)argument;
    free(argument);
    for (int done = 0;; done++) {
        pthread_mutex_lock(&s.p->lock);
        while (s.p->jobs[s.index] == done) pthread_cond_wait(&s.p->hired[s.index], &s.p->lock);
        pthread_mutex_unlock(&s.p->lock);
        if (!s.p->job) return NULL;
        s.p->job(s.p->argument, s.index);
        barrier(s.p);
    }
}

/* Start the workers below `threads` on the pool's job. The others keep sleeping. */
static void hire(pool *p, int threads) {
    if (threads < 2) return;
    pthread_mutex_lock(&p->lock);
    for (int i = 1; i < threads; i++) p->jobs[i]++, pthread_cond_signal(&p->hired[i]);
    pthread_mutex_unlock(&p->lock);
}

static void pool_run(pool *p, void (*job)(void *, int), void *argument) {
    p->job = job, p->argument = argument;
    atomic_store(&p->next, 0);
    hire(p, p->threads);
    job(argument, 0);
    barrier(p);
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
        p->job = NULL;
        hire(p, p->made);
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

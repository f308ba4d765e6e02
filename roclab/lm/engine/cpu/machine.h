/* The machine's limits: bytes read from memory and float operations per second, all threads together. */
#pragma once
#include "pool.h"
#include "vector.h"

typedef struct {
    pool *threads;
    const float *memory;
    long floats, rounds;
    float result[MAX_THREADS];
} machine_job;

static float read_share(const machine_job *j, int i) { /* in four streams */
    long share = j->floats / j->threads->threads / (4 * LANES) * (4 * LANES);
    const float *p = j->memory + share * i;
    vf sum[4] = {{0}};
    for (long at = 0; at < share; at += 4 * LANES)
        for (int k = 0; k < 4; k++) sum[k] += vload(p + at + k * LANES);
    return vsum(sum[0] + sum[1] + sum[2] + sum[3]);
}

static float multiply_share(const machine_job *j, int i) { /* ten independent sums hide the latency of an addition */
    vf sum[10], a = vset(0.9999f), b = vset(1e-4f);
    for (int k = 0; k < 10; k++) sum[k] = vset((float)(i + k));
    for (long r = 0; r < j->rounds; r++)
#pragma GCC unroll 10
        for (int k = 0; k < 10; k++) sum[k] = vfma(sum[k], a, b);
    for (int k = 1; k < 10; k++) sum[0] += sum[k];
    return vsum(sum[0]);
}

static void each_share(machine_job *j, int thread, float (*share)(const machine_job *, int)) { /* one for each thread */
    pool *p = j->threads;
    for (int i, end; take(p, thread, p->threads, 1, &i, &end); finish(p, thread, 1, p->threads))
        j->result[i] = share(j, i);
    next_phase(p, thread);
}
static void read_all(void *argument, int thread) { each_share(argument, thread, read_share); }
static void multiply_all(void *argument, int thread) { each_share(argument, thread, multiply_share); }

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

static void read_all(void *argument, int thread) { /* each thread reads its share in four streams */
    machine_job *j = argument;
    long share = j->floats / j->threads->threads / (4 * LANES) * (4 * LANES);
    const float *p = j->memory + share * thread;
    vf sum[4] = {{0}};
    for (long i = 0; i < share; i += 4 * LANES)
        for (int k = 0; k < 4; k++) sum[k] += vload(p + i + k * LANES);
    j->result[thread] = vsum(sum[0] + sum[1] + sum[2] + sum[3]);
}

static void multiply_all(void *argument, int thread) { /* ten independent sums hide the latency of an addition */
    machine_job *j = argument;
    vf sum[10], a = vset(0.9999f), b = vset(1e-4f);
    for (int k = 0; k < 10; k++) sum[k] = vset((float)k);
    for (long i = 0; i < j->rounds; i++)
#pragma GCC unroll 10
        for (int k = 0; k < 10; k++) sum[k] = vfma(sum[k], a, b);
    for (int k = 1; k < 10; k++) sum[0] += sum[k];
    j->result[thread] = vsum(sum[0]);
}

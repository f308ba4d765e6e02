/* softmax(q·kᵀ/√C)·v for a few queries that share a key-value head, against the cache of one sequence in half
   precision (attention_int8.h: in int8).

   Layout of the cache, per layer and key-value head, so that lanes are never summed across:
       K  (capacity / SPAN, C, SPAN): SPAN positions side by side; a score per lane
       V  (capacity, C):              a channel per lane
   Stale slots beyond a query's position take part with weight 0, which changes nothing: they hold finite numbers. */
#pragma once
#include "vector.h"

enum { SPAN = 32, QUERIES = 4 }; /* QUERIES × 2 vectors of sums: enough to hide the latency of 8 additions in flight */

INLINE void store_key(kv_t *keys, int C, int position, const float *k) {
    kv_t *to = keys + (long)(position / SPAN) * C * SPAN + position % SPAN;
    for (int c = 0; c < C; c++) to[c * SPAN] = kv_from(k[c]);
}
INLINE void store_value(kv_t *values, int C, int position, const float *v) {
    for (int c = 0; c < C; c++) values[(long)position * C + c] = kv_from(v[c]);
}

/* scores[n][position] = q[n]·k[position] for whole spans up to `length`. q[n] are rows of C floats. */
INLINE void score(int N, const float *const *q, const kv_t *keys, int C, int length, float *scores, long ld) {
    for (int s = 0; s < length; s += SPAN, keys += C * SPAN)
        for (int part = 0; part < SPAN; part += 2 * LANES) {
            vf acc[QUERIES][2] = {{{0}}};
            for (int c = 0; c < C; c++) {
                vf k0 = kv_load(keys + c * SPAN + part), k1 = kv_load(keys + c * SPAN + part + LANES);
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) {
                    vf x = vset(q[n][c]);
                    acc[n][0] = vfma(k0, x, acc[n][0]);
                    acc[n][1] = vfma(k1, x, acc[n][1]);
                }
            }
            for (int n = 0; n < N; n++) {
                vstore(scores + n * ld + s + part, acc[n][0]);
                vstore(scores + n * ld + s + part + LANES, acc[n][1]);
            }
        }
}

/* In place: exp(scale·(s − max)) for positions from `first` to below `length`, 0 before and from there to `padded`;
   returns the sum and scale·max. */
INLINE float soften(float *scores, int first, int length, int padded, float scale, float *largest) {
    for (int i = 0; i < first; i++) scores[i] = -INFINITY;
    for (int i = length; i < padded; i++) scores[i] = -INFINITY;
    vf top = vset(-INFINITY);
    int used = (length + LANES - 1) / LANES * LANES; /* whole vectors; the rest needs no exp */
    for (int i = 0; i < used; i += LANES) top = vmax(top, vload(scores + i));
    vf shift = vset(vlargest(top)), sum = {0};
    *largest = shift[0] * scale;
    for (int i = 0; i < used; i += LANES) {
        vf e = vexp((vload(scores + i) - shift) * scale);
        vstore(scores + i, e);
        sum += e;
    }
    memset(scores + used, 0, (padded - used) * sizeof(float));
    return vsum(sum);
}

/* out[n][c] = Σ weights[n][position] · v[position][c] / sum[n], for VECS vectors of channels from c on. */
INLINE void mix(int N, int VECS, const float *weights, long ld, const kv_t *values, int C, int length,
                const float *sums, float *const *out, int c) {
    vf acc[QUERIES][2] = {{{0}}};
    for (int s = 0; s < length; s++) {
        vf v[2];
#pragma GCC unroll 2
        for (int i = 0; i < VECS; i++) v[i] = kv_load(values + (long)s * C + c + i * LANES);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            vf w = vset(weights[n * ld + s]);
#pragma GCC unroll 2
            for (int i = 0; i < VECS; i++) acc[n][i] = vfma(w, v[i], acc[n][i]);
        }
    }
    for (int n = 0; n < N; n++)
        for (int i = 0; i < VECS; i++) vstore(out[n] + c + i * LANES, acc[n][i] / sums[n]);
}

INLINE void attend_some(int N, const float *const *q, const int *firsts, const int *lengths, const kv_t *keys, const kv_t *values,
                        int C, float scale, float *scores, long ld, float *const *out) {
    int longest = 0;
    for (int n = 0; n < N; n++) longest = lengths[n] > longest ? lengths[n] : longest;
    int padded = (longest + SPAN - 1) / SPAN * SPAN;
    float sums[QUERIES], unused;
    score(N, q, keys, C, longest, scores, ld);
    for (int n = 0; n < N; n++) sums[n] = soften(scores + n * ld, firsts[n], lengths[n], padded, scale, &unused);
    int c = 0;
    for (; c + 2 * LANES <= C; c += 2 * LANES) mix(N, 2, scores, ld, values, C, longest, sums, out, c);
    for (; c < C; c += LANES) mix(N, 1, scores, ld, values, C, longest, sums, out, c);
}

/* N ≤ QUERIES queries q[n] (C), the n-th seeing positions firsts[n] to below lengths[n]; `scores` (QUERIES, ld) is
   scratch. */
static void attend(int N, const float *const *q, const int *firsts, const int *lengths, const kv_t *keys,
                   const kv_t *values, int C, float scale, float *scores, long ld, float *const *out) {
    switch (N) { /* a constant N keeps the sums in registers */
    case 1: attend_some(1, q, firsts, lengths, keys, values, C, scale, scores, ld, out); break;
    case 2: attend_some(2, q, firsts, lengths, keys, values, C, scale, scores, ld, out); break;
    case 3: attend_some(3, q, firsts, lengths, keys, values, C, scale, scores, ld, out); break;
    default: attend_some(4, q, firsts, lengths, keys, values, C, scale, scores, ld, out);
    }
}

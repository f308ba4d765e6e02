/* softmax(q·kᵀ/√C)·v with whole-number products: the caches of keys and values are int8 matrices in tiles (matmul.h)
   that grow with the text, so both products are those of any other layer.

   Positions are taken in chunks that do not depend on the call (Flash-Decoding, Dao et al. 2023): threads share the
   chunks of one long text, and a row's bits stay the same. A chunk is read from one end to the other; its layout, per
   layer and key-value head, for G = ⌈C/32⌉ groups of channels:
       keys    (CHUNK / 16) tiles of G groups, Q8: a row is a position, with a scale per 32 channels
       values  (C / 16) tiles of CHUNK / 32 groups, BARE: a row is a channel, a group 32 positions
       scales  (CHUNK) × f16: of the values, one per position; they go into the attention weights, which are then
               rounded to int8 by 32 positions, like any activations
   Stale slots beyond a query's position get weight 0, which changes nothing: they hold finite numbers. */
#pragma once
#include "attention.h"
#include "matmul.h"

enum { CHUNK = 512, TOGETHER = 24 }; /* positions of a chunk; queries computed per load of a tile */

typedef struct { uint8_t *keys, *values; uint16_t *scales; int C, G; } chunk;
typedef struct { float top, sum; } chunk_state; /* largest score; Σ exp(score − top) */

static long int8_bytes(int C, long capacity) { /* whole chunks */
    long keys = CHUNK / TILE * ((C + GROUP - 1) / GROUP) * TILE_BYTES(Q8);
    return (capacity + CHUNK - 1) / CHUNK * (keys + CHUNK * (C + 2));
}

/* The chunk that holds a position, of a head's cache. */
INLINE chunk chunk_at(uint8_t *memory, int C, long position) {
    int G = (C + GROUP - 1) / GROUP;
    uint8_t *keys = memory + position / CHUNK * int8_bytes(C, CHUNK), *values = keys + CHUNK / TILE * G * TILE_BYTES(Q8);
    return (chunk){keys, values, (uint16_t *)(values + CHUNK * C), C, G};
}

/* The group of a channel's tile that holds a position of the chunk. */
INLINE uint8_t *value_tile(const chunk *c, int channel, int position) {
    return c->values + (channel / TILE * (CHUNK / GROUP) + position / GROUP) * TILE_BYTES(BARE);
}

/* 32 numbers → int8 p with the scale that is returned, isum = Σ p. Of a few scales, from the largest number's 127th
   part on, the one with the smallest error Σ (x − scale·p)² is taken: a fifth less error than the first of them. */
enum { SCALES = 6 };
INLINE float round_group(int scales, const float *x, int8_t *p, int32_t *isum) {
    const vf magic = vset(12582912.0f); /* adding it rounds to a whole number: see vexp */
    vf top = {0};
    for (int i = 0; i < GROUP; i += LANES) top = vmax(top, vmax(vload(x + i), -vload(x + i)));
    float largest = vlargest(top), least = INFINITY, inverse = 0, scale = 0;
    float unit = largest > 0 ? 1.0f / largest : 0;
#pragma GCC unroll 8
    for (int k = 0; k < scales; k++) {
        const float levels = 127.0f - (float)k;
        float up = levels * unit, down = largest * (1.0f / levels);
        vf squares = {0};
        for (int i = 0; scales > 1 && i < GROUP; i += LANES) {
            vf whole = vfma(vload(x + i), vset(up), magic) - magic, off = vfma(whole, vset(-down), vload(x + i));
            squares = vfma(off, off, squares);
        }
        float error = scales > 1 ? vsum(squares) : 0;
        int better = error < least; /* no branch: it could not be predicted */
        least = better ? error : least, inverse = better ? up : inverse, scale = better ? down : scale;
    }
    vi sums = {0};
    for (int i = 0; i < GROUP; i += LANES) {
        vi whole = (vi)vfma(vload(x + i), vset(inverse), magic) - 0x4b400000;
        sums += whole;
        vbytes(p + i, whole);
    }
    *isum = visum(sums);
    return scale;
}
INLINE void round_row(int scales, const acts *a, long at, const float *x, int n) { /* from group `at` on */
    for (int i = 0; i < n; i += GROUP, at++) {
        float tail[GROUP] = {0};
        const float *from = n - i >= GROUP ? x + i : memcpy(tail, x + i, (n - i) * sizeof(float));
        a->scale[at] = round_group(scales, from, a->q + at * GROUP, a->isum + at);
        a->sum[at] = a->scale[at] * (float)a->isum[at];
    }
}

/* Into slot `position` of a chunk. */
static void int8_store(const chunk *c, int position, const float *k, const float *v) {
    int r = position % TILE;
    int8_t p[GROUP];
    int32_t unused;
    uint8_t *group = c->keys + (long)(position / TILE) * c->G * TILE_BYTES(Q8);
    for (int i = 0; i < c->C; i += GROUP, group += TILE_BYTES(Q8)) {
        float part[GROUP] = {0};
        memcpy(part, k + i, (c->C - i < GROUP ? c->C - i : GROUP) * sizeof(float));
        ((uint16_t *)group)[r] = float_to_half(round_group(SCALES, part, p, &unused));
        for (int j = 0; j < 8; j++) memcpy(group + HEAD_BYTES(Q8) + 64 * j + 4 * r, p + 4 * j, 4);
    }
    vf top = {0};
    for (int i = 0; i < c->C; i += LANES) top = vmax(top, vmax(vload(v + i), -vload(v + i)));
    float largest = vlargest(top), inverse = largest > 0 ? 127.0f / largest : 0;
    c->scales[position] = float_to_half(largest / 127.0f);
    for (int i = 0; i < c->C; i += TILE) {
        for (int j = 0; j < TILE; j += LANES)
            vbytes(p + j, (vi)vfma(vload(v + i + j), vset(inverse), vset(12582912.0f)) - 0x4b400000);
        uint8_t *tile = value_tile(c, i, position) + position % GROUP / 4 * 64 + position % 4;
        for (int j = 0; j < TILE; j++) tile[4 * j] = (uint8_t)p[j];
    }
}

/* A thread's working space: scores (TOGETHER, CHUNK), the weights rounded, out (TOGETHER, C), the states of this chunk
   and of all so far. */
typedef struct { float *scores, *out; acts weights, rests; float heft[TOGETHER]; chunk_state state[TOGETHER], all[TOGETHER]; } int8_scratch;

/* One large weight in a span (often the first token's or the latest's) makes the int8 step coarse for its neighbours.
   Where a step is more than HEAVY of all weights seen, the rounding error is rounded and added as well. */
#define HEAVY 1e-4f
static void mix_rests(const chunk *c, int N, int span, int spans, int8_scratch *s) {
    int any = 0;
    for (int n = 0; n < N; n++) any |= s->weights.scale[(long)n * spans + span] > HEAVY * s->heft[n];
    if (!any) return;
    for (int n = 0; n < N; n++) {
        long at = (long)n * spans + span;
        float *e = s->scores + n * CHUNK + span * GROUP, scale = s->weights.scale[at];
        if (scale > HEAVY * s->heft[n])
            for (int i = 0; i < GROUP; i++) e[i] -= scale * (float)s->weights.q[at * GROUP + i];
        else memset(e, 0, GROUP * sizeof(float));
        round_row(1, &s->rests, n, e, GROUP);
    }
    for (int i = 0; i < c->C; i += TILE) {
        float more[TOGETHER * TILE];
        tile_all(BARE, 0, value_tile(c, i, span * GROUP), 1, &s->rests, N, NULL, more, TILE);
        for (int n = 0; n < N; n++)
            for (int j = 0; j < TILE; j++) s->out[n * c->C + i + j] += more[n * TILE + j];
    }
}

/* N ≤ TOGETHER queries, rows of `q`, against a chunk; the n-th sees its positions firsts[n] to below lengths[n]. out[n]
   (C): Σ exp(score − top)·v, not yet divided by the sum; zeros where it sees none. */
static void int8_attend(const chunk *c, const acts *q, int N, const int *firsts, const int *lengths, float scale,
                        int8_scratch *s) {
    int longest = 0;
    for (int n = 0; n < N; n++)
        if (firsts[n] < lengths[n] && lengths[n] > longest) longest = lengths[n];
    int spans = (longest + GROUP - 1) / GROUP;
    for (int i = 0; i < spans * GROUP; i += TILE)
        tile_all(Q8, 0, c->keys + i / TILE * c->G * TILE_BYTES(Q8), c->G, q, N, NULL, s->scores + i, CHUNK);
    for (int n = 0; n < N; n++) {
        float *e = s->scores + n * CHUNK;
        if (firsts[n] >= lengths[n]) { /* no position of this chunk is visible */
            memset(e, 0, spans * GROUP * sizeof(float)), s->heft[n] = 0;
            s->state[n] = (chunk_state){-1e30f, 0};
        } else {
            s->state[n].sum = soften(e, firsts[n], lengths[n], spans * GROUP, scale, &s->state[n].top);
            vf heft = {0};
            for (int i = 0; i < spans * GROUP; i += LANES) {
                vf w = vload(e + i) * halves(c->scales + i);
                heft += w;
                vstore(e + i, w);
            }
            s->heft[n] = vsum(heft);
        }
        round_row(1, &s->weights, (long)n * spans, e, spans * GROUP);
    }
    for (int i = 0; i < c->C; i += TILE)
        tile_all(BARE, 0, value_tile(c, i, 0), spans, &s->weights, N, NULL, s->out + i, c->C);
    for (int span = 0; span < spans; span++) mix_rests(c, N, span, spans, s);
}

/* The softmax over what both have seen: (a, out) becomes the sum of itself and (b, more). Always the same code, so that
   its rounding is. */
static __attribute__((noinline)) void merge(chunk_state *a, float *out, const chunk_state *b, const float *more, int C) {
    float top = fmaxf(a->top, b->top), mine = expf(a->top - top), theirs = expf(b->top - top);
    a->top = top;
    a->sum = a->sum * mine + b->sum * theirs;
    for (int i = 0; i < C; i += LANES) vstore(out + i, vfma(vload(more + i), vset(theirs), vload(out + i) * mine));
}

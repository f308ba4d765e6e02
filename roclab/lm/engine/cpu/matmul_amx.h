/* tile_int for 16 tokens on AMX: one instruction multiplies them by a group's 32 columns of 16 rows, and what is left for
   the vectors is scaling the sums. A group's quants lie as AMX wants its second factor (a line for 4 columns: 16 rows of 4
   bytes), the activations as its first. The whole numbers are those of tile_int and the float operations too (add_group), in
   the same order: a token's bits do not depend on where it was computed. Both kinds of instruction share a port of the core, so
   this is a half faster than tile_int, no more (docs/log.md). */
#pragma once
#include "vector.h"

enum { AMX_TOKENS = 16, EARLY = 2, LATER = 2, RING = 4 };

/* The compiler sees neither what such an instruction reads nor what it writes: nothing may be moved across one. */
#define AMX(...) __asm__ volatile(__VA_ARGS__ : "memory")

/* Every thread, before its first product of a call: others on it may have set other shapes. Register 0: sums (tokens,
   rows) int32. 1: activations (tokens, columns). 2: weights (columns / 4, rows, 4). */
static void amx_begin(void) {
    struct { uint8_t palette, start, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } shapes = {
        1, .bytes = {64, GROUP, 64}, .rows = {AMX_TOKENS, AMX_TOKENS, GROUP / 4}};
    AMX("ldtilecfg %0" ::"m"(shapes));
}
static void amx_end(void) { AMX("tilerelease" ::); }

/* `wide` ← the 32 columns of 16 rows of 4-bit weights, a byte each. */
INLINE void unpack(const uint8_t *quants, uint8_t *wide) {
    for (int j = 0; j < 4; j++) {
        bytes both = load_bytes(quants + 64 * j);
        _mm512_store_si512(wide + 64 * j, low(both));
        _mm512_store_si512(wide + 256 + 64 * j, high(both));
    }
}

/* sums (16, 16) ← Σ q·p of one group for 16 tokens, `step` bytes apart, and 16 rows. */
INLINE void group_sums(enum kind kind, const uint8_t *wide, const int8_t *p, long step, int32_t *sums) {
    AMX("tilezero %%tmm0\n\ttileloadd (%0,%1,1), %%tmm1\n\ttileloadd (%2,%3,1), %%tmm2" ::"r"(p), "r"(step), "r"(wide),
        "r"(64L));
    if (kind == Q8 || kind == BARE) AMX("tdpbssd %%tmm2, %%tmm1, %%tmm0" ::);
    else AMX("tdpbsud %%tmm2, %%tmm1, %%tmm0" ::);
    AMX("tilestored %%tmm0, (%0,%1,1)" ::"r"(sums), "r"(64L));
}

/* 16 tokens from t0 on, of which the first `real` are wanted: there is room behind the last (SPARE). Neither a tile nor a
   vector can be loaded from a store that has not left the core yet, so a group is unpacked some rounds early and its
   sums are scaled some rounds late. */
INLINE void tile_amx(enum kind kind, int real, const uint8_t *tile, int G, const acts *a, int t0, const float *bias,
                     float *out, long ld) {
    _Alignas(64) uint8_t wide[RING][GROUP * TILE];
    _Alignas(64) int32_t sums[RING][AMX_TOKENS * TILE];
    vf acc[AMX_TOKENS];
#pragma GCC unroll 16
    for (int t = 0; t < AMX_TOKENS; t++) acc[t] = bias ? vload(bias) : (vf){0};
    for (int early = 0; early < G + EARLY + LATER; early++) {
        int g = early - EARLY, late = g - LATER;
        const uint8_t *quants = tile + HEAD_BYTES(kind);
        if (kind < Q8 && early < G) unpack(quants + early * TILE_BYTES(kind), wide[early % RING]);
        if (g >= 0 && g < G) {
            if (kind != BARE && !t0) fetch_ahead(tile + g * TILE_BYTES(kind), TILE_BYTES(kind));
            const int8_t *p = a->q + ((long)t0 * G + g) * GROUP;
            const uint8_t *w = kind < Q8 ? wide[g % RING] : quants + g * TILE_BYTES(kind);
            group_sums(kind, w, p, (long)G * GROUP, sums[g % RING]);
        }
        if (late < 0) continue;
        const uint16_t *scales = (const uint16_t *)(tile + late * TILE_BYTES(kind));
        const int32_t *dot = sums[late % RING];
        long at = (long)t0 * G + late;
        vf d = kind == BARE ? (vf){0} : halves(scales), m = kind == Q4_1 ? halves(scales + 16) : d;
#pragma GCC unroll 16
        for (int t = 0; t < AMX_TOKENS; t++) {
            vi whole = viload(dot + t * TILE);
            if (kind == Q4_0) whole -= 8 * a->isum[at + (long)t * G];
            acc[t] = add_group(kind, acc[t], whole, d, m, a, at + (long)t * G);
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < AMX_TOKENS; t++)
        if (t < real) vstore(out + t * ld, acc[t]);
}

/* y = W·a for quantized W: a tile of 16 rows of W against up to BLOCK tokens.

   W is cut along its columns into groups of 32 with a scale d (and a minimum m) each, as in GGUF's blocks:
       Q4_1: w = d·q + m, Q4_0: w = d·(q − 8), with q in 0…15        Q8: w = d·q, with q in −127…127
   The activations of a token are rounded to int8 with a scale s per group, a = s·p, so a group's share of y is
       d·s·Σ q·p  +  m·s·Σ p        (Q4_0: d·s·(Σ q·p − 8·Σ p))
   with whole-number sums that no order of addition can change. The sums over groups are float, always in the same order.

   Layout ("a tile"): 16 rows side by side, so that a vector lane is a row and nothing is ever summed across lanes:
       for each group:  d of 16 rows (16 × f16) | m of 16 rows (16 × f16; Q4_1 only) | quants
       quants of Q8:    for j = 0…7: for each row the 4 bytes of columns 4j … 4j + 3                       (512 bytes)
       quants of Q4:    for j = 0…3: for each row 4 bytes, low halves columns 4j …, high halves 16 + 4j …  (256 bytes)
   These are exactly a GGUF block's bytes, dealt out four at a time: packing moves bytes and computes nothing, and W
   takes as much memory as in the file. One vector of 4 bytes × rows is multiplied with the 4 matching activations, broadcast. */
#pragma once
#include "vector.h"

enum kind { Q4_0 = 0, Q4_1 = 1, Q8 = 2, BARE = 3 /* Q8 without scales: the cache of values */ };
enum { TILE = 16, GROUP = 32, AHEAD = 4096 /* bytes of weights that are fetched before they are used */ };
#define HEAD_BYTES(kind) ((kind) == BARE ? 0 : (kind) == Q4_1 ? 64 : 32) /* the scales of a tile's group */
#define TILE_BYTES(kind) (HEAD_BYTES(kind) + ((kind) >= Q8 ? 512 : 256))

/* Activations of several tokens, G = columns / 32 groups each. In float mode `f` is used instead of `q`. */
typedef struct {
    int8_t *q;     /* (tokens, 32·G) */
    float *scale;  /* (tokens, G)     s */
    int32_t *isum; /* (tokens, G)     Σ p */
    float *sum;    /* (tokens, G)     s·Σ p, or Σ a in float mode */
    float *f;      /* (tokens, 32·G)  float mode only */
} acts;

#if LANES == 16
#define BLOCK 8
#else
#define BLOCK 4 /* as many tokens as 16 registers hold beside a group's weights */
#endif

#ifdef X86
#if LANES == 16
typedef __m512i bytes;
INLINE bytes load_bytes(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE bytes low(bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
INLINE bytes high(bytes v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
INLINE bytes flip(bytes v) { return _mm512_xor_si512(v, _mm512_set1_epi8((char)128)); }
INLINE bytes spread(int32_t x) { return _mm512_set1_epi32(x); }
INLINE bytes dot4(bytes sum, bytes w, bytes a) { return _mm512_dpbusd_epi32(sum, w, a); }
#else
typedef __m256i bytes;
INLINE bytes load_bytes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE bytes low(bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
INLINE bytes high(bytes v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15)); }
INLINE bytes flip(bytes v) { return _mm256_xor_si256(v, _mm256_set1_epi8((char)128)); }
INLINE bytes spread(int32_t x) { return _mm256_set1_epi32(x); }
#ifdef PATH_AVXVNNI
INLINE bytes dot4(bytes sum, bytes w, bytes a) { return _mm256_dpbusd_avx_epi32(sum, w, a); }
#endif
#endif
INLINE int32_t four(const int8_t *p) { int32_t x; memcpy(&x, p, 4); return x; }

/* Sums stay in their registers in the order written: gcc would regroup whole-number additions into a tree of spills. */
#define IN_ORDER(x) __asm__("" : "+x"(x))

/* dot[t] = Σ q·p of one group for LANES rows, the first of them `row`, and T tokens: token t's 32 activations lie at
   p[t·step]. A vector of weights is used for all tokens before the next one is loaded. */
#ifdef PATH_AVX2
INLINE void group_dots(enum kind kind, int T, const uint8_t *quants, int row, const int8_t *p, long step,
                       const int32_t *isum, long isum_step, vi *dot) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum[BLOCK];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) sum[t] = _mm256_setzero_si256();
    if (kind == Q8 || kind == BARE) { /* unsigned × signed is all there is: |q| · (p with q's sign) */
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            __m256i w = load_bytes(quants + 64 * j + 4 * row), size = _mm256_abs_epi8(w);
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) { /* 2·127² fits 16 bits, 4·127² does not */
                __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(spread(four(p + t * step + 4 * j)), w));
                sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(pairs, ones));
                IN_ORDER(sum[t]);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) dot[t] = (vi)sum[t];
        return;
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m256i both = load_bytes(quants + 64 * j + 4 * row), w = low(both), w16 = high(both);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) { /* 16 products of at most 15·127 fit 16 bits */
            const int8_t *q = p + t * step + 4 * j;
            sum[t] = _mm256_add_epi16(sum[t], _mm256_maddubs_epi16(w, spread(four(q))));
            IN_ORDER(sum[t]);
            sum[t] = _mm256_add_epi16(sum[t], _mm256_maddubs_epi16(w16, spread(four(q + 16))));
            IN_ORDER(sum[t]);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
        dot[t] = (vi)_mm256_madd_epi16(sum[t], ones);
        if (kind == Q4_0) dot[t] -= 8 * isum[t * isum_step];
    }
}
#else
INLINE void group_dots(enum kind kind, int T, const uint8_t *quants, int row, const int8_t *p, long step,
                       const int32_t *isum, long isum_step, vi *dot) {
    bytes sum[BLOCK];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) /* 8-bit weights are shifted by 128, to be unsigned */
        sum[t] = spread(kind == Q4_1 ? 0 : (kind == Q4_0 ? -8 : -128) * isum[t * isum_step]);
    if (kind == Q8 || kind == BARE) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) {
            bytes w = flip(load_bytes(quants + 64 * j + 4 * row));
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) sum[t] = dot4(sum[t], w, spread(four(p + t * step + 4 * j)));
        }
    } else {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            bytes both = load_bytes(quants + 64 * j + 4 * row), w = low(both), w16 = high(both);
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                sum[t] = dot4(sum[t], w, spread(four(p + t * step + 4 * j)));
                sum[t] = dot4(sum[t], w16, spread(four(p + t * step + 4 * j + 16)));
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) dot[t] = (vi)sum[t];
}
#endif

/* The processor's own fetching ahead stops at the end of a page. */
INLINE void fetch_ahead(const uint8_t *group, int size) {
    for (int i = 0; i < size; i += 64) __builtin_prefetch(group + AHEAD + i);
}

/* acc + a group's share of y for token-group i, from its whole-number sums: the float operations of every way to these. */
INLINE vf add_group(enum kind kind, vf acc, vi dot, vf d, vf m, const acts *a, long i) {
    vf scale = vset(a->scale[i]);
    acc = vfma(vfloat(dot), kind == BARE ? scale : d * scale, acc);
    return kind == Q4_1 ? vfma(m, vset(a->sum[i]), acc) : acc;
}

/* VECS vectors of rows from row `first` on against T tokens. All but the pointers are known when compiling. */
INLINE void tile_int(enum kind kind, int T, int VECS, int first, const uint8_t *tile, int G, const acts *a, int t0,
                     const float *bias, float *out, long ld) {
    vf acc[BLOCK][2];
    for (int t = 0; t < T; t++)
        for (int v = 0; v < VECS; v++) acc[t][v] = bias ? vload(bias + first + v * LANES) : (vf){0};
    for (int g = 0; g < G; g++, tile += TILE_BYTES(kind)) {
        const uint16_t *scales = (const uint16_t *)tile;
        const uint8_t *quants = tile + HEAD_BYTES(kind);
        long at = (long)t0 * G + g;
        if (kind != BARE && !t0 && !first) fetch_ahead(tile, TILE_BYTES(kind));
#pragma GCC unroll 2
        for (int v = 0; v < VECS; v++) {
            int row = first + v * LANES;
            vi dot[BLOCK];
            group_dots(kind, T, quants, row, a->q + at * GROUP, (long)G * GROUP, a->isum + at, G, dot);
            vf d = kind == BARE ? (vf){0} : halves(scales + row), m = kind == Q4_1 ? halves(scales + 16 + row) : d;
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) acc[t][v] = add_group(kind, acc[t][v], dot[t], d, m, a, at + (long)t * G);
        }
    }
    for (int t = 0; t < T; t++)
        for (int v = 0; v < VECS; v++) vstore(out + t * ld + first + v * LANES, acc[t][v]);
}

#else /* plain C */
INLINE void tile_int(enum kind kind, int T, const uint8_t *tile, int G, const acts *a, int t0, const float *bias,
                     float *out, long ld) {
    for (int t = 0; t < T; t++, out += ld) {
        const uint8_t *group = tile;
        float acc[TILE];
        for (int r = 0; r < TILE; r++) acc[r] = bias ? bias[r] : 0;
        for (int g = 0; g < G; g++, group += TILE_BYTES(kind)) {
            long at = (long)(t0 + t) * G + g;
            const uint16_t *scales = (const uint16_t *)group;
            const uint8_t *quants = group + HEAD_BYTES(kind);
            const int8_t *p = a->q + at * GROUP;
            int32_t dot[TILE] = {0};
            for (int j = 0; j < (kind == Q8 || kind == BARE ? 8 : 4); j++)
                for (int r = 0; r < TILE; r++)
                    for (int i = 0; i < 4; i++) {
                        uint8_t q = quants[64 * j + 4 * r + i];
                        if (kind == Q8 || kind == BARE) dot[r] += (int8_t)q * p[4 * j + i];
                        else dot[r] += (q & 15) * p[4 * j + i] + (q >> 4) * p[16 + 4 * j + i];
                    }
            for (int r = 0; r < TILE; r++) {
                if (kind == Q4_0) dot[r] -= 8 * a->isum[at];
                acc[r] += (float)dot[r] * (kind == BARE ? a->scale[at] : half_to_float(scales[r]) * a->scale[at]);
                if (kind == Q4_1) acc[r] += half_to_float(scales[16 + r]) * a->sum[at];
            }
        }
        memcpy(out, acc, sizeof acc);
    }
}
#endif

/* The low four bits of each lane as a float, by table lookup: cheaper than masking and converting. */
INLINE vf nibble(vi v) {
#ifdef PATH_AVX512
    return vmove(vfloat(LANE_NUMBERS), v);
#else
    return vfloat(v & 15);
#endif
}

/* The same with float activations: each weight becomes a float in a register, d·Σ q·a + m·Σ a. Two sums for each token,
   so that a product does not wait for the previous one. */
INLINE void tile_float(enum kind kind, int T, int first, const uint8_t *tile, int G, const acts *a, int t0,
                       const float *bias, float *out, long ld) {
    vf acc[4];
    for (int t = 0; t < T; t++) acc[t] = bias ? vload(bias + first) : (vf){0};
    for (int g = 0; g < G; g++, tile += TILE_BYTES(kind)) {
        const uint16_t *scales = (const uint16_t *)tile;
        const uint8_t *quants = tile + HEAD_BYTES(kind);
        vf dot[4] = {{0}}, dot16[4] = {{0}};
        for (int j = 0; j < 4; j++) {
            vi columns = viload(quants + 64 * j + 4 * first);
            vi columns16 = kind == Q8 ? viload(quants + 256 + 64 * j + 4 * first) : columns >> 4;
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                vf w = kind == Q8 ? vfloat((columns << (24 - 8 * i)) >> 24) : nibble(columns >> 8 * i);
                vf w16 = kind == Q8 ? vfloat((columns16 << (24 - 8 * i)) >> 24) : nibble(columns16 >> 8 * i);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++) {
                    const float *x = a->f + ((long)(t0 + t) * G + g) * GROUP + 4 * j + i;
                    dot[t] = vfma(w, vset(x[0]), dot[t]);
                    dot16[t] = vfma(w16, vset(x[16]), dot16[t]);
                }
            }
        }
        vf d = halves(scales + first), m = kind == Q4_1 ? halves(scales + 16 + first) : d * -8.0f;
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            acc[t] = vfma(d, dot[t] + dot16[t], acc[t]);
            if (kind != Q8) acc[t] = vfma(m, vset(a->sum[(long)(t0 + t) * G + g]), acc[t]);
        }
    }
    for (int t = 0; t < T; t++) vstore(out + t * ld + first, acc[t]);
}

enum { SPARE = 16 }; /* tokens for which there is room behind the last activations: AMX computes as many at once */
#ifdef PATH_AMX
#include "matmul_amx.h"
#else
INLINE void amx_begin(void) {}
INLINE void amx_end(void) {}
#endif

/* One tile against all tokens: `out` (tokens, ld), 16 columns of it. */
INLINE void tile_all(enum kind kind, int exact, const uint8_t *tile, int G, const acts *a, int tokens,
                     const float *bias, float *out, long ld) {
    int t = 0;
    if (exact) {
#define ROWS(T) for (int r = 0; r < TILE; r += LANES) tile_float(kind, T, r, tile, G, a, t, bias, out + t * ld, ld)
        for (; t + 4 <= tokens; t += 4) ROWS(4);
        switch (tokens - t) {
        case 1: ROWS(1); break;
        case 2: ROWS(2); break;
        case 3: ROWS(3); break;
        }
#undef ROWS
        return;
    }
#ifndef X86
    for (; t < tokens; t++) tile_int(kind, 1, tile, G, a, t, bias, out + t * ld, ld);
#else
#define ROWS(T) for (int r = 0; r < TILE; r += LANES) tile_int(kind, T, 1, r, tile, G, a, t, bias, out + t * ld, ld)
#ifdef PATH_AMX
    for (; t + BLOCK < tokens; t += AMX_TOKENS) tile_amx(kind, tokens - t, tile, G, a, t, bias, out + t * ld, ld);
#endif
    for (; t + BLOCK <= tokens; t += BLOCK) ROWS(BLOCK);
    switch (tokens - t) {
    case 1: tile_int(kind, 1, TILE / LANES, 0, tile, G, a, t, bias, out + t * ld, ld); break; /* stream a tile once */
    case 2: ROWS(2); break;
    case 3: ROWS(3); break;
#if BLOCK == 8
    case 4: ROWS(4); break;
    case 5: ROWS(5); break;
    case 6: ROWS(6); break;
    case 7: ROWS(7); break;
#endif
    }
#undef ROWS
#endif
}

/* Vectors of LANES floats, written once for every processor; half precision; exp.

   The path is chosen by a macro on the compiler's command line, never by what the compiler finds out for itself:
   PATH_AVX512 (AVX-512 with VNNI; PATH_AMX too where there is AMX), PATH_AVXVNNI, PATH_AVX2 (all three with FMA and F16C), or none of them: plain C.
   Everything built on these primitives does the same operations in the same order whatever the number of rows in a
   call, so a token's result does not depend, not in a single bit, on what else is computed beside it. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(PATH_AVX512) || defined(PATH_AVXVNNI) || defined(PATH_AVX2)
#define X86 1
#include <immintrin.h>
#endif

#if defined(PATH_AVX512)
#define LANES 16
#elif defined(X86)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
#if LANES == 16
#define LANE_NUMBERS (vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif LANES == 8
#define LANE_NUMBERS (vi){0, 1, 2, 3, 4, 5, 6, 7}
#else
#define LANE_NUMBERS (vi){0, 1, 2, 3}
#endif

INLINE vf vload(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void vstore(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vi viload(const void *p) { vi v; memcpy(&v, p, sizeof v); return v; }
INLINE vf vset(float x) { return x - (vf){0}; }

#if defined(PATH_AVX512)
INLINE vf vfma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf vfloat(vi a) { return (vf)_mm512_cvtepi32_ps((__m512i)a); }
#elif defined(X86)
INLINE vf vfma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf vfloat(vi a) { return (vf)_mm256_cvtepi32_ps((__m256i)a); }
#else
INLINE vf vfma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf vmax(vf a, vf b) { vi m = a > b; return (vf)((m & (vi)a) | (~m & (vi)b)); }
INLINE vf vfloat(vi a) { return __builtin_convertvector(a, vf); }
#endif

/* Across lanes: sums, the largest, lanes moved (lane i of the result is lane at[i]), the low bytes of whole numbers. */
#if defined(PATH_AVX512)
INLINE float vsum(vf v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE vf vmove(vf v, vi at) { return (vf)_mm512_permutexvar_ps((__m512i)at, (__m512)v); }
INLINE float vlargest(vf v) { return _mm512_reduce_max_ps((__m512)v); }
INLINE int32_t visum(vi v) { return _mm512_reduce_add_epi32((__m512i)v); }
INLINE void vbytes(int8_t *p, vi v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)v)); }
#elif defined(X86)
INLINE float vsum(vf v) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
INLINE vf vmove(vf v, vi at) { return (vf)_mm256_permutevar8x32_ps((__m256)v, (__m256i)at); }
INLINE float vlargest(vf v) {
    __m128 h = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
INLINE int32_t visum(vi v) {
    __m128i h = _mm_add_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
}
INLINE void vbytes(int8_t *p, vi v) {
    __m128i w = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(w, w));
}
#else
INLINE float vsum(vf v) { return (v[0] + v[2]) + (v[1] + v[3]); }
INLINE vf vmove(vf v, vi at) {
    vf moved;
    for (int i = 0; i < LANES; i++) moved[i] = v[at[i]];
    return moved;
}
INLINE float vlargest(vf v) {
    float s[LANES];
    vstore(s, v);
    for (int i = 1; i < LANES; i++)
        if (s[i] > s[0]) s[0] = s[i];
    return s[0];
}
INLINE int32_t visum(vi v) {
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}
INLINE void vbytes(int8_t *p, vi v) {
    for (int i = 0; i < LANES; i++) p[i] = (int8_t)v[i];
}
#endif

/* exp(x), relative error about 1e-7; 0 below −87. x = n·ln 2 + r, |r| ≤ ½ ln 2: 2ⁿ goes straight into the exponent's
   bits, exp(r) is a polynomial (Cephes, expf). */
INLINE vf vexp(vf x) {
    vf clamped = vmax(x, vset(-87.0f));
    vf magic = vset(12582912.0f); /* 1.5·2²³: adding it rounds to a whole number, held in the low bits */
    vf shifted = vfma(clamped, vset(1.44269504f), magic);
    vf n = shifted - magic;
    vf r = vfma(n, vset(-0.693359375f), clamped);
    r = vfma(n, vset(2.12194440e-4f), r);
    vf p = vset(1.9875691500e-4f);
    p = vfma(p, r, vset(1.3981999507e-3f));
    p = vfma(p, r, vset(8.3334519073e-3f));
    p = vfma(p, r, vset(4.1665795894e-2f));
    p = vfma(p, r, vset(1.6666665459e-1f));
    p = vfma(p, r, vset(5.0000001201e-1f));
    p = vfma(p, r * r, r + 1.0f);
    vi power = ((vi)shifted + 127) << 23;
    vi alive = x > -87.0f;
    return (vf)((vi)(p * (vf)power) & alive);
}

/* Half precision: of scales, and of the cache of keys and values. */
INLINE float half_to_float(uint16_t h) {
#ifdef X86
    return _cvtsh_ss(h);
#else
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, body = h & 0x7fff, bits;
    float f;
    if (body >= 0x7c00) bits = 0x7f800000 | (body & 0x3ff) << 13;
    else if (body >= 0x400) bits = (body << 13) + (112u << 23);
    else { f = (float)body * 5.9604644775390625e-8f; memcpy(&bits, &f, 4); } /* subnormal: body · 2⁻²⁴ */
    bits |= sign;
    memcpy(&f, &bits, 4);
    return f;
#endif
}

static uint16_t float_to_half(float x) { /* to nearest, ties to even; scales are never infinite */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000, body = bits & 0x7fffffff;
    if (body >= 0x477ff000) return (uint16_t)(sign | 0x7bff); /* the largest there is */
    if (body < 0x38800000) return (uint16_t)(sign | (uint32_t)lrintf(ldexpf(fabsf(x), 24))); /* subnormal */
    return (uint16_t)(sign | ((body + 0xfff + (body >> 13 & 1) - (112u << 23)) >> 13));
}

#ifdef X86
typedef uint16_t kv_t;
INLINE kv_t kv_from(float x) { return _cvtss_sh(x, 0); }
#if LANES == 16
INLINE vf kv_load(const kv_t *p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
#else
INLINE vf kv_load(const kv_t *p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
#endif
INLINE vf halves(const uint16_t *p) { return kv_load(p); }
#else
typedef float kv_t; /* no conversion in hardware: half precision would cost more than it saves */
INLINE kv_t kv_from(float x) { return x; }
INLINE vf kv_load(const kv_t *p) { return vload(p); }
INLINE vf halves(const uint16_t *p) {
    vf v;
    for (int i = 0; i < LANES; i++) v[i] = half_to_float(p[i]);
    return v;
}
#endif

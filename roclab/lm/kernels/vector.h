/* Vectors of LANES floats, written once for every processor; half precision; exp.

   The path is chosen by a macro on the compiler's command line, never by what the compiler finds out for itself:
   PATH_AVX512 (AVX-512 with VNNI), PATH_AVXVNNI, PATH_AVX2 (all three with FMA and F16C), or none of them: plain C.
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

INLINE float vsum(vf v) {
    float s[LANES];
    vstore(s, v);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) s[i] += s[i + n];
    return s[0];
}
INLINE float vlargest(vf v) {
    float s[LANES];
    vstore(s, v);
    for (int i = 1; i < LANES; i++)
        if (s[i] > s[0]) s[0] = s[i];
    return s[0];
}

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

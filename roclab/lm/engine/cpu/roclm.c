/* RocLM's forward pass in one call, over quantized weights (the model itself: roclab/lm/model.py, which is the truth
   this is tested against). A call computes any tokens of any sequences: each row is (token id, position, cache), so a
   prompt, one step of a chat, a step of sixteen requests and the check of draft tokens are the same call. */
#include "attention_int8.h"
#include "machine.h"
#include "matmul.h"
#include "pool.h"
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    int kind, rows, columns; /* rows as padded to whole tiles */
    const uint8_t *tiles;
    const float *bias; /* (rows) or NULL */
} matrix;

enum { WQ, WK, WV, WO, GATE, UP, DOWN, MATRICES };
enum { ATTENTION_NORM, MLP_NORM, Q_NORM, K_NORM, NORMS };

typedef struct {
    matrix m[MATRICES];
    const float *norm[NORMS]; /* Q_NORM and K_NORM may be NULL */
    int window; /* how many positions a token sees, its own included; 0: all */
} layer;

typedef struct {
    int32_t vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, max_rows, exact, kv_int8;
    float eps, magnitude; /* of cosines and sines */
} shape;

typedef struct { int item, row, end, chunks; } piece; /* of the attention: its first item, its rows */

typedef struct {
    shape s;
    layer *layers;
    matrix embedding, head;
    const float *final_norm, *inv_freq; /* inv_freq (head_dim / 2) */
    pool threads;
    int few; /* threads for few rows */
    float *scores[MAX_THREADS];
    long scores_length[MAX_THREADS];
    acts a, queries; /* queries (kv_heads, rows, heads / kv_heads), for an int8 cache */
    int8_scratch scratch[MAX_THREADS];
    int chunks; /* of the longest text, where threads share the chunks of a text; else 0 */
    float *partial; /* out of each (row, head, chunk) then, with its chunk_state behind it */
    long partial_length;
    piece *pieces; /* (max_rows + 1); the last one holds `items` only */
    int items;
    machine_job limits;
    float *x, *y, *q, *k, *v, *mixed, *gate, *up, *cos, *sin; /* (max_rows, …) each */
    /* of the current call */
    int rows, outputs;
    const int32_t *tokens, *positions, *output_rows;
    uint8_t *const *cache;
    const int64_t *capacity;
    float *logits;
} model;

static long pad(long n, long to) { return (n + to - 1) / to * to; }
/* From one token's row of a product to the next: rows a multiple of a page apart would fall into the same few cache
   lines. */
static long stride(long rows) { return pad(rows, TILE) + TILE; }

static void *zeros(size_t bytes) {
    void *p = NULL;
    bytes = pad(bytes ? bytes : 1, 64);
    if (posix_memalign(&p, 64, bytes)) return NULL;
    return memset(p, 0, bytes);
}

/* ── Rows: operations on one token's vector ──────────────────────────────────────────────────────────────────── */

/* Row t of the activations from x (n floats, a multiple of 32): rounded to int8 by groups, or float in exact mode. */
static void quantize(const model *m, int t, const float *x, int n) {
    long at = (long)t * (n / GROUP);
    if (!m->s.exact) { round_row(SCALES, &m->a, at, x, n); return; }
    for (int end = n / GROUP; end; end--, at++, x += GROUP) {
        float sum = 0;
        for (int i = 0; i < GROUP; i++) sum += m->a.f[at * GROUP + i] = x[i];
        m->a.sum[at] = sum;
    }
}

/* y = g · x / √(mean(x²) + ε) over n numbers. x and y may be the same. */
static void rms_norm(const float *x, const float *g, float *y, int n, float eps) {
    vf squares = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES) { vf v = vload(x + i); squares = vfma(v, v, squares); }
    float sum = vsum(squares);
    for (; i < n; i++) sum += x[i] * x[i];
    float factor = 1.0f / sqrtf(sum / n + eps);
    for (i = 0; i < n; i++) y[i] = g[i] * (x[i] * factor);
}

/* Turn pairs (i, i + C/2) by the position's angles; RoPE as in model.py's rotate_half. */
static void rotate(float *x, const float *cos, const float *sin, int C) {
    for (int i = 0; i < C / 2; i++) {
        float a = x[i], b = x[i + C / 2];
        x[i] = a * cos[i] - b * sin[i];
        x[i + C / 2] = b * cos[i] + a * sin[i];
    }
}

/* x·H for the Hadamard matrix H of the largest power of two that divides C, block by block: what queries and keys are
   turned by before they are rounded. Products stay the same (H is orthogonal), and no channel stands out (QuaRot,
   Ashkboos et al. 2024). C is a multiple of 16. */
static void spread_out(float *x, int C) {
    int n = C & -C;
    vf factor = vset(1.0f / sqrtf((float)n));
    for (int i = 0; i < C; i += LANES) {
        vf v = vload(x + i) * factor;
#pragma GCC unroll 4
        for (int s = 1; s < LANES; s *= 2) { /* pairs (a, b) that lie s apart → (a + b, a − b) */
            vi minus = ((LANE_NUMBERS & s) != 0) << 31; /* the sign bit of each b */
            v = (vf)((vi)v ^ minus) + vmove(v, LANE_NUMBERS ^ s);
        }
        vstore(x + i, v);
    }
    for (int s = LANES; s < n; s *= 2)
        for (int i = 0; i < C; i += 2 * s)
            for (int j = i; j < i + s; j += LANES) {
                vf a = vload(x + j), b = vload(x + j + s);
                vstore(x + j, a + b), vstore(x + j + s, a - b);
            }
}

/* Row `row` of a matrix as floats: the embedding of a token. */
static void embed(const matrix *e, int row, float *x) {
    int G = e->columns / GROUP, r = row % TILE;
    const uint8_t *group = e->tiles + (long)(row / TILE) * G * TILE_BYTES(e->kind);
    for (int g = 0; g < G; g++, group += TILE_BYTES(e->kind), x += GROUP) {
        const uint16_t *scales = (const uint16_t *)group;
        const uint8_t *quants = group + HEAD_BYTES(e->kind);
        float d = half_to_float(scales[r]), m = e->kind == Q4_1 ? half_to_float(scales[16 + r]) : -8 * d;
        for (int i = 0; i < GROUP; i++) {
            if (e->kind == Q8) x[i] = d * (int8_t)quants[64 * (i / 4) + 4 * r + i % 4];
            else {
                uint8_t both = quants[64 * (i % 16 / 4) + 4 * r + i % 4];
                x[i] = d * (i < 16 ? both & 15 : both >> 4) + m;
            }
        }
    }
}

typedef void row_function(model *, int layer_index, int t);

static void begin_row(model *m, int l, int t) {
    int C = m->s.head_dim, D = m->s.hidden;
    for (int i = 0; i < C / 2; i++) {
        float angle = (float)m->positions[t] * m->inv_freq[i];
        m->cos[(long)t * C / 2 + i] = cosf(angle) * m->s.magnitude;
        m->sin[(long)t * C / 2 + i] = sinf(angle) * m->s.magnitude;
    }
    float *x = m->x + (long)t * D, *y = m->y + (long)t * D;
    embed(&m->embedding, m->tokens[t], x);
    rms_norm(x, m->layers[l].norm[ATTENTION_NORM], y, D, m->s.eps);
    quantize(m, t, y, D);
}

/* Where a key-value head's keys and values lie in row t's cache. */
static long head_bytes(const shape *s, long capacity) {
    return s->kv_int8 ? int8_bytes(s->head_dim, capacity) : 2 * capacity * s->head_dim * (long)sizeof(kv_t);
}
static uint8_t *cache_of(model *m, int l, int t, int head) {
    return m->cache[t] + ((long)l * m->s.kv_heads + head) * head_bytes(&m->s, m->capacity[t]);
}

static void place_row(model *m, int l, int t) { /* QK-norm, RoPE, append to the cache */
    int C = m->s.head_dim, H = m->s.heads, K = m->s.kv_heads, share = H / K, G = (C + GROUP - 1) / GROUP;
    const layer *w = &m->layers[l];
    const float *cos = m->cos + (long)t * C / 2, *sin = m->sin + (long)t * C / 2;
    for (int h = 0; h < H; h++) {
        float *q = m->q + t * stride(w->m[WQ].rows) + h * C;
        if (w->norm[Q_NORM]) rms_norm(q, w->norm[Q_NORM], q, C, m->s.eps);
        rotate(q, cos, sin, C);
        if (!m->s.kv_int8) continue;
        spread_out(q, C);
        round_row(SCALES, &m->queries, (((long)(h / share) * m->rows + t) * share + h % share) * G, q, C);
    }
    for (int h = 0; h < K; h++) {
        float *k = m->k + t * stride(w->m[WK].rows) + h * C, *v = m->v + t * stride(w->m[WV].rows) + h * C;
        if (w->norm[K_NORM]) rms_norm(k, w->norm[K_NORM], k, C, m->s.eps);
        rotate(k, cos, sin, C);
        uint8_t *memory = cache_of(m, l, t, h);
        if (m->s.kv_int8) {
            chunk at = chunk_at(memory, C, m->positions[t]);
            spread_out(k, C);
            int8_store(&at, m->positions[t] % CHUNK, k, v);
        } else {
            store_key((kv_t *)memory, C, m->positions[t], k);
            store_value((kv_t *)memory + m->capacity[t] * C, C, m->positions[t], v);
        }
    }
}

static float *partial_of(model *m, int t, int head, int chunk) {
    return m->partial + (((long)t * m->s.heads + head) * m->chunks + chunk) * (m->s.head_dim + LANES);
}

static void mixed_row(model *m, int l, int t) {
    (void)l;
    int C = m->s.head_dim, n = m->s.heads * C;
    for (int h = 0; m->chunks && h < m->s.heads; h++) { /* merge the chunks' partial results */
        float *all = partial_of(m, t, h, 0), *out = m->mixed + (long)t * n + h * C;
        chunk_state *state = (chunk_state *)(all + C);
        for (int c = 1; c * CHUNK <= m->positions[t]; c++) {
            float *more = partial_of(m, t, h, c);
            merge(state, all, (chunk_state *)(more + C), more, C);
        }
        for (int i = 0; i < C; i++) out[i] = all[i] / state->sum;
    }
    quantize(m, t, m->mixed + (long)t * n, n);
}

static void add_row(model *m, const matrix *from, const float *norm, int t) {
    int D = m->s.hidden;
    float *x = m->x + (long)t * D, *y = m->y + t * stride(from->rows);
    for (int i = 0; i < D; i++) x[i] += y[i];
    if (!norm) return;
    rms_norm(x, norm, y, D, m->s.eps);
    quantize(m, t, y, D);
}
static void after_attention_row(model *m, int l, int t) {
    add_row(m, &m->layers[l].m[WO], m->layers[l].norm[MLP_NORM], t);
}
static void after_mlp_row(model *m, int l, int t) {
    add_row(m, &m->layers[l].m[DOWN], l + 1 < m->s.layers ? m->layers[l + 1].norm[ATTENTION_NORM] : NULL, t);
}

static void gated_row(model *m, int l, int t) { /* silu(gate)·up, silu(z) = z / (1 + exp(−z)) */
    int F = m->s.intermediate;
    float *gate = m->gate + t * stride(m->layers[l].m[GATE].rows);
    const float *up = m->up + t * stride(m->layers[l].m[UP].rows);
    for (int i = 0; i < F; i += LANES) { /* F is a multiple of 32 */
        vf z = vload(gate + i);
        vstore(gate + i, z / (vexp(-z) + 1.0f) * vload(up + i));
    }
    quantize(m, t, gate, F);
}

static void output_row(model *m, int l, int o) {
    (void)l;
    int D = m->s.hidden;
    float *y = m->y + (long)o * D;
    rms_norm(m->x + (long)m->output_rows[o] * D, m->final_norm, y, D, m->s.eps);
    quantize(m, o, y, D);
}

/* ── Phases: all threads together (pool.h) ─────────────────────────────────────────────────────────────── */

static void rows(model *m, int thread, row_function *f, int l, int count) {
    pool *p = &m->threads;
    for (int at, end; take(p, thread, count, count, &at, &end); finish(p, thread, end - at, count))
        for (int t = at; t < end; t++) f(m, l, t);
    next_phase(p, thread);
}

typedef struct { const matrix *w; float *out; } product;

/* out (tokens, rows), its rows stride(rows) apart, = activations · Wᵀ for matrices that share the activations. */
static void multiply(model *m, int thread, const product *list, int n, int tokens) {
    pool *p = &m->threads;
    int total = 0;
    for (int i = 0; i < n; i++) total += list[i].w->rows / TILE;
    for (int at, end; take(p, thread, total, total, &at, &end); finish(p, thread, end - at, total)) {
        int first = 0;
        for (int i = 0; i < n; i++) {
            const matrix *w = list[i].w;
            int tiles = w->rows / TILE, G = w->columns / GROUP, last = end - first < tiles ? end - first : tiles;
            long ld = stride(w->rows);
            for (int j = at > first ? at - first : 0; j < last; j++) {
                const uint8_t *tile = w->tiles + (long)j * G * TILE_BYTES(w->kind);
                const float *bias = w->bias ? w->bias + j * TILE : NULL;
                float *out = list[i].out + j * TILE;
                switch (w->kind * 2 + m->s.exact) { /* constants: one loop without branches for each */
                case 2 * Q4_0: tile_all(Q4_0, 0, tile, G, &m->a, tokens, bias, out, ld); break;
                case 2 * Q4_1: tile_all(Q4_1, 0, tile, G, &m->a, tokens, bias, out, ld); break;
                case 2 * Q8: tile_all(Q8, 0, tile, G, &m->a, tokens, bias, out, ld); break;
                case 2 * Q4_0 + 1: tile_all(Q4_0, 1, tile, G, &m->a, tokens, bias, out, ld); break;
                case 2 * Q4_1 + 1: tile_all(Q4_1, 1, tile, G, &m->a, tokens, bias, out, ld); break;
                case 2 * Q8 + 1: tile_all(Q8, 1, tile, G, &m->a, tokens, bias, out, ld); break;
                }
            }
            first += tiles;
        }
    }
    next_phase(p, thread);
}

/* The first position that the token at `position` sees. */
INLINE int first_seen(const layer *l, int position) {
    return l->window && position >= l->window ? position - l->window + 1 : 0;
}

static void attend_floats(model *m, int thread, int l, int t, int end, int h) {
    int C = m->s.head_dim, H = m->s.heads, share = H / m->s.kv_heads, total = (end - t) * share;
    const kv_t *keys = (const kv_t *)cache_of(m, l, t, h), *values = keys + m->capacity[t] * C;
    for (int i = 0; i < total; i += QUERIES) {
        const float *q[QUERIES];
        float *out[QUERIES];
        int firsts[QUERIES], lengths[QUERIES], N = total - i < QUERIES ? total - i : QUERIES;
        int begin = first_seen(&m->layers[l], m->positions[t + i / share]) / SPAN * SPAN; /* nobody sees what is before */
        for (int n = 0; n < N; n++) {
            int row = t + (i + n) / share, head = h * share + (i + n) % share;
            q[n] = m->q + row * stride(m->layers[l].m[WQ].rows) + head * C;
            out[n] = m->mixed + (long)row * H * C + head * C;
            firsts[n] = first_seen(&m->layers[l], m->positions[row]) - begin;
            lengths[n] = m->positions[row] + 1 - begin;
        }
        attend(N, q, firsts, lengths, keys + (long)begin * C, values + (long)begin * C, C, 1.0f / sqrtf((float)C),
               m->scores[thread], m->scores_length[thread], out);
    }
}

/* Chunk c of the text alone where threads share chunks; else all of them, one after the other. */
static void attend_int8(model *m, int thread, int l, int t, int end, int h, int c) {
    int C = m->s.head_dim, H = m->s.heads, share = H / m->s.kv_heads, total = (end - t) * share;
    uint8_t *memory = cache_of(m, l, t, h);
    int8_scratch *s = &m->scratch[thread];
    for (int i = 0; i < total; i += TOGETHER) { /* more than once only where a head's queries are more */
        int firsts[TOGETHER], lengths[TOGETHER], N = total - i < TOGETHER ? total - i : TOGETHER;
        long first = (((long)h * m->rows + t) * share + i) * ((C + GROUP - 1) / GROUP);
        acts q = {m->queries.q + first * GROUP, m->queries.scale + first, m->queries.isum + first,
                  m->queries.sum + first, NULL};
        int last = m->chunks ? c : m->positions[t + (i + N - 1) / share] / CHUNK;
        for (int j = c; j <= last; j++) {
            chunk at = chunk_at(memory, C, (long)j * CHUNK);
            for (int n = 0; n < N; n++) {
                int position = m->positions[t + (i + n) / share], length = position + 1 - j * CHUNK;
                int first = first_seen(&m->layers[l], position) - j * CHUNK;
                firsts[n] = first > 0 ? first : 0;
                lengths[n] = length < CHUNK ? length : CHUNK;
            }
            int8_attend(&at, &q, N, firsts, lengths, 1.0f / sqrtf((float)C), s);
            for (int n = 0; n < N; n++) {
                if (lengths[n] <= 0) continue;
                int row = t + (i + n) / share, head = h * share + (i + n) % share;
                float *to = m->chunks ? partial_of(m, row, head, c) : m->mixed + ((long)row * H + head) * C;
                if (m->chunks || !j) {
                    memcpy(to, s->out + n * C, C * sizeof(float));
                    if (m->chunks) memcpy(to + C, &s->state[n], sizeof(chunk_state));
                    else s->all[n] = s->state[n];
                } else merge(&s->all[n], to, &s->state[n], s->out + n * C, C);
            }
        }
        for (int n = 0; n < N && !m->chunks; n++) {
            float *to = m->mixed + ((long)(t + (i + n) / share) * H + h * share + (i + n) % share) * C;
            for (int j = 0; j < C; j++) to[j] /= s->all[n].sum;
        }
    }
}

/* Queries of one sequence that share a key-value head are computed together: each key is loaded once for all. An item of
   work is some rows and a head, or one chunk of these where a call has fewer rows than threads. */
static void cut_attention(model *m) {
    int share = m->s.heads / m->s.kv_heads, most = m->s.kv_int8 ? TOGETHER : QUERIES;
    m->items = 0;
    piece *next = m->pieces;
    for (int t = 0, end; t < m->rows; t = end) {
        for (end = t + 1; end < m->rows && (end - t + 1) * share <= most && m->cache[end] == m->cache[t]; end++) {}
        int chunks = m->chunks ? m->positions[end - 1] / CHUNK + 1 : 1;
        *next++ = (piece){m->items, t, end, chunks};
        m->items += m->s.kv_heads * chunks;
    }
    next->item = m->items;
}

static void attention(model *m, int thread, int l) {
    pool *p = &m->threads;
    const piece *at = m->pieces;
    for (int item, next; take(p, thread, m->items, 1, &item, &next); finish(p, thread, 1, m->items)) {
        while (item >= at[1].item) at++;
        int h = (item - at->item) / at->chunks, c = (item - at->item) % at->chunks;
        if (m->s.kv_int8) attend_int8(m, thread, l, at->row, at->end, h, c);
        else attend_floats(m, thread, l, at->row, at->end, h);
    }
    next_phase(p, thread);
}

static void forward(void *argument, int thread) {
    model *m = argument;
    int T = m->rows;
    amx_begin();
    rows(m, thread, begin_row, 0, T);
    for (int l = 0; l < m->s.layers; l++) {
        const matrix *w = m->layers[l].m;
        multiply(m, thread, (product[]){{&w[WQ], m->q}, {&w[WK], m->k}, {&w[WV], m->v}}, 3, T);
        rows(m, thread, place_row, l, T);
        attention(m, thread, l);
        rows(m, thread, mixed_row, l, T);
        multiply(m, thread, (product[]){{&w[WO], m->y}}, 1, T);
        rows(m, thread, after_attention_row, l, T);
        multiply(m, thread, (product[]){{&w[GATE], m->gate}, {&w[UP], m->up}}, 2, T);
        rows(m, thread, gated_row, l, T);
        multiply(m, thread, (product[]){{&w[DOWN], m->y}}, 1, T);
        rows(m, thread, after_mlp_row, l, T);
    }
    if (m->outputs) {
        rows(m, thread, output_row, 0, m->outputs);
        multiply(m, thread, (product[]){{&m->head, m->logits}}, 1, m->outputs);
    }
    amx_end();
}

/* ── What Python calls ─────────────────────────────────────────────────────────────────────────────────────────── */

EXPORT void roclm_free(model *m) {
    if (!m) return;
    pool_close(&m->threads);
    void *all[] = {m->a.q, m->a.scale, m->a.isum, m->a.sum, m->a.f, m->x, m->y, m->q, m->k, m->v, m->mixed, m->gate,
                   m->up, m->cos, m->sin, m->layers, m->pieces, m->queries.q, m->queries.scale, m->queries.isum, m->queries.sum,
                   m->partial};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    for (int i = 0; i < MAX_THREADS; i++) {
        int8_scratch *s = &m->scratch[i];
        void *own[] = {m->scores[i], s->scores, s->out, s->weights.q, s->weights.scale, s->weights.isum, s->weights.sum,
                       s->rests.q, s->rests.scale, s->rests.isum, s->rests.sum};
        for (size_t j = 0; j < sizeof own / sizeof *own; j++) free(own[j]);
    }
    free(m);
}

/* Whether this process may run what was compiled: the system lends AMX's registers to those who ask (Linux only). */
EXPORT int roclm_allowed(void) {
#ifdef PATH_AMX
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA);
#else
    return 1;
#endif
}

/* A model without weights, and the scratch memory for `max_rows` tokens a call; NULL where there is no memory. */
EXPORT model *roclm_new(const shape *s) {
    model *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->s = *s;
    pool_open(&m->threads);
    m->limits.threads = &m->threads;
    long R = s->max_rows, C = s->head_dim, H = pad((long)s->heads * C, TILE), K = pad((long)s->kv_heads * C, TILE);
    long D = pad(s->hidden, TILE), F = pad(s->intermediate, TILE), widest = D > F ? D : F;
    if (H > widest) widest = H;
    long G = widest / GROUP + 1, A = (R + SPARE) * G; /* groups of activations */
    long Q = s->kv_int8 ? (R * s->heads + SPARE) * pad(C, GROUP) : 0; /* int8 of all queries */
    struct { void **to; long bytes; } wanted[] = {
        {(void **)&m->layers, s->layers * sizeof(layer)}, {(void **)&m->pieces, (R + 1) * sizeof(piece)},
        {(void **)&m->a.q, A * GROUP},
        {(void **)&m->a.scale, A * 4}, {(void **)&m->a.isum, A * 4}, {(void **)&m->a.sum, A * 4},
        {(void **)&m->a.f, s->exact ? R * G * GROUP * 4 : 0}, {(void **)&m->x, R * D * 4}, {(void **)&m->y, R * stride(D) * 4},
        {(void **)&m->q, R * stride(H) * 4}, {(void **)&m->k, R * stride(K) * 4}, {(void **)&m->v, R * stride(K) * 4},
        {(void **)&m->mixed, R * H * 4}, {(void **)&m->gate, R * stride(F) * 4}, {(void **)&m->up, R * stride(F) * 4},
        {(void **)&m->cos, R * C * 2}, {(void **)&m->sin, R * C * 2}, {(void **)&m->queries.q, Q},
        {(void **)&m->queries.scale, Q / GROUP * 4}, {(void **)&m->queries.isum, Q / GROUP * 4},
        {(void **)&m->queries.sum, Q / GROUP * 4}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!(*wanted[i].to = zeros(wanted[i].bytes))) { roclm_free(m); return NULL; }
    return m;
}

/* The weights stay the caller's and must outlive the model. `which`: a matrix of the layer; layer −1: the embedding
   (0) or the head (1). */
EXPORT void roclm_set_matrix(model *m, int l, int which, int kind, int rows, int columns, const uint8_t *tiles,
                             const float *bias) {
    matrix w = {kind, (int)pad(rows, TILE), columns, tiles, bias};
    if (l >= 0) m->layers[l].m[which] = w;
    else if (which == 0) m->embedding = w;
    else m->head = w;
}
/* layer −1: the final norm (0) or the rotary frequencies (1). */
EXPORT void roclm_set_vector(model *m, int l, int which, const float *v) {
    if (l >= 0) m->layers[l].norm[which] = v;
    else if (which == 0) m->final_norm = v;
    else m->inv_freq = v;
}

/* `few` threads for one row or a few, which memory bandwidth limits, and `many` for more rows and long contexts, which
   arithmetic limits. Returns the larger number that could be started. */
EXPORT void roclm_set_window(model *m, int l, int window) { m->layers[l].window = window; }
EXPORT int roclm_threads(model *m, int few, int many) {
    m->few = few;
    return pool_resize(&m->threads, few > many ? few : many);
}

enum { FEW_ROWS = 4 };

/* The working space of the attention, for the longest text of a call; 0, or 1 where there is no memory. */
static int make_room(model *m, long longest) {
    int C = m->s.head_dim, threads = m->threads.made;
    if (!m->s.kv_int8) {
        for (int i = 0; i < threads; i++) {
            if (pad(longest, SPAN) <= m->scores_length[i]) continue;
            free(m->scores[i]);
            m->scores_length[i] = pad(longest * 3 / 2, SPAN);
            if (!(m->scores[i] = zeros(m->scores_length[i] * QUERIES * 4))) { m->scores_length[i] = 0; return 1; }
        }
        return 0;
    }
    long some = TOGETHER + SPARE, groups = some * CHUNK / GROUP;
    for (int i = 0; i < threads; i++) {
        int8_scratch *s = &m->scratch[i];
        struct { void **to; long bytes; } wanted[] = {
            {(void **)&s->scores, TOGETHER * CHUNK * 4}, {(void **)&s->out, TOGETHER * C * 4},
            {(void **)&s->weights.q, groups * GROUP}, {(void **)&s->weights.scale, groups * 4},
            {(void **)&s->weights.isum, groups * 4}, {(void **)&s->weights.sum, groups * 4},
            {(void **)&s->rests.q, some * GROUP}, {(void **)&s->rests.scale, some * 4},
            {(void **)&s->rests.isum, some * 4}, {(void **)&s->rests.sum, some * 4}};
        for (size_t j = 0; j < sizeof wanted / sizeof *wanted; j++)
            if (!*wanted[j].to && !(*wanted[j].to = zeros(wanted[j].bytes))) return 1;
    }
    /* threads share the chunks of a context where there are fewer rows than threads */
    int share = m->threads.threads > 1 && longest > CHUNK && m->rows * m->s.kv_heads <= 8 * threads;
    m->chunks = share ? (int)((longest - 1) / CHUNK + 1) : 0;
    long wanted = (long)m->rows * m->s.heads * m->chunks * (C + LANES);
    if (wanted > m->partial_length) {
        free(m->partial);
        m->partial_length = 2 * wanted;
        if (!(m->partial = zeros(m->partial_length * 4))) { m->partial_length = 0; return 1; }
    }
    return 0;
}

/* Rows in order of position within a sequence. cache[t]: the sequence's keys and values, of roclm_cache_bytes for its
   capacity[t], a multiple of 32, zero at first. Logits (outputs, roclm_stride of the vocabulary) of `output_rows`.
   Returns 0, or 1 where there is no memory. */
EXPORT int roclm_forward(model *m, int count, const int32_t *tokens, const int32_t *positions, uint8_t *const *cache,
                         const int64_t *capacity, int outputs, const int32_t *output_rows, float *logits) {
    if (!count) return 0;
    long longest = 0;
    for (int t = 0; t < count; t++) longest = positions[t] + 1 > longest ? positions[t] + 1 : longest;
    m->rows = count, m->outputs = outputs;
    m->tokens = tokens, m->positions = positions, m->output_rows = output_rows;
    m->cache = cache, m->capacity = capacity, m->logits = logits;
    int alone = count <= FEW_ROWS && longest <= CHUNK;
    m->threads.threads = alone && m->few < m->threads.made ? m->few : m->threads.made;
    if (make_room(m, longest)) return 1;
    cut_attention(m);
    pool_run(&m->threads, forward, m);
    return 0;
}

/* The last hidden states (count, hidden) of the rows of the last call, after the final norm. */
EXPORT void roclm_hidden(const model *m, int count, float *out) {
    int D = m->s.hidden;
    for (int t = 0; t < count; t++) rms_norm(m->x + (long)t * D, m->final_norm, out + (long)t * D, D, m->s.eps);
}

EXPORT long roclm_stride(long rows) { return stride(rows); }
EXPORT long roclm_cache_bytes(const model *m, long capacity) {
    return m->s.layers * m->s.kv_heads * head_bytes(&m->s, capacity);
}
/* The first `length` positions of one sequence's cache into another's. */
EXPORT void roclm_copy_cache(const model *m, const uint8_t *from, long from_capacity, uint8_t *to, long to_capacity,
                             long length) {
    int C = m->s.head_dim, n = m->s.layers * m->s.kv_heads;
    long used = pad(length, SPAN);
    for (int i = 0; i < n; i++, from += head_bytes(&m->s, from_capacity), to += head_bytes(&m->s, to_capacity)) {
        if (m->s.kv_int8) { memcpy(to, from, int8_bytes(C, length)); continue; }
        memcpy(to, from, used * C * sizeof(kv_t));
        memcpy(to + to_capacity * C * sizeof(kv_t), from + from_capacity * C * sizeof(kv_t), used * C * sizeof(kv_t));
    }
}
EXPORT long roclm_tile_bytes(int kind) { return TILE_BYTES(kind); }

#define BLOCK_BYTES(kind) ((kind) == Q4_1 ? 20 : (kind) == Q8 ? 34 : 18) /* as in the file */

/* GGUF blocks (rows, columns / 32) → tiles. `order[r]`: which row of the blocks becomes row r; NULL: as they are. */
static void pack_matrix(int kind, int rows, int columns, const uint8_t *blocks, const int32_t *order, uint8_t *tiles) {
    int G = columns / GROUP, size = BLOCK_BYTES(kind), head = kind == Q4_1 ? 4 : 2;
    for (int tile = 0; tile < pad(rows, TILE) / TILE; tile++)
        for (int g = 0; g < G; g++, tiles += TILE_BYTES(kind)) {
            uint16_t *scales = (uint16_t *)tiles;
            uint8_t *quants = tiles + HEAD_BYTES(kind);
            for (int r = 0; r < TILE; r++) {
                int row = tile * TILE + r;
                if (row >= rows) { /* rows that fill up the last tile are zero */
                    scales[r] = 0;
                    if (kind == Q4_1) scales[16 + r] = 0;
                    for (int j = 0; j < (kind == Q8 ? 8 : 4); j++) memset(quants + 64 * j + 4 * r, 0, 4);
                    continue;
                }
                const uint8_t *block = blocks + ((long)(order ? order[row] : row) * G + g) * size;
                memcpy(scales + r, block, 2);
                if (kind == Q4_1) memcpy(scales + 16 + r, block + 2, 2);
                for (int j = 0; j < (kind == Q8 ? 8 : 4); j++) memcpy(quants + 64 * j + 4 * r, block + head + 4 * j, 4);
            }
        }
}

typedef struct {
    int32_t kind, rows, columns, mapped; /* mapped: the blocks are a file's, and their pages may leave memory again */
    const uint8_t *blocks;
    const int32_t *order; /* which row of the blocks is each row; NULL: as they are */
    uint8_t *tiles;
} pack_job;

/* Several threads may call this for the same jobs: `next` is the first job not taken yet. */
EXPORT void roclm_pack(const pack_job *jobs, int n, int *next) {
    for (int i; (i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < n;) {
        const pack_job *j = jobs + i;
        pack_matrix(j->kind, j->rows, j->columns, j->blocks, j->order, j->tiles);
#if defined(__linux__)
        if (j->mapped) {
            uintptr_t start = (uintptr_t)j->blocks & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
            size_t bytes = (size_t)j->rows * (j->columns / GROUP) * BLOCK_BYTES(j->kind);
            madvise((void *)start, (uintptr_t)j->blocks + bytes - start, MADV_DONTNEED);
        }
#endif
    }
}

/* Memory for weights on 2 MB pages where the system has them: fewer address translations, steadier streaming. */
EXPORT void *roclm_alloc(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, 2 << 20, pad(bytes, 2 << 20))) return NULL;
#if defined(__linux__)
    madvise(p, pad(bytes, 2 << 20), MADV_HUGEPAGE);
#endif
    return p;
}
EXPORT void roclm_release(void *p) { free(p); }

/* For `roclab lm bench`: read `floats` numbers, or do `rounds` · 10 · lanes · 2 float operations a thread (returned). */
EXPORT void roclm_read(model *m, const float *memory, long floats) {
    m->limits.memory = memory, m->limits.floats = floats;
    m->threads.threads = m->threads.made;
    pool_run(&m->threads, read_all, &m->limits);
}
EXPORT double roclm_multiply(model *m, long rounds) {
    m->limits.rounds = rounds;
    m->threads.threads = m->threads.made;
    pool_run(&m->threads, multiply_all, &m->limits);
    return (double)rounds * 10 * LANES * 2 * m->threads.threads;
}

/* ── Quantizing float weights into GGUF's blocks ───────────────────────────────────────────────────────────────── */

/* Error Σ (d·q + m − w)² of 32 weights for a scale and a minimum as they will be stored, with the q they lead to. */
static float q4_error(const float *w, float d, float m, uint8_t *q) {
    float inverse = d > 0 ? 1 / d : 0, error = 0;
    for (int i = 0; i < GROUP; i++) {
        float level = (w[i] - m) * inverse + 0.5f;
        level = level < 0 ? 0 : level > 15.5f ? 15.5f : level;
        q[i] = (uint8_t)level;
        float off = d * q[i] + m - w[i];
        error += off * off;
    }
    return error;
}

/* Q4_1: the range from smallest to largest weight, then ranges pulled in a little, each followed by the d and m that
   fit its q best (least squares); the one with the smallest error stays. */
static void quantize_q4_1(const float *w, uint8_t *block) {
    float low = w[0], high = w[0], best = INFINITY;
    for (int i = 1; i < GROUP; i++) low = fminf(low, w[i]), high = fmaxf(high, w[i]);
    uint8_t q[GROUP], kept[GROUP] = {0};
    uint16_t d16 = 0, m16 = 0;
    for (int pull = 0; pull < 8; pull++) {
        float range = (high - low) * (1 - 0.03f * pull), d = range / 15, m = (low + high - range) / 2;
        for (int fit = 0; fit < 2; fit++) {
            uint16_t dh = float_to_half(d), mh = float_to_half(m);
            float error = q4_error(w, half_to_float(dh), half_to_float(mh), q);
            if (error < best) best = error, d16 = dh, m16 = mh, memcpy(kept, q, sizeof q);
            float sq = 0, sqq = 0, sw = 0, sqw = 0;
            for (int i = 0; i < GROUP; i++) sq += q[i], sqq += q[i] * q[i], sw += w[i], sqw += q[i] * w[i];
            float det = GROUP * sqq - sq * sq;
            if (det <= 0) break;
            d = (GROUP * sqw - sq * sw) / det, m = (sw - d * sq) / GROUP;
            if (d <= 0) break;
        }
    }
    memcpy(block, &d16, 2), memcpy(block + 2, &m16, 2);
    for (int i = 0; i < 16; i++) block[4 + i] = (uint8_t)(kept[i] | kept[16 + i] << 4);
}

static void quantize_q8_0(const float *w, uint8_t *block) {
    int8_t unrounded[GROUP]; /* by a scale that is not yet in half precision */
    int32_t sum;
    uint16_t d16 = float_to_half(round_group(SCALES, w, unrounded, &sum)); /* the best of six, as for activations */
    float d = half_to_float(d16), inverse = d > 0 ? 1 / d : 0;
    memcpy(block, &d16, 2);
    for (int i = 0; i < GROUP; i++) {
        float level = w[i] * inverse; /* d may have been rounded down: stay in range */
        block[2 + i] = (uint8_t)(int8_t)lrintf(level < -127 ? -127 : level > 127 ? 127 : level);
    }
}

/* w (count · 32) → `count` blocks of Q4_1 or Q8. */
EXPORT void roclm_quantize(int kind, const float *w, long count, uint8_t *blocks) {
    for (long i = 0; i < count; i++)
        if (kind == Q8) quantize_q8_0(w + i * GROUP, blocks + i * BLOCK_BYTES(Q8));
        else quantize_q4_1(w + i * GROUP, blocks + i * BLOCK_BYTES(Q4_1));
}

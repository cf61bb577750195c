/* Fused row kernels around the int8 matrix product; see kernels.py.
 *
 * PyTorch runs each step between two products as a pass over memory of its own (abs, max, divide, round, cast, cast,
 * scale, scale, add bias, GELU): together they cost as much as the products. Here a row is read once, worked on in
 * the L1 cache and written once. Plain C that compilers vectorise; rows are shared out among OpenMP threads, and a
 * row's result depends on that row alone.
 *
 * n rows; k, o columns; q int8 rows with s, one scale per row (x ~ q * s); acc int32 product; w the weights' absolute
 * maxima, one per output column (W ~ rows * w / 127). Everything floating is fp32.
 */
#include <stdint.h>
#include <math.h>
#include <omp.h>

#define PARALLEL _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")

static inline void quantize_row(const float *x, int64_t k, int8_t *q, float *s) {
    float top = 1e-20f * 127.0f, broken = 0;
#pragma omp simd reduction(max : top) reduction(+ : broken)
    for (int64_t j = 0; j < k; j++) {
        const float size = fabsf(x[j]);
        top = size > top ? size : top;
        broken += x[j] * 0.0f; /* NaN where x is, which a maximum would hide */
    }
    const float scale = top / 127.0f + broken, inverse = 127.0f / top;
#pragma omp simd
    for (int64_t j = 0; j < k; j++) {
        /* adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low byte */
        union { float f; int32_t i; } r = {x[j] * inverse + 12582912.0f};
        q[j] = (int8_t)r.i;
    }
    *s = scale;
}

static inline void norm_row(const float *x, int64_t k, const float *gain, const float *bias, float eps, float *y) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < k; j++) sum += x[j];
    const float mean = sum / k;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < k; j++) squares += (x[j] - mean) * (x[j] - mean);
    const float r = 1.0f / sqrtf(squares / k + eps);
#pragma omp simd
    for (int64_t j = 0; j < k; j++) y[j] = (x[j] - mean) * r * gain[j] + bias[j];
}

/* 2^t as 2^whole * polynomial */
static inline float power_of_2(float t) {
    t = t < -126.0f ? -126.0f : t > 126.0f ? 126.0f : t;
    const float whole = floorf(t + 0.5f), f = t - whole;
    /* Taylor of 2^f, |f| <= 1/2: relative error 2e-7 */
    float p = 1.5403530e-4f;
    p = p * f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    union { int32_t i; float f; } power = {((int32_t)whole + 127) << 23};
    return p * power.f;
}

/* x * sigmoid(2u) = GELU in its tanh approximation, u = sqrt(2/pi) (x + 0.044715 x^3) */
static inline float gelu(float x) {
    return x / (1.0f + power_of_2(-2.3022082f * x * (1.0f + 0.044715f * x * x))); /* -2 sqrt(2/pi) log2(e) */
}

/* q, s = quantise(x * w): w may be NULL */
void quantize(const float *x, const float *w, int64_t n, int64_t k, int8_t *q, float *s, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        const float *row = x + i * k;
        float scaled[w ? k : 1];
        if (w) {
            for (int64_t j = 0; j < k; j++) scaled[j] = row[j] * w[j];
            row = scaled;
        }
        quantize_row(row, k, q + i * k, s + i);
    }
}

/* q, s = quantise(layer_norm(x)); the normed rows too where y is not NULL */
void norm_quantize(const float *x, const float *gain, const float *shift, float eps, int64_t n, int64_t k, float *y,
                   int8_t *q, float *s, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        float local[y ? 1 : k];
        float *row = y ? y + i * k : local;
        norm_row(x + i * k, k, gain, shift, eps, row);
        quantize_row(row, k, q + i * k, s + i);
    }
}

/* row = acc * s * w / 127 + bias + more: w, bias and more may be NULL */
static inline void scale_row(const int32_t *restrict acc, float s, const float *restrict w,
                             const float *restrict bias, const float *restrict more, int64_t o,
                             float *restrict row) {
    const float factor = s / 127.0f;
    if (w && bias && more) {
        for (int64_t j = 0; j < o; j++) row[j] = (float)acc[j] * factor * w[j] + bias[j] + more[j];
    } else if (w && bias) {
        for (int64_t j = 0; j < o; j++) row[j] = (float)acc[j] * factor * w[j] + bias[j];
    } else {
        for (int64_t j = 0; j < o; j++) row[j] = (float)acc[j] * factor;
        if (w) for (int64_t j = 0; j < o; j++) row[j] *= w[j];
        if (bias) for (int64_t j = 0; j < o; j++) row[j] += bias[j];
        if (more) for (int64_t j = 0; j < o; j++) row[j] += more[j];
    }
}

/* y = acc * s * w / 127 + bias + more: w, bias and more may be NULL */
void scale(const int32_t *acc, const float *s, const float *w, const float *bias, const float *more, int64_t n,
           int64_t o, float *y, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++)
        scale_row(acc + i * o, s[i], w, bias, more ? more + i * o : 0, o, y + i * o);
}

/* hidden = acc * s * w / 127 + bias + residual; q, t = quantise(layer_norm(hidden)); the normed rows too where y is
 * not NULL */
void scale_add_norm_quantize(const int32_t *acc, const float *s, const float *w, const float *bias,
                             const float *residual, const float *gain, const float *shift, float eps, int64_t n,
                             int64_t o, float *hidden, float *y, int8_t *q, float *t, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        float local[y ? 1 : o];
        float *normed = y ? y + i * o : local;
        scale_row(acc + i * o, s[i], w, bias, residual + i * o, o, hidden + i * o);
        norm_row(hidden + i * o, o, gain, shift, eps, normed);
        quantize_row(normed, o, q + i * o, t + i);
    }
}

/* q, t = quantise(gelu(acc * s * w / 127 + bias + more)): more may be NULL; the rows too where y is not NULL */
void scale_gelu_quantize(const int32_t *acc, const float *s, const float *w, const float *bias, const float *more,
                         int64_t n, int64_t o, float *y, int8_t *q, float *t, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        float local[y ? 1 : o];
        float *row = y ? y + i * o : local;
        scale_row(acc + i * o, s[i], w, bias, more ? more + i * o : 0, o, row);
#pragma omp simd
        for (int64_t j = 0; j < o; j++) row[j] = gelu(row[j]);
        quantize_row(row, o, q + i * o, t + i);
    }
}

/* x * sigmoid(x) */
static inline float silu(float x) { return x / (1.0f + power_of_2(-1.44269504f * x)); }

/* y = rms_norm(x); q, s = quantise(y * mask): mask may be NULL */
void rms_norm_quantize(const float *x, const float *gain, const float *mask, float eps, int64_t n, int64_t k, float *y,
                       int8_t *q, float *s, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        const float *row = x + i * k;
        float *normed = y + i * k, squares = 0;
        float kept[mask ? k : 1];
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < k; j++) squares += row[j] * row[j];
        const float r = 1.0f / sqrtf(squares / k + eps);
#pragma omp simd
        for (int64_t j = 0; j < k; j++) normed[j] = row[j] * r * gain[j];
        if (mask) for (int64_t j = 0; j < k; j++) kept[j] = normed[j] * mask[j];
        quantize_row(mask ? kept : normed, k, q + i * k, s + i);
    }
}

/* y = act(gate) * up; q, s = quantise(y * mask): mask may be NULL; act is silu, or gelu where `gelus` is not 0 */
void gate_quantize(const float *gate, const float *up, const float *mask, int64_t gelus, int64_t n, int64_t k, float *y,
                   int8_t *q, float *s, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        const float *g = gate + i * k, *u = up + i * k;
        float *row = y + i * k;
        float kept[mask ? k : 1];
        if (gelus) {
#pragma omp simd
            for (int64_t j = 0; j < k; j++) row[j] = gelu(g[j]) * u[j];
        } else {
#pragma omp simd
            for (int64_t j = 0; j < k; j++) row[j] = silu(g[j]) * u[j];
        }
        if (mask) for (int64_t j = 0; j < k; j++) kept[j] = row[j] * mask[j];
        quantize_row(mask ? kept : row, k, q + i * k, s + i);
    }
}

/* One head of one sequence. Keys are transposed first, so that the scores of one query against all keys are sums of
 * whole vectors; `width` is the length rounded up to whole vectors, d is even. Inlined once for each usual d. */
__attribute__((always_inline)) static inline void attend_head(const float *base, int64_t stride, int64_t length,
                                                              int64_t width, int64_t d, float slope,
                                                              int64_t both_sides, int64_t symmetric, float *y,
                                                              int64_t hidden) {
    const float log2e = 1.44269504f, factor = log2e / sqrtf((float)d); /* exp(x) = 2^(x log2 e) */
    float keys[d * width], scores[width], out[d];
    for (int64_t c = 0; c < d; c++)
        for (int64_t j = length; j < width; j++) keys[c * width + j] = 0;
    for (int64_t j = 0; j < length; j++)
        for (int64_t c = 0; c < d; c++) keys[c * width + j] = base[j * stride + d + c] * factor;
    slope *= log2e;
    const float ahead = symmetric ? slope : -slope; /* for keys after the query */
    for (int64_t i = 0; i < length; i++) {
        const float *query = base + i * stride;
        const int64_t seen = both_sides ? length : i + 1;
        const int64_t used = (seen + 15) / 16 * 16;
        float top = -INFINITY, sum = 0;
        for (int64_t block = 0; block < used; block += 16) {
            float even[16] = {0}, odd[16] = {0}; /* two chains of sums hide the latency of each addition */
            for (int64_t c = 0; c < d; c += 2) {
                const float *key = keys + c * width + block, q = query[c], next = query[c + 1];
#pragma omp simd
                for (int64_t j = 0; j < 16; j++) {
                    even[j] += q * key[j];
                    odd[j] += next * key[width + j];
                }
            }
#pragma omp simd
            for (int64_t j = 0; j < 16; j++) {
                const float distance = (float)(i - block - j);
                scores[block + j] = even[j] + odd[j] + distance * (distance > 0 ? -slope : ahead);
            }
        }
        for (int64_t j = 0; j < seen; j++) top = scores[j] > top ? scores[j] : top;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < seen; j++) {
            scores[j] = power_of_2(scores[j] - top);
            sum += scores[j];
        }
        for (int64_t c = 0; c < d; c++) out[c] = 0;
        for (int64_t j = 0; j < seen; j++) {
            const float *value = base + j * stride + 2 * d, weight = scores[j];
#pragma omp simd
            for (int64_t c = 0; c < d; c++) out[c] += weight * value[c];
        }
        for (int64_t c = 0; c < d; c++) y[i * hidden + c] = out[c] / sum;
    }
}

/* ALiBi attention of short sequences over packed rows: qkv (n, heads * 3 * d), per head its query, key and value; the
 * sequence z holds rows starts[z] to starts[z + 1]. Causal, or both sides; symmetric: there a key's bias falls with its
 * distance on both. */
void attend(const float *qkv, const int32_t *starts, int64_t sequences, int64_t heads, int64_t d, const float *slopes,
            int64_t both_sides, int64_t symmetric, float *y, int threads) {
    const int64_t stride = heads * 3 * d;
    _Pragma("omp parallel for schedule(dynamic, 8) num_threads(threads) if (threads > 1)")
    for (int64_t pair = 0; pair < sequences * heads; pair++) {
        const int64_t z = pair / heads, head = pair % heads, first = starts[z], length = starts[z + 1] - first;
        const int64_t width = (length + 15) / 16 * 16;
        const float *base = qkv + first * stride + head * 3 * d;
        float *out = y + first * heads * d + head * d;
        if (length == 0) continue;
        if (d == 64)
            attend_head(base, stride, length, width, 64, slopes[head], both_sides, symmetric, out, heads * d);
        else if (d == 32)
            attend_head(base, stride, length, width, 32, slopes[head], both_sides, symmetric, out, heads * d);
        else
            attend_head(base, stride, length, width, d, slopes[head], both_sides, symmetric, out, heads * d);
    }
}

/* Threads that regions started by the calling thread have from now on; returns what it was. */
int limit_threads(int threads) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    return before;
}

#if defined(__AVX2__)
#include <immintrin.h>
#include <string.h>

/* The int8 product for CPUs whose vector units multiply 16-bit pairs but not 8-bit quadruples (AVX2 without VNNI).
 *
 * Both sides are widened to int16. One instruction then multiplies two neighbours in k for eight columns and adds them
 * (vpmaddwd): sixteen products where fp32 does eight. `panel` holds sixteen columns of the weights, for each pair of k
 * their sixteen pairs side by side; six rows by sixteen columns are summed in twelve registers. */
enum { COLUMNS = 16, ROWS = 6 };

__attribute__((always_inline)) static inline void multiply_rows(const int16_t *wide, int64_t depth,
                                                                const int16_t *panel, const int rows, int32_t *sums) {
    __m256i left[ROWS], right[ROWS];
    for (int i = 0; i < rows; i++) left[i] = right[i] = _mm256_setzero_si256();
    for (int64_t k = 0; k < depth; k += 2) {
        const __m256i b = _mm256_loadu_si256((const __m256i *)(panel + k * COLUMNS));
        const __m256i c = _mm256_loadu_si256((const __m256i *)(panel + k * COLUMNS + COLUMNS));
        for (int i = 0; i < rows; i++) {
            int32_t pair;
            memcpy(&pair, wide + i * depth + k, sizeof pair);
            const __m256i a = _mm256_set1_epi32(pair);
            left[i] = _mm256_add_epi32(left[i], _mm256_madd_epi16(a, b));
            right[i] = _mm256_add_epi32(right[i], _mm256_madd_epi16(a, c));
        }
    }
    for (int i = 0; i < rows; i++) {
        _mm256_storeu_si256((__m256i *)(sums + i * COLUMNS), left[i]);
        _mm256_storeu_si256((__m256i *)(sums + i * COLUMNS + 8), right[i]);
    }
}

/* Eight rows of sixteen int8 -> for each of eight pairs of k, the pairs of eight columns; rows from `columns` on are 0 */
static inline void pack_block(const int8_t *w, int64_t k, int64_t columns, int64_t depth_left, int16_t *panel) {
    __m256i row[8], t[8];
    for (int j = 0; j < 8; j++) {
        int8_t part[16] = {0};
        if (j < columns) memcpy(part, w + j * k, depth_left < 16 ? depth_left : 16);
        row[j] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)part));
    }
    for (int j = 0; j < 8; j += 2) {
        t[j] = _mm256_unpacklo_epi32(row[j], row[j + 1]);
        t[j + 1] = _mm256_unpackhi_epi32(row[j], row[j + 1]);
    }
    for (int half = 0; half < 8; half += 4)
        for (int j = 0; j < 2; j++) {
            row[half + 2 * j] = _mm256_unpacklo_epi64(t[half + j], t[half + j + 2]);
            row[half + 2 * j + 1] = _mm256_unpackhi_epi64(t[half + j], t[half + j + 2]);
        }
    for (int j = 0; j < 4; j++) {
        _mm256_storeu_si256((__m256i *)(panel + 2 * j * COLUMNS), _mm256_permute2x128_si256(row[j], row[j + 4], 0x20));
        _mm256_storeu_si256((__m256i *)(panel + 2 * (j + 4) * COLUMNS),
                           _mm256_permute2x128_si256(row[j], row[j + 4], 0x31));
    }
}

/* y (n, o) int32 = q (n, k) times w: (o, k) rows, transposed in passing, or (k, o). Every |value| <= 127 and
 * k <= 130,000, so that no sum overflows. Scratch: wide (n, depth), panels (threads, depth, COLUMNS); depth is k rounded
 * up to 16. */
void multiply(const int8_t *q, const int8_t *w, int64_t n, int64_t k, int64_t o, int64_t rows_are_columns,
              int16_t *wide, int16_t *panels, int32_t *y, int threads) {
    const int64_t depth = (k + 15) / 16 * 16;
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < k; j++) wide[i * depth + j] = q[i * k + j];
        for (int64_t j = k; j < depth; j++) wide[i * depth + j] = 0;
    }
    _Pragma("omp parallel num_threads(threads) if (threads > 1)") {
        int16_t *panel = panels + omp_get_thread_num() * depth * COLUMNS;
        _Pragma("omp for schedule(static)")
        for (int64_t first = 0; first < o; first += COLUMNS) {
            const int64_t columns = o - first < COLUMNS ? o - first : COLUMNS;
            if (rows_are_columns) {
                for (int64_t j = 0; j < depth; j += 16)
                    for (int64_t half = 0; half < COLUMNS; half += 8)
                        pack_block(w + (first + half) * k + j, k, columns - half, k - j, panel + j * COLUMNS + half * 2);
            } else {
                memset(panel, 0, depth * COLUMNS * sizeof *panel);
                for (int64_t j = 0; j < k; j++)
                    for (int64_t c = 0; c < columns; c++)
                        panel[j / 2 * 2 * COLUMNS + c * 2 + j % 2] = w[j * o + first + c];
            }
            int32_t sums[ROWS * COLUMNS];
            for (int64_t i = 0; i < n; i += ROWS) {
                const int64_t rows = n - i < ROWS ? n - i : ROWS;
                const int16_t *left = wide + i * depth;
                switch (rows) {
                case 6: multiply_rows(left, depth, panel, 6, sums); break;
                case 5: multiply_rows(left, depth, panel, 5, sums); break;
                case 4: multiply_rows(left, depth, panel, 4, sums); break;
                case 3: multiply_rows(left, depth, panel, 3, sums); break;
                case 2: multiply_rows(left, depth, panel, 2, sums); break;
                default: multiply_rows(left, depth, panel, 1, sums);
                }
                for (int64_t r = 0; r < rows; r++)
                    memcpy(y + (i + r) * o + first, sums + r * COLUMNS, columns * sizeof *y);
            }
        }
    }
}
#endif

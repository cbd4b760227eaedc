// int8 and int4 weights times activations rounded to 15 bits, by integer dot products (of AVX-512 VNNI, where there is one).
//
// A row of activations becomes x = code * step, within max|x| / 65,534 of the truth: finer than bfloat16 for all that is
// above a 128th of the largest. Integer sums are exact, so that no row depends on the others beside it.
#pragma once

#include <algorithm>
#include <vector>

#include "panels.h"

namespace vlm {

constexpr float LARGEST = 32767;  // code of an activation

// The low 16 bits of each of sixteen words.
inline void low_halves(Floats words, int16_t* to) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)words));
#elif defined(VLM_AVX2)
    const __m256i mask = _mm256_set1_epi32(0xffff);
    const __m256i low = _mm256_and_si256((__m256i)words.low, mask), high = _mm256_and_si256((__m256i)words.high, mask);
    _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8));
#else
    int32_t lanes[LANES];
    std::memcpy(lanes, &words, sizeof lanes);
    for (int lane = 0; lane < LANES; ++lane) to[lane] = (int16_t)lanes[lane];
#endif
}

struct Rounded {
    std::vector<int16_t> codes;  // (M, K)
    std::vector<float> step;     // (M,)
    std::vector<float> sums;     // (M, K / GROUP): of the codes

    void reserve(int64_t rows, int64_t inputs) {
        codes.resize(std::max<size_t>(codes.size(), rows * inputs));
        step.resize(std::max<size_t>(step.size(), rows));
        sums.resize(std::max<size_t>(sums.size(), rows * (inputs / GROUP)));
    }

    // Some rows of x (M, K), K a multiple of 32; there must be room for them.
    void take(const float* x, int64_t first, int64_t count, int64_t inputs) {
        for (int64_t m = first; m < first + count; ++m) take_row(x + m * inputs, m, inputs);
    }

  private:
    void take_row(const float* x, int64_t m, int64_t inputs) {
        Floats high = {}, nothing = {};
        for (int64_t k = 0; k < inputs; k += LANES) {
            const Floats value = load(x + k);
            high = larger(high, larger(value, -value));
            nothing += value * 0.f;  // unless it is no number: then the results must be none either
        }
        const float most = largest(high), inverse = most > 0 ? LARGEST / most : 0.f;
        step[m] = most / LARGEST + sum(nothing);
        constexpr float ROUNDER = 12582912.f;  // 1.5 * 2**23: its low bits then hold the code
        for (int64_t k = 0; k < inputs; k += LANES) {
            low_halves(load(x + k) * inverse + ROUNDER, codes.data() + m * inputs + k);
        }
        for (int64_t g = 0; g < inputs / GROUP; ++g) {
            int32_t total = 0;
            for (int k = 0; k < GROUP; ++k) total += codes[m * inputs + g * GROUP + k];
            sums[m * (inputs / GROUP) + g] = (float)total;
        }
    }
};

// Sixteen integer sums; sixteen pairs of small integers, widened to 16 bits; and the dot products of one with another.

#if defined(__AVX512BW__)

using Sums = __m512i;
using Codes = __m512i;

inline Sums dot(Sums sum, Codes a, Codes b) {
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}
inline Codes widened(const int8_t* from) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from)); }
inline Codes widened(const uint8_t* from) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)from)); }
inline Codes low_nibbles(Codes both) { return _mm512_and_si512(both, _mm512_set1_epi16(15)); }
inline Codes high_nibbles(Codes both) { return _mm512_srli_epi16(both, 4); }
inline Codes repeated(int32_t pair) { return _mm512_set1_epi32(pair); }
inline Floats as_floats(Sums sums) { return (Floats)_mm512_cvtepi32_ps(sums); }

#elif defined(VLM_AVX2)

struct Sums {
    __m256i low, high;
};
using Codes = Sums;

inline Sums dot(Sums sum, Codes a, Codes b) {
    return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, b.low)), _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, b.high))};
}
inline Codes widened(const int8_t* from) {
    const auto* at = (const __m128i*)from;
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(at)), _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1))};
}
inline Codes widened(const uint8_t* from) {
    const auto* at = (const __m128i*)from;
    return {_mm256_cvtepu8_epi16(_mm_loadu_si128(at)), _mm256_cvtepu8_epi16(_mm_loadu_si128(at + 1))};
}
inline Codes low_nibbles(Codes both) {
    const __m256i low = _mm256_set1_epi16(15);
    return {_mm256_and_si256(both.low, low), _mm256_and_si256(both.high, low)};
}
inline Codes high_nibbles(Codes both) { return {_mm256_srli_epi16(both.low, 4), _mm256_srli_epi16(both.high, 4)}; }
inline Codes repeated(int32_t pair) { return {_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)}; }
inline Floats as_floats(Sums sums) {
    Floats floats;
    floats.low = (Native)_mm256_cvtepi32_ps(sums.low);
    floats.high = (Native)_mm256_cvtepi32_ps(sums.high);
    return floats;
}

#elif defined(__aarch64__)

struct Sums {
    int32x4_t part[4];
};

struct Codes {
    int16x8_t part[4];
};

template <class Operation>
inline Codes each_part(Operation operation) {
    return {{operation(0), operation(1), operation(2), operation(3)}};
}

inline Sums dot(Sums sum, const Codes& a, const Codes& b) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const int32x4_t low = vmull_s16(vget_low_s16(a.part[i]), vget_low_s16(b.part[i]));
        sum.part[i] = vaddq_s32(sum.part[i], vpaddq_s32(low, vmull_high_s16(a.part[i], b.part[i])));
    }
    return sum;
}
inline Codes widened(const int8_t* from) {
    return each_part([=](int i) { return vmovl_s8(vld1_s8(from + 8 * i)); });
}
inline Codes widened(const uint8_t* from) {
    return each_part([=](int i) { return vreinterpretq_s16_u16(vmovl_u8(vld1_u8(from + 8 * i))); });
}
inline Codes low_nibbles(const Codes& both) {
    return each_part([&](int i) { return vandq_s16(both.part[i], vdupq_n_s16(15)); });
}
inline Codes high_nibbles(const Codes& both) {
    return each_part([&](int i) { return vshrq_n_s16(both.part[i], 4); });
}
inline Codes repeated(int32_t pair) {
    return each_part([=](int) { return vreinterpretq_s16_s32(vdupq_n_s32(pair)); });
}
inline Floats as_floats(const Sums& sums) {
    float lanes[LANES];
    for (int i = 0; i < 4; ++i) vst1q_f32(lanes + 4 * i, vcvtq_f32_s32(sums.part[i]));
    return load(lanes);
}

#else

struct Sums {
    int32_t lane[LANES];
};

struct Codes {
    int16_t code[2 * LANES];
};

template <class Operation>
inline Codes each_code(Operation operation) {
    Codes codes;
    for (int i = 0; i < 2 * LANES; ++i) codes.code[i] = operation(i);
    return codes;
}

inline Sums dot(Sums sum, const Codes& a, const Codes& b) {
    for (int i = 0; i < LANES; ++i)
        sum.lane[i] += (int32_t)a.code[2 * i] * b.code[2 * i] + (int32_t)a.code[2 * i + 1] * b.code[2 * i + 1];
    return sum;
}
template <class Small>
inline Codes widened(const Small* from) {
    return each_code([=](int i) { return (int16_t)from[i]; });
}
inline Codes low_nibbles(const Codes& both) {
    return each_code([&](int i) { return (int16_t)(both.code[i] & 15); });
}
inline Codes high_nibbles(const Codes& both) {
    return each_code([&](int i) { return (int16_t)(both.code[i] >> 4); });
}
inline Codes repeated(int32_t pair) {
    int16_t two[2];
    std::memcpy(two, &pair, sizeof two);
    return each_code([&](int i) { return two[i % 2]; });
}
inline Floats as_floats(const Sums& sums) {
    float lanes[LANES];
    for (int i = 0; i < LANES; ++i) lanes[i] = (float)sums.lane[i];
    return load(lanes);
}

#endif

// Two neighbours of a row's codes, for every output.
inline Codes pair_at(const int16_t* from) {
    int32_t both;
    std::memcpy(&both, from, sizeof both);
    return repeated(both);
}

constexpr int64_t FLUSH = 512;   // inputs whose products, of 15 and 7 bits, an int32 can sum
constexpr int64_t AHEAD = 1024;  // bytes of a panel that are fetched before they are wanted
static_assert(FLUSH * 128 * (int64_t)LARGEST <= INT32_MAX);

// V panels of an int8 weight times M rows of codes (M, K).
template <int M, int V>
inline void int8_tile(const Matrix& matrix, const Rounded& x, int64_t first_row, int64_t n, Floats (&result)[M][V]) {
    const int64_t inputs = matrix.inputs;
    const int16_t* codes = x.codes.data() + first_row * inputs;
    const auto* weight = (const int8_t*)matrix.panel(n);
    Floats totals[M][V] = {};
    for (int64_t first = 0; first < inputs; first += FLUSH) {
        const int64_t last = first + FLUSH < inputs ? first + FLUSH : inputs;
        Sums partial[M][V] = {};
        for (int64_t k = first; k < last; k += 2) {
            Codes some[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                const int8_t* from = weight + (v * inputs + k) * LANES;
                some[v] = widened(from);
                if (k % 4 == 0) soon(from + AHEAD);
            }
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const Codes two = pair_at(codes + m * inputs + k);
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) partial[m][v] = dot(partial[m][v], some[v], two);
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) totals[m][v] += as_floats(partial[m][v]);
    }
    for (int v = 0; v < V; ++v) {
        const Floats scale = load(matrix.scale + n + v * LANES);
        for (int m = 0; m < M; ++m) result[m][v] = totals[m][v] * (scale * x.step[first_row + m]);
    }
}

// The same for an int4 weight.
template <int M, int V>
inline void int4_tile(const Matrix& matrix, const Rounded& x, int64_t first_row, int64_t n, Floats (&result)[M][V]) {
    const int64_t inputs = matrix.inputs, groups = inputs / GROUP, panel = matrix.row_bytes() * LANES;
    const int16_t* codes = x.codes.data() + first_row * inputs;
    const float* sums = x.sums.data() + first_row * groups;
    const auto* weight = (const uint8_t*)matrix.panel(n);
    Floats totals[M][V] = {};
    for (int64_t g = 0; g < groups; ++g) {
        Sums partial[M][V] = {};
        const uint8_t* group = weight + g * (GROUP / 2 * LANES);
        const int16_t* given = codes + g * GROUP;
        for (int64_t k = 0; k < GROUP; k += 4) {
            Codes some[2][V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                const uint8_t* from = group + v * panel + k / 2 * LANES;
                const Codes both = widened(from);
                if (k % 8 == 0) soon(from + AHEAD);
                some[0][v] = low_nibbles(both);
                some[1][v] = high_nibbles(both);
            }
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half)
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) {
                    const Codes two = pair_at(given + m * inputs + k + 2 * half);
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v) partial[m][v] = dot(partial[m][v], some[half][v], two);
                }
        }
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const int64_t at = (v * groups + g) * LANES;
            const Floats scale = load(matrix.group_scales(n) + at), zero = load(matrix.group_zeros(n) + at);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                totals[m][v] += as_floats(partial[m][v]) * scale;
                totals[m][v] += zero * broadcast(sums[m * groups + g]);
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) result[m][v] = totals[m][v] * broadcast(x.step[first_row + m]);
}

inline void integer_products(const Matrix& matrix, const Rounded& x, int64_t rows, int64_t begin, int64_t end, const Target& target) {
    if (matrix.kind == INT8)
        all_tiles<Int8Tiling>(matrix, rows, begin, end, target, [&]<int M, int V>(int64_t m, int64_t n, Sizes<M, V>, Floats (&result)[M][V]) {
            int8_tile<M, V>(matrix, x, m, n, result);
        });
    else
        all_tiles<Int4Tiling>(matrix, rows, begin, end, target, [&]<int M, int V>(int64_t m, int64_t n, Sizes<M, V>, Floats (&result)[M][V]) {
            int4_tile<M, V>(matrix, x, m, n, result);
        });
}

}  // namespace vlm

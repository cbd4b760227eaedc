// int8 and int4 weights times activations rounded to 15 bits, by integer dot products (AVX-512 VNNI).
//
// A row of activations becomes x = code * step, within max|x| / 65,534 of the truth: finer than bfloat16 for all that is
// above a 128th of the largest. Integer sums are exact, so that no row depends on the others beside it.
#pragma once

#include <algorithm>
#include <vector>

#include "panels.h"

namespace vlm {

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr bool MULTIPLIES_INTEGERS = true;
#else
constexpr bool MULTIPLIES_INTEGERS = false;
#endif

constexpr float LARGEST = 32767;  // code of an activation

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
            typedef int16_t Shorts __attribute__((vector_size(32)));
            const Ints bits = (Ints)(load(x + k) * inverse + ROUNDER);
            const Shorts some = __builtin_convertvector(bits, Shorts);
            std::memcpy(codes.data() + m * inputs + k, &some, sizeof some);
        }
        for (int64_t g = 0; g < inputs / GROUP; ++g) {
            int32_t total = 0;
            for (int k = 0; k < GROUP; ++k) total += codes[m * inputs + g * GROUP + k];
            sums[m * (inputs / GROUP) + g] = (float)total;
        }
    }
};

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

inline __m512i dot(__m512i sum, __m512i a, __m512i b) { return _mm512_dpwssd_epi32(sum, a, b); }
inline __m512i widened(const int8_t* from) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from)); }
inline __m512i widened(const uint8_t* from) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)from)); }
inline Floats as_floats(__m512i ints) { return (Floats)_mm512_cvtepi32_ps(ints); }

// Two neighbours of a row's codes, for every output.
inline __m512i pair_at(const int16_t* from) {
    int32_t both;
    std::memcpy(&both, from, sizeof both);
    return _mm512_set1_epi32(both);
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
        __m512i partial[M][V] = {};
        for (int64_t k = first; k < last; k += 2) {
            __m512i some[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                const int8_t* from = weight + (v * inputs + k) * LANES;
                some[v] = widened(from);
                if (k % 4 == 0) soon(from + AHEAD);
            }
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const __m512i two = pair_at(codes + m * inputs + k);
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
    const int64_t inputs = matrix.inputs, groups = inputs / GROUP;
    const int16_t* codes = x.codes.data() + first_row * inputs;
    const float* sums = x.sums.data() + first_row * groups;
    const auto* weight = (const uint8_t*)matrix.panel(n);
    const __m512i low = _mm512_set1_epi16(15);
    Floats totals[M][V] = {};
    for (int64_t g = 0; g < groups; ++g) {
        __m512i partial[M][V] = {};
        for (int64_t k = g * GROUP; k < (g + 1) * GROUP; k += 4) {
            __m512i some[2][V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                const uint8_t* from = weight + (v * inputs + k) / 2 * LANES;
                const __m512i both = widened(from);
                if (k % 8 == 0) soon(from + AHEAD);
                some[0][v] = _mm512_and_si512(both, low);
                some[1][v] = _mm512_srli_epi16(both, 4);
            }
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half)
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) {
                    const __m512i two = pair_at(codes + m * inputs + k + 2 * half);
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
    all_tiles(matrix, rows, begin, end, target, [&]<int M, int V>(int64_t m, int64_t n, Sizes<M, V>, Floats (&result)[M][V]) {
        if (matrix.kind == INT8)
            int8_tile<M, V>(matrix, x, m, n, result);
        else
            int4_tile<M, V>(matrix, x, m, n, result);
    });
}

#endif

}  // namespace vlm

// int8 and int4 weights times activations rounded to 15 bits, by integer dot products (of AVX-512 VNNI, where there is one).
//
// A row of activations becomes x = code * step, within max|x| / 65,534 of the truth: finer than bfloat16 for all that is
// above a 128th of the largest. Integer sums are exact, so that no row depends on the others beside it.
#pragma once

#include <algorithm>
#include <vector>

#include "codes.h"
#include "panels.h"

namespace vlm {

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
            low_halves(load(x + k) * inverse + ROUNDER, codes.data() + m * inputs + k);
        }
        for (int64_t g = 0; g < inputs / GROUP; ++g) {
            int32_t total = 0;
            for (int k = 0; k < GROUP; ++k) total += codes[m * inputs + g * GROUP + k];
            sums[m * (inputs / GROUP) + g] = (float)total;
        }
    }
};

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

// Products with a weight that lies in panels: one input of many outputs at a time, so that no sums go across lanes.
#pragma once

#include <array>
#include <utility>

#include "matrix.h"

namespace vlm {

// How much a tile holds: rows of activations, panels, and panels for one row alone. Its sums, its part of the weight and an
// activation fill the registers.
template <int ROWS_, int PANELS_, int ALONE_>
struct Tiling {
    static constexpr int ROWS = ROWS_, PANELS = PANELS_, ALONE = ALONE_;
};

#if defined(__AVX512F__)
using FloatTiling = Tiling<8, 3, 6>;
using Int8Tiling = FloatTiling;
using Int4Tiling = FloatTiling;
#else
using FloatTiling = Tiling<6, 1, 4>;
using Int8Tiling = Tiling<4, 1, 2>;
using Int4Tiling = Tiling<4, 1, 1>;
#endif

// Sixteen outputs' weights of some inputs, one after the other: `at<I>(k)` is that of input k + I, k a multiple of INPUTS.

template <class Element>
struct Plain {
    static constexpr int INPUTS = 1;
    const Element* from;

    Plain(const Matrix& matrix, int64_t n) : from((const Element*)matrix.panel(n)) {}
    template <int I>
    Floats at(int64_t k) const { return load(from + k * LANES); }
};

// bfloat16 in pairs of inputs: the first in the low half of each word, the second in the high one.
struct Pairs {
    static constexpr int INPUTS = 2;
    const Bfloat16* from;

    Pairs(const Matrix& matrix, int64_t n) : from((const Bfloat16*)matrix.panel(n)) {}
    template <int I>
    Floats at(int64_t k) const { return half_words<I>(from + k * LANES); }
};

// V panels times M rows x (M, K).
template <class Weight, int M, int V>
inline void panel_tile(const Matrix& matrix, const float* x, int64_t n, Floats (&result)[M][V]) {
    const int64_t inputs = matrix.inputs;
    const auto weights = [&]<int... v>(std::integer_sequence<int, v...>) {
        return std::array<Weight, V>{Weight(matrix, n + v * LANES)...};
    }(std::make_integer_sequence<int, V>());
    Floats totals[M][V] = {};
    const auto add = [&]<int I>(int64_t k, std::integral_constant<int, I>) {
        Floats some[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) some[v] = weights[v].template at<I>(k);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Floats one = broadcast(x[m * inputs + k + I]);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) totals[m][v] += some[v] * one;
        }
    };
    for (int64_t k = 0; k < inputs; k += Weight::INPUTS)
        [&]<int... i>(std::integer_sequence<int, i...>) {
            (add(k, std::integral_constant<int, i>()), ...);
        }(std::make_integer_sequence<int, Weight::INPUTS>());
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) result[m][v] = totals[m][v];
}

// Of a tile: M rows of activations, V panels.
template <int M, int V>
struct Sizes {};

// Every tile of outputs begin to end and all rows: `tile(m, n, sizes, result)` gives its sums, to which the bias is added.
// The panels of a tile stay in the core's cache while the rows go by.
template <class T, class Tile>
inline void all_tiles(const Matrix& matrix, int64_t rows, int64_t begin, int64_t end, const Target& target, Tile tile) {
    const auto one = [&]<int M, int V>(int64_t m, int64_t n, Sizes<M, V> sizes) {
        Floats result[M][V];
        tile(m, n, sizes, result);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const int64_t at = n + v * LANES;
            const Floats bias = load(matrix.bias + at);
#pragma GCC unroll 8
            for (int i = 0; i < M; ++i) target.put(m + i, at, unfused(result[i][v]) + bias, end - at);
        }
    };
    const auto column = [&]<int V>(int64_t n, std::integral_constant<int, V>) {
        int64_t m = 0;
        for (; m + T::ROWS <= rows; m += T::ROWS) one(m, n, Sizes<T::ROWS, V>());
        switch (rows - m) {
            case 7: if constexpr (T::ROWS > 7) one(m, n, Sizes<7, V>()); break;
            case 6: if constexpr (T::ROWS > 6) one(m, n, Sizes<6, V>()); break;
            case 5: if constexpr (T::ROWS > 5) one(m, n, Sizes<5, V>()); break;
            case 4: if constexpr (T::ROWS > 4) one(m, n, Sizes<4, V>()); break;
            case 3: one(m, n, Sizes<3, V>()); break;
            case 2: one(m, n, Sizes<2, V>()); break;
            case 1: one(m, n, Sizes<1, V>()); break;
        }
    };
    int64_t n = begin;
    if (rows == 1)
        for (; n + (T::ALONE - 1) * LANES < end; n += T::ALONE * LANES) one(0, n, Sizes<1, T::ALONE>());
    for (; n + (T::PANELS - 1) * LANES < end; n += T::PANELS * LANES) column(n, std::integral_constant<int, T::PANELS>());
    for (; n < end; n += LANES) column(n, std::integral_constant<int, 1>());
}

// Outputs begin (a multiple of sixteen) to end of the weight times x (M, K), bias added.
template <class Weight>
inline void panel_products(const Matrix& matrix, const float* x, int64_t rows, int64_t begin, int64_t end, const Target& target) {
    all_tiles<FloatTiling>(matrix, rows, begin, end, target, [&]<int M, int V>(int64_t m, int64_t n, Sizes<M, V>, Floats (&result)[M][V]) {
        panel_tile<Weight, M, V>(matrix, x + m * matrix.inputs, n, result);
    });
}

}  // namespace vlm

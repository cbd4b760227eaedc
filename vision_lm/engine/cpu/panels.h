// Products with a weight that lies in panels: one input of many outputs at a time, so that no sums go across lanes.
#pragma once

#include <array>
#include <utility>

#include "matrix.h"

namespace vlm {

// A tile's sums, its part of the weight and an activation fill the registers.
#if defined(__AVX512F__)
constexpr int BATCH = 8, PANELS = 3, ALONE = 6;  // rows of activations; panels; panels for one row
#elif defined(__x86_64__)
constexpr int BATCH = 4, PANELS = 1, ALONE = 2;
#else
constexpr int BATCH = 6, PANELS = 1, ALONE = 2;
#endif

// Sixteen outputs' weights, `INPUTS` inputs at a time.

template <class Element>
struct Plain {
    static constexpr int INPUTS = 1;
    const Element* from;

    Plain(const Matrix& matrix, int64_t n) : from((const Element*)matrix.panel(n)) {}
    void step(int64_t k, Floats (&weight)[INPUTS]) const { weight[0] = load(from + k * LANES); }
    Floats scaled(Floats total) const { return total; }
};

struct Bytes {
    static constexpr int INPUTS = 2;
    const int8_t* from;
    const float* scale;

    Bytes(const Matrix& matrix, int64_t n) : from((const int8_t*)matrix.panel(n)), scale(matrix.scale + n) {}
    void step(int64_t k, Floats (&weight)[INPUTS]) const {
        typedef int8_t Codes __attribute__((vector_size(32)));
        pairs(read<Codes>(from + k * LANES), weight[0], weight[1]);
    }
    Floats scaled(Floats total) const { return total * load(scale); }
};

struct Nibbles {
    static constexpr int INPUTS = 4;
    const uint8_t* from;
    const float *scale, *zero;

    Nibbles(const Matrix& matrix, int64_t n)
        : from((const uint8_t*)matrix.panel(n)), scale(matrix.group_scales(n)), zero(matrix.group_zeros(n)) {}
    void step(int64_t k, Floats (&weight)[INPUTS]) const {
        typedef uint8_t Codes __attribute__((vector_size(32)));
        const Codes both = read<Codes>(from + k / 2 * LANES);
        pairs(both & 15, weight[0], weight[1]);
        pairs(both >> 4, weight[2], weight[3]);
        const Floats times = load(scale + k / GROUP * LANES), plus = load(zero + k / GROUP * LANES);
        for (Floats& one : weight) one = one * times + plus;
    }
    Floats scaled(Floats total) const { return total; }
};

// V panels times M rows x (M, K).
template <class Weight, int M, int V>
inline void panel_tile(const Matrix& matrix, const float* x, int64_t n, Floats (&result)[M][V]) {
    const int64_t inputs = matrix.inputs;
    const auto weights = [&]<int... v>(std::integer_sequence<int, v...>) {
        return std::array<Weight, V>{Weight(matrix, n + v * LANES)...};
    }(std::make_integer_sequence<int, V>());
    Floats totals[M][V] = {};
    for (int64_t k = 0; k < inputs; k += Weight::INPUTS) {
        Floats some[V][Weight::INPUTS];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) weights[v].step(k, some[v]);
#pragma GCC unroll 4
        for (int i = 0; i < Weight::INPUTS; ++i)
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const Floats one = broadcast(x[m * inputs + k + i]);
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) totals[m][v] += some[v][i] * one;
            }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) result[m][v] = weights[v].scaled(totals[m][v]);
}

// Of a tile: M rows of activations, V panels.
template <int M, int V>
struct Sizes {};

// Every tile of outputs begin to end and all rows: `tile(m, n, sizes, result)` gives its sums, to which the bias is added.
// The panels of a tile stay in the core's cache while the rows go by.
template <class Tile>
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
        for (; m + BATCH <= rows; m += BATCH) one(m, n, Sizes<BATCH, V>());
        switch (rows - m) {
            case 7: if constexpr (BATCH > 7) one(m, n, Sizes<7, V>()); break;
            case 6: if constexpr (BATCH > 6) one(m, n, Sizes<6, V>()); break;
            case 5: if constexpr (BATCH > 5) one(m, n, Sizes<5, V>()); break;
            case 4: if constexpr (BATCH > 4) one(m, n, Sizes<4, V>()); break;
            case 3: one(m, n, Sizes<3, V>()); break;
            case 2: one(m, n, Sizes<2, V>()); break;
            case 1: one(m, n, Sizes<1, V>()); break;
        }
    };
    int64_t n = begin;
    if (rows == 1)
        for (; n + (ALONE - 1) * LANES < end; n += ALONE * LANES) one(0, n, Sizes<1, ALONE>());
    for (; n + (PANELS - 1) * LANES < end; n += PANELS * LANES) column(n, std::integral_constant<int, PANELS>());
    for (; n < end; n += LANES) column(n, std::integral_constant<int, 1>());
}

// Outputs begin (a multiple of sixteen) to end of the weight times x (M, K), bias added.
template <class Weight>
inline void panel_products(const Matrix& matrix, const float* x, int64_t rows, int64_t begin, int64_t end, const Target& target) {
    all_tiles(matrix, rows, begin, end, target, [&]<int M, int V>(int64_t m, int64_t n, Sizes<M, V>, Floats (&result)[M][V]) {
        panel_tile<Weight, M, V>(matrix, x + m * matrix.inputs, n, result);
    });
}

}  // namespace vlm

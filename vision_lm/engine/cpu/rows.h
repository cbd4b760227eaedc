// Products with a weight that lies row by row: sixteen inputs at a time, summed up at the end.
#pragma once

#include <algorithm>
#include <type_traits>

#include "matrix.h"

namespace vlm {

constexpr int TILE_ROWS = 4;   // of the weight, in a tile
constexpr int TILE_BATCH = 4;  // of the activations
constexpr int64_t BLOCK_BYTES = 128 << 10;

// The products of four rows of the weight with M rows x (M, K): result[m] holds four sums.
template <class Element, int M>
inline void row_tile(const Element* const (&weight)[TILE_ROWS], const float* x, int64_t inputs, Four (&result)[M]) {
    Floats totals[M][TILE_ROWS] = {};
    for (int64_t k = 0; k < inputs; k += STEP) {
        Floats first[TILE_ROWS], second[TILE_ROWS];
#pragma GCC unroll 4
        for (int n = 0; n < TILE_ROWS; ++n) {
            first[n] = load(weight[n] + k);
            second[n] = load(weight[n] + k + LANES);
            soon(weight[n] + k + TILE_ROWS * inputs);  // the same place of the next tile's
        }
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            const Floats a = held(load(x + m * inputs + k)), b = held(load(x + m * inputs + k + LANES));
#pragma GCC unroll 4
            for (int n = 0; n < TILE_ROWS; ++n) {
                totals[m][n] += first[n] * a;
                totals[m][n] += second[n] * b;
            }
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) result[m] = sums(totals[m][0], totals[m][1], totals[m][2], totals[m][3]);
}

// Rows begin to end of the weight (N, K) times x (M, K), bias added. A block of the weight stays in the core's second
// cache while the rows of x, four at a time in the first, go by.
template <class Element>
inline void row_products(const Matrix& matrix, const float* x, int64_t rows, int64_t begin, int64_t end, const Target& target) {
    const int64_t inputs = matrix.inputs;
    const int64_t block = std::max<int64_t>(BLOCK_BYTES / matrix.row_bytes() / TILE_ROWS, 1) * TILE_ROWS;
    const auto tile = [&](int64_t m, int64_t n, int64_t count, auto size) {
        constexpr int M = size();
        const auto row = [&](int i) { return (const Element*)matrix.weight + (n + (i < count ? i : count - 1)) * inputs; };
        const Element* const weight[TILE_ROWS] = {row(0), row(1), row(2), row(3)};  // the last one again
        Four result[M], bias = {};
        row_tile<Element, M>(weight, x + m * inputs, inputs, result);
        std::memcpy(&bias, matrix.bias + n, count * sizeof(float));
        for (int i = 0; i < M; ++i) target.put(m + i, n, result[i] + bias, count);
    };
    for (int64_t first = begin; first < end; first += block) {
        const int64_t last = std::min(first + block, end);
        for (int64_t m = 0; m < rows; m += TILE_BATCH)
            for (int64_t n = first; n < last; n += TILE_ROWS) {
                const int64_t count = std::min<int64_t>(last - n, TILE_ROWS);
                switch (rows - m) {
                    case 1: tile(m, n, count, std::integral_constant<int, 1>()); break;
                    case 2: tile(m, n, count, std::integral_constant<int, 2>()); break;
                    case 3: tile(m, n, count, std::integral_constant<int, 3>()); break;
                    default: tile(m, n, count, std::integral_constant<int, TILE_BATCH>());
                }
            }
    }
}

}  // namespace vlm

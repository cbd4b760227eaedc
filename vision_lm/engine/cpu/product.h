// Activations (M, K) times a weight's rows (N, K): every weight is read once, for all rows of activations.
//
// A row's result is the same whatever rows stand beside it: each product sums in the same order.
#pragma once

#include <algorithm>
#include <type_traits>

#include "integers.h"

namespace vlm {

constexpr int ROWS = 4;    // of the weight, in a tile
constexpr int BATCH = 4;   // of the activations
constexpr int64_t BLOCK_BYTES = 128 << 10;
constexpr int STEP = 32;   // inputs to a step; K is a multiple of it

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3, INT4 = 4 };

// One linear layer. INT8: weight = code * scale, one scale a row. INT4: weight = code * scale + zero, one of each a
// group, K a multiple of GROUP; of 64 inputs in 32 bytes the first 32 are in the low halves.
struct Matrix {
    const void* weight;
    const float* scale;  // (N,) or (N, K / GROUP)
    const float* zero;   // (N, K / GROUP)
    const float* bias;   // (N,)
    int64_t outputs, inputs;
    int32_t kind;

    int64_t row_bytes() const {
        switch (kind) {
            case FLOAT32: return inputs * 4;
            case INT8: return inputs;
            case INT4: return inputs / 2;
            default: return inputs * 2;
        }
    }
};

template <class Element>
struct Plain {
    const Element* row;
    int64_t inputs;

    Plain(const Matrix& matrix, int64_t n) : row((const Element*)matrix.weight + n * matrix.inputs), inputs(matrix.inputs) {}

    void step(int64_t k, Floats& first, Floats& second) const {
        first = load(row + k);
        second = load(row + k + LANES);
        soon(row + k + ROWS * inputs);
        if (sizeof(Element) == 4) soon(row + k + LANES + ROWS * inputs);
    }
};

struct Nibbles {
    const uint8_t* row;
    const float *scale, *zero;

    Nibbles(const Matrix& matrix, int64_t n)
        : row((const uint8_t*)matrix.weight + n * matrix.inputs / 2),
          scale(matrix.scale + n * (matrix.inputs / GROUP)),
          zero(matrix.zero + n * (matrix.inputs / GROUP)) {}

    void step(int64_t k, Floats& first, Floats& second) const {
        const uint8_t* bytes = row + k / 64 * 32;
        Floats low[2], high[2];
        load_halves(bytes, low[0], high[0]);
        load_halves(bytes + LANES, low[1], high[1]);
        const float times = scale[k / GROUP], plus = zero[k / GROUP];
        const Floats* codes = k % 64 ? high : low;
        first = codes[0] * times + plus;
        second = codes[1] * times + plus;
    }
};

// Where results go: y[m * stride + n], written or added to.
struct Target {
    float* y;
    int64_t stride;
    bool adds = false;

    // Results n to n + count of row m.
    void put(int64_t m, int64_t n, Four value, int count) const {
        float* at = y + m * stride + n;
        Four old = {};
        if (adds) std::memcpy(&old, at, count * sizeof(float));
        value += old;
        if (count == ROWS)
            std::memcpy(at, &value, sizeof value);
        else
            std::memcpy(at, &value, count * sizeof(float));
    }
};

// The products of four rows of the weight with M rows x (M, K): result[m] holds four sums.
template <class Weight, int M>
inline void tile(const Weight (&weight)[ROWS], const float* x, int64_t inputs, Four (&result)[M]) {
    Floats totals[M][ROWS] = {};
    for (int64_t k = 0; k < inputs; k += STEP) {
        Floats first[ROWS], second[ROWS];
#pragma GCC unroll 4
        for (int n = 0; n < ROWS; ++n) weight[n].step(k, first[n], second[n]);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            const Floats a = held(load(x + m * inputs + k)), b = held(load(x + m * inputs + k + LANES));
#pragma GCC unroll 4
            for (int n = 0; n < ROWS; ++n) {
                totals[m][n] += first[n] * a;
                totals[m][n] += second[n] * b;
            }
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) result[m] = sums(totals[m][0], totals[m][1], totals[m][2], totals[m][3]);
}

// Rows n to n + count of the weight times rows m to m + M of x.
template <class Weight, int M>
inline void tile(const Matrix& matrix, const Weight (&weight)[ROWS], const float* x, int64_t m, int64_t n, int count,
                 const Target& target) {
    Four result[M], scale = Four{} + 1.f, bias = {};
    tile<Weight, M>(weight, x + m * matrix.inputs, matrix.inputs, result);
    if (matrix.kind == INT8) std::memcpy(&scale, matrix.scale + n, count * sizeof(float));
    std::memcpy(&bias, matrix.bias + n, count * sizeof(float));
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) target.put(m + i, n, result[i] * scale + bias, count);
}

// Tiles of the weight's rows begin to end and all rows of x: `tile(m, n, count, std::integral_constant<int, M>)`.
// A block of the weight stays in the core's second cache while the rows of x, four at a time in the first, go by.
template <class Tile>
inline void all_tiles(int64_t row_bytes, int64_t rows, int64_t begin, int64_t end, Tile tile) {
    const int64_t block = std::max<int64_t>(BLOCK_BYTES / row_bytes / ROWS, 1) * ROWS;
    for (int64_t first = begin; first < end; first += block) {
        const int64_t last = std::min(first + block, end);
        for (int64_t m = 0; m < rows; m += BATCH)
            for (int64_t n = first; n < last; n += ROWS) {
                const int count = (int)std::min<int64_t>(last - n, ROWS);
                switch (rows - m) {
                    case 1: tile(m, n, count, std::integral_constant<int, 1>()); break;
                    case 2: tile(m, n, count, std::integral_constant<int, 2>()); break;
                    case 3: tile(m, n, count, std::integral_constant<int, 3>()); break;
                    default: tile(m, n, count, std::integral_constant<int, BATCH>());
                }
            }
    }
}

// Rows begin to end of the weight (N, K) times x (M, K), bias added.
template <class Weight>
inline void products(const Matrix& matrix, const float* x, int64_t rows, int64_t begin, int64_t end, const Target& target) {
    all_tiles(matrix.row_bytes(), rows, begin, end, [&](int64_t m, int64_t n, int count, auto size) {
        const auto row = [&](int i) { return n + (i < count ? i : count - 1); };  // the last one again
        const Weight weight[ROWS] = {{matrix, row(0)}, {matrix, row(1)}, {matrix, row(2)}, {matrix, row(3)}};
        tile<Weight, size()>(matrix, weight, x, m, n, count, target);
    });
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
template <int M>
inline void integer_tile(const Matrix& matrix, const Rounded& x, int64_t m, int64_t n, int count, const Target& target) {
    const int64_t inputs = matrix.inputs, groups = inputs / GROUP;
    const auto row = [&](int i) { return n + (i < count ? i : count - 1); };
    Four result[M], scale = Four{} + 1.f, bias = {};
    if (matrix.kind == INT8) {
        const auto* codes = (const int8_t*)matrix.weight;
        const int8_t* const weight[4] = {codes + row(0) * inputs, codes + row(1) * inputs, codes + row(2) * inputs,
                                         codes + row(3) * inputs};
        int8_tile<M>(weight, x.codes.data() + m * inputs, inputs, result);
        std::memcpy(&scale, matrix.scale + n, count * sizeof(float));
    } else {
        const auto* codes = (const uint8_t*)matrix.weight;
        const int64_t bytes = inputs / 2;
        const uint8_t* const weight[4] = {codes + row(0) * bytes, codes + row(1) * bytes, codes + row(2) * bytes,
                                          codes + row(3) * bytes};
        const float *s = matrix.scale, *z = matrix.zero;
        const float* const scales[4] = {s + row(0) * groups, s + row(1) * groups, s + row(2) * groups, s + row(3) * groups};
        const float* const zeros[4] = {z + row(0) * groups, z + row(1) * groups, z + row(2) * groups, z + row(3) * groups};
        int4_tile<M>(weight, scales, zeros, x.codes.data() + m * inputs, x.sums.data() + m * groups, inputs, result);
    }
    std::memcpy(&bias, matrix.bias + n, count * sizeof(float));
    for (int i = 0; i < M; ++i) target.put(m + i, n, result[i] * (scale * x.step[m + i]) + bias, count);
}

inline void integer_products(const Matrix& matrix, const Rounded& x, int64_t rows, int64_t begin, int64_t end, const Target& target) {
    all_tiles(matrix.row_bytes(), rows, begin, end, [&](int64_t m, int64_t n, int count, auto size) {
        integer_tile<size()>(matrix, x, m, n, count, target);
    });
}
#endif

// Activations x (M, K), and where a matrix wants them their codes.
struct Activations {
    const float* x;
    int64_t rows;
    Rounded* rounded;

    // To be called once before any product with this matrix.
    const Activations& for_matrix(const Matrix& matrix) const {
        if (MULTIPLIES_INTEGERS && matrix.kind >= INT8) rounded->take(x, rows, matrix.inputs);
        return *this;
    }
};

// Rows begin to end of the weight.
inline void multiply(const Matrix& matrix, const Activations& given, int64_t begin, int64_t end, const Target& target) {
    const float* x = given.x;
    const int64_t rows = given.rows;
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    if (matrix.kind >= INT8) return integer_products(matrix, *given.rounded, rows, begin, end, target);
#endif
    switch (matrix.kind) {
        case FLOAT32: return products<Plain<float>>(matrix, x, rows, begin, end, target);
        case BFLOAT16: return products<Plain<Bfloat16>>(matrix, x, rows, begin, end, target);
        case FLOAT16: return products<Plain<Float16>>(matrix, x, rows, begin, end, target);
        case INT8: return products<Plain<int8_t>>(matrix, x, rows, begin, end, target);
        case INT4: return products<Nibbles>(matrix, x, rows, begin, end, target);
    }
}

}  // namespace vlm

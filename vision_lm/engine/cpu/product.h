// Activations (M, K) times a weight (N, K), however it lies: every weight is read once, for all rows of activations.
//
// A row's result is the same whatever rows stand beside it: each product sums in the same order.
#pragma once

#include "integers.h"
#include "panels.h"
#include "rows.h"
#include "tiles.h"

namespace vlm {

// Activations x (M, K), where a matrix wants them their codes or halves, and where it is to be unpacked room for a block.
struct Activations {
    const float* x;
    int64_t rows;
    const Rounded* rounded;
    const Halves* halves;
    Bfloat16* room;
};

inline bool wants_codes(const Matrix& matrix) { return MULTIPLIES_INTEGERS && matrix.kind >= INT8 && !matrix.unpacked; }

// Outputs begin to end; begin is a multiple of sixteen.
inline void multiply(const Matrix& matrix, const Activations& given, int64_t begin, int64_t end, const Target& target) {
    if (begin >= end) return;
    const float* x = given.x;
    const int64_t rows = given.rows;
    if (!matrix.panels) {
        if (matrix.kind == BFLOAT16) return row_products<Bfloat16>(matrix, x, rows, begin, end, target);
        return row_products<Float16>(matrix, x, rows, begin, end, target);
    }
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    if (wants_codes(matrix)) return integer_products(matrix, *given.rounded, rows, begin, end, target);
#endif
#if defined(VLM_TILES)
    if (wants_halves(matrix)) return tiled_products(matrix, *given.halves, rows, begin, end, given.room, target);
#endif
    switch (matrix.kind) {
        case FLOAT32: return panel_products<Plain<float>>(matrix, x, rows, begin, end, target);
        case FLOAT16: return panel_products<Plain<Float16>>(matrix, x, rows, begin, end, target);
        case INT8: return panel_products<Bytes>(matrix, x, rows, begin, end, target);
        case INT4: return panel_products<Nibbles>(matrix, x, rows, begin, end, target);
    }
}

}  // namespace vlm

// Activations (M, K) times a weight (N, K), however it lies: every weight is read once, for all rows of activations.
//
// A row's result is the same whatever rows stand beside it: each product sums in the same order.
#pragma once

#include "integers.h"
#include "panels.h"
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

inline bool wants_codes(const Matrix& matrix) { return matrix.kind >= INT8 && !matrix.unpacked; }

// Outputs begin to end; begin is a multiple of sixteen. In product.cpp, which is compiled beside decoder.cpp.
void multiply(const Matrix& matrix, const Activations& given, int64_t begin, int64_t end, const Target& target);

}  // namespace vlm

// Which kernel multiplies a matrix: by how it lies, and by what the processor has.

#include "product.h"

#include "rows.h"

namespace vlm {

void multiply(const Matrix& matrix, const Activations& given, int64_t begin, int64_t end, const Target& target) {
    if (begin >= end) return;
    const float* x = given.x;
    const int64_t rows = given.rows;
    if (wants_codes(matrix)) return integer_products(matrix, *given.rounded, rows, begin, end, target);
#if defined(VLM_TILES)
    if (wants_halves(matrix)) return tiled_products(matrix, *given.halves, rows, begin, end, given.room, target);
#endif
#if defined(__AVX512F__)
    if (!matrix.panels && matrix.kind == BFLOAT16) return row_products<Bfloat16>(matrix, x, rows, begin, end, target);
    if (!matrix.panels && matrix.kind == FLOAT16) return row_products<Float16>(matrix, x, rows, begin, end, target);
#else
    if (matrix.kind == BFLOAT16) return panel_products<Pairs>(matrix, x, rows, begin, end, target);
#endif
    if (matrix.kind == FLOAT16) return panel_products<Plain<Float16>>(matrix, x, rows, begin, end, target);
    panel_products<Plain<float>>(matrix, x, rows, begin, end, target);
}

}  // namespace vlm

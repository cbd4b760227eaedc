// int8 and int4 weights as bfloat16 numbers in panels, a block at a time: tiles multiply many rows faster than integers are.
#pragma once

#include "matrix.h"

namespace vlm {

#if defined(__AVX512BF16__)

// Thirty-two floats as bfloat16, the nearest.
inline void to_bfloat16(__m512 first, __m512 second, Bfloat16* to) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

inline __m512 as_floats(__m128i codes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)); }

// Of int8 the codes, which bfloat16 holds as they are: (K / 2, 16, 2).
inline void unpack_int8(const int8_t* from, int64_t inputs, Bfloat16* to) {
    for (int64_t at = 0; at < inputs * LANES; at += 2 * LANES) {
        const auto* codes = (const __m128i*)(from + at);
        to_bfloat16(as_floats(_mm_loadu_si128(codes)), as_floats(_mm_loadu_si128(codes + 1)), to + at);
    }
}

// Sixteen floats for eight outputs: each twice, as the pairs of inputs lie.
struct Doubled {
    __m512 first, second;

    explicit Doubled(const float* from) {
        const __m512i pairs = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        const __m512 all = _mm512_loadu_ps(from);
        first = _mm512_permutexvar_ps(pairs, all);
        second = _mm512_permutexvar_ps(_mm512_add_epi32(pairs, _mm512_set1_epi32(8)), all);
    }
};

// Of int4 the weights, rounded: each group of inputs has a scale and a zero of its own.
inline void unpack_int4(const Matrix& matrix, int64_t n, Bfloat16* to) {
    const auto* from = (const uint8_t*)matrix.panel(n);
    for (int64_t group = 0; group < matrix.inputs; group += GROUP) {
        const Doubled scale(matrix.group_scales(n) + group / GROUP * LANES), zero(matrix.group_zeros(n) + group / GROUP * LANES);
        const auto weights = [&](__m256i codes, Bfloat16* at) {
            const __m512 first = as_floats(_mm256_castsi256_si128(codes)), second = as_floats(_mm256_extracti128_si256(codes, 1));
            to_bfloat16(_mm512_fmadd_ps(first, scale.first, zero.first), _mm512_fmadd_ps(second, scale.second, zero.second), at);
        };
        for (int64_t k = group; k < group + GROUP; k += 4) {
            const __m256i both = _mm256_loadu_si256((const __m256i*)(from + k / 2 * LANES)), low = _mm256_set1_epi8(15);
            weights(_mm256_and_si256(both, low), to + k * LANES);
            weights(_mm256_and_si256(_mm256_srli_epi16(both, 4), low), to + (k + 2) * LANES);
        }
    }
}

// A matrix's panels as bfloat16: where they lie, or of integers a block at a time.
class Unpacked {
  public:
    // `room`: for as many outputs of integers as are wanted at a time.
    Unpacked(const Matrix& matrix, Bfloat16* room) : matrix_(matrix), room_(room) {}

    // Outputs begin to end, begin a multiple of sixteen, are wanted next.
    void take(int64_t begin, int64_t end) {
        begin_ = begin;
        for (int64_t n = begin; matrix_.unpacked && n < end; n += LANES) {
            Bfloat16* to = room_ + (n - begin) * matrix_.inputs;
            if (matrix_.kind == INT8)
                unpack_int8((const int8_t*)matrix_.panel(n), matrix_.inputs, to);
            else
                unpack_int4(matrix_, n, to);
        }
    }

    // Of output n, a multiple of sixteen: (K / 2, 16, 2).
    const char* panel(int64_t n) const {
        return matrix_.unpacked ? (const char*)(room_ + (n - begin_) * matrix_.inputs) : matrix_.panel(n);
    }

    // What the sums of outputs n to n + 16 are to be multiplied with.
    Floats scale(int64_t n) const { return matrix_.unpacked && matrix_.kind == INT8 ? load(matrix_.scale + n) : broadcast(1.f); }

  private:
    const Matrix& matrix_;
    Bfloat16* room_;
    int64_t begin_ = 0;
};

#endif

}  // namespace vlm

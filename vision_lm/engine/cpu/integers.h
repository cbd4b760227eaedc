// int8 and int4 weights times activations rounded to 15 bits, by integer dot products (AVX-512 VNNI).
//
// A row of activations becomes x = code * step, within max|x| / 65,534 of the truth: finer than bfloat16. Integer
// sums are exact, so that no row depends on the others beside it.
#pragma once

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace vlm {

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr bool MULTIPLIES_INTEGERS = true;
#else
constexpr bool MULTIPLIES_INTEGERS = false;
#endif

constexpr int GROUP = 128;        // inputs that share an int4 scale
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

    // x (M, K), K a multiple of 32; there must be room for it.
    void take(const float* x, int64_t rows, int64_t inputs) {
        for (int64_t m = 0; m < rows; ++m) take_row(x + m * inputs, m, inputs);
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
inline __m512i codes_at(const int16_t* from) { return _mm512_loadu_si512(from); }
inline __m512i widened(const int8_t* from) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from)); }
inline Floats as_floats(__m512i ints) { return (Floats)_mm512_cvtepi32_ps(ints); }

// An int32 holds the sums of so many inputs: 4096 / 16 products of 15 and 7 bits a lane.
constexpr int64_t FLUSH = 4096;

// Four rows of an int8 weight (N, K) times M rows of codes, in units of step and scale.
template <int M>
inline void int8_tile(const int8_t* const (&weight)[4], const int16_t* x, int64_t inputs, Four (&result)[M]) {
    Floats totals[M][4] = {};
    for (int64_t first = 0; first < inputs; first += FLUSH) {
        const int64_t last = first + FLUSH < inputs ? first + FLUSH : inputs;
        __m512i partial[M][4] = {};
        for (int64_t k = first; k < last; k += 32) {
            __m512i rows[4];
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) {
                rows[n] = widened(weight[n] + k);
                if (k % 64 == 0) soon(weight[n] + k + 4 * inputs);
            }
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const __m512i some = codes_at(x + m * inputs + k);
#pragma GCC unroll 4
                for (int n = 0; n < 4; ++n) partial[m][n] = dot(partial[m][n], rows[n], some);
            }
        }
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) totals[m][n] += as_floats(partial[m][n]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) result[m] = sums(totals[m][0], totals[m][1], totals[m][2], totals[m][3]);
}

// The same for an int4 weight, in units of step. 32 bytes hold 64 codes: the low halves the first 32.
template <int M>
inline void int4_tile(const uint8_t* const (&weight)[4], const float* const (&scale)[4], const float* const (&zero)[4],
                      const int16_t* x, const float* group_sums, int64_t inputs, Four (&result)[M]) {
    const int64_t groups = inputs / GROUP;
    const __m512i low = _mm512_set1_epi16(15);
    Floats totals[M][4] = {};
    Four shifts[M] = {};
    for (int64_t g = 0; g < groups; ++g) {
        __m512i partial[M][4] = {};
#pragma GCC unroll 2
        for (int part = 0; part < 2; ++part) {
            const int64_t k = g * GROUP + part * 64;
            __m512i first[4], second[4];
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) {
                const __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(weight[n] + k / 2)));
                soon(weight[n] + k / 2 + 2 * inputs);
                first[n] = _mm512_and_si512(both, low);
                second[n] = _mm512_srli_epi16(both, 4);
            }
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const __m512i a = codes_at(x + m * inputs + k), b = codes_at(x + m * inputs + k + 32);
#pragma GCC unroll 4
                for (int n = 0; n < 4; ++n) partial[m][n] = dot(dot(partial[m][n], first[n], a), second[n], b);
            }
        }
        const Four zeros = {zero[0][g], zero[1][g], zero[2][g], zero[3][g]};
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
            for (int n = 0; n < 4; ++n) totals[m][n] += as_floats(partial[m][n]) * scale[n][g];
            shifts[m] += zeros * group_sums[m * groups + g];
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
        result[m] = sums(totals[m][0], totals[m][1], totals[m][2], totals[m][3]) + shifts[m];
}

#endif

}  // namespace vlm

// Small integers and the dot products of their pairs, sixteen outputs at a time, as each processor has them.
#pragma once

#include "lanes.h"

namespace vlm {

// The low 16 bits of each of sixteen words.
inline void low_halves(Floats words, int16_t* to) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)words));
#elif defined(VLM_AVX2)
    const __m256i mask = _mm256_set1_epi32(0xffff);
    const __m256i low = _mm256_and_si256((__m256i)words.low, mask), high = _mm256_and_si256((__m256i)words.high, mask);
    _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8));
#else
    int32_t lanes[LANES];
    std::memcpy(lanes, &words, sizeof lanes);
    for (int lane = 0; lane < LANES; ++lane) to[lane] = (int16_t)lanes[lane];
#endif
}

// Sixteen integer sums; sixteen pairs of small integers, widened to 16 bits; and the dot products of one with another.

#if defined(__AVX512BW__)

using Sums = __m512i;
using Codes = __m512i;

inline Sums dot(Sums sum, Codes a, Codes b) {
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}
inline Codes widened(const int8_t* from) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from)); }
inline Codes widened(const uint8_t* from) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)from)); }
inline Codes low_nibbles(Codes both) { return _mm512_and_si512(both, _mm512_set1_epi16(15)); }
inline Codes high_nibbles(Codes both) { return _mm512_srli_epi16(both, 4); }
inline Codes repeated(int32_t pair) { return _mm512_set1_epi32(pair); }
inline Floats as_floats(Sums sums) { return (Floats)_mm512_cvtepi32_ps(sums); }

#elif defined(VLM_AVX2)

struct Sums {
    __m256i low, high;
};
using Codes = Sums;

inline Sums dot(Sums sum, Codes a, Codes b) {
    return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, b.low)), _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, b.high))};
}
inline Codes widened(const int8_t* from) {
    const auto* at = (const __m128i*)from;
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(at)), _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1))};
}
inline Codes widened(const uint8_t* from) {
    const auto* at = (const __m128i*)from;
    return {_mm256_cvtepu8_epi16(_mm_loadu_si128(at)), _mm256_cvtepu8_epi16(_mm_loadu_si128(at + 1))};
}
inline Codes low_nibbles(Codes both) {
    const __m256i low = _mm256_set1_epi16(15);
    return {_mm256_and_si256(both.low, low), _mm256_and_si256(both.high, low)};
}
inline Codes high_nibbles(Codes both) { return {_mm256_srli_epi16(both.low, 4), _mm256_srli_epi16(both.high, 4)}; }
inline Codes repeated(int32_t pair) { return {_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)}; }
inline Floats as_floats(Sums sums) {
    Floats floats;
    floats.low = (Native)_mm256_cvtepi32_ps(sums.low);
    floats.high = (Native)_mm256_cvtepi32_ps(sums.high);
    return floats;
}

#elif defined(__aarch64__)

struct Sums {
    int32x4_t part[4];
};

struct Codes {
    int16x8_t part[4];
};

template <class Operation>
inline Codes each_part(Operation operation) {
    return {{operation(0), operation(1), operation(2), operation(3)}};
}

inline Sums dot(Sums sum, const Codes& a, const Codes& b) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const int32x4_t low = vmull_s16(vget_low_s16(a.part[i]), vget_low_s16(b.part[i]));
        sum.part[i] = vaddq_s32(sum.part[i], vpaddq_s32(low, vmull_high_s16(a.part[i], b.part[i])));
    }
    return sum;
}
inline Codes widened(const int8_t* from) {
    return each_part([=](int i) { return vmovl_s8(vld1_s8(from + 8 * i)); });
}
inline Codes widened(const uint8_t* from) {
    return each_part([=](int i) { return vreinterpretq_s16_u16(vmovl_u8(vld1_u8(from + 8 * i))); });
}
inline Codes low_nibbles(const Codes& both) {
    return each_part([&](int i) { return vandq_s16(both.part[i], vdupq_n_s16(15)); });
}
inline Codes high_nibbles(const Codes& both) {
    return each_part([&](int i) { return vshrq_n_s16(both.part[i], 4); });
}
inline Codes repeated(int32_t pair) {
    return each_part([=](int) { return vreinterpretq_s16_s32(vdupq_n_s32(pair)); });
}
inline Floats as_floats(const Sums& sums) {
    float lanes[LANES];
    for (int i = 0; i < 4; ++i) vst1q_f32(lanes + 4 * i, vcvtq_f32_s32(sums.part[i]));
    return load(lanes);
}

#else

struct Sums {
    int32_t lane[LANES];
};

struct Codes {
    int16_t code[2 * LANES];
};

template <class Operation>
inline Codes each_code(Operation operation) {
    Codes codes;
    for (int i = 0; i < 2 * LANES; ++i) codes.code[i] = operation(i);
    return codes;
}

inline Sums dot(Sums sum, const Codes& a, const Codes& b) {
    for (int i = 0; i < LANES; ++i)
        sum.lane[i] += (int32_t)a.code[2 * i] * b.code[2 * i] + (int32_t)a.code[2 * i + 1] * b.code[2 * i + 1];
    return sum;
}
template <class Small>
inline Codes widened(const Small* from) {
    return each_code([=](int i) { return (int16_t)from[i]; });
}
inline Codes low_nibbles(const Codes& both) {
    return each_code([&](int i) { return (int16_t)(both.code[i] & 15); });
}
inline Codes high_nibbles(const Codes& both) {
    return each_code([&](int i) { return (int16_t)(both.code[i] >> 4); });
}
inline Codes repeated(int32_t pair) {
    int16_t two[2];
    std::memcpy(two, &pair, sizeof two);
    return each_code([&](int i) { return two[i % 2]; });
}
inline Floats as_floats(const Sums& sums) {
    float lanes[LANES];
    for (int i = 0; i < LANES; ++i) lanes[i] = (float)sums.lane[i];
    return load(lanes);
}

#endif

// Two neighbours of a row's codes, for every output.
inline Codes pair_at(const int16_t* from) {
    int32_t both;
    std::memcpy(&both, from, sizeof both);
    return repeated(both);
}

}  // namespace vlm

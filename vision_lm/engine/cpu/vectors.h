// What is computed with sixteen floats at a time, and how they are stored.
#pragma once

#include <cmath>
#include <new>
#include <vector>

#include "lanes.h"

namespace vlm {

// Wanted soon, which the processor does not foresee. There may be nothing: a place beyond the end does no harm.
inline void soon(const void* place) { __builtin_prefetch(place); }

// One float as a stored number, rounded to nearest, ties to even.

inline void store(float* to, float value) { *to = value; }

inline void store(Bfloat16* to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // A NaN stays a NaN: rounding must not carry it into infinity.
    to->bits = value != value ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

inline void store(Float16* to, float value) {
    const Half16 half = (Half16)value;
    std::memcpy(to, &half, 2);
}

// Numbers that begin with a cache line: the 64 bytes of a tile's row would else lie in two.
template <class T>
struct Aligned {
    using value_type = T;
    Aligned() = default;
    template <class U>
    Aligned(const Aligned<U>&) {}
    T* allocate(size_t count) { return (T*)::operator new(count * sizeof(T), std::align_val_t{64}); }
    void deallocate(T* at, size_t) { ::operator delete(at, std::align_val_t{64}); }
    bool operator==(const Aligned&) const { return true; }
};

using Bfloat16s = std::vector<Bfloat16, Aligned<Bfloat16>>;

// The sums of four vectors' lanes. Each lane's sum is taken in the same order wherever it stands.
#if defined(__AVX512F__)
inline Four sums(Floats a, Floats b, Floats c, Floats d) {
    const auto halves = [](Floats x, Floats y) {
        return __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    };
    const Floats ab = halves(a, b), cd = halves(c, d);  // 8 lanes of each
    Floats all = __builtin_shufflevector(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                 __builtin_shufflevector(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    all += __builtin_shufflevector(all, all, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    all += __builtin_shufflevector(all, all, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return Four{all[0], all[4], all[8], all[12]};
}
#else
inline Four quarter(Four vector) { return vector; }

#if defined(VLM_AVX2)
inline Four quarter(Native vector) { return _mm256_castps256_ps128((__m256)vector) + _mm256_extractf128_ps((__m256)vector, 1); }
#endif

template <class Half>
inline Four quarter(Twice<Half> vector) { return quarter(vector.low + vector.high); }

inline Four sums(Floats a, Floats b, Floats c, Floats d) {
    const Four rows[] = {quarter(a), quarter(b), quarter(c), quarter(d)};
    const auto merged = [](Four x, Four y) {  // x0 + x2, x1 + x3 and the same of y
        return __builtin_shufflevector(x, y, 0, 1, 4, 5) + __builtin_shufflevector(x, y, 2, 3, 6, 7);
    };
    const Four ab = merged(rows[0], rows[1]), cd = merged(rows[2], rows[3]);
    return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
}
#endif

inline float sum(Floats vector) { return sums(vector, vector, vector, vector)[0]; }

inline float largest(Floats vector) {
    float lanes[LANES];
    write(lanes, vector);
    float found = lanes[0];
    for (const float lane : lanes) found = lane > found ? lane : found;
    return found;
}

// e to the power of x, within two units in the last place (Cephes' polynomial); of what is no number none.
inline Floats exponential(Floats x) {
    x = smaller(broadcast(88.3f), larger(broadcast(-87.3f), x));
    constexpr float ROUNDER = 12582912.f;  // 1.5 * 2**23: added and taken away again, it rounds to an integer
    const Floats whole = (x * 1.44269504f + ROUNDER) - ROUNDER;
    Floats rest = x - whole * 0.693359375f;
    rest = rest + whole * 2.12194440e-4f;
    Floats p = broadcast(1.9875691500e-4f);
    p = p * rest + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.f;
    return p * power_of_two(whole);
}

// GELU with its tanh approximation (arXiv 1606.08415): x times the logistic function of 2 u.
inline Floats gelu(Floats x) {
    const Floats u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x / (1.f + exponential(-2.f * u));
}

}  // namespace vlm

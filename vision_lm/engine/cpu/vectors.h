// Vectors of sixteen floats, by the compiler's own vector types: AVX-512 where there is one, pairs or quads elsewhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace vlm {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef float Four __attribute__((vector_size(16)));

template <class Vector, class Element>
inline Vector read(const Element* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

inline void write(float* to, Floats vector) { std::memcpy(to, &vector, sizeof vector); }

inline Floats broadcast(float v) { return Floats{v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }

struct Bfloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

// Sixteen stored numbers as floats.

inline Floats load(const float* from) { return read<Floats>(from); }

inline Floats load(const Bfloat16* from) {
    typedef uint16_t Halves __attribute__((vector_size(32)));
    return (Floats)(__builtin_convertvector(read<Halves>(from), Words) << 16);
}

inline Floats load(const Float16* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#else
    typedef _Float16 Halves __attribute__((vector_size(32)));
    return __builtin_convertvector(read<Halves>(from), Floats);
#endif
}

// Sixteen pairs of small numbers, the first and the second of each.
template <class Pairs>
inline void pairs(Pairs both, Floats& first, Floats& second) {
    first = __builtin_convertvector(
        __builtin_shufflevector(both, both, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), Floats);
    second = __builtin_convertvector(
        __builtin_shufflevector(both, both, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), Floats);
}

// Wanted soon, which the processor does not foresee. There may be nothing: a place beyond the end does no harm.
inline void soon(const void* place) { __builtin_prefetch(place); }

// In a register from here on: left to itself the compiler reads a value again for each of its uses.
inline Floats held(Floats vector) {
#if defined(__AVX512F__)
    asm("" : "+v"(vector));
#endif
    return vector;
}

// A product that is rounded before anything is added to it. Compilers fuse some products with the sum that follows and leave
// others, as a tile's size has it: then a row's result would depend on how many stand beside it.
inline Floats unfused(Floats product) {
#if defined(__AVX512F__)
    asm("" : "+v"(product));
#else
    asm("" : "+m"(product));
#endif
    return product;
}

// One float as a stored number, rounded to nearest, ties to even.

inline void store(float* to, float value) { *to = value; }

inline void store(Bfloat16* to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // A NaN stays a NaN: rounding must not carry it into infinity.
    to->bits = value != value ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

inline void store(Float16* to, float value) {
    const _Float16 half = (_Float16)value;
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

// Sixteen of them as bfloat16, which go to `to`, and what these are; the nearest, of two that are as near the even one.
inline Floats to_bfloat16(Floats value, Bfloat16* to) {
    typedef uint16_t Bits __attribute__((vector_size(32)));
    const Words bits = (Words)value, nearest = value != value ? bits : bits + 0x7fff + (bits >> 16 & 1);
    const Bits high = __builtin_convertvector(nearest >> 16, Bits);
    std::memcpy(to, &high, sizeof high);
    return (Floats)(nearest & 0xffff0000);
}

// The sums of four vectors' lanes. Each lane's sum is taken in the same order wherever it stands.
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

inline float sum(Floats vector) { return sums(vector, vector, vector, vector)[0]; }

// b where one of them is no number.
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

inline float largest(Floats vector) {
    float found = vector[0];
    for (int lane = 1; lane < LANES; ++lane) found = vector[lane] > found ? vector[lane] : found;
    return found;
}

// e to the power of x, within two units in the last place (Cephes' polynomial); of what is no number none.
inline Floats exponential(Floats x) {
    x = larger(broadcast(-87.3f), x);
    x = x > 88.3f ? broadcast(88.3f) : x;
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
    const Ints power = __builtin_convertvector(whole, Ints) + 127;
    return p * (Floats)(power << 23);
}

// GELU with its tanh approximation (arXiv 1606.08415): x times the logistic function of 2 u.
inline Floats gelu(Floats x) {
    const Floats u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x / (1.f + exponential(-2.f * u));
}

}  // namespace vlm

// Sixteen floats side by side, in as many registers as they take: one of AVX-512, two of AVX, four elsewhere.
//
// Compilers keep a vector that is wider than a register in memory, and take its comparisons and conversions apart lane by
// lane. So none is: `Native` fills one register, and `Floats` is one or a pair of pairs of these.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace vlm {

constexpr int LANES = 16;

struct Bfloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

#if defined(__aarch64__)
using Half16 = __fp16;  // what every compiler for these has
#else
using Half16 = _Float16;
#endif

#if defined(__AVX512F__)
constexpr int NATIVE_LANES = 16;
#elif defined(__AVX2__) && defined(__F16C__)
#define VLM_AVX2 1
constexpr int NATIVE_LANES = 8;
#else
constexpr int NATIVE_LANES = 4;
#endif

typedef float Native __attribute__((vector_size(4 * NATIVE_LANES)));
typedef int32_t NativeInts __attribute__((vector_size(4 * NATIVE_LANES)));
typedef uint32_t NativeWords __attribute__((vector_size(4 * NATIVE_LANES)));
typedef float Four __attribute__((vector_size(16)));

template <class Half>
struct Twice {
    Half low, high;
};

template <int LANES_LEFT>
struct Registers {
    using Type = Twice<typename Registers<LANES_LEFT / 2>::Type>;
};

template <>
struct Registers<NATIVE_LANES> {
    using Type = Native;
};

using Floats = typename Registers<LANES>::Type;

template <class Half>
inline Twice<Half> operator-(Twice<Half> a) { return {-a.low, -a.high}; }

#define VLM_OPERATOR(op)                                                                                        \
    template <class Half>                                                                                       \
    inline Twice<Half> operator op(Twice<Half> a, Twice<Half> b) { return {a.low op b.low, a.high op b.high}; } \
    template <class Half>                                                                                       \
    inline Twice<Half> operator op(Twice<Half> a, float b) { return {a.low op b, a.high op b}; }                \
    template <class Half>                                                                                       \
    inline Twice<Half> operator op(float a, Twice<Half> b) { return {a op b.low, a op b.high}; }                \
    template <class Half, class Other>                                                                          \
    inline Twice<Half>& operator op##=(Twice<Half>& a, Other b) { return a = a op b; }
VLM_OPERATOR(+)
VLM_OPERATOR(-)
VLM_OPERATOR(*)
VLM_OPERATOR(/)
#undef VLM_OPERATOR

// A function of one or two registers, of each of several.
#define VLM_EACH(name)                                                             \
    template <class Half, class... Others>                                         \
    inline Twice<Half> name(Twice<Half> first, Others... others) {                 \
        return {name(first.low, (others.low)...), name(first.high, (others.high)...)}; \
    }

// The larger and the smaller of two; b where one of them is no number.
inline Native larger(Native a, Native b) { return a > b ? a : b; }
inline Native smaller(Native a, Native b) { return a < b ? a : b; }

// 0 where `place` is minus infinity, else the value.
inline Native zero_at_minus_infinity(Native place, Native value) { return place == -__builtin_inff() ? Native{} : value; }

// Two to the power of whole numbers from -126 to 127.
inline Native power_of_two(Native whole) {
    return (Native)((__builtin_convertvector(whole, NativeInts) + 127) << 23);
}

// In a register from here on: left to itself the compiler reads a value again for each of its uses.
inline Native held(Native vector) {
#if defined(__AVX512F__)
    asm("" : "+v"(vector));
#endif
    return vector;
}

// A product that is rounded before anything is added to it. Compilers fuse some products with the sum that follows and leave
// others, as a tile's size has it: then a row's result would depend on how many stand beside it.
inline Native unfused(Native product) {
#if defined(__AVX512F__)
    asm("" : "+v"(product));
#elif defined(__x86_64__)
    asm("" : "+x"(product));
#else
    asm("" : "+w"(product));
#endif
    return product;
}

VLM_EACH(larger)
VLM_EACH(smaller)
VLM_EACH(zero_at_minus_infinity)
VLM_EACH(power_of_two)
VLM_EACH(held)
VLM_EACH(unfused)
#undef VLM_EACH

// A register of stored numbers as floats.

inline Native native(const float* from) {
    Native vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

inline Native native(const Bfloat16* from) {
#if defined(VLM_AVX2)
    return (Native)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#else
    typedef uint16_t Halves __attribute__((vector_size(2 * NATIVE_LANES)));
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return (Native)(__builtin_convertvector(halves, NativeWords) << 16);
#endif
}

inline Native native(const Float16* from) {
#if defined(__AVX512F__)
    return (Native)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(VLM_AVX2)
    return (Native)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#elif defined(__aarch64__)
    return (Native)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t*)from)));
#else
    typedef Half16 Halves __attribute__((vector_size(2 * NATIVE_LANES)));
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return __builtin_convertvector(halves, Native);
#endif
}

// By name where there is one: of a list of equal lanes some compilers make insertions.
inline void fill(Native& vector, float v) {
#if defined(__AVX512F__)
    vector = (Native)_mm512_set1_ps(v);
#elif defined(VLM_AVX2)
    vector = (Native)_mm256_set1_ps(v);
#else
    vector = Native{v, v, v, v};
#endif
}

template <class Vector>
struct Loaded;

template <>
struct Loaded<Native> {
    template <class Element>
    static Native from(const Element* at) { return native(at); }
};

template <class Half>
struct Loaded<Twice<Half>> {
    template <class Element>
    static Twice<Half> from(const Element* at) {
        return {Loaded<Half>::from(at), Loaded<Half>::from(at + sizeof(Half) / sizeof(float))};
    }
};

// Sixteen stored numbers as floats.
template <class Element>
inline Floats load(const Element* from) { return Loaded<Floats>::from(from); }

// Of sixteen words of two bfloat16 numbers each the first or the second ones.
template <int SECOND>
inline void half_words(const Bfloat16* from, Native& to) {
    NativeWords words;
    std::memcpy(&words, from, sizeof words);
    to = (Native)(SECOND ? words & 0xffff0000 : words << 16);
}

template <int SECOND, class Half>
inline void half_words(const Bfloat16* from, Twice<Half>& to) {
    half_words<SECOND>(from, to.low);
    half_words<SECOND>(from + sizeof(Half) / sizeof(Bfloat16), to.high);
}

template <int SECOND>
inline Floats half_words(const Bfloat16* from) {
    Floats to;
    half_words<SECOND>(from, to);
    return to;
}

inline void write(float* to, Floats vector) { std::memcpy(to, &vector, sizeof vector); }

template <class Half>
inline void fill(Twice<Half>& vector, float v) {
    fill(vector.low, v);
    vector.high = vector.low;
}

inline Floats broadcast(float v) {
    Floats vector;
    fill(vector, v);
    return vector;
}

}  // namespace vlm

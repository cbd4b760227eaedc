// A linear layer's weight as it lies in memory, and where its results go.
#pragma once

#include "vectors.h"

namespace vlm {

constexpr int GROUP = 128;  // inputs that share an int4 scale
constexpr int STEP = 32;    // K is a multiple of it

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3, INT4 = 4 };

// Either rows (N, K), as torch has them: FLOAT16, and BFLOAT16 without tiles, where there is AVX-512, by which torch multiplies
// many rows of 16 bits. Or panels of sixteen outputs, N rounded up to whole panels:
//   FLOAT32, FLOAT16  (N / 16, K, 16)
//   BFLOAT16          (N / 16, K / 2, 16, 2)
//   INT8              (N / 16, K / 2, 16, 2), weight = code * scale
//   INT4              (N / 16, K / 4, 16, 2), two codes a byte, the first two of four inputs in the low halves;
//                     weight = code * scale + zero, one of each for a group of inputs
struct Matrix {
    const void* weight;
    const float* scale;  // (N,) or (N / 16, K / GROUP, 16)
    const float* zero;   // (N / 16, K / GROUP, 16)
    const float* bias;   // (N,)
    int64_t outputs, inputs;
    int32_t kind;
    int32_t panels;
    int32_t unpacked;  // INT8, INT4: multiplied by tiles as bfloat16 numbers, for many rows

    int64_t row_bytes() const {
        switch (kind) {
            case FLOAT32: return inputs * 4;
            case INT8: return inputs;
            case INT4: return inputs / 2;
            default: return inputs * 2;
        }
    }

    // Of the panel with output n, a multiple of sixteen.
    const char* panel(int64_t n) const { return (const char*)weight + n * row_bytes(); }
    const float* group_scales(int64_t n) const { return scale + n * (inputs / GROUP); }
    const float* group_zeros(int64_t n) const { return zero + n * (inputs / GROUP); }
};

// Where results go: y[m * stride + n], written or added to.
struct Target {
    float* y;
    int64_t stride;
    bool adds = false;

    // Results n to n + count of row m.
    template <class Vector>
    void put(int64_t m, int64_t n, Vector value, int64_t count) const {
        float* at = y + m * stride + n;
        const size_t size = count * sizeof(float) < sizeof value ? count * sizeof(float) : sizeof value;
        Vector old = {};
        if (adds) std::memcpy(&old, at, size);
        value += old;
        if (size == sizeof value)
            std::memcpy(at, &value, sizeof value);
        else
            std::memcpy(at, &value, size);
    }
};

}  // namespace vlm

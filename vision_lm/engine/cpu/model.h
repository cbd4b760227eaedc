// Phi's shape and weights, and the tokens of a step, as Python hands them over (library.py has the same structures).
#pragma once

#include "matrix.h"

namespace vlm {

struct Norm {
    const float *weight, *bias;  // (Dt,)
};

struct Layer {
    Norm norm;
    Matrix into;  // rows q, k, v, fc1
    Matrix out;   // columns dense, fc2
};

struct Model {
    const Layer* layers;
    int32_t count, width, heads, key_heads, head_width, turned;
    Norm norm;
    Matrix head;
    const void* embedding;  // (V, Dt)
    int32_t embedding_kind;
    float epsilon;
    const float* rotary;  // cos and sin, (2, T, hd)
    int64_t positions;
};

struct Batch {
    int32_t rows, logit_rows, table_width;
    int32_t together;           // whether a token may see others that stand beside it in this step
    const int64_t* ids;         // (N,), or none and
    const float* embeddings;    // (N, Dt)
    const int32_t* sequences;   // (N,): row of the table
    const int32_t* positions;   // (N,)
    const int32_t* seen;        // (N,): tokens of its sequence that it sees
    const int32_t* table;       // (B, table_width): pages
    void* cache;                // (L, 2 Hkv, slots, hd)
    int64_t slots;
    int32_t cache_kind;
    const int32_t* last;        // (R,), ascending: tokens after which the logits are wanted
    float* logits;              // (R, V)
};

template <class Element>
inline void copy_row(const void* table, int64_t row, int width, float* to) {
    for (int i = 0; i < width; i += LANES) write(to + i, load((const Element*)table + row * width + i));
}

inline void normalise(const float* x, const Norm& norm, int width, float epsilon, float* y) {
    Floats total = {};
    for (int i = 0; i < width; i += LANES) total += load(x + i);
    const float mean = sum(total) / width;
    Floats squares = {};
    for (int i = 0; i < width; i += LANES) {
        const Floats off = load(x + i) - mean;
        squares += off * off;
    }
    const float scale = 1.f / std::sqrt(sum(squares) / width + epsilon);
    for (int i = 0; i < width; i += LANES)
        write(y + i, (load(x + i) - mean) * scale * load(norm.weight + i) + load(norm.bias + i));
}

inline void embed(const Model& model, int64_t id, float* to) {
    switch (model.embedding_kind) {
        case FLOAT32: return copy_row<float>(model.embedding, id, model.width, to);
        case BFLOAT16: return copy_row<Bfloat16>(model.embedding, id, model.width, to);
        case FLOAT16: return copy_row<Float16>(model.embedding, id, model.width, to);
    }
}

}  // namespace vlm

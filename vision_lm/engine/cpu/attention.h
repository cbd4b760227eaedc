// One token's attention over the paged cache, for one head.
#pragma once

#include "vectors.h"

namespace vlm {

constexpr int PAGE = 16;  // tokens to a page: the four keys of a product never straddle two

// Where a token of a sequence with these pages is.
inline int64_t slot_of(const int32_t* pages, int64_t position) {
    return (int64_t)pages[position / PAGE] * PAGE + position % PAGE;
}

// Keys, then values, of one layer: (2 Hkv, slots, hd).
template <class Element>
struct Cache {
    Element* memory;
    int64_t slots;
    int heads, width;

    Element* key(int head, int64_t slot) const { return memory + (head * slots + slot) * width; }
    Element* value(int head, int64_t slot) const { return memory + ((heads + head) * slots + slot) * width; }
};

// The first `dims` of a head turned by its position (arXiv 2104.09864), in half-split layout, in place.
// cos and sin (hd,), as the torch decoder keeps them: the first half of sin is negative.
inline void turn(float* head, const float* cos, const float* sin, int dims) {
    const int half = dims / 2;
    for (int i = 0; i < half; ++i) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cos[i] + b * sin[i];
        head[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

// Some of the next page, where the processor's own foresight ends.
template <class Element>
inline void fetch(const Element* from, int count) {
    for (int64_t at = 0; at < (int64_t)(count * sizeof(Element)); at += 64) soon((const char*)from + at);
}

// query (W * LANES,), turned and scaled, over `tokens` tokens -> result. `scores` holds tokens + LANES floats.
template <int W, class Element>
inline void attend(const float* query, const Cache<Element>& cache, int head, const int32_t* pages, int64_t tokens,
                   float* scores, float* result) {
    constexpr int WIDTH = W * LANES;
    Floats asked[W];
    for (int i = 0; i < W; ++i) asked[i] = load(query + i * LANES);
    for (int64_t first = 0; first < tokens; first += 4) {
        // What lies behind the last token may be anything; its score is not used.
        const Element* keys = cache.key(head, (int64_t)pages[first / PAGE] * PAGE + first % PAGE);
        if (first + PAGE < tokens) fetch(cache.key(head, (int64_t)pages[first / PAGE + 1] * PAGE + first % PAGE), 4 * WIDTH);
        Floats totals[4] = {};
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
#pragma GCC unroll 4
            for (int t = 0; t < 4; ++t) totals[t] += asked[i] * load(keys + t * WIDTH + i * LANES);
        const Four four = sums(totals[0], totals[1], totals[2], totals[3]);
        std::memcpy(scores + first, &four, sizeof four);
    }
    for (int64_t t = tokens; t < tokens + LANES; ++t) scores[t] = -INFINITY;
    Floats high = load(scores);
    for (int64_t t = LANES; t < tokens; t += LANES) high = larger(high, load(scores + t));
    const float most = largest(high);
    Floats total = {};
    for (int64_t t = 0; t < tokens; t += LANES) {
        const Floats score = load(scores + t);
        const Floats weight = zero_at_minus_infinity(score, exponential(score - most));
        write(scores + t, weight);
        total += weight;
    }
    Floats kept[W] = {};
    for (int64_t first = 0; first < tokens; first += PAGE) {
        const Element* values = cache.value(head, (int64_t)pages[first / PAGE] * PAGE);
        if (first + PAGE < tokens) fetch(cache.value(head, (int64_t)pages[first / PAGE + 1] * PAGE), PAGE * WIDTH);
        const int count = tokens - first < PAGE ? (int)(tokens - first) : PAGE;
        for (int t = 0; t < count; ++t) {
            const Floats weight = broadcast(scores[first + t]);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) kept[i] += weight * load(values + t * WIDTH + i * LANES);
        }
    }
    const float scale = 1.f / sum(total);
    for (int i = 0; i < W; ++i) write(result + i * LANES, kept[i] * scale);
}

}  // namespace vlm

// Prefill: what stands between the matrix products, which are cuBLAS's. Any number of tokens, in the weights' 16 bits,
// 16 bytes at a time.

struct Tokens {
    long long count;
    const long long* positions;  // (count) in their sequences
    const long long* places;     // (count) slots of the cache; below 0 the token is padding and is not kept
    long long slots;             // of the cache
    const float* cosines;        // (positions, ROTARY/2)
    const float* sines;
};
struct Residual {
    Element* hidden;      // (count, HIDDEN)
    const float* biases;  // (HIDDEN) to add to it first, or null
    const float* gamma;   // (HIDDEN)
    const float* beta;
    Element* normed;      // (count, HIDDEN)
};
struct Projected {
    Element* rows;    // (count, INTO_ROWS) q, k, v, fc1, finished in place; q's and k's rows are in rotary pairs
    Element* keys;    // (KV_HEADS, slots, HEAD_DIM)
    Element* values;  // (KV_HEADS, slots, HEAD_DIM)
};

constexpr int EIGHTS = (ROTARY + 7) / 8;           // 16-byte words of a head in which something turns
constexpr int STILL = HEAD_DIM / 8 - EIGHTS;       // and the rest of its words
constexpr int NORM_WORDS = (HIDDEN / 8 + LANES - 1) / LANES;  // of a lane

static_assert(INTO_ROWS % 8 == 0 && QUERIES % 8 == 0 && KEYS % 8 == 0, "a part of a row starts at 16 bytes");

DEVICE void widen(const Word4& word, float* x) {
#pragma unroll
    for (int i = 0; i < 4; i++) x[2 * i] = low_half(word.x[i]), x[2 * i + 1] = high_half(word.x[i]);
}

DEVICE Word4 narrow(const float* x) {
    Word4 word;
#pragma unroll
    for (int i = 0; i < 4; i++)
        word.x[i] = to_element(x[2 * i]).bits | static_cast<unsigned>(to_element(x[2 * i + 1]).bits) << 16;
    return word;
}

DEVICE Word4* words_of(Element* elements, long long first) { return reinterpret_cast<Word4*>(elements + first); }

// hidden += biases; normed = LayerNorm of it. A warp a token.
KERNEL(LANES) norm_kernel(PARAMETER(Residual) residual, PARAMETER(Tokens) tokens) {
    for (long long token = block_index(); token < tokens.count; token += grid_blocks()) {
        Word4* hidden = words_of(residual.hidden, token * HIDDEN);
        float x[NORM_WORDS][8], mean = 0.0f, deviation = 0.0f;
#pragma unroll
        for (int i = 0; i < NORM_WORDS; i++) {
            const int word = i * LANES + lane_index();
            if (word >= HIDDEN / 8) continue;
            widen(hidden[word], x[i]);
            if (residual.biases) {
                for (int j = 0; j < 8; j++) x[i][j] += residual.biases[8 * word + j];
                store(hidden + word, narrow(x[i]));
            }
            for (int j = 0; j < 8; j++) mean += x[i][j];
        }
        mean = sum_of_warp(mean) / HIDDEN;
#pragma unroll
        for (int i = 0; i < NORM_WORDS; i++)
            if (i * LANES + lane_index() < HIDDEN / 8)
                for (int j = 0; j < 8; j++) deviation += (x[i][j] - mean) * (x[i][j] - mean);
        const float scale = inverse_sqrt(sum_of_warp(deviation) / HIDDEN + NORM_EPS);
#pragma unroll
        for (int i = 0; i < NORM_WORDS; i++) {
            const int word = i * LANES + lane_index();
            if (word >= HIDDEN / 8) continue;
            for (int j = 0; j < 8; j++)
                x[i][j] = (x[i][j] - mean) * scale * residual.gamma[8 * word + j] + residual.beta[8 * word + j];
            store(words_of(residual.normed, token * HIDDEN) + word, narrow(x[i]));
        }
    }
}

// Turns one head, whose turned dimensions come in pairs, and puts them into PhiForCausalLM's order: one thread has all
// of it, for what it writes lies where it has read. A key goes to the cache as well.
DEVICE void turn_head(Word4* head, Word4* kept, const float* cosines, const float* sines) {
    constexpr int HALF = ROTARY / 2;
    float x[8 * EIGHTS], turned[8 * EIGHTS];
#pragma unroll
    for (int i = 0; i < EIGHTS; i++) widen(head[i], x + 8 * i);
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        turned[i] = x[2 * i] * cosines[i] - x[2 * i + 1] * sines[i];
        turned[HALF + i] = x[2 * i + 1] * cosines[i] + x[2 * i] * sines[i];
    }
#pragma unroll
    for (int i = ROTARY; i < 8 * EIGHTS; i++) turned[i] = x[i];
#pragma unroll
    for (int i = 0; i < EIGHTS; i++) {
        const Word4 word = narrow(turned + 8 * i);
        store(head + i, word);
        if (kept) store(kept + i, word);
    }
}

// q and k of a token turn, and k and v go to the cache.
DEVICE void finish_heads(const Projected& projected, const Tokens& tokens, long long token, Element* row) {
    constexpr int HEAD_WORDS = HEAD_DIM / 8, STILL_WORDS = KV_HEADS * STILL;
    const long long place = tokens.places[token], angle = tokens.positions[token] * (ROTARY / 2);
    // Where a head of the token's key or value starts.
    const auto kept = [&](Element* cache, int head) { return words_of(cache, (head * tokens.slots + place) * HEAD_DIM); };
    for (int head = thread_index(); head < HEADS + KV_HEADS; head += STREAMERS) {
        Word4* key = head < HEADS || place < 0 ? nullptr : kept(projected.keys, head - HEADS);
        turn_head(words_of(row, head * HEAD_DIM), key, tokens.cosines + angle, tokens.sines + angle);
    }
    for (int i = thread_index(); place >= 0 && i < STILL_WORDS; i += STREAMERS) {
        const int head = i / larger(STILL, 1), word = EIGHTS + i % larger(STILL, 1);
        store(kept(projected.keys, head) + word, words_of(row, QUERIES + head * HEAD_DIM)[word]);
    }
    for (int i = thread_index(); place >= 0 && i < KEYS / 8; i += STREAMERS)
        store(kept(projected.values, i / HEAD_WORDS) + i % HEAD_WORDS, words_of(row, QUERIES + KEYS)[i]);
}

// Some words of fc1 through gelu.
DEVICE void finish_ffn(Word4* fc1, int first, int last) {
    for (int i = first + thread_index(); i < last; i += STREAMERS) {
        float x[8];
        widen(fc1[i], x);
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = gelu(x[j]);
        store(fc1 + i, narrow(x));
    }
}

// What the projections' rows become, in place. Three blocks a token: its heads, and the two halves of fc1.
KERNEL(STREAMERS) finish_kernel(PARAMETER(Projected) projected, PARAMETER(Tokens) tokens) {
    for (long long item = block_index(); item < 3 * tokens.count; item += grid_blocks()) {
        const long long token = item / 3, part = item % 3;
        Element* row = projected.rows + token * INTO_ROWS;
        Word4* fc1 = words_of(row, QUERIES + 2 * KEYS);
        if (part == 0)
            finish_heads(projected, tokens, token, row);
        else
            finish_ffn(fc1, part == 1 ? 0 : FFN / 16, part == 1 ? FFN / 16 : FFN / 8);
    }
}

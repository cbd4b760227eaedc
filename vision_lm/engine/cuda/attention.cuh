// Paged attention, split along the keys: 32 tokens of one head are an item of one warp, a lane each.
//
// Items are drawn from a ticket, so a block that waits for all heads waits only for warps that already run: no
// order of blocks can hang it. Their results meet in a fixed order, so who computed what changes no bit.

constexpr int KV_CHUNKS = HEAD_DIM / 8;             // 16-byte chunks of a token's key
constexpr int KV_STRIDE = KV_CHUNKS * 16 + 16;      // bytes: an odd number of chunks keeps lanes off each other's banks
constexpr int KV_BYTES = 2 * SPLIT * KV_STRIDE;
constexpr int ATTENTION_BYTES_OF_WARP = KV_BYTES + HEAD_DIM * 4;
constexpr int ATTENTION_BYTES = ATTENTION_WARPS * ATTENTION_BYTES_OF_WARP;
constexpr int PART = HEAD_DIM + 4;                  // floats: weighted values, their maximum, their sum, padding
constexpr int LANE_PAIRS = (HEAD_DIM / 2 + LANES - 1) / LANES;

static_assert(SPLIT == LANES && SPLIT % PAGE == 0, "an item is a token a lane, in whole pages");

struct Item {
    int row, head, split, splits;
};

DEVICE bool find_item(const Step& step, int index, Item& item) {
    for (int row = 0; row < step.count; row++) {
        const int splits = splits_of(step.lengths[row]);
        if (index < HEADS * splits) {
            item = {row, index / splits, index % splits, splits};
            return true;
        }
        index -= HEADS * splits;
    }
    return false;
}

DEVICE float* part_of(const Step& step, int row, int head, int split) {
    const long long most = step.pages * PAGE / SPLIT + 1;
    return step.parts + ((row * HEADS + head) * most + split) * PART;
}

// Keys or values of an item's tokens into shared memory, a token a row.
DEVICE void fetch(const Step& step, const Element* cache, const Item& item, int tokens, unsigned char* shared) {
    const int kv_head = item.head / (HEADS / KV_HEADS);
    for (int i = lane_index(); i < tokens * KV_CHUNKS; i += LANES) {
        const int token = i / KV_CHUNKS, chunk = i % KV_CHUNKS;
        const long long place = place_of(step, item.row, item.split * SPLIT + token, kv_head);
        copy_async16(shared + token * KV_STRIDE + chunk * 16, cache + place + chunk * 8);
    }
    commit_copies();
}

// Softmax over the item's tokens and its share of the values: a part, not divided by the sum yet.
DEVICE void attend(const Layer& layer, const Step& step, const Item& item, unsigned char* shared) {
    const int lane = lane_index(), tokens = smaller(SPLIT, step.lengths[item.row] + 1 - item.split * SPLIT);
    unsigned char *keys = shared, *values = shared + KV_BYTES / 2;
    float* query = reinterpret_cast<float*>(shared + KV_BYTES);
    fetch(step, layer.keys, item, tokens, keys);
    fetch(step, layer.values, item, tokens, values);
    for (int dim = lane; dim < HEAD_DIM; dim += LANES)
        query[dim] = load_fresh(step.queries + item.row * QUERIES + item.head * HEAD_DIM + dim);
    wait_copies<1>();
    sync_warp();  // other lanes fetched this lane's key
    float score = -1e30f;
    if (lane < tokens) {
        score = 0.0f;
        for (int chunk = 0; chunk < KV_CHUNKS; chunk++) {
            const Word4 key = *reinterpret_cast<const Word4*>(keys + lane * KV_STRIDE + chunk * 16);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                score += query[chunk * 8 + 2 * i] * low_half(key.x[i]);
                score += query[chunk * 8 + 2 * i + 1] * high_half(key.x[i]);
            }
        }
    }
    float maximum = score;
#pragma unroll
    for (int mask = 16; mask >= 1; mask /= 2) maximum = larger(maximum, shuffle_xor(maximum, mask));
    const float weight = lane < tokens ? exp2_fast(score - maximum) : 0.0f;  // the query holds log2(e)
    const float sum = sum_of_warp(weight);
    wait_copies<0>();
    sync_warp();
    float out[2 * LANE_PAIRS] = {};
    for (int token = 0; token < tokens; token++) {
        const float w = shuffle(weight, token);
#pragma unroll
        for (int i = 0; i < LANE_PAIRS; i++) {
            const int pair = lane + i * LANES;
            if (pair < HEAD_DIM / 2) {
                const unsigned word = *reinterpret_cast<const unsigned*>(values + token * KV_STRIDE + pair * 4);
                out[2 * i] += w * low_half(word);
                out[2 * i + 1] += w * high_half(word);
            }
        }
    }
    float* part = part_of(step, item.row, item.head, item.split);
#pragma unroll
    for (int i = 0; i < LANE_PAIRS; i++) {
        const int pair = lane + i * LANES;
        if (pair < HEAD_DIM / 2) store(part + 2 * pair, out[2 * i]), store(part + 2 * pair + 1, out[2 * i + 1]);
    }
    if (lane == 0) store(part + HEAD_DIM, maximum), store(part + HEAD_DIM + 1, sum);
    sync_warp();  // before lane 0 releases them; and every lane is done with shared memory
}

// A head's parts, in the order of its tokens, into its place in `attended`.
DEVICE void join_parts(const Step& step, const Item& item) {
    float maximum = -1e30f, sum = 0.0f, out[2 * LANE_PAIRS] = {};
    for (int split = 0; split < item.splits; split++)
        maximum = larger(maximum, load_fresh(part_of(step, item.row, item.head, split) + HEAD_DIM));
    for (int split = 0; split < item.splits; split++) {
        const float* part = part_of(step, item.row, item.head, split);
        const float weight = exp2_fast(load_fresh(part + HEAD_DIM) - maximum);
        sum += weight * load_fresh(part + HEAD_DIM + 1);
#pragma unroll
        for (int i = 0; i < LANE_PAIRS; i++) {
            const int pair = lane_index() + i * LANES;
            if (pair < HEAD_DIM / 2) {
                out[2 * i] += weight * load_fresh(part + 2 * pair);
                out[2 * i + 1] += weight * load_fresh(part + 2 * pair + 1);
            }
        }
    }
    float* attended = step.attended + item.row * QUERIES + item.head * HEAD_DIM;
#pragma unroll
    for (int i = 0; i < LANE_PAIRS; i++) {
        const int pair = lane_index() + i * LANES;
        if (pair < HEAD_DIM / 2)
            store(attended + 2 * pair, out[2 * i] / sum), store(attended + 2 * pair + 1, out[2 * i + 1] / sum);
    }
    sync_warp();
}

DEVICE int draw_ticket(const Step& step) {
    return shuffle(lane_index() == 0 ? static_cast<int>(add_relaxed(step.counters + TICKET, 1)) : 0, 0);
}

// All an attention warp does: items until none is left.
DEVICE void attend_items(const Layer& layer, const Step& step, unsigned char* shared) {
    Item item;
    while (find_item(step, draw_ticket(step), item)) {
        attend(layer, step, item, shared);
        unsigned arrived = 0;
        if (lane_index() == 0)
            arrived = add_acquire_release(step.counters + ARRIVED + item.row * HEADS + item.head, 1);
        if (shuffle(static_cast<int>(arrived), 0) != item.splits - 1) continue;
        sync_warp();
        join_parts(step, item);
        if (lane_index() == 0) add_release(step.counters + HEADS_DONE, 1);
    }
}

DEVICE void wait_for_heads(const Step& step) {
    unsigned heads = 0;
    for (int row = 0; row < step.count; row++) heads += step.lengths[row] < 0 ? 0 : HEADS;
    while (load_acquire(step.counters + HEADS_DONE) < heads) relax();
}

// Attention alone, all warps: for batches whose matrices are cuBLAS's. The counters are zero before it.
KERNEL(STREAMERS) attend_kernel(PARAMETER(Layer) layer, PARAMETER(Step) step) {
    attend_items(layer, step, shared_memory() + warp_index() * ATTENTION_BYTES_OF_WARP);
}

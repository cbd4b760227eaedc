// Paged attention, split along the keys: 32 tokens of one head are an item of one warp, a lane each.
//
// Results meet in a fixed order, so who computed what changes no bit.

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
    DEVICE int first() const { return split * SPLIT; }  // of its tokens
};

// All lanes look for it, 32 rows at a time.
DEVICE bool find_item(const Step& step, int index, Item& item) {
    for (int base = 0; base < step.count; base += LANES) {
        const int row = base + lane_index(), splits = row < step.count ? splits_of(step.lengths[row]) : 0;
        int items = HEADS * splits;  // of this lane's row and those before it
#pragma unroll
        for (int apart = 1; apart < LANES; apart *= 2) {
            const int before = shuffle(items, larger(0, lane_index() - apart));
            if (lane_index() >= apart) items += before;
        }
        const int all = shuffle(items, LANES - 1);
        if (index < all) {
            const int place = static_cast<int>(sum_of_warp(items <= index ? 1.0f : 0.0f));  // the first beyond it
            const int before = shuffle(items, larger(0, place - 1)), its = shuffle(splits, place);
            const int within = index - (place > 0 ? before : 0);
            item = {base + place, within / its, within % its, its};
            return true;
        }
        index -= all;
    }
    return false;
}

DEVICE float* part_of(const Step& step, int row, int head, int split) {
    const long long most = step.pages * PAGE / SPLIT + 1;
    return step.parts + ((row * HEADS + head) * most + split) * PART;
}

// Keys and values of some of an item's tokens on their way into shared memory, a token a row.
DEVICE void fetch(const Layer& layer, const Step& step, const Item& item, int from, int to, unsigned char* shared) {
    const int kv_head = item.head / (HEADS / KV_HEADS);
    for (int i = from * KV_CHUNKS + lane_index(); i < to * KV_CHUNKS; i += LANES) {
        const int token = i / KV_CHUNKS, chunk = i % KV_CHUNKS;
        const long long place = place_of(step, item.row, item.first() + token, kv_head) + chunk * 8;
        copy_async16(shared + token * KV_STRIDE + chunk * 16, layer.keys + place);
        copy_async16(shared + KV_BYTES / 2 + token * KV_STRIDE + chunk * 16, layer.values + place);
    }
}
// Of the item's tokens those that the cache held before this step: constants, which need no wait.
DEVICE int old_tokens(const Step& step, const Item& item) {
    return smaller(SPLIT, step.lengths[item.row] - item.first());
}

// Softmax over the item's tokens and its share of the values: a part, not divided by the sum yet. Its old tokens are
// fetched already.
DEVICE void attend(const Layer& layer, const Step& step, const Item& item, unsigned char* shared) {
    const int lane = lane_index(), old = old_tokens(step, item), tokens = smaller(SPLIT, old + 1);
    unsigned char *keys = shared, *values = shared + KV_BYTES / 2;
    float* query = reinterpret_cast<float*>(shared + KV_BYTES);
    fetch(layer, step, item, old, tokens, shared);
    commit_copies();
    for (int dim = lane; dim < HEAD_DIM; dim += LANES)
        query[dim] = load_fresh(step.queries + item.row * QUERIES + item.head * HEAD_DIM + dim);
    wait_copies<0>();
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

// A head's parts, in the order of its tokens, into its place in `attended`. 32 of them at a time: a lane knows the
// weight of one, and many loads are in flight at once.
DEVICE void join_parts(const Step& step, const Item& item) {
    constexpr int LANE_DIMS = (HEAD_DIM + LANES - 1) / LANES, AT_ONCE = 8;
    const int lane = lane_index();
    float maximum = -1e30f, sum = 0.0f, out[LANE_DIMS] = {};
    for (int split = lane; split < item.splits; split += LANES)
        maximum = larger(maximum, load_fresh(part_of(step, item.row, item.head, split) + HEAD_DIM));
#pragma unroll
    for (int mask = 16; mask >= 1; mask /= 2) maximum = larger(maximum, shuffle_xor(maximum, mask));
    for (int base = 0; base < item.splits; base += LANES) {
        const int count = smaller(LANES, item.splits - base);
        float weight = 0.0f;
        if (lane < count) {
            const float* part = part_of(step, item.row, item.head, base + lane);
            const float top = load_fresh(part + HEAD_DIM), its_sum = load_fresh(part + HEAD_DIM + 1);
            weight = exp2_fast(top - maximum);
            sum += weight * its_sum;
        }
        for (int first = 0; first < count; first += AT_ONCE) {
            float x[AT_ONCE][LANE_DIMS];
#pragma unroll
            for (int i = 0; i < AT_ONCE * LANE_DIMS; i++) {
                const int split = first + i / LANE_DIMS, dim = lane + i % LANE_DIMS * LANES;
                x[i / LANE_DIMS][i % LANE_DIMS] = 0.0f;
                if (split < count && dim < HEAD_DIM)
                    x[i / LANE_DIMS][i % LANE_DIMS] = load_fresh(part_of(step, item.row, item.head, base + split) + dim);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const float w = shuffle(weight, (first + i) % LANES);  // 0 beyond the last
                for (int d = 0; d < LANE_DIMS; d++) out[d] += w * x[i][d];
            }
        }
    }
    sum = sum_of_warp(sum);
    float* attended = step.attended + item.row * QUERIES + item.head * HEAD_DIM;
    for (int d = 0; d < LANE_DIMS; d++)
        if (lane + d * LANES < HEAD_DIM) store(attended + lane + d * LANES, out[d] / sum);
    sync_warp();  // before lane 0 releases them
}

// The warps that attend: which of them this one is, of how many.
struct Workers {
    int number, count;
};

// All an attention warp does: one item that is its own, then whatever is left. What is older than this step is
// fetched before the wait. A block that waits for all heads waits only for blocks that are, or will be, resident:
// there are no more blocks than fit, and none of them waits for another before its items are done.
template <class Wait>
DEVICE void attend_items(const Layer& layer, const Step& step, const Workers& workers, unsigned char* shared, Wait wait) {
    Item item;
    bool found = find_item(step, workers.number, item);
    if (found) fetch(layer, step, item, 0, old_tokens(step, item), shared);
    wait();
    while (found) {
        unsigned ticket = 0, arrived = 0;
        if (lane_index() == 0) ticket = add_relaxed(step.counters + TICKET, 1);  // asked for early: it takes a while
        attend(layer, step, item, shared);
        if (lane_index() == 0)
            arrived = add_acquire_release(step.counters + ARRIVED + item.row * HEADS + item.head, 1);
        if (shuffle(static_cast<int>(arrived), 0) == item.splits - 1) {
            sync_warp();
            join_parts(step, item);
            if (lane_index() == 0) add_release(step.counters + HEADS_DONE, 1);
        }
        found = find_item(step, workers.count + shuffle(static_cast<int>(ticket), 0), item);
        if (found) fetch(layer, step, item, 0, old_tokens(step, item), shared);
    }
}

DEVICE void wait_for_heads(const Step& step) {
    unsigned heads = 0;
    for (int row = 0; row < step.count; row++) heads += step.lengths[row] < 0 ? 0 : HEADS;
    while (load_acquire(step.counters + HEADS_DONE) < heads) relax();
}

// Attention alone: for batches whose matrices are cuBLAS's. The counters are zero before it.
KERNEL(ATTEND_WARPS * LANES) attend_kernel(PARAMETER(Layer) layer, PARAMETER(Step) step) {
    const Workers workers{warp_index() * grid_blocks() + block_index(), ATTEND_WARPS * grid_blocks()};
    attend_items(layer, step, workers, shared_memory() + warp_index() * ATTENTION_BYTES_OF_WARP, [] {});
}

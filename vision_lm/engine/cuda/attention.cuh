// Paged attention, split along the keys: SPLIT tokens of one head are an item. A warp takes 32 of them at a time, a
// token a lane. What is older than a step is in the cache before it: it is fetched before the wait.
//
// Parts meet in the order of their tokens, whoever computed them, so that the schedule changes no bit.

constexpr int KV_CHUNKS = HEAD_DIM / 8;             // 16-byte chunks of a token's key
constexpr int KV_STRIDE = KV_CHUNKS * 16 + 16;      // bytes: an odd number of chunks keeps lanes off each other's banks
constexpr int KV_BYTES = 2 * LANES * KV_STRIDE;
constexpr int PART = HEAD_DIM + 4;                  // floats: weighted values, their maximum, their sum, padding
constexpr int LANE_DIMS = (HEAD_DIM + LANES - 1) / LANES;  // of the output, to a lane: its index, that + 32, ...
constexpr int ATTEND_BYTES_OF_WARP = KV_BYTES + HEAD_DIM * 4;
constexpr int ATTENTION_BYTES = CHUNKS * ATTEND_BYTES_OF_WARP + ATTENTION_WARPS * 2 * PART * 4;

static_assert(SPLIT % PAGE == 0 && LANES % PAGE == 0, "whole pages");

struct Item {
    int row, head, split, splits;
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

// The weighted values of some tokens, not divided by the sum of the weights yet.
struct Partial {
    float maximum = -1e30f, sum = 0.0f, out[LANE_DIMS] = {};
    DEVICE void add(const Partial& other) {
        const float top = larger(maximum, other.maximum);
        const float mine = exp2_fast(maximum - top), theirs = exp2_fast(other.maximum - top);
        maximum = top, sum = sum * mine + other.sum * theirs;
        for (int d = 0; d < LANE_DIMS; d++) out[d] = out[d] * mine + other.out[d] * theirs;
    }
    template <class Load>
    DEVICE static Partial read(const float* part, Load from) {
        Partial its;
        its.maximum = from(part + HEAD_DIM), its.sum = from(part + HEAD_DIM + 1);
        for (int d = 0; d < LANE_DIMS; d++)
            if (lane_index() + d * LANES < HEAD_DIM) its.out[d] = from(part + lane_index() + d * LANES);
        return its;
    }
    template <class Store>
    DEVICE void save(float* part, Store to) const {
        for (int d = 0; d < LANE_DIMS; d++)
            if (lane_index() + d * LANES < HEAD_DIM) to(part + lane_index() + d * LANES, out[d]);
        if (lane_index() == 0) to(part + HEAD_DIM, maximum), to(part + HEAD_DIM + 1, sum);
    }
};

// A head's parts, in the order of their tokens: put(place of its row's QUERIES, value).
template <class Put>
DEVICE void join_parts(const Step& step, const Item& item, Put put) {
    constexpr int AT_ONCE = 4;  // parts whose loads are in flight
    Partial whole;
    for (int first = 0; first < item.splits; first += AT_ONCE) {
        Partial its[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const float* part = part_of(step, item.row, item.head, smaller(first + i, item.splits - 1));
            its[i] = Partial::read(part, [](const float* from) { return load_fresh(from); });
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (first + i < item.splits) whole.add(its[i]);
    }
    for (int d = 0; d < LANE_DIMS; d++) {
        const int dim = lane_index() + d * LANES;
        if (dim < HEAD_DIM) put(item.head * HEAD_DIM + dim, whole.out[d] / whole.sum);
    }
}

// A warp's 32 tokens of an item, from the token `first` of the row on.
struct Chunk {
    const Element *keys_of_cache, *values_of_cache;  // one layer's
    const Step& step;
    int row, head, first;
    unsigned char* shared;

    DEVICE int old() const { return larger(0, smaller(LANES, step.lengths[row] - first)); }  // in the cache already
    DEVICE int all() const { return larger(0, smaller(LANES, step.lengths[row] + 1 - first)); }
    DEVICE void fetch(int from, int to) const {  // keys and values of some tokens, a token a row
        const int kv_head = head / (HEADS / KV_HEADS);
        for (int i = from * KV_CHUNKS + lane_index(); i < to * KV_CHUNKS; i += LANES) {
            const int token = i / KV_CHUNKS, chunk = i % KV_CHUNKS;
            const long long place = place_of(step, row, first + token, kv_head) + chunk * 8;
            copy_async16(shared + token * KV_STRIDE + chunk * 16, keys_of_cache + place);
            copy_async16(shared + KV_BYTES / 2 + token * KV_STRIDE + chunk * 16, values_of_cache + place);
        }
    }
    DEVICE void fetch_old() const { fetch(0, old()); }

    // Softmax over the tokens; the old ones are fetched. query_of(dim) is scaled by log2(e)/sqrt(HEAD_DIM).
    template <class Query>
    DEVICE Partial attend(Query query_of) const {
        const int lane = lane_index(), tokens = all();
        const unsigned char *keys = shared, *values = shared + KV_BYTES / 2;
        float* query = reinterpret_cast<float*>(shared + KV_BYTES);
        fetch(old(), tokens);
        commit_copies();
        for (int d = 0; d < LANE_DIMS; d++)
            if (lane + d * LANES < HEAD_DIM) query[lane + d * LANES] = query_of(lane + d * LANES);
        wait_copies<0>();
        sync_warp();  // other lanes fetched this lane's key
        Partial part;
        float score = -1e30f;
        if (lane < tokens) {
            float even = 0.0f, odd = 0.0f;
            for (int chunk = 0; chunk < KV_CHUNKS; chunk++) {
                const Word4 key = *reinterpret_cast<const Word4*>(keys + lane * KV_STRIDE + chunk * 16);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    even += query[chunk * 8 + 2 * i] * low_half(key.x[i]);
                    odd += query[chunk * 8 + 2 * i + 1] * high_half(key.x[i]);
                }
            }
            score = even + odd;
        }
        part.maximum = score;
#pragma unroll
        for (int mask = 16; mask >= 1; mask /= 2) part.maximum = larger(part.maximum, shuffle_xor(part.maximum, mask));
        const float weight = lane < tokens ? exp2_fast(score - part.maximum) : 0.0f;  // the query holds log2(e)
        part.sum = sum_of_warp(weight);
#pragma unroll 8
        for (int token = 0; token < tokens; token++) {
            const float w = shuffle(weight, token);
            for (int d = 0; d < LANE_DIMS; d++)
                if (lane + d * LANES < HEAD_DIM) {
                    const Element* value = reinterpret_cast<const Element*>(values + token * KV_STRIDE);
                    part.out[d] += w * to_float(value[lane + d * LANES]);
                }
        }
        sync_warp();  // every lane is done with shared memory
        return part;
    }
};

// ---- In K2: an item is a block's attention warps' ----

DEVICE void sync_attenders() { sync_threads<2, ATTENTION_WARPS * LANES>(); }

// All that a block's attention warps do. Other blocks wait for their parts, but no more blocks are launched than fit
// on the GPU, and none waits before its own items are done.
template <class Wait>
DEVICE void attend_together(const Layer& layer, const Step& step, unsigned char* shared, Wait wait) {
    const int warp = warp_index() - WARPS;
    float* partials = reinterpret_cast<float*>(shared + CHUNKS * ATTEND_BYTES_OF_WARP);  // (2, warps, PART)
    const auto chunk_of = [&](const Item& item, int number) -> Chunk {
        return {layer.keys, layer.values, step, item.row, item.head, item.split * SPLIT + number * LANES, shared + number * ATTEND_BYTES_OF_WARP};
    };
    const auto fetch_old = [&](const Item& item) {
        for (int number = warp; number < CHUNKS; number += ATTENTION_WARPS) chunk_of(item, number).fetch_old();
    };
    Item item;
    bool found = find_item(step, block_index(), item);
    if (found) fetch_old(item);
    wait();
    for (int turn = 0; found; turn++) {
        float* mine = partials + turn % 2 * ATTENTION_WARPS * PART;  // what is read while the next is written
        const float* query = step.queries + item.row * QUERIES + item.head * HEAD_DIM;
        Partial part;
        for (int number = warp; number < CHUNKS; number += ATTENTION_WARPS)
            part.add(chunk_of(item, number).attend([query](int dim) { return load_fresh(query + dim); }));
        part.save(mine + warp * PART, [](float* to, float value) { *to = value; });
        sync_attenders();
        if (warp == 0) {
            Partial whole;
            for (int other = 0; other < ATTENTION_WARPS; other++)
                whole.add(Partial::read(mine + other * PART, [](const float* from) { return *from; }));
            whole.save(part_of(step, item.row, item.head, item.split), [](float* to, float value) { store(to, value); });
            sync_warp();  // before lane 0 releases them
            unsigned arrived = 0;
            if (lane_index() == 0)
                arrived = add_acquire_release(step.counters + ARRIVED + item.row * HEADS + item.head, 1);
            if (shuffle(static_cast<int>(arrived), 0) == item.splits - 1) {  // the last joins the head
                sync_warp();
                join_parts(step, item, [&](int at, float x) { store(step.attended + item.row * QUERIES + at, x); });
                sync_warp();
                if (lane_index() == 0) add_release(step.counters + HEADS_DONE, 1);
            }
        }
        found = find_item(step, (turn + 1) * grid_blocks() + block_index(), item);
        if (found) fetch_old(item);
    }
}

DEVICE void wait_for_heads(const Step& step) {
    unsigned heads = 0;
    for (int row = 0; row < step.count; row++) heads += step.lengths[row] < 0 ? 0 : HEADS;
    while (load_acquire(step.counters + HEADS_DONE) < heads) relax();
}

// ---- Alone, for batches whose matrices are cuBLAS's: an item is one warp's ----

struct Attention {
    const Element* rows;      // (count, INTO_ROWS) that begin with the queries, as prefill.cuh finishes them
    Element* attended;        // (count, QUERIES)
    Element *keys, *values;   // (KV_HEADS, slots, HEAD_DIM)
};

// The counters are zero before it.
KERNEL(ATTEND_WARPS * LANES) attend_kernel(PARAMETER(Attention) attention, PARAMETER(Step) step) {
    unsigned char* shared = shared_memory() + warp_index() * ATTEND_BYTES_OF_WARP;
    Item item;
    bool found = find_item(step, warp_index() * grid_blocks() + block_index(), item);
    while (found) {
        unsigned ticket = 0, arrived = 0;
        if (lane_index() == 0) ticket = add_relaxed(step.counters + TICKET, 1);  // asked for early: it takes a while
        Partial part;
        for (int first = item.split * SPLIT; first <= smaller(step.lengths[item.row], (item.split + 1) * SPLIT - 1); first += LANES) {
            const Chunk chunk{attention.keys, attention.values, step, item.row, item.head, first, shared};
            const Element* query = attention.rows + static_cast<long long>(item.row) * INTO_ROWS + item.head * HEAD_DIM;
            chunk.fetch_old();
            part.add(chunk.attend([query](int dim) { return to_float(query[dim]) * (LOG2E * QUERY_SCALE); }));
        }
        part.save(part_of(step, item.row, item.head, item.split), [](float* to, float value) { store(to, value); });
        sync_warp();  // before lane 0 releases them
        if (lane_index() == 0)
            arrived = add_acquire_release(step.counters + ARRIVED + item.row * HEADS + item.head, 1);
        if (shuffle(static_cast<int>(arrived), 0) == item.splits - 1) {
            sync_warp();
            Element* attended = attention.attended + item.row * QUERIES;
            join_parts(step, item, [attended](int at, float x) { store(attended + at, to_element(x)); });
        }
        const int drawn = shuffle(static_cast<int>(ticket), 0);
        found = find_item(step, ATTEND_WARPS * grid_blocks() + drawn, item);
    }
}

// K3: the final LayerNorm, lm_head, and the likeliest token with its log-probability and its rival's. And the
// embeddings that a step starts from.

// exp(logit - top); of the top itself 1, even where it is infinite.
DEVICE float weight_below(float logit, float top) { return logit == top ? 1.0f : exp2_fast(LOG2E * (logit - top)); }

// The best of some logits: their maximum, the lowest id that has it, sum(exp(logit - maximum)), and the maximum of
// the others.
struct Best {
    float logit, sum;
    int id;
    float rival = as_float(0xff800000u);  // -infinity: there is no other
    DEVICE static Best from(const float* four) { return {four[0], four[1], static_cast<int>(four[2]), four[3]}; }
    DEVICE void add(const Best& other) {
        if (other.sum == 0.0f) return;
        const bool theirs = sum == 0.0f || other.logit > logit || (other.logit == logit && other.id < id);
        const float top = sum == 0.0f ? other.logit : larger(logit, other.logit);
        rival = sum == 0.0f ? other.rival : larger(smaller(logit, other.logit), larger(rival, other.rival));
        sum = (sum == 0.0f ? 0.0f : sum * weight_below(logit, top)) + other.sum * weight_below(other.logit, top);
        logit = top;
        if (theirs) id = other.id;
    }
    DEVICE void add_from(int mask) {
        const float their_logit = shuffle_xor(logit, mask), their_sum = shuffle_xor(sum, mask);
        const float their_rival = shuffle_xor(rival, mask);
        add({their_logit, their_sum, shuffle(id, lane_index() ^ mask), their_rival});
    }
};

template <int FIRST, int LAST>  // lanes apart by FIRST, twice that, ... LAST
DEVICE void add_all(Best& best) {
#pragma unroll
    for (int mask = FIRST; mask <= LAST; mask *= 2) best.add_from(mask);
}

// A warp of the last block to end joins what all blocks found, in a fixed order.
DEVICE void join_blocks(const Head& head) {
    for (int row = 0; row < BATCH; row++) {
        Best best{0.0f, 0.0f, 0};
        for (int first = 0; first < grid_blocks(); first += 8 * LANES) {
            Float4 found[8];  // loads in flight at once
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int block = first + i * LANES + lane_index();
                found[i] = load_fresh4(head.best + (smaller(block, grid_blocks() - 1) * BATCH + row) * 4);
                if (block >= grid_blocks()) found[i].x[1] = 0.0f;
            }
#pragma unroll
            for (int i = 0; i < 8; i++) best.add(Best::from(found[i].x));
        }
        add_all<1, LANES / 2>(best);
        if (lane_index() == 0) {
            store(head.next + row, static_cast<long long>(best.id));
            // What is infinite is no number any more: nothing can be said of such a row.
            const float logprob = log2_fast(best.sum) * -(1.0f / LOG2E) + (best.logit - best.logit);
            store(head.logprobs + row, logprob);
            store(head.rivals + row, logprob + (best.rival - best.logit));
        }
    }
}

DEVICE RowPlan head_plan(const Head& head) { return RowPlan(head.head, VOCAB); }

template <class Stream, class Wait>
DEVICE void choose(const Head& head, const Step& step, Stream& stream, unsigned char* shared, Wait wait) {
    wait();
    Activations normed = normalise(step.hidden, stream, shared);
    float* sums = reinterpret_cast<float*>(shared + NORM_BYTES);
    Best best{0.0f, 0.0f, 0};
    const auto nothing = [](const End&) { return 0; };
    multiply_rows(head_plan(head), stream, normed, sums, nothing, [&](const End& end, float a, float b, int) {
        const float logits[2] = {a, b};
        for (int r = 0; r < 2; r++) {
            const int id = 2 * end.pair + r;
            if (id >= VOCAB) continue;  // the last tile's filling
            best.add({logits[r], 1.0f, id});
            if (head.logits != nullptr) store(head.logits + static_cast<long long>(end.batch_row) * VOCAB + id, logits[r]);
        }
    });
    // A thread has one row of the batch: join those of its warp that have the same, then the warps.
    add_all<1, 2>(best), add_all<BATCH * TILE / 2, LANES / 2>(best);
    sync_streamers();  // the sums are read
    float* found = sums;  // (ENDS / LANES, BATCH, 4)
    const int lane = lane_index(), row = lane / (TILE / 2);
    if (warp_index() < ENDS / LANES && lane % (TILE / 2) == 0 && row < BATCH) {
        float* to = found + (warp_index() * BATCH + row) * 4;
        to[0] = best.logit, to[1] = best.sum, to[3] = best.rival;
        to[2] = static_cast<float>(best.id);  // ids below 2^24 are exact
    }
    sync_streamers();
    if (warp_index() != 0) return;
    if (lane < BATCH) {
        Best all{0.0f, 0.0f, 0};
        for (int warp = 0; warp < ENDS / LANES; warp++) all.add(Best::from(found + (warp * BATCH + lane) * 4));
        float* to = head.best + (block_index() * BATCH + lane) * 4;
        store(to, all.logit), store(to + 1, all.sum), store(to + 2, static_cast<float>(all.id)), store(to + 3, all.rival);
    }
    sync_warp();
    unsigned ended = 0;
    if (lane == 0) ended = add_acquire_release(step.counters + BLOCKS_DONE, 1);
    if (shuffle(static_cast<int>(ended), 0) != grid_blocks() - 1) return;
    sync_warp();
    join_blocks(head);
    if (lane == 0) store(step.counters + BLOCKS_DONE, 0u), store(step.counters + BARRIER, 0u);  // for the next step
}

KERNEL(STREAMERS) choose_kernel(PARAMETER(Head) head, PARAMETER(Step) step) {
    unsigned char* shared = shared_memory() + RING_BYTES;
    ask_for_affine(head.gamma, head.beta, shared);
    Stream<RowCursor> stream(RowCursor{head_plan(head)});
    choose(head, step, stream, shared, [] { wait_for_predecessor(); });
}

// hidden = embedding[ids], for one row by `threads` threads.
DEVICE void embed_row(const Head& head, const Step& step, int row, int threads) {
    const Element* from = head.embedding + step.ids[row] * HIDDEN;
    for (int i = thread_index(); i < HIDDEN; i += threads) store(step.hidden + row * HIDDEN + i, to_float(from[i]));
}
KERNEL(STREAMERS) embed_kernel(PARAMETER(Head) head, PARAMETER(Step) step) {
    let_successor_start();
    wait_for_predecessor();
    embed_row(head, step, block_index(), STREAMERS);
}

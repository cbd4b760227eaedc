// K2: attention beside fc2, then dense, biases and the residual.
//
// A block owns pairs of output rows. Its streaming warps go through fc2 while its attention warps work; dense's
// weights are already on their way when the last head is done. The rows are cut into tiles along K, so that a
// tile's activations fit in shared memory; within a tile the units (pair, 32 chunks) are shared out evenly among
// the warps. Unit sums meet in the order of K whatever the tiles, so BATCH and the number of blocks change no bit.

constexpr int MOST_STEPS = larger(steps(FFN), steps(QUERIES));
constexpr int TILE_STEPS = smaller(MOST_STEPS, larger(1, ACTIVATION_BYTES / (LANES * VALUES * BATCH * 4)));
constexpr int TILE_BYTES = TILE_STEPS * LANES * VALUES * BATCH * 4;
constexpr int FFN_TILES = (steps(FFN) + TILE_STEPS - 1) / TILE_STEPS;
constexpr int TILES = FFN_TILES + (steps(QUERIES) + TILE_STEPS - 1) / TILE_STEPS;
constexpr int MIX_BYTES = RING_BYTES + ATTENTION_BYTES + TILE_BYTES;  // and sums_bytes(pairs) of a block

// For each of a block's pairs: what every unit of a tile sums to, and the running sums of fc2 and dense.
DEVICE constexpr int sums_bytes(int pairs) { return pairs * (TILE_STEPS + 2) * 2 * BATCH * 4; }

struct Tile {
    int width, first, steps;  // of the matrix's rows; its steps along K
    DEVICE Tile(int at) {
        const bool fc2 = at < FFN_TILES;
        width = fc2 ? FFN : QUERIES;
        first = (fc2 ? at : at - FFN_TILES) * TILE_STEPS;
        steps = smaller(TILE_STEPS, ::steps(width) - first);
    }
};

// A warp's units, through all tiles: `left` more of this one, the next being 32 chunks at `step` of `pair`.
struct TileCursor {
    const Layer* layer;
    int pairs, tile, pair, step, left;
    DEVICE TileCursor(const Layer& of) : layer(&of), pairs(block_pairs()), tile(-1), pair(0), step(0), left(0) {
        open_tile();
    }
    DEVICE static int block_pairs() { return (HIDDEN / 2 - block_index() + grid_blocks() - 1) / grid_blocks(); }
    DEVICE bool done() const { return tile >= TILES; }
    DEVICE void open_tile() {
        while (left == 0 && ++tile < TILES) {
            const int of_pair = Tile(tile).steps, units = pairs * of_pair, first = units * warp_index() / WARPS;
            left = units * (warp_index() + 1) / WARPS - first;
            pair = first / of_pair, step = first % of_pair;
        }
    }
    DEVICE void advance() {
        if (++step == Tile(tile).steps) step = 0, pair++;
        if (--left == 0) open_tile();
    }
    DEVICE Unit unit() const {
        const Tile at(tile);
        return {tile < FFN_TILES ? &layer->fc2 : &layer->dense, pair * grid_blocks() + block_index(), at.width,
                at.first + step};
    }
};

// Activations of a tile, (BATCH, width) from its first step on.
DEVICE Activations stage(const float* source, const Tile& tile, unsigned char* shared) {
    constexpr int FOURS = LANES * VALUES / 4;  // of a step
    Activations out{reinterpret_cast<Float4*>(shared), tile.steps * LANES};
    const int from = tile.first * FOURS, count = smaller(tile.steps * FOURS, tile.width / 4 - from);
    for (int row = 0; row < BATCH; row++)
        for (int four = thread_index(); four < count; four += STREAMERS)
            out.quad(row, four) = load_fresh4(source + row * tile.width + 4 * (from + four));
    return out;
}

DEVICE void mix_rows(const Layer& layer, const Step& step, TileCursor mine, Stream<TileCursor>& stream) {
    unsigned char* shared = shared_memory() + RING_BYTES + ATTENTION_BYTES;
    float* running = reinterpret_cast<float*>(shared + TILE_BYTES);  // (2, pairs, 2 BATCH): fc2, dense
    const int sums_of_block = mine.pairs * 2 * BATCH;
    float* units = running + 2 * sums_of_block;  // (pairs, steps, 2 BATCH)
    for (int i = thread_index(); i < 2 * sums_of_block; i += STREAMERS) running[i] = 0.0f;
    for (int at = 0; at < TILES; at++) {
        const Tile tile(at);
        if (at == FFN_TILES) {
            if (thread_index() == 0) wait_for_heads(step);
            sync_streamers();
        }
        const Activations in = stage(at < FFN_TILES ? step.activated : step.attended, tile, shared);
        sync_streamers();
        for (; mine.tile == at; mine.advance()) {
            const int within = mine.step * LANES + lane_index();
            const bool here = tile.first * LANES + within < chunks(tile.width);
            const Weights weights = stream.take(here);
            float sums[2 * BATCH] = {};
            if (here) multiply(weights, in, within, sums);
            const float sum = reduce(sums);
            const int unit = mine.pair * tile.steps + mine.step;
            if (lane_index() % OWNERS == 0) units[unit * 2 * BATCH + lane_index() / OWNERS] = sum;
        }
        sync_streamers();
        for (int i = thread_index(); i < sums_of_block; i += STREAMERS) {
            float& sum = running[(at < FFN_TILES ? 0 : sums_of_block) + i];
            const int pair = i / (2 * BATCH), value = i % (2 * BATCH);
            for (int s = 0; s < tile.steps; s++) sum += units[(pair * tile.steps + s) * 2 * BATCH + value];
        }
    }
    for (int i = thread_index(); i < sums_of_block; i += STREAMERS) {  // the thread that summed it
        const int pair = i / (2 * BATCH) * grid_blocks() + block_index(), row = i % (2 * BATCH) / 2;
        const int out = 2 * pair + i % 2;
        const float fc2 = running[i] * row_scale(layer.fc2, out);
        const float dense = running[sums_of_block + i] * row_scale(layer.dense, out);
        float* hidden = step.hidden + row * HIDDEN + out;
        store(hidden, load_fresh(hidden) + (fc2 + dense + layer.dense.bias[out]));
    }
}

template <class Wait>
DEVICE void mix(const Layer& layer, const Step& step, Wait wait) {
    if (streams()) {
        TileCursor mine(layer);
        Stream<TileCursor> stream(mine);
        wait();
        mix_rows(layer, step, mine, stream);
    } else {
        wait();
        unsigned char* shared = shared_memory() + RING_BYTES;
        attend_items(layer, step, shared + (warp_index() - WARPS) * ATTENTION_BYTES_OF_WARP);
    }
}

KERNEL(THREADS) mix_kernel(PARAMETER(Layer) layer, PARAMETER(Step) step) {
    mix(layer, step, [] {
        let_successor_start();
        wait_for_predecessor();
    });
}

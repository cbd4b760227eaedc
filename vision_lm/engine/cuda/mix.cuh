// K2: attention beside fc2, then dense, biases and the residual.
//
// A block's streaming warps go through fc2 while its attention warps work; dense's weights are already on their way
// when the last head is done. Its rows are cut into panels along K, so that a panel's activations fit in shared memory.

constexpr int MOST_SEGMENTS = larger(segments(FFN), segments(QUERIES));
constexpr int PANEL_SEGMENTS = smaller(MOST_SEGMENTS, larger(1, ACTIVATION_BYTES / (SEGMENT * 4 * BATCH)));
constexpr int FFN_PANELS = (segments(FFN) + PANEL_SEGMENTS - 1) / PANEL_SEGMENTS;
constexpr int PANELS = FFN_PANELS + (segments(QUERIES) + PANEL_SEGMENTS - 1) / PANEL_SEGMENTS;
constexpr int PANEL_BYTES = Activations::bytes(PANEL_SEGMENTS * SEGMENT);
constexpr int MIX_BYTES = RING_BYTES + ATTENTION_BYTES + PANEL_BYTES;  // and mix_sums_bytes of the most tiles of a block
constexpr int STAGED = 8;  // loads of a thread in flight at once

constexpr int KEPT = segments(FFN) + segments(QUERIES);
DEVICE constexpr int mix_sums_bytes(int tiles) { return 4 * sums_of(tiles, KEPT); }
// Of the streaming warps' shared memory; attention's comes after it.
DEVICE int mix_rows_bytes() {
    return PANEL_BYTES + mix_sums_bytes((tiles(HIDDEN) + grid_blocks() - 1) / grid_blocks());
}

struct MixPlan {
    const Layer* layer;
    int tiles;  // of the block
    DEVICE MixPlan(const Layer& of) : layer(&of), tiles(block_tiles(::tiles(HIDDEN))) {}
    DEVICE int panels() const { return PANELS; }
    DEVICE Panel panel(int at) const {
        const bool fc2 = at < FFN_PANELS;
        const int width = fc2 ? FFN : QUERIES, first = (fc2 ? at : at - FFN_PANELS) * PANEL_SEGMENTS;
        const int count = smaller(PANEL_SEGMENTS, segments(width) - first), kept = (fc2 ? 0 : segments(FFN)) + first;
        return {fc2 ? &layer->fc2 : &layer->dense, width, first, count, 0, tiles, kept, KEPT};
    }
};
using MixCursor = PanelCursor<MixPlan>;

// A panel's part of the activations (BATCH, width).
DEVICE Activations stage(const float* source, const Panel& panel, unsigned char* shared) {
    constexpr int FOURS_OF_SEGMENT = SEGMENT / 4;
    const int from = panel.first * FOURS_OF_SEGMENT;
    const int count = smaller(panel.segments * FOURS_OF_SEGMENT, panel.width / 4 - from);
    Activations out(shared, 4 * count);
    for (int row = 0; row < BATCH; row++)
        for (int first = 0; first < count; first += STAGED * STREAMERS) {
            Float4 x[STAGED];
#pragma unroll
            for (int n = 0; n < STAGED; n++) {
                const int four = first + four_of_thread(n);
                x[n] = {};
                if (four < count) x[n] = load_fresh4(source + row * panel.width + 4 * (from + four));
            }
#pragma unroll
            for (int n = 0; n < STAGED; n++)
                if (first + n * STREAMERS < count) out.set(row, first + four_of_thread(n), x[n]);
        }
    return out;
}

// What becomes of the block's rows (tiles, BATCH, TILE): lane l of a warp has row warp + l * WARPS of STREAMERS.
struct Residuals {
    float residual, fc2_scale, dense_scale;
    float* to;
    DEVICE Residuals(const Layer& layer, const Step& step, int first, int rows) : to(nullptr) {
        const int row = first + warp_index() + lane_index() * WARPS;
        if (row >= rows) return;
        const int out = tile_of_block(row / (TILE * BATCH)) * TILE + row % TILE;
        to = step.hidden + row / TILE % BATCH * HIDDEN + out;
        residual = load_fresh(to) + layer.dense.bias[out];
        fc2_scale = row_scale(layer.fc2, out), dense_scale = row_scale(layer.dense, out);
    }
    // A warp sums the segments of one row after the other, lane by lane.
    DEVICE void add(const float* sums, int first, int rows) const {
        for (int l = 0; l < LANES && first + warp_index() + l * WARPS < rows; l++) {
            const int row = first + warp_index() + l * WARPS;
            const float* from = sums + sums_of(row / (TILE * BATCH), KEPT) + row % (TILE * BATCH);
            float fc2 = 0.0f, dense = 0.0f;
            for (int i = lane_index(); i < segments(FFN); i += LANES) fc2 += from[sums_of(1, i)];
            for (int i = lane_index(); i < segments(QUERIES); i += LANES) dense += from[sums_of(1, segments(FFN) + i)];
            fc2 = sum_of_warp(fc2), dense = sum_of_warp(dense);
            if (lane_index() == l) store(to, residual + (fc2 * fc2_scale + dense * dense_scale));
        }
    }
};

// `shared`: mix_rows_bytes().
template <class Stream, class Wait>
DEVICE void mix_rows(const Layer& layer, const Step& step, Stream& stream, unsigned char* shared, Wait wait) {
    MixCursor mine{MixPlan(layer)};
    wait();
    float* sums = reinterpret_cast<float*>(shared + PANEL_BYTES);  // (tiles, KEPT, BATCH, TILE)
    const int rows = mine.plan.tiles * TILE * BATCH;
    Activations in = stage(step.activated, mine.plan.panel(0), shared);
    const Residuals residuals(layer, step, 0, rows);  // asked for now, for the end
    sync_streamers();
    stream.start();
    sum_segments(mine, stream, 0, in, sums);
    for (int at = 1; at < PANELS; at++) {
        if (at == FFN_PANELS) {
            let_successor_start();  // memory has nothing to do while the heads and the residual are waited for
            if (thread_index() == 0) wait_for_heads(step);
        }
        sync_streamers();  // nobody needs the last panel's activations
        in = stage(at < FFN_PANELS ? step.activated : step.attended, mine.plan.panel(at), shared);
        sync_streamers();
        sum_segments(mine, stream, at, in, sums);
    }
    sync_streamers();
    residuals.add(sums, 0, rows);
    for (int first = STREAMERS; first < rows; first += STREAMERS) Residuals(layer, step, first, rows).add(sums, first, rows);
}

KERNEL(THREADS) mix_kernel(PARAMETER(Layer) layer, PARAMETER(Step) step) {
    const auto wait = [] { wait_for_predecessor(); };
    unsigned char* shared = shared_memory() + RING_BYTES;
    if (streams()) {
        Stream<MixCursor> stream(MixCursor{MixPlan(layer)});
        mix_rows(layer, step, stream, shared, wait);
    } else {
        attend_together(layer, step, shared + mix_rows_bytes(), wait);
    }
}

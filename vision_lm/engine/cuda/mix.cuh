// K2: attention beside fc2, then dense, biases and the residual.
//
// A block's streaming warps go through fc2 while its attention warps work; dense's weights are already on their way
// when the last head is done. Its rows are cut into panels along K, so that a panel's activations fit in shared memory.

constexpr int MOST_SEGMENTS = larger(segments(FFN), segments(QUERIES));
constexpr int PANEL_SEGMENTS = smaller(MOST_SEGMENTS, larger(1, ACTIVATION_BYTES / (256 * 4 * BATCH)));
constexpr int FFN_PANELS = (segments(FFN) + PANEL_SEGMENTS - 1) / PANEL_SEGMENTS;
constexpr int PANELS = FFN_PANELS + (segments(QUERIES) + PANEL_SEGMENTS - 1) / PANEL_SEGMENTS;
constexpr int PANEL_BYTES = Activations::bytes(PANEL_SEGMENTS * 256);
constexpr int MIX_BYTES = RING_BYTES + ATTENTION_BYTES + PANEL_BYTES;  // and mix_sums_bytes of the block's tiles
constexpr int STAGED = 8;  // loads of a thread in flight at once

// A panel's sums; then of every row for every row of the batch: the residual with the bias, fc2's sum and scale,
// dense's sum and scale.
DEVICE constexpr int mix_sums_bytes(int tiles) {
    return 4 * (sums_of(tiles, PANEL_SEGMENTS) + tiles * TILE * BATCH * (BITS == 8 ? 5 : 3));
}

struct MixPlan {
    const Layer* layer;
    int tiles;  // of the block
    DEVICE MixPlan(const Layer& of) : layer(&of), tiles(block_tiles(::tiles(HIDDEN))) {}
    DEVICE int panels() const { return PANELS; }
    DEVICE Panel panel(int at) const {
        const bool fc2 = at < FFN_PANELS;
        const int width = fc2 ? FFN : QUERIES, first = (fc2 ? at : at - FFN_PANELS) * PANEL_SEGMENTS;
        return {fc2 ? &layer->fc2 : &layer->dense, width, first, smaller(PANEL_SEGMENTS, segments(width) - first), 0, tiles};
    }
};
using MixCursor = PanelCursor<MixPlan>;

// A panel's part of fc1's output.
DEVICE Activations stage_activated(const Step& step, const Panel& panel, unsigned char* shared) {
    const int from = panel.first * 64, count = smaller(panel.segments * 64, FFN / 4 - from);
    Activations out(shared, 4 * count);
    for (int row = 0; row < BATCH; row++)
        for (int first = 0; first < count; first += STAGED * STREAMERS) {
            Float4 x[STAGED];
#pragma unroll
            for (int n = 0; n < STAGED; n++) {
                const int four = first + four_of_thread(n);
                x[n] = {};
                if (four < count) x[n] = load_fresh4(step.activated + row * FFN + 4 * (from + four));
            }
#pragma unroll
            for (int n = 0; n < STAGED; n++)
                if (first + n * STREAMERS < count) out.set(row, first + four_of_thread(n), x[n]);
        }
    return out;
}
// A panel's part of what all heads attended to.
DEVICE Activations stage_attended(const Step& step, const Panel& panel, unsigned char* shared) {
    const int from = panel.first * 64, count = smaller(panel.segments * 64, QUERIES / 4 - from);
    Activations out(shared, 4 * count);
    for (int row = 0; row < BATCH; row++)
        for (int first = 0; first < count; first += STREAMERS) {
            const int four = first + four_of_thread(0);
            Float4 x = {};
            if (four < count) x = attended_four(step, row, from + four);
            out.set(row, four, x);
        }
    return out;
}

DEVICE void mix_rows(const Layer& layer, const Step& step, MixCursor& mine, Stream<MixCursor>& stream) {
    unsigned char* shared = shared_memory() + RING_BYTES + ATTENTION_BYTES;
    float* sums = reinterpret_cast<float*>(shared + PANEL_BYTES);  // (tiles, segments, BATCH, TILE)
    const int rows = mine.plan.tiles * TILE * BATCH;               // (tiles, BATCH, TILE), in each array from here on
    float* residual = sums + sums_of(mine.plan.tiles, PANEL_SEGMENTS);
    float* results = residual + rows;     // (2, rows): fc2, dense
    float* scales = results + 2 * rows;   // (2, rows), int8's
    const auto out_of = [](int i) { return tile_of_block(i / (TILE * BATCH)) * TILE + i % TILE; };
    const auto batch_row_of = [](int i) { return i / TILE % BATCH; };
    for (int i = thread_index(); i < rows; i += STREAMERS)  // each place is one thread's, here and below
        results[i] = results[rows + i] = 0.0f;
    for (int at = 0; at < PANELS; at++) {
        const Panel panel = mine.plan.panel(at);
        if (at == FFN_PANELS) {
            // What the end needs, now that there is time for it.
            for (int i = thread_index(); i < rows; i += STREAMERS) {
                const int out = out_of(i);
                residual[i] = load_fresh(step.hidden + batch_row_of(i) * HIDDEN + out) + layer.dense.bias[out];
                if (BITS == 8) scales[i] = row_scale(layer.fc2, out), scales[rows + i] = row_scale(layer.dense, out);
            }
            if (thread_index() == 0) wait_for_items(step);
            sync_streamers();
        }
        Activations in = at < FFN_PANELS ? stage_activated(step, panel, shared) : stage_attended(step, panel, shared);
        sync_streamers();
        sum_segments(mine, stream, at, in, sums);
        sync_streamers();
        float* into = results + (at < FFN_PANELS ? 0 : rows);
        for (int i = thread_index(); i < rows; i += STREAMERS)
            into[i] = add_segments(into[i], sums, panel, i / (TILE * BATCH), i % (TILE * BATCH));
    }
    for (int i = thread_index(); i < rows; i += STREAMERS) {
        const float fc2 = results[i] * (BITS == 8 ? scales[i] : 1.0f);
        const float dense = results[rows + i] * (BITS == 8 ? scales[rows + i] : 1.0f);
        store(step.hidden + batch_row_of(i) * HIDDEN + out_of(i), residual[i] + (fc2 + dense));
    }
}

template <class Wait>
DEVICE void mix(const Layer& layer, const Step& step, Wait wait) {
    if (streams()) {
        MixCursor mine{MixPlan(layer)};
        Stream<MixCursor> stream(mine);
        wait();
        mix_rows(layer, step, mine, stream);
    } else {
        attend_together(layer, step, shared_memory() + RING_BYTES, wait);
    }
}

KERNEL(THREADS) mix_kernel(PARAMETER(Layer) layer, PARAMETER(Step) step) {
    mix(layer, step, [] {
        let_successor_start();
        wait_for_predecessor();
    });
}

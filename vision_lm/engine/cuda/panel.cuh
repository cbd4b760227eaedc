// How a block's share of a matrix is cut up, and its sums.
//
// A block owns every grid_blocks()-th tile. It goes through them in panels: some of its tiles, over some of K. Within
// a panel the segments, SEGMENT weights of each row of a tile, are shared out evenly among the streaming warps; each is
// summed by one warp and kept, and segments meet in the order of K. So neither the batch, nor the number of blocks or
// warps, nor how panels are cut, changes a bit of a row.

struct Panel {
    const Matrix* matrix;
    int width;            // of its rows
    int first, segments;  // along K
    int tile, tiles;      // of the block's
    int kept, all_kept;   // where its first segment's sum is kept, of so many of a tile
};

DEVICE int block_tiles(int all) { return (all - block_index() + grid_blocks() - 1) / grid_blocks(); }
DEVICE int tile_of_block(int number) { return number * grid_blocks() + block_index(); }

// A warp's segments, through all panels of a plan: what it has `left` of this one.
template <class Plan>
struct PanelCursor {
    Plan plan;
    Panel panel;
    int at, tile, segment, left;

    DEVICE PanelCursor(const Plan& of) : plan(of), at(-1), tile(0), segment(0), left(0) { open(); }
    DEVICE bool done() const { return at >= plan.panels(); }
    DEVICE void open() {
        while (left == 0 && ++at < plan.panels()) {
            panel = plan.panel(at);
            const int all = panel.tiles * panel.segments, first = all * warp_index() / WARPS;
            left = all * (warp_index() + 1) / WARPS - first;
            tile = first / panel.segments, segment = first % panel.segments;
        }
    }
    DEVICE void skip(int count) {  // segments of this tile
        if ((segment += count) == panel.segments) segment = 0, tile++;
        if ((left -= count) == 0) open();
    }
    DEVICE Run take_run() {  // all that is left of this tile
        const int count = smaller(left, panel.segments - segment), first = (panel.first + segment) * SEGMENT_UNITS;
        const int all = smaller(count * SEGMENT_UNITS, units(panel.width) - first);
        const Run run{panel.matrix, panel.width, tile_of_block(panel.tile + tile), first, all};
        skip(count);
        return run;
    }
    DEVICE int segment_units() const {
        return smaller(SEGMENT_UNITS, units(panel.width) - (panel.first + segment) * SEGMENT_UNITS);
    }
};

// Floats that sums take: (tiles, segments, BATCH, TILE).
DEVICE constexpr int sums_of(int tiles, int segments) { return tiles * segments * BATCH * TILE; }

// This warp's segments of panel `at`, times the activations `in` of the panel's part of K.
template <class Plan, class Stream>
DEVICE void sum_segments(PanelCursor<Plan>& mine, Stream& stream, int at, Activations& in, float* sums) {
    Operands operands;
    while (mine.at == at) {
        float two[2] = {};
        const int first = mine.segment * SEGMENT_UNITS * UNIT_CHUNKS;
        if (WHOLE_SEGMENTS) {
#pragma unroll
            for (int unit = 0; unit < SEGMENT_UNITS; unit++)
                multiply(stream.take(), in, first + unit * UNIT_CHUNKS, operands, two);
        } else {
            const int count = mine.segment_units();
            for (int unit = 0; unit < count; unit++)
                multiply(stream.take(), in, first + unit * UNIT_CHUNKS, operands, two);
        }
        float* to = sums + sums_of(mine.tile, mine.panel.all_kept) + sums_of(1, mine.panel.kept + mine.segment);
        if (row_lane() < BATCH) {
            to[row_lane() * TILE + 2 * chunk_lane()] = two[0];
            to[row_lane() * TILE + 2 * chunk_lane() + 1] = two[1];
        }
        mine.skip(1);
    }
}

// ---- All of K at once, for activations that fit: K1 and K3 ----

constexpr int ROUND = larger(1, 16 / BATCH);       // tiles of a panel
constexpr int ENDS = ROUND * BATCH * TILE / 2;     // pairs of a panel's results: a thread each

struct RowPlan {
    const Matrix* matrix;
    int tiles;  // of the block
    DEVICE RowPlan(const Matrix& of, int rows) : matrix(&of), tiles(block_tiles(::tiles(rows))) {}
    DEVICE int panels() const { return (tiles + ROUND - 1) / ROUND; }
    DEVICE Panel panel(int at) const {
        const int all = segments(HIDDEN);
        return {matrix, HIDDEN, 0, all, at * ROUND, smaller(ROUND, tiles - at * ROUND), 0, all};
    }
};
using RowCursor = PanelCursor<RowPlan>;

static_assert(ENDS <= STREAMERS && ENDS % LANES == 0 && STREAMERS % (BATCH * TILE / 2) == 0, "a thread keeps to one row of the batch");

constexpr int ROW_SUMS_BYTES = 2 * sums_of(ROUND, segments(HIDDEN)) * 4;  // a panel is finished while the next is summed

// Two neighbouring rows of a matrix for one row of the batch: what a thread finishes of a panel.
struct End {
    int batch_row, pair;  // rows 2 * pair and the next
    bool here;
    float bias[2], scale[2];
    DEVICE End(const Panel& panel) {
        const int number = thread_index() / (BATCH * TILE / 2), tile = panel.tile + number;
        batch_row = thread_index() / (TILE / 2) % BATCH;
        pair = tile_of_block(tile) * (TILE / 2) + thread_index() % (TILE / 2);
        here = number < panel.tiles;
        for (int r = 0; r < 2 && here; r++) {  // asked for before the weights are summed, for after it
            bias[r] = panel.matrix->bias[2 * pair + r];
            scale[r] = row_scale(*panel.matrix, 2 * pair + r);
        }
    }
    DEVICE float value(const float* sums, const Panel& panel, int r) const {  // in the order of K
        const int number = thread_index() / (BATCH * TILE / 2), row = thread_index() % (TILE / 2) * 2 + r;
        const float* from = sums + sums_of(number, panel.segments) + batch_row * TILE + row;
        float sum = 0.0f;
#pragma unroll
        for (int segment = 0; segment < segments(HIDDEN); segment++) sum += from[sums_of(1, segment)];
        return sum * scale[r] + bias[r];
    }
};

// Every row of the plan; `prepare(end)` gives what `finish(end, values, prepared)` needs, from memory, beforehand.
template <class Stream, class Prepare, class Finish>
DEVICE void multiply_rows(const RowPlan& plan, Stream& stream, Activations& in, float* sums, Prepare prepare, Finish finish) {
    RowCursor mine(plan);
    stream.start();
    for (int at = 0; at < plan.panels(); at++) {
        const Panel panel = plan.panel(at);
        float* here = sums + at % 2 * sums_of(ROUND, segments(HIDDEN));
        const End end(panel);
        const auto prepared = prepare(end);
        sum_segments(mine, stream, at, in, here);
        sync_streamers();
        if (end.here) finish(end, end.value(here, panel, 0), end.value(here, panel, 1), prepared);
    }
}

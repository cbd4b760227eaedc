// K1: LayerNorm, then the rows of q, k, v and fc1, each finished where it is summed: bias, rotary embedding, the
// cache's new key and value, gelu.

// The pairs of one matrix that a warp has, whole rows at a time.
struct RowCursor {
    const Matrix* matrix;
    int pairs, pair, step;
    DEVICE RowCursor(const Matrix& of, int rows)
        : matrix(&of), pairs(rows / 2), pair(streams() ? warp_index() * grid_blocks() + block_index() : rows), step(0) {}
    DEVICE bool done() const { return pair >= pairs; }
    DEVICE Unit unit() const { return {matrix, pair, HIDDEN, step}; }
    DEVICE void advance() {
        if (++step == steps(HIDDEN)) step = 0, pair += WARPS * grid_blocks();
    }
};

// One pair of rows times the activations, from a stream that is at its start: lane OWNERS * (2 * row + r) gets
// weight row r for batch row `row`.
DEVICE float dot_pair(Stream<RowCursor>& stream, const Activations& in) {
    float sums[2 * BATCH] = {};
    for (int step = 0; step < steps(HIDDEN); step++) {
        const int chunk = step * LANES + lane_index();
        const bool here = chunk < chunks(HIDDEN);
        const Weights weights = stream.take(here);
        if (here) multiply(weights, in, chunk, sums);
    }
    return reduce(sums);
}

// gelu_new: 0.5 x (1 + tanh(u)) is x - x / (exp(2u) + 1).
DEVICE float gelu(float x) {
    const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return x - x * reciprocal_fast(exp2_fast(2.0f * LOG2E * u) + 1.0f);
}

// What becomes of row 2 * pair + r for one batch row. `other` is the pair's other sum.
DEVICE void finish_row(const Layer& layer, const Step& step, int pair, int r, int row, float sum, float other) {
    const int length = step.lengths[row];
    if (length < 0) return;
    constexpr int HALF = ROTARY / 2;
    const int out = 2 * pair + r;
    if (out < QUERIES + KEYS) {  // pack.py put dimension d beside d + HALF
        const int head = out / HEAD_DIM, within = pair % (HEAD_DIM / 2);
        int dim = 2 * within + r;
        if (within < HALF) {
            dim = within + r * HALF;
            const float cosine = step.cosines[length * HALF + within], sine = step.sines[length * HALF + within];
            sum = r == 0 ? sum * cosine - other * sine : sum * cosine + other * sine;
        }
        if (head < HEADS)
            store(step.queries + row * QUERIES + head * HEAD_DIM + dim, sum * (LOG2E * QUERY_SCALE));
        else
            store(layer.keys + place_of(step, row, length, head - HEADS) + dim, to_element(sum));
    } else if (out < QUERIES + 2 * KEYS) {
        const int value = out - QUERIES - KEYS;
        store(layer.values + place_of(step, row, length, value / HEAD_DIM) + value % HEAD_DIM, to_element(sum));
    } else {
        store(step.activated + row * FFN + (out - QUERIES - 2 * KEYS), gelu(sum));
    }
}

constexpr int PROJECT_BYTES = RING_BYTES + NORM_BYTES + SCRATCH_BYTES;

template <class Wait>
DEVICE void project(const Layer& layer, const Step& step, Wait wait) {
    if (!streams()) return;
    RowCursor mine(layer.into, INTO_ROWS);
    Stream<RowCursor> stream(mine);
    wait();
    if (block_index() == 0)  // the counters of this layer's K2, which starts when this kernel has ended
        for (int i = thread_index(); i < ARRIVED + BATCH * HEADS; i += STREAMERS)
            if (i == TICKET || i == HEADS_DONE || i >= ARRIVED) store(step.counters + i, 0u);
    const Activations normed = normalise(step.hidden, layer.gamma, layer.beta, shared_memory() + RING_BYTES);
    const int value = lane_index() / OWNERS, row = value / 2, r = value % 2;
    for (; !mine.done(); mine.pair += WARPS * grid_blocks()) {
        const int out = 2 * mine.pair + r;
        const float sum = dot_pair(stream, normed) * row_scale(layer.into, out) + layer.into.bias[out];
        const float other = shuffle_xor(sum, OWNERS);
        if (lane_index() % OWNERS == 0) finish_row(layer, step, mine.pair, r, row, sum, other);
    }
}

KERNEL(STREAMERS) project_kernel(PARAMETER(Layer) layer, PARAMETER(Step) step) {
    project(layer, step, [] {
        let_successor_start();
        wait_for_predecessor();
    });
}

// K1: LayerNorm, then the rows of q, k, v and fc1, each finished where it is summed: bias, rotary embedding, the
// cache's new key and value, gelu.

constexpr int ROWS_BYTES = NORM_BYTES + larger(ROW_SUMS_BYTES, RAW_BYTES);  // of K1 and K3, after the ring
constexpr int PROJECT_BYTES = RING_BYTES + ROWS_BYTES;

// gelu_new: 0.5 x (1 + tanh(u)) is x - x / (exp(2u) + 1).
DEVICE float gelu(float x) {
    const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return x - x * reciprocal_fast(exp2_fast(2.0f * LOG2E * u) + 1.0f);
}

struct Turn {
    float cosine, sine;
};

// What becomes of a pair of rows for one row of the batch.
struct Finish {
    const Layer& layer;
    const Step& step;
    int length;       // of this thread's row of the batch
    long long place;  // of its new token in the cache, for the first head

    static constexpr int HALF = ROTARY / 2;
    DEVICE static bool turns(int pair) { return 2 * pair < QUERIES + KEYS && pair % (HEAD_DIM / 2) < HALF; }

    DEVICE Turn prepare(const End& end) const {
        if (!end.here || length < 0 || !turns(end.pair)) return {1.0f, 0.0f};
        const int at = length * HALF + end.pair % (HEAD_DIM / 2);
        return {step.cosines[at], step.sines[at]};
    }
    DEVICE void operator()(const End& end, float a, float b, const Turn& turn) const {
        if (length < 0) return;
        const int out = 2 * end.pair, row = end.batch_row;
        if (out < QUERIES + KEYS) {
            // pack.py put dimension d beside d + HALF
            const bool turned = turns(end.pair);
            const int head = out / HEAD_DIM, within = end.pair % (HEAD_DIM / 2);
            const int dim = turned ? within : 2 * within, apart = turned ? HALF : 1;
            const float x = a * turn.cosine - b * turn.sine, y = b * turn.cosine + a * turn.sine;
            if (head < HEADS) {
                float* to = step.queries + row * QUERIES + head * HEAD_DIM + dim;
                store(to, x * (LOG2E * QUERY_SCALE)), store(to + apart, y * (LOG2E * QUERY_SCALE));
            } else {
                Element* to = layer.keys + head_place(head - HEADS) + dim;
                store(to, to_element(x)), store(to + apart, to_element(y));
            }
        } else if (out < QUERIES + 2 * KEYS) {
            const int value = out - QUERIES - KEYS;
            Element* to = layer.values + head_place(value / HEAD_DIM) + value % HEAD_DIM;
            store(to, to_element(a)), store(to + 1, to_element(b));
        } else {
            float* to = step.activated + row * FFN + (out - QUERIES - 2 * KEYS);
            store(to, gelu(a)), store(to + 1, gelu(b));
        }
    }
    DEVICE long long head_place(int kv_head) const { return place + kv_head * step.slots * HEAD_DIM; }
};

DEVICE RowPlan into_plan(const Layer& layer) { return RowPlan(layer.into, INTO_ROWS); }

// gamma and beta were asked for before the stream's first weights; `shared`: ROWS_BYTES.
template <class Stream, class Wait>
DEVICE void project(const Layer& layer, const Step& step, Stream& stream, unsigned char* shared, Wait wait) {
    wait();
    if (block_index() == 0)  // the counters of this layer's K2, which looks at them when this kernel has ended
        for (int i = thread_index(); i < ARRIVED + BATCH * HEADS; i += STREAMERS)
            if (i == HEADS_DONE || i >= ARRIVED) store(step.counters + i, 0u);
    const int row = thread_index() / (TILE / 2) % BATCH, length = step.lengths[row];
    const Finish finish{layer, step, length, length < 0 ? 0 : place_of(step, row, length, 0)};
    Activations normed = normalise(step.hidden, stream, shared);
    let_successor_start();  // not before: its weights would stand before the residual in the queue to memory
    float* sums = reinterpret_cast<float*>(shared + NORM_BYTES);
    multiply_rows(into_plan(layer), stream, normed, sums, [&](const End& end) { return finish.prepare(end); }, finish);
}

KERNEL(STREAMERS) project_kernel(PARAMETER(Layer) layer, PARAMETER(Step) step) {
    unsigned char* shared = shared_memory() + RING_BYTES;
    ask_for_affine(layer.gamma, layer.beta, shared);
    Stream<RowCursor> stream(RowCursor{into_plan(layer)});
    project(layer, step, stream, shared, [] { wait_for_predecessor(); });
}

// LayerNorm of the residual into shared memory: every block does it for itself, while its weights are in flight.

constexpr int AFFINE_BYTES = 2 * HIDDEN * 4;  // gamma, beta
constexpr int SCRATCH_BYTES = 2 * WARPS * BATCH * 4;
constexpr int NORM_BYTES = AFFINE_BYTES + Activations::bytes(HIDDEN) + SCRATCH_BYTES;
// Where operands are floating the values lie in their places until they are normed, else after it all.
constexpr int RAW_BYTES = BITS == 16 ? 0 : BATCH * HIDDEN * 4;
constexpr int FOURS = (HIDDEN / 4 + STREAMERS - 1) / STREAMERS;  // of a row, to a thread
constexpr int TOGETHER = smaller(BATCH, 4);                      // rows whose loads are in flight at once

// The same four values of a row in every phase, so that no barrier is needed between them.
DEVICE int four_of_thread(int number) { return number * STREAMERS + thread_index(); }

// gamma and beta on their way to shared memory: constants, so before the wait.
DEVICE void ask_for_affine(const float* gamma, const float* beta, unsigned char* shared) {
    float* affine = reinterpret_cast<float*>(shared);
    for (int n = 0; n < FOURS; n++) {
        const int four = four_of_thread(n);
        if (four >= HIDDEN / 4) continue;
        copy_async16(affine + 4 * four, gamma + 4 * four);
        copy_async16(affine + HIDDEN + 4 * four, beta + 4 * four);
    }
    commit_copies();
}

// Sums of the streaming threads' `values`, the same in each of them; `scratch` holds WARPS * BATCH floats.
DEVICE void sum_of_streamers(float (&values)[BATCH], float* scratch) {
#pragma unroll
    for (int row = 0; row < BATCH; row++) {
        const float sum = sum_of_warp(values[row]);
        if (lane_index() == 0) scratch[warp_index() * BATCH + row] = sum;
    }
    sync_streamers();
#pragma unroll
    for (int row = 0; row < BATCH; row++) {
        values[row] = 0.0f;
        for (int warp = 0; warp < WARPS; warp++) values[row] += scratch[warp * BATCH + row];
    }
}

// hidden (BATCH, HIDDEN) -> normed activations. gamma and beta were asked for before the stream was marked, or began.
template <class Stream>
DEVICE Activations normalise(const float* hidden, const Stream& stream, unsigned char* shared) {
    const float* affine = reinterpret_cast<const float*>(shared);
    Activations out(shared + AFFINE_BYTES, HIDDEN);
    float* scratch = reinterpret_cast<float*>(shared + AFFINE_BYTES + Activations::bytes(HIDDEN));
    Float4* values = reinterpret_cast<Float4*>(shared + NORM_BYTES);
    const auto raw = [&](int row, int four) -> Float4& {
        if (BITS == 16) return reinterpret_cast<Float4&>(out.share(row, four / PRODUCTS, four % PRODUCTS));
        return values[row * (HIDDEN / 4) + four];
    };
    float mean[BATCH], deviation[BATCH];
#pragma unroll
    for (int first = 0; first < BATCH; first += TOGETHER) {
        Float4 x[TOGETHER][FOURS];
#pragma unroll
        for (int i = 0; i < TOGETHER * FOURS; i++) {
            const int row = i / FOURS, four = four_of_thread(i % FOURS);
            if (four < HIDDEN / 4) x[row][i % FOURS] = load_fresh4(hidden + (first + row) * HIDDEN + 4 * four);
        }
#pragma unroll
        for (int row = 0; row < TOGETHER; row++) {
            mean[first + row] = 0.0f;
#pragma unroll
            for (int n = 0; n < FOURS; n++) {
                const int four = four_of_thread(n);
                if (four >= HIDDEN / 4) continue;
                raw(first + row, four) = x[row][n];
                mean[first + row] += (x[row][n].x[0] + x[row][n].x[1]) + (x[row][n].x[2] + x[row][n].x[3]);
            }
        }
    }
    sum_of_streamers(mean, scratch);
#pragma unroll
    for (int row = 0; row < BATCH; row++) {
        mean[row] /= HIDDEN;
        deviation[row] = 0.0f;
        for (int n = 0; n < FOURS; n++) {
            const int four = four_of_thread(n);
            if (four >= HIDDEN / 4) continue;
            const Float4 x = raw(row, four);
            for (int i = 0; i < 4; i++) deviation[row] += (x.x[i] - mean[row]) * (x.x[i] - mean[row]);
        }
    }
    sum_of_streamers(deviation, scratch + WARPS * BATCH);
    stream.wait_for_marked();
#pragma unroll
    for (int row = 0; row < BATCH; row++) {
        const float scale = inverse_sqrt(deviation[row] / HIDDEN + NORM_EPS);
        for (int n = 0; n < FOURS; n++) {
            const int four = four_of_thread(n);
            Float4 x = {};
            if (four < HIDDEN / 4) {
                x = raw(row, four);
                for (int i = 0; i < 4; i++)
                    x.x[i] = (x.x[i] - mean[row]) * scale * affine[4 * four + i] + affine[HIDDEN + 4 * four + i];
            }
            out.set(row, four, x);
        }
    }
    sync_streamers();
    return out;
}

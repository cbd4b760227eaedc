// LayerNorm of the residual into shared memory: every block does it for itself, while its weights are in flight.

constexpr int NORM_BYTES = BATCH * HIDDEN * 4;
constexpr int SCRATCH_BYTES = 2 * WARPS * BATCH * 4;

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

// hidden (BATCH, HIDDEN) -> normed activations; a thread keeps to its own places until the last barrier.
DEVICE Activations normalise(const float* hidden, const float* gamma, const float* beta, unsigned char* shared) {
    Activations out{reinterpret_cast<Float4*>(shared), chunks(HIDDEN)};
    float* scratch = reinterpret_cast<float*>(shared + NORM_BYTES);
    float mean[BATCH], deviation[BATCH];
#pragma unroll
    for (int row = 0; row < BATCH; row++) {
        mean[row] = 0.0f;
        for (int four = thread_index(); four < HIDDEN / 4; four += STREAMERS) {
            const Float4 x = load_fresh4(hidden + row * HIDDEN + 4 * four);
            out.quad(row, four) = x;
            mean[row] += (x.x[0] + x.x[1]) + (x.x[2] + x.x[3]);
        }
    }
    sum_of_streamers(mean, scratch);
#pragma unroll
    for (int row = 0; row < BATCH; row++) {
        mean[row] /= HIDDEN;
        deviation[row] = 0.0f;
        for (int four = thread_index(); four < HIDDEN / 4; four += STREAMERS) {
            const Float4 x = out.quad(row, four);
            for (int i = 0; i < 4; i++) deviation[row] += (x.x[i] - mean[row]) * (x.x[i] - mean[row]);
        }
    }
    sum_of_streamers(deviation, scratch + WARPS * BATCH);
#pragma unroll
    for (int row = 0; row < BATCH; row++) {
        const float scale = inverse_sqrt(deviation[row] / HIDDEN + NORM_EPS);
        for (int four = thread_index(); four < HIDDEN / 4; four += STREAMERS) {
            Float4& x = out.quad(row, four);
            for (int i = 0; i < 4; i++)
                x.x[i] = (x.x[i] - mean[row]) * scale * gamma[4 * four + i] + beta[4 * four + i];
        }
    }
    sync_streamers();
    return out;
}

// The whole step as one kernel: the same device functions, a grid barrier where the chain has a launch. Every block
// must be resident, so the launch is cooperative.

struct Whole {
    Head head;
    Layer layers[LAYERS];
};

// A block arrives when all its threads have; a warp waits for all blocks when it needs what they wrote, and not
// before: its next weights are asked for in between.
struct GridBarrier {
    unsigned* count;
    unsigned arrived;  // times this block has
    DEVICE void arrive() {
        sync_block();
        arrived++;
        if (thread_index() == 0) add_release(count, 1);
    }
    DEVICE void wait() const {
        const unsigned all = arrived * grid_blocks();
        if (lane_index() == 0)
            while (load_acquire(count) < all) relax();
        sync_warp();
    }
};

KERNEL(THREADS) step_kernel(PARAMETER(Whole) whole, PARAMETER(Step) step) {
    GridBarrier barrier{step.counters + BARRIER, 0};
    const auto wait = [&barrier] { barrier.wait(); };
    for (int row = block_index(); row < BATCH; row += grid_blocks()) embed_row(whole.head, step, row, THREADS);
    barrier.arrive();
    for (int number = 0; number < LAYERS; number++) {
        project(whole.layers[number], step, wait);
        barrier.arrive();
        mix(whole.layers[number], step, wait);
        barrier.arrive();
    }
    choose(whole.head, step, wait);
}

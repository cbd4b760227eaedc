// The whole step as one kernel: the same device functions, a grid barrier where the chain has a launch. Every block
// must be resident, so the launch is cooperative.
//
// One stream of weights goes through all layers: while a block waits for the others, or for its attention, its ring
// fills with what comes next, and memory is never idle for longer than that takes.

#if PERSISTENT  // beside many rows it would need more registers than there are

struct Whole {
    Head head;
    Layer layers[LAYERS];
};

// The panels of all matrices, in the order in which they are needed.
struct WholePlan {
    const Whole* whole;
    int of_into, of_head;  // panels
    DEVICE WholePlan(const Whole& of)
        : whole(&of), of_into(into_plan(of.layers[0]).panels()), of_head(head_plan(of.head).panels()) {}
    DEVICE int panels() const { return LAYERS * (of_into + PANELS) + of_head; }
    DEVICE Panel panel(int at) const {
        const int number = at / (of_into + PANELS), within = at % (of_into + PANELS);
        if (number >= LAYERS) return head_plan(whole->head).panel(at - LAYERS * (of_into + PANELS));
        const Layer& layer = whole->layers[number];
        return within < of_into ? into_plan(layer).panel(within) : MixPlan(layer).panel(within - of_into);
    }
};

// A block arrives when all its threads have. One thread of those that stream waits for all blocks, and one of those
// that attend: many would stand in each other's way.
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
        if (thread_index() == 0 || thread_index() == STREAMERS)
            while (load_acquire(count) < all) relax();
        if (streams())
            sync_streamers();
        else
            sync_attenders();
    }
};

KERNEL(THREADS) step_kernel(PARAMETER(Whole) whole, PARAMETER(Step) step) {
    GridBarrier barrier{step.counters + BARRIER, 0};
    const auto wait = [&barrier] { barrier.wait(); };
    unsigned char* affine = shared_memory() + RING_BYTES;
    unsigned char* rows = affine + AFFINE_BYTES;  // K2's, while the next gamma and beta come
    unsigned char* attention = rows + larger(ROWS_BYTES - AFFINE_BYTES, mix_rows_bytes());
    if (streams()) {
        ask_for_affine(whole.layers[0].gamma, whole.layers[0].beta, affine);
        Stream<PanelCursor<WholePlan>> stream(PanelCursor<WholePlan>{WholePlan(whole)});
        for (int row = block_index(); row < BATCH; row += grid_blocks()) embed_row(whole.head, step, row, STREAMERS);
        barrier.arrive();
        for (int number = 0; number < LAYERS; number++) {
            const Layer& layer = whole.layers[number];
            const bool last = number == LAYERS - 1;
            project(layer, step, stream, affine, wait);
            barrier.arrive();
            ask_for_affine(last ? whole.head.gamma : whole.layers[number + 1].gamma,
                           last ? whole.head.beta : whole.layers[number + 1].beta, affine);
            stream.mark();
            mix_rows(layer, step, stream, rows, wait);
            barrier.arrive();
        }
        choose(whole.head, step, stream, affine, wait);
    } else {
        barrier.arrive();
        for (int number = 0; number < LAYERS; number++) {
            attend_together(whole.layers[number], step, attention, [&barrier] {
                barrier.arrive();  // after K1, in which these warps have no part
                barrier.wait();
            });
            barrier.arrive();
        }
    }
}

#endif

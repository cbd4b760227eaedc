// A warp's stream of weights: always RING - 1 units in flight, and one in registers.
//
// A unit is 128 bytes of each of a tile's 8 rows. They come in runs, units that follow each other along the rows of one
// tile. A Cursor gives the runs that a warp has to do; asking is RING units ahead of taking, across tiles, matrices
// and waits.

struct Run {
    const Matrix* matrix;
    int width;  // of a row, in weights
    int tile;
    int first, units;  // along the rows
};

constexpr int GROUPS_OF_UNIT = 2;                                               // int4's: 256 weights
constexpr int SLOT_BYTES = 2 * LANES * 16;                                      // of a unit
constexpr int SCALE_BYTES = BITS == 4 ? GROUPS_OF_UNIT * TILE / 2 * 8 : 0;
constexpr int RING_BYTES_OF_WARP = RING * (SLOT_BYTES + SCALE_BYTES);
constexpr int RING_BYTES = WARPS * RING_BYTES_OF_WARP;

// Lane l has row l/4 of the tile, there chunks l%4 and l%4 + 4 of the unit; its share of the sums are rows 2(l%4)
// and the next, for row l/4 of the batch.
DEVICE int row_lane() { return lane_index() / 4; }
DEVICE int chunk_lane() { return lane_index() % 4; }

struct Weights {  // one lane's share of a unit
    Word4 chunks[2];
    unsigned scales[2], zeros[2];  // int4's, of its two rows, bfloat16; by chunk, as each chunk is another group's
};

template <class Cursor>
struct Stream {
    Cursor ahead;  // the next run to ask for
    // What is left of the run that is being asked for: this lane's next addresses.
    const unsigned char *rows, *scales;
    int units, chunks_left, groups_left;  // of a row; looked at only where rows end within a unit
    unsigned char* ring;  // this lane's place in it
    int asked, taken;     // slots, of the next unit to ask for and to take
    bool started;
    Weights ready;        // taken already

    DEVICE Stream(const Cursor& first) : ahead(first), units(0), asked(0), taken(0), started(false) {
        ring = shared_memory() + warp_index() * RING_BYTES_OF_WARP + lane_index() * 16;
        for (int i = 0; i < RING - 1; i++) ask();
    }

    DEVICE unsigned* scales_at(int slot) {  // eight lanes fetch them, for the others as well
        unsigned char* all = ring - lane_index() * 16 + RING * SLOT_BYTES;
        return reinterpret_cast<unsigned*>(all + slot * SCALE_BYTES + lane_index() % TILE * 8);
    }

    DEVICE void start_run() {
        const Run run = ahead.take_run();
        const int count = chunks(run.width), chunk = run.first * UNIT_CHUNKS + chunk_lane();
        units = run.units;
        rows = run.matrix->rows + (static_cast<long long>(run.tile * TILE + row_lane()) * count + chunk) * 16;
        chunks_left = count - chunk;
        if (BITS == 4) {
            const int groups = (run.width + GROUP - 1) / GROUP, group = run.first * GROUPS_OF_UNIT + row_lane();
            const long long pair = run.tile * (TILE / 2) + chunk_lane();
            scales = static_cast<const unsigned char*>(run.matrix->scales) + (pair * groups + group) * 8;
            groups_left = groups - group;
        }
    }
    DEVICE void ask() {
        if (units == 0 && !ahead.done()) start_run();
        if (units > 0) {
            if (WHOLE_UNITS || chunks_left > 0) copy_async16(ring + asked * SLOT_BYTES, rows);
            if (WHOLE_UNITS || chunks_left > 4) copy_async16(ring + asked * SLOT_BYTES + LANES * 16, rows + 4 * 16);
            if (BITS == 4 && row_lane() < GROUPS_OF_UNIT && (WHOLE_UNITS || groups_left > 0))
                copy_async8(scales_at(asked), scales);
            rows += UNIT_CHUNKS * 16, scales += GROUPS_OF_UNIT * 8, units--;
            if (!WHOLE_UNITS) chunks_left -= UNIT_CHUNKS, groups_left -= GROUPS_OF_UNIT;
        }
        commit_copies();  // an empty group too: waiting counts groups
        asked = asked == RING - 1 ? 0 : asked + 1;
    }
    // The next unit into registers. What lies beyond the end of a row, or of all rows, is garbage.
    DEVICE void fetch() {
        wait_copies<RING - 2>();
        const Word4* words = reinterpret_cast<const Word4*>(ring + taken * SLOT_BYTES);
        for (int i = 0; i < 2; i++) {
            ready.chunks[i] = words[i * LANES];
            if (BITS == 4) {
                ready.scales[i] = shuffle(static_cast<int>(scales_at(taken)[0]), i * 4 + chunk_lane());
                ready.zeros[i] = shuffle(static_cast<int>(scales_at(taken)[1]), i * 4 + chunk_lane());
            }
        }
        taken = taken == RING - 1 ? 0 : taken + 1;
    }
    // The unit whose turn it is, while the one after it comes into registers. Before the first, call start().
    DEVICE void start() {
        if (!started) fetch();
        started = true;
    }
    DEVICE Weights take() {
        const Weights now = ready;
        ask();  // into the slot whose words are in `now`
        fetch();
        return now;
    }
};

// Weights 4 * quad .. + 3 of a chunk, as operands of a product. Integers come out exactly: put under the exponent of
// 1024, where a float16's last bit counts 1 (or, four bits higher up, 16), less what the exponent added. pack.py has
// put two neighbours of int4 sixteen bits apart.
DEVICE void unpack(const Word4& chunk, int quad, unsigned (&b)[2]) {
    if (BITS == 16) {
        b[0] = chunk.x[2 * quad % 4], b[1] = chunk.x[(2 * quad + 1) % 4];
    } else if (BITS == 8) {
        const unsigned word = chunk.x[quad % 4];
        b[0] = subtract_halves(permute_bytes(word, 0x64646464u, 0x4140u), 0x64806480u);  // 1024 + 128
        b[1] = subtract_halves(permute_bytes(word, 0x64646464u, 0x4342u), 0x64806480u);
    } else {
        const unsigned word = chunk.x[quad / 2] >> (quad % 2 * 8);
        b[0] = subtract_halves(and_or(word, 0x000f000fu, 0x64006400u), 0x64086408u);  // 1024 + 8
        b[1] = multiply_add_halves(and_or(word, 0x00f000f0u, 0x64006400u), 0x2c002c00u, 0xd480d480u);  // / 16 - 72
    }
}

// Activations of BATCH rows in shared memory. Each is two operands, its rounded value and what that lacks: together
// they hold 16 bits of bfloat16's or 22 of float16's. Four neighbours' are 16 bytes {values 0 and 1, their rests,
// values 2 and 3, their rests}: a lane's share of one product.
struct Activations {
    Word4* quads;
    float* totals;  // int4's: sums of each row's groups
    int width;
    DEVICE static constexpr int stride(int width) { return width / 4 + 4; }  // keeps two rows off each other's banks
    DEVICE static constexpr int groups(int width) { return BITS == 4 ? (width + GROUP - 1) / GROUP : 0; }
    DEVICE static constexpr int bytes(int width) { return BATCH * (stride(width) * 16 + (groups(width) + 3) / 4 * 16); }

    DEVICE Activations(unsigned char* shared, int width)
        : quads(reinterpret_cast<Word4*>(shared)),
          totals(reinterpret_cast<float*>(shared + BATCH * stride(width) * 16)), width(width) {}
    DEVICE Word4& quad(int row, int chunk, int quad) {
        return quads[row * stride(width) + quad * (width / VALUES) + chunk];
    }
    DEVICE Word4& four(int row, int four) { return quad(row, four / QUADS, four % QUADS); }  // values 4 * four .. + 3
    // Every lane of a warp calls it, each with the four after the lane's before; lanes beyond the end with zeros.
    DEVICE void set(int row, int at, const Float4& x) {
        if (4 * at < width) {
            Word4 q;
            for (int i = 0; i < 2; i++) {
                q.x[2 * i] = operands(x.x[2 * i], x.x[2 * i + 1]);
                q.x[2 * i + 1] = operands(x.x[2 * i] - low_operand(q.x[2 * i]), x.x[2 * i + 1] - high_operand(q.x[2 * i]));
            }
            four(row, at) = q;
        }
        if (BITS != 4) return;
        const float total = sum_of_warp((x.x[0] + x.x[1]) + (x.x[2] + x.x[3]));
        if (lane_index() == 0 && 4 * at < width) totals[row * groups(width) + 4 * at / GROUP] = total;
    }
};

// A lane's share of some activations. Lanes that have no row of the batch keep its zeros.
constexpr int QUADS_AT_ONCE = smaller(QUADS, 4);
struct Operands {
    Word4 a[2][QUADS_AT_ONCE] = {};
};

// sums[r] += rows 2(l%4) + r of a unit, times row l/4 of the batch; the unit's chunks begin at `first` of `in`.
// Under one scale and one zero of int4: scale * sum(code * a) + zero * sum(a).
DEVICE void multiply(Weights weights, Activations& in, int first, Operands& operands, float (&sums)[2]) {
    float d[2][4] = {};  // of each chunk: two chains of products
#pragma unroll
    for (int start = 0; start < QUADS; start += QUADS_AT_ONCE) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int chunk = first + 4 * i + chunk_lane();
            const bool here = WHOLE_UNITS || chunk < in.width / VALUES;
            if (!here) weights.chunks[i] = {};
#pragma unroll
            for (int quad = 0; quad < QUADS_AT_ONCE; quad++) {
                if (row_lane() < BATCH) operands.a[i][quad] = here ? in.quad(row_lane(), chunk, start + quad) : Word4{};
            }
        }
#pragma unroll
        for (int quad = 0; quad < QUADS_AT_ONCE; quad++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                unsigned b[2];
                unpack(weights.chunks[i], start + quad, b);
                multiply_matrices(d[i], operands.a[i][quad], b[0], b[1]);
            }
    }
    if (BITS == 4) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int group = (first + 4 * i) * VALUES / GROUP;
            if (!WHOLE_UNITS && group >= in.groups(in.width)) continue;
            const float total = row_lane() < BATCH ? in.totals[row_lane() * in.groups(in.width) + group] : 0.0f;
            const unsigned scales = weights.scales[i], zeros = weights.zeros[i];
            sums[0] += (d[i][0] + d[i][2]) * as_float(scales << 16) + total * as_float(zeros << 16);
            sums[1] += (d[i][1] + d[i][3]) * as_float(scales & 0xffff0000u) + total * as_float(zeros & 0xffff0000u);
        }
    } else {
        sums[0] += (d[0][0] + d[0][2]) + (d[1][0] + d[1][2]);
        sums[1] += (d[0][1] + d[0][3]) + (d[1][1] + d[1][3]);
    }
}

// The scale of a whole row, where there is one.
DEVICE float row_scale(const Matrix& matrix, int row) {
    return BITS == 8 ? static_cast<const float*>(matrix.scales)[row] : 1.0f;
}

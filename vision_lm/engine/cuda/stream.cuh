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
    int groups;           // of copies, since `mark`
    Weights ready;        // taken already

    DEVICE Stream(const Cursor& first) : ahead(first), units(0), asked(0), taken(0), started(false), groups(0) {
        ring = shared_memory() + warp_index() * RING_BYTES_OF_WARP + lane_index() * 16;
        for (int i = 0; i < RING - 1; i++) ask();
    }

    DEVICE void mark() { groups = 0; }
    DEVICE void wait_for_marked() const {  // for what was copied before the last mark, or before the stream began
        if (groups >= RING - 1)
            wait_copies<RING - 1>();
        else
            wait_copies<0>();  // a warp with little to do in between
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
            rows += UNIT_CHUNKS * 16, units--;
            if (BITS == 4) scales += GROUPS_OF_UNIT * 8;
            if (!WHOLE_UNITS) chunks_left -= UNIT_CHUNKS, groups_left -= GROUPS_OF_UNIT;
        }
        commit_copies();  // an empty group too: waiting counts groups
        groups++;
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
    DEVICE void start() {  // before the first take
        if (!started) fetch();
        started = true;
    }
    DEVICE Weights take() {  // the unit whose turn it is, while the one after it comes into registers
        const Weights now = ready;
        ask();  // into the slot whose words are in `now`
        fetch();
        return now;
    }
};

// A lane's share of a product: weights SHARE * product .. of a chunk. Integers are codes from 0 up; of a word of int4
// each byte has two, whose places in the share are four apart.
DEVICE void unpack(const Word4& chunk, int product, unsigned (&b)[2]) {
    if (BITS == 4) {
        const unsigned word = chunk.x[product % 4];
        b[0] = word & 0x0f0f0f0fu, b[1] = word >> 4 & 0x0f0f0f0fu;
    } else {
        b[0] = chunk.x[2 * product % 4], b[1] = chunk.x[(2 * product + 1) % 4];
    }
}

// Activations of BATCH rows in shared memory, as 16 bytes for each lane's share of a product. Each is two operands of
// it. Beside floating weights they are the value, rounded, and what that lacks: 16 bits of bfloat16's or 22 of
// float16's. Beside integers they are the two bytes of 16-bit numbers that have one scale for GROUP neighbours.
struct Activations {
    Word4* words;
    int width;
    int* totals;    // of each row's groups, the sum of its numbers
    float* scales;  // and what one of them is worth
    static constexpr int BYTES = BITS == 16 ? 0 : 8;  // of a group
    DEVICE static constexpr int stride(int width) { return width / SHARE + 4; }  // keeps two rows off each other's banks
    DEVICE static constexpr int groups(int width) { return (width + GROUP - 1) / GROUP; }
    DEVICE static constexpr int bytes(int width) {
        return BATCH * (stride(width) * 16 + (groups(width) * BYTES + 15) / 16 * 16);
    }

    DEVICE Activations(unsigned char* shared, int width)
        : words(reinterpret_cast<Word4*>(shared)), width(width),
          totals(reinterpret_cast<int*>(shared + BATCH * stride(width) * 16)),
          scales(reinterpret_cast<float*>(totals + BATCH * groups(width))) {}
    DEVICE Word4& share(int row, int chunk, int product) {
        return words[row * stride(width) + product * (width / VALUES) + chunk];
    }
    DEVICE int total(int row, int group) const { return totals[row * groups(width) + group]; }
    DEVICE float scale(int row, int group) const { return scales[row * groups(width) + group]; }

    // Values 4 * four .. + 3 of a row. Every lane of a warp calls it, each with the four after the lane's before, the
    // first with a multiple of 32; lanes beyond the end with zeros.
    DEVICE void set(int row, int four, const Float4& x) {
        const int share_of = four / (SHARE / 4);
        unsigned* to = share(row, share_of / PRODUCTS, share_of % PRODUCTS).x + four % (SHARE / 4) * 2;
        if (BITS == 16) {
#if BITS == 16
            if (4 * four >= width) return;
            for (int i = 0; i < 2; i++) {
                to[2 * i] = operands(x.x[2 * i], x.x[2 * i + 1]);
                to[2 * i + 1] = operands(x.x[2 * i] - low_half(to[2 * i]), x.x[2 * i + 1] - high_half(to[2 * i]));
            }
#endif
            return;
        }
        unsigned most = 0;  // of the magnitudes' bits: what is no number is the largest
        for (int i = 0; i < 4; i++) most = larger(most, as_bits(x.x[i]) & 0x7fffffffu);
#pragma unroll
        for (int mask = 16; mask >= 1; mask /= 2) most = larger(most, as_bits(shuffle_xor(as_float(most), mask)));
        const float top = as_float(most), inverse = top > 0.0f ? 32512.0f / top : 0.0f;
        unsigned high = 0, low = 0;
        int sum = 0;
        for (int i = 0; i < 4; i++) {
            const int number = to_nearest(x.x[i] * inverse), upper = (number + 128) >> 8;
            high |= (upper & 255u) << 8 * i, low |= ((number - 256 * upper) & 255u) << 8 * i;
            sum += number;
        }
        const int total = static_cast<int>(sum_of_warp(static_cast<float>(sum)));  // below 2^24: exact
        if (4 * four >= width) return;
        to[0] = high, to[1] = low;
        if (lane_index() > 0) return;
        totals[row * groups(width) + 4 * four / GROUP] = total;
        scales[row * groups(width) + 4 * four / GROUP] = top * (1.0f / 32512.0f);
    }
};

// A lane's share of some activations. Lanes that have no row of the batch keep its zeros.
struct Operands {
    Word4 a[2][PRODUCTS] = {};
};

// The sum of a unit's products for one row of the weights, that of a lane's upper operands and that of its lower ones.
DEVICE float value_of(int upper, int lower, int zero, int total) {
    return static_cast<float>(256 * upper + lower - zero * total);
}

// sums[r] += rows 2(l%4) + r of a unit, times row l/4 of the batch; the unit's chunks begin at `first` of `in`.
DEVICE void multiply(const Weights& weights, Activations& in, int first, Operands& operands, float (&sums)[2]) {
    Sum d[2][4] = {};  // of each chunk: two chains of products
    const bool has_row = row_lane() < BATCH;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int chunk = first + 4 * i + chunk_lane();
        const bool here = WHOLE_UNITS || chunk < in.width / VALUES;
#pragma unroll
        for (int product = 0; product < PRODUCTS; product++)
            if (has_row) operands.a[i][product] = here ? in.share(row_lane(), chunk, product) : Word4{};
    }
#pragma unroll
    for (int product = 0; product < PRODUCTS; product++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unsigned b[2];
            unpack(weights.chunks[i], product, b);
            if (BITS == 16 && !WHOLE_UNITS && first + 4 * i + chunk_lane() >= in.width / VALUES) b[0] = b[1] = 0;
            multiply_matrices(d[i], operands.a[i][product], b[0], b[1]);
        }
    if (BITS == 16) {
        sums[0] += (d[0][0] + d[0][2]) + (d[1][0] + d[1][2]);
        sums[1] += (d[0][1] + d[0][3]) + (d[1][1] + d[1][3]);
        return;
    }
    if (!has_row) return;
    const int row = row_lane(), group = first * VALUES / GROUP;
    if (BITS == 8) {  // a unit is a group
        const int total = in.total(row, group);
        const float scale = in.scale(row, group);
        sums[0] += scale * value_of(d[0][0] + d[1][0], d[0][2] + d[1][2], 128, total);
        sums[1] += scale * value_of(d[0][1] + d[1][1], d[0][3] + d[1][3], 128, total);
        return;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {  // scale * sum(code * a) + zero * sum(a)
        if (!WHOLE_UNITS && group + i >= in.groups(in.width)) continue;
        const int total = in.total(row, group + i);
        const float scale = in.scale(row, group + i), all = static_cast<float>(total);
        const unsigned scales = weights.scales[i], zeros = weights.zeros[i];
        const float a = value_of(d[i][0], d[i][2], 8, total), b = value_of(d[i][1], d[i][3], 8, total);
        sums[0] += scale * (a * as_float(scales << 16) + all * as_float(zeros << 16));
        sums[1] += scale * (b * as_float(scales & 0xffff0000u) + all * as_float(zeros & 0xffff0000u));
    }
}

// The scale of a whole row, where there is one.
DEVICE float row_scale(const Matrix& matrix, int row) {
    return BITS == 8 ? static_cast<const float*>(matrix.scales)[row] : 1.0f;
}

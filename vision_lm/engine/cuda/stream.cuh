// A warp's stream of weights: 16 bytes a lane from each of two rows, always RING - 1 units in flight.
//
// A unit is 32 chunks of a pair of rows. A Cursor walks the units a warp has to do and says where each one lies;
// asking runs RING - 1 units ahead of taking, across pairs, matrices and waits.

struct Unit {
    const Matrix* matrix;
    int pair;
    int width;  // of a row, in weights
    int step;   // 32 chunks along the row
};

constexpr int RING_BYTES_OF_WARP = RING * (2 * LANES * 16 + (BITS == 4 ? LANES * 8 : 0));
constexpr int RING_BYTES = WARPS * RING_BYTES_OF_WARP;

struct Weights {  // one lane's share of a unit
    Word4 rows[2];
    float scales[2], zeros[2];  // int4's
};

template <class Cursor>
struct Stream {
    unsigned char* ring;
    Cursor ahead;  // the next unit to ask for
    int slot;      // of the next unit to take

    DEVICE Stream(Cursor first) : ahead(first), slot(0) {
        ring = shared_memory() + warp_index() * RING_BYTES_OF_WARP;
        for (int i = 0; i < RING - 1; i++) ask(i);
    }

    DEVICE Word4* words(int at) { return reinterpret_cast<Word4*>(ring) + at * 2 * LANES + lane_index(); }
    DEVICE unsigned* scales(int at) {
        return reinterpret_cast<unsigned*>(ring + RING * 2 * LANES * 16) + (at * LANES + lane_index()) * 2;
    }

    DEVICE void ask(int at) {
        if (!ahead.done()) {
            const Unit unit = ahead.unit();
            const int chunk = unit.step * LANES + lane_index(), count = chunks(unit.width);
            if (chunk < count) {
                const unsigned char* row = unit.matrix->rows + (2ll * unit.pair * count + chunk) * 16;
                copy_async16(words(at), row);
                copy_async16(words(at) + LANES, row + count * 16ll);
                if (BITS == 4 && chunk % GROUP_CHUNKS == 0) {  // one lane fetches for its group, 8 bytes
                    const int groups = (count + GROUP_CHUNKS - 1) / GROUP_CHUNKS;
                    const unsigned* pairs = static_cast<const unsigned*>(unit.matrix->scales);
                    const long long group = static_cast<long long>(unit.pair) * groups + chunk / GROUP_CHUNKS;
                    copy_async8(scales(at), pairs + 2 * group);
                }
            }
            ahead.advance();
        }
        commit_copies();  // an empty group too: waiting counts groups
    }

    // The unit whose turn it is; `here` says whether this lane has a chunk of it.
    DEVICE Weights take(bool here) {
        wait_copies<RING - 2>();
        Weights w;
        w.rows[0] = words(slot)[0];
        w.rows[1] = words(slot)[LANES];
        if (BITS == 4) {
            const int leader = lane_index() / GROUP_CHUNKS * GROUP_CHUNKS;
            const int scale = shuffle(here ? static_cast<int>(scales(slot)[0]) : 0, leader);
            const int zero = shuffle(here ? static_cast<int>(scales(slot)[1]) : 0, leader);
            w.scales[0] = as_float(static_cast<unsigned>(scale) << 16), w.scales[1] = as_float(scale & 0xffff0000u);
            w.zeros[0] = as_float(static_cast<unsigned>(zero) << 16), w.zeros[1] = as_float(zero & 0xffff0000u);
        }
        ask(slot == 0 ? RING - 1 : slot - 1);  // the slot whose words are already in registers
        slot = slot == RING - 1 ? 0 : slot + 1;
        return w;
    }
};

// Weights 4 * quarter .. + 3 of a chunk, as floats. The integers come out exactly: their bits are put under an
// exponent that gives the lowest one the weight 1, and what the exponent added is taken away.
DEVICE void unpack(const Word4& word, int quarter, float (&w)[4]) {
    if (BITS == 16) {
        w[0] = low_half(word.x[2 * quarter % 4]), w[1] = high_half(word.x[2 * quarter % 4]);
        w[2] = low_half(word.x[(2 * quarter + 1) % 4]), w[3] = high_half(word.x[(2 * quarter + 1) % 4]);
    } else if (BITS == 8) {
        for (int i = 0; i < 4; i++)
            w[i] = as_float(permute_bytes(word.x[quarter % 4], 0x4b000000u, 0x7540u + i)) - (8388608.0f + 128.0f);
    } else {
        for (int i = 0; i < 4; i++) {
            const int nibble = 4 * (quarter % 2) + i, position = nibble < 5 ? 4 * nibble : 4 * nibble - 12;
            const unsigned bits = nibble < 5 ? word.x[quarter / 2] : word.x[quarter / 2] >> 12;
            const unsigned one = (127u + 23u - position) << 23;  // the float whose last bit at `position` is 1
            w[i] = as_float((bits & (15u << position)) | one) - (as_float(one) + 8.0f);
        }
    }
}

// Activations of BATCH rows in shared memory: float4 `quarter` of chunk `c` of row `b` lies at plane
// b * VALUES/4 + quarter, place c, so that the lanes' 16-byte reads touch every bank once.
struct Activations {
    Float4* planes;
    int chunks;  // of a row
    DEVICE Float4& quad(int row, int four) {  // weights 4 * four .. + 3 of the row
        constexpr int QUARTERS = VALUES / 4;
        return planes[(row * QUARTERS + four % QUARTERS) * chunks + four / QUARTERS];
    }
};

// sums[2 * row + r] += chunk of weight row r times the activations of batch row `row`. A chunk of int4 lies under
// one scale and one zero: scale * sum(code * a) + zero * sum(a).
DEVICE void multiply(const Weights& weights, const Activations& in, int chunk, float (&sums)[2 * BATCH]) {
    float partial[2 * BATCH], totals[BATCH] = {};
#pragma unroll
    for (int i = 0; i < 2 * BATCH; i++) partial[i] = BITS == 4 ? 0.0f : sums[i];
#pragma unroll
    for (int quarter = 0; quarter < VALUES / 4; quarter++) {
        float w[2][4];
        unpack(weights.rows[0], quarter, w[0]);
        unpack(weights.rows[1], quarter, w[1]);
#pragma unroll
        for (int row = 0; row < BATCH; row++) {
            const Float4 a = in.planes[(row * (VALUES / 4) + quarter) * in.chunks + chunk];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                partial[2 * row] += w[0][i] * a.x[i];
                partial[2 * row + 1] += w[1][i] * a.x[i];
                if (BITS == 4) totals[row] += a.x[i];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2 * BATCH; i++)
        sums[i] = BITS == 4 ? sums[i] + partial[i] * weights.scales[i % 2] + totals[i / 2] * weights.zeros[i % 2]
                            : partial[i];
}

// The scale of a whole row, where there is one.
DEVICE float row_scale(const Matrix& matrix, int row) {
    return BITS == 8 ? static_cast<const float*>(matrix.scales)[row] : 1.0f;
}

// Sums over the warp's lanes: lane l gets value l / OWNERS. Each exchange halves what a lane still carries, so 16
// values cost 16 shuffles instead of 80; the tree of additions is the same for every BATCH.
constexpr int OWNERS = LANES / (2 * BATCH);  // lanes that end with the same value; the first one owns it

template <int COUNT, int MASK>  // lanes apart by MASK share out 2 * COUNT values. A template, for fixed indices
DEVICE void halve(float (&sums)[2 * BATCH]) {
    const bool upper = lane_index() & MASK;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const float kept = upper ? sums[COUNT + i] : sums[i], given = upper ? sums[i] : sums[COUNT + i];
        sums[i] = kept + shuffle_xor(given, MASK);
    }
    if constexpr (COUNT > 1) halve<COUNT / 2, MASK / 2>(sums);
}
DEVICE float reduce(float (&sums)[2 * BATCH]) {
    halve<BATCH, LANES / 2>(sums);
    float sum = sums[0];
#pragma unroll
    for (int mask = OWNERS / 2; mask >= 1; mask /= 2) sum += shuffle_xor(sum, mask);
    return sum;
}

DEVICE float sum_of_warp(float value) {
#pragma unroll
    for (int mask = 16; mask >= 1; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

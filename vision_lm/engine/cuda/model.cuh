// The shapes of one model, and what the kernels are given. Every upper-case shape is a define of compile.py.

constexpr int PAGE = 16;    // tokens of a cache page
constexpr int LANES = 32;
constexpr int SPLIT = CHUNKS * LANES;  // tokens of one attention item
constexpr int STREAMERS = WARPS * LANES;                       // threads that stream weights
constexpr int THREADS = (WARPS + ATTENTION_WARPS) * LANES;     // of K2, and of the persistent kernel
constexpr int QUERIES = HEADS * HEAD_DIM;                      // width of all heads' queries
constexpr int KEYS = KV_HEADS * HEAD_DIM;
constexpr int INTO_ROWS = QUERIES + 2 * KEYS + FFN;            // q, k, v, fc1
constexpr int VALUES = 128 / BITS;                             // weights in 16 bytes, a chunk
constexpr int SHARE = BITS == 16 ? 4 : 8;                      // weights of a lane in one product of matrices
constexpr int PRODUCTS = VALUES / SHARE;                       // that a chunk takes
constexpr int TILE = 8;                                        // rows of a matrix that are multiplied together
constexpr int UNIT_CHUNKS = 8;                                 // of each row in a unit: 128 bytes
constexpr int SEGMENT = 256;                                   // weights of a row that are summed before the sum is kept
constexpr int SEGMENT_UNITS = SEGMENT / (UNIT_CHUNKS * VALUES);
constexpr int GROUP = 128;                                     // weights of a row under one scale of int4, and activations of integers
constexpr float LOG2E = 1.44269504088896f;

static_assert(BITS == 16 || BITS == 8 || BITS == 4, "weights have 16, 8 or 4 bits");
static_assert(BATCH == 1 || BATCH == 2 || BATCH == 4 || BATCH == 8, "a step has 1, 2, 4 or 8 rows");
static_assert(HIDDEN % VALUES == 0 && FFN % VALUES == 0 && QUERIES % VALUES == 0, "rows are whole chunks");
// No row ends within a unit, so that nothing needs to be masked.
constexpr bool WHOLE_UNITS = HIDDEN % (UNIT_CHUNKS * VALUES) == 0 && FFN % (UNIT_CHUNKS * VALUES) == 0 &&
                             QUERIES % (UNIT_CHUNKS * VALUES) == 0;
constexpr bool WHOLE_SEGMENTS = HIDDEN % SEGMENT == 0 && FFN % SEGMENT == 0 && QUERIES % SEGMENT == 0;
static_assert(INTO_ROWS % TILE == 0 && HIDDEN % TILE == 0, "rows are whole tiles");
static_assert(HEAD_DIM % 8 == 0 && HEAD_DIM <= 128 && ROTARY % 2 == 0 && ROTARY <= HEAD_DIM, "head layout");

DEVICE constexpr int chunks(int width) { return width / VALUES; }
DEVICE constexpr int units(int width) { return (chunks(width) + UNIT_CHUNKS - 1) / UNIT_CHUNKS; }
DEVICE constexpr int segments(int width) { return (units(width) + SEGMENT_UNITS - 1) / SEGMENT_UNITS; }
DEVICE constexpr int tiles(int rows) { return (rows + TILE - 1) / TILE; }

struct Matrix {
    const unsigned char* rows;  // (N, K) packed, N in whole tiles
    const void* scales;         // int8: float (N); int4: bfloat16 (N/2, K/128, 4), two rows' scales, then zeros; else null
    const float* bias;          // (N)
};
struct Layer {
    const float* gamma;  // (HIDDEN) of the LayerNorm
    const float* beta;
    Matrix into;   // (INTO_ROWS, HIDDEN); q's and k's rows are in rotary pairs
    Matrix dense;  // (HIDDEN, QUERIES); its bias is dense's and fc2's together
    Matrix fc2;    // (HIDDEN, FFN)
    Element* keys;    // (KV_HEADS, slots, HEAD_DIM)
    Element* values;  // (KV_HEADS, slots, HEAD_DIM)
};
// One decoding step.
struct Step {
    long long count;       // rows: BATCH, or for attend_kernel any number
    const long long* ids;  // (count)
    const int* lengths;    // (count) tokens in the cache; below 0 the row is empty
    const int* table;      // (count, pages)
    long long pages;
    long long slots;       // of the cache
    const float* cosines;  // (positions, ROTARY/2)
    const float* sines;
    float* hidden;       // (count, HIDDEN) the residual
    float* queries;      // (count, QUERIES) rotated, scaled by log2(e)/sqrt(HEAD_DIM)
    float* activated;    // (count, FFN) gelu of fc1
    float* attended;     // (count, QUERIES)
    float* parts;        // (count, HEADS, splits, HEAD_DIM + 4) attention of SPLIT tokens each, its maximum, its sum
    unsigned* counters;  // zero before the first step
};
struct Head {
    const float* gamma;
    const float* beta;
    Matrix head;               // (VOCAB rounded up to whole tiles, HIDDEN)
    const Element* embedding;  // (VOCAB, HIDDEN)
    float* logits;             // (BATCH, VOCAB), or null
    float* best;               // (blocks, BATCH, 4): maximum, sum of exponentials, its id, the next maximum
    long long* next;           // (BATCH) the likeliest token
    float* logprobs;           // (BATCH) of that token
    float* rivals;             // (BATCH) of the likeliest other one
};

enum Counter { TICKET, HEADS_DONE, BLOCKS_DONE, BARRIER, ARRIVED = 8 };  // ARRIVED + row * HEADS + head

DEVICE int lane_index() { return thread_index() % LANES; }
DEVICE int warp_index() { return thread_index() / LANES; }
DEVICE bool streams() { return warp_index() < WARPS; }
DEVICE void sync_streamers() { sync_threads<1, STREAMERS>(); }
DEVICE void sync_block() { sync_threads<0, THREADS>(); }
DEVICE float sum_of_warp(float value) {
#pragma unroll
    for (int mask = 16; mask >= 1; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}
DEVICE int splits_of(int length) { return length < 0 ? 0 : length / SPLIT + 1; }  // of length + 1 tokens
// Where a head's key or value of one token starts in the cache.
DEVICE long long place_of(const Step& step, int row, int position, int kv_head) {
    const int page = step.table[row * step.pages + position / PAGE];
    return (kv_head * step.slots + static_cast<long long>(page) * PAGE + position % PAGE) * HEAD_DIM;
}

template <class T>
DEVICE constexpr T smaller(T a, T b) { return a < b ? a : b; }
template <class T>
DEVICE constexpr T larger(T a, T b) { return a > b ? a : b; }

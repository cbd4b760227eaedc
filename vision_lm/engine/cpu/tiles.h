// bfloat16 weights times float32 activations by AMX's products of tiles (Intel's ISE reference, chapter 3). For many rows int8
// and int4 weights, too, unpacked a block at a time.
//
// A tile of the weight is 32 inputs of sixteen outputs, one KiB as it lies in its panel; one of activations is up to sixteen
// rows. An activation is multiplied as the sum of two bfloat16 numbers, its high and its low part: within a
// 2**17th of it, 256 times closer than one. Each sum is float32 and taken in one order, so that no row of activations depends
// on those beside it.
#pragma once

#include <algorithm>
#include <vector>

#include "unpack.h"

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__) && defined(__linux__)
#define VLM_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vlm {

constexpr int TILED_PANELS = 2;  // at a time
constexpr int TILE = 16;         // rows of activations in a tile

constexpr int64_t TILED_BLOCK = 1 << 20;  // bytes of the weight that stay in the core's second cache while the rows go by

// How many outputs these bytes are.
inline int64_t tiled_block(int64_t inputs) {
    constexpr int64_t WIDTH = TILED_PANELS * LANES;
    return std::max<int64_t>(TILED_BLOCK / (inputs * WIDTH * sizeof(Bfloat16)), 1) * WIDTH;
}

#if defined(VLM_TILES)

// Linux gives a process the tiles' registers where it asks for them.
inline bool has_tiles() {
    static const bool granted = [] {
        constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    }();
    return granted;
}

inline bool wants_halves(const Matrix& matrix) { return (matrix.kind == BFLOAT16 && matrix.panels) || matrix.unpacked; }

typedef uint32_t Words __attribute__((vector_size(64)));

// Sixteen of them as bfloat16, which go to `to`, and what these are; the nearest, of two that are as near the even one.
inline Floats to_bfloat16(Floats value, Bfloat16* to) {
    typedef uint16_t Bits __attribute__((vector_size(32)));
    const Words bits = (Words)value, nearest = value != value ? bits : bits + 0x7fff + (bits >> 16 & 1);
    const Bits high = __builtin_convertvector(nearest >> 16, Bits);
    std::memcpy(to, &high, sizeof high);
    return (Floats)(nearest & 0xffff0000);
}

// Activations (M, K) as two bfloat16 numbers each, in tiles: sixteen rows whose distance is a power of two would have but a
// few places in a cache.
struct Halves {
    Bfloat16s high, low;  // (M / 16, K / 32, 16, 32)
    std::vector<uint8_t> exact;       // (M,): the low ones are all 0

    void reserve(int64_t rows, int64_t inputs) {
        const size_t whole = (rows + TILE - 1) / TILE * TILE * inputs;
        for (auto* part : {&high, &low}) part->resize(std::max(part->size(), whole));
        exact.resize(std::max<size_t>(exact.size(), rows));
    }

    // Some rows of x (M, K); there must be room for them.
    void take(const float* x, int64_t first, int64_t count, int64_t inputs) {
        for (int64_t m = first; m < first + count; ++m) take_row(x + m * inputs, m, inputs);
    }

    // Of the tile with row m, a multiple of 16, and input k.
    static int64_t place(int64_t m, int64_t k, int64_t inputs) { return m * inputs + k / STEP * STEP * TILE; }

    bool all_exact(int64_t first, int64_t count) const {
        return std::all_of(exact.begin() + first, exact.begin() + first + count, [](uint8_t row) { return row; });
    }

  private:
    void take_row(const float* x, int64_t m, int64_t inputs) {
        Words left = {};
        for (int64_t k = 0; k < inputs; k += LANES) {
            const int64_t at = place(m / TILE * TILE, k, inputs) + m % TILE * STEP + k % STEP;
            const Floats value = load(x + k);
            const Floats rest = value - to_bfloat16(value, high.data() + at);  // of what is no number, none
            to_bfloat16(rest, low.data() + at);
            left |= (Words)rest;
        }
        uint32_t any = 0;
        for (int lane = 0; lane < LANES; ++lane) any |= left[lane];
        exact[m] = !any;
    }
};

constexpr int64_t TILES_AHEAD = 8;        // of a panel that are fetched before they are wanted
constexpr int64_t TILE_BYTES = STEP * LANES * sizeof(Bfloat16);

template <int T>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}

template <int T>
inline void tile_load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}

template <int T>
inline void tile_store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}

template <int TOTAL, int A, int B>
inline void tile_dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(TOTAL), "i"(A), "i"(B));
}

// The registers: four sums, of two panels and two tiles of activations; the weight's tiles; and those of activations.
constexpr int TILED_ROWS = 2, WEIGHTS = 4, ACTIVATIONS = 6;

// The tiles' shapes, while it lives: of so many rows of activations in either tile.
class TileShapes {
  public:
    TileShapes() = default;
    ~TileShapes() { asm volatile("tilerelease"); }
    TileShapes(const TileShapes&) = delete;

    void of(const int (&rows)[TILED_ROWS]) {
        if (set_[0] == rows[0] && set_[1] == rows[1]) return;
        struct alignas(64) {
            uint8_t palette = 1, start = 0, nothing[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {};
        } shapes;
        for (int c = 0; c < TILED_ROWS; ++c) {
            set_[c] = rows[c];
            for (int v = 0; v < TILED_PANELS; ++v) shapes.rows[TILED_PANELS * c + v] = rows[c];
            shapes.rows[ACTIVATIONS + c] = rows[c];
        }
        shapes.rows[WEIGHTS] = shapes.rows[WEIGHTS + 1] = TILE;
        asm volatile("ldtilecfg %0" ::"m"(shapes));
    }

  private:
    int set_[TILED_ROWS] = {};
};

typedef float TileSums[TILED_ROWS][TILED_PANELS][TILE][LANES];

// V panels times C tiles of rows, from row m on. `exact`: by the high parts alone.
template <int C, int V>
inline void tile_products(const char* panels, const Halves& x, int64_t m, bool exact, int64_t inputs, TileSums& sums) {
    const int64_t panel = inputs / STEP * TILE_BYTES;
    const auto activations = [&](const Bfloat16s& part, int64_t k) {
        tile_load<ACTIVATIONS>(part.data() + Halves::place(m, k, inputs), 64);
        tile_dot<0, ACTIVATIONS, WEIGHTS>();
        if constexpr (V > 1) tile_dot<1, ACTIVATIONS, WEIGHTS + 1>();
        if constexpr (C > 1) {
            tile_load<ACTIVATIONS + 1>(part.data() + Halves::place(m + TILE, k, inputs), 64);
            tile_dot<2, ACTIVATIONS + 1, WEIGHTS>();
            if constexpr (V > 1) tile_dot<3, ACTIVATIONS + 1, WEIGHTS + 1>();
        }
    };
    tile_zero<0>(), tile_zero<1>();
    if constexpr (C > 1) tile_zero<2>(), tile_zero<3>();
    for (int64_t k = 0; k < inputs; k += STEP, panels += TILE_BYTES) {
        // Beyond a panel's end lies the next one: what is wanted after these lies V - 1 panels further.
        const int64_t ahead = TILES_AHEAD * TILE_BYTES + (k + TILES_AHEAD * STEP < inputs ? 0 : (V - 1) * panel);
#pragma GCC unroll 2
        for (int v = 0; v < V && !m; ++v)  // later rows find them in the cache
#pragma GCC unroll 16
            for (int line = 0; line < TILE_BYTES; line += 64) soon(panels + v * panel + ahead + line);
        tile_load<WEIGHTS>(panels, 64);
        if constexpr (V > 1) tile_load<WEIGHTS + 1>(panels + panel, 64);
        activations(x.high, k);
        if (!exact) activations(x.low, k);
    }
    tile_store<0>(sums[0][0], 64);
    if constexpr (V > 1) tile_store<1>(sums[0][1], 64);
    if constexpr (C > 1) tile_store<2>(sums[1][0], 64);
    if constexpr (C > 1 && V > 1) tile_store<3>(sums[1][1], 64);
}

// Outputs begin to end, begin a multiple of sixteen, of the weight times `rows` rows, bias added. `room`: for a block of
// weights that are to be unpacked.
inline void tiled_products(const Matrix& matrix, const Halves& x, int64_t rows, int64_t begin, int64_t end, Bfloat16* room,
                           const Target& target) {
    alignas(64) TileSums sums;
    TileShapes shapes;
    constexpr int64_t WIDTH = TILED_PANELS * LANES;
    const int64_t block = tiled_block(matrix.inputs);
    Unpacked weight(matrix, room);
    const auto tile = [&]<int C, int V>(int64_t m, int64_t n, std::integral_constant<int, C>, std::integral_constant<int, V>) {
        tile_products<C, V>(weight.panel(n), x, m, x.all_exact(m, std::min<int64_t>(C * TILE, rows - m)), matrix.inputs, sums);
        for (int v = 0; v < V; ++v) {
            const int64_t at = n + v * LANES;
            const Floats bias = load(matrix.bias + at), scale = weight.scale(at);
            for (int64_t i = 0; i < C * TILE && m + i < rows; ++i)
                target.put(m + i, at, load(sums[i / TILE][v][i % TILE]) * scale + bias, end - at);
        }
    };
    constexpr std::integral_constant<int, 1> one;
    constexpr std::integral_constant<int, 2> two;
    const auto at = [&](int64_t m, int64_t n) {
        const int first = (int)std::min<int64_t>(rows - m, TILE), second = (int)std::clamp<int64_t>(rows - m - TILE, 0, TILE);
        shapes.of({first, std::max(second, 1)});
        const bool narrow = end - n <= LANES;
        if (second && narrow)
            tile(m, n, two, one);
        else if (second)
            tile(m, n, two, two);
        else if (narrow)
            tile(m, n, one, one);
        else
            tile(m, n, one, two);
    };
    for (int64_t some = begin; some < end; some += block) {
        weight.take(some, std::min(some + block, end));
        for (int64_t m = 0; m < rows; m += TILED_ROWS * TILE)
            for (int64_t n = some; n < std::min(some + block, end); n += WIDTH) at(m, n);
    }
}

#else

inline bool has_tiles() { return false; }
inline bool wants_halves(const Matrix&) { return false; }

struct Halves {  // never wanted
    void reserve(int64_t, int64_t) {}
    void take(const float*, int64_t, int64_t, int64_t) {}
};

#endif

}  // namespace vlm

// The memory layer on a CPU: the names of vision_lm/engine/cuda/memory.cuh over the fibers of machine.cpp.
// Test-only.

#include "machine.h"

#define DEVICE inline
#define KERNEL(threads) static void
#define PARAMETER(type) const type

struct alignas(16) Word4 {
    unsigned x[4];
};
struct alignas(16) Float4 {
    float x[4];
};

inline int thread_index() { return current_thread->index; }
inline int block_index() { return current_thread->block_index; }
inline int grid_blocks() { return current_thread->blocks; }
inline unsigned char* shared_memory() { return current_thread->shared; }

template <int name, int threads>
void sync_threads() {
    machine_barrier(name, threads);
}
inline void sync_warp() { machine_sync_warp(); }
template <class T>
T exchange(T value, int from) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    bits = machine_exchange(bits, from);
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
inline float shuffle_xor(float value, int mask) { return exchange(value, (thread_index() % 32) ^ mask); }
inline float shuffle(float value, int lane) { return exchange(value, lane); }
inline int shuffle(int value, int lane) { return exchange(value, lane); }

inline void copy_async16(void* shared, const void* global) { machine_copy(shared, global, 16); }
inline void copy_async8(void* shared, const void* global) { machine_copy(shared, global, 8); }
inline void commit_copies() { machine_commit(); }
template <int pending>
void wait_copies() {
    machine_wait(pending);
}

inline Float4 load_fresh4(const float* global) {
    Float4 value;
    machine_load(&value, global, 16);
    return value;
}
inline float load_fresh(const float* global) {
    float value;
    machine_load(&value, global, 4);
    return value;
}
template <class T>
void store(T* global, T value) {
    machine_store(global, &value, sizeof(T));
}
inline unsigned load_acquire(const unsigned* global) { return machine_atomic_load(global); }
inline void add_release(unsigned* global, unsigned value) {
    machine_release();
    machine_atomic_add(global, value);
}
inline unsigned add_acquire_release(unsigned* global, unsigned value) {
    machine_release();
    return machine_atomic_add(global, value);
}
inline unsigned add_relaxed(unsigned* global, unsigned value) { return machine_atomic_add(global, value); }
inline void relax() { machine_spin(); }

inline void wait_for_predecessor() { machine_wait_for_predecessor(); }
inline void let_successor_start() { machine_let_successor_start(); }

inline float as_float(unsigned bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
inline unsigned as_bits(float value) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}
template <class T>
void add_shared(T* shared, T value) {
    *shared += value;
}
inline float exp2_fast(float x) { return __builtin_exp2f(x); }
inline float log2_fast(float x) { return __builtin_log2f(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }
inline float inverse_sqrt(float x) { return 1.0f / __builtin_sqrtf(x); }

struct Brain {  // bfloat16
    static float to_float(unsigned short bits) { return as_float(static_cast<unsigned>(bits) << 16); }
    static unsigned short from(float x) {
        const unsigned bits = as_bits(x);
        if (x != x) return 0x7fff;
        return static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
    }
};
struct Half {  // float16
    static float to_float(unsigned short bits) {
        _Float16 half;
        __builtin_memcpy(&half, &bits, 2);
        return static_cast<float>(half);
    }
    static unsigned short from(float x) {
        const _Float16 half = static_cast<_Float16>(x);
        unsigned short bits;
        __builtin_memcpy(&bits, &half, 2);
        return bits;
    }
};
struct Element {
    unsigned short bits;
};
#if defined(ELEMENT_BFLOAT16)
using Stored = Brain;
#else
using Stored = Half;
#endif
inline float low_half(unsigned word) { return Stored::to_float(static_cast<unsigned short>(word)); }
inline float high_half(unsigned word) { return Stored::to_float(static_cast<unsigned short>(word >> 16)); }
inline Element to_element(float x) { return {Stored::from(x)}; }
inline float to_float(Element e) { return low_half(e.bits); }

// ---- Products of matrices, in the lane layout of vision_lm/engine/cuda/memory.cuh ----

#if BITS == 16
inline unsigned operands(float low, float high) { return to_element(low).bits | static_cast<unsigned>(to_element(high).bits) << 16; }
typedef float Sum;
constexpr int OPERANDS_OF_WORD = 2;
inline double left_operand(unsigned word, int which) { return which ? high_half(word) : low_half(word); }
inline double right_operand(unsigned word, int which) { return left_operand(word, which); }
#else
typedef int Sum;
constexpr int OPERANDS_OF_WORD = 4;
inline double left_operand(unsigned word, int which) { return static_cast<signed char>(word >> 8 * which); }
inline double right_operand(unsigned word, int which) { return static_cast<unsigned char>(word >> 8 * which); }
#endif
inline void multiply_matrices(Sum (&d)[4], const Word4& a, unsigned b0, unsigned b1) {
    const unsigned mine[6] = {a.x[0], a.x[1], a.x[2], a.x[3], b0, b1};
    const unsigned(*all)[6] = machine_exchange_six(mine);  // of every lane
    const int lane = thread_index() % 32, row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; i++) {
        double sum = d[i];
        for (int holder = 0; holder < 4; holder++)
            for (int late = 0; late < 2; late++) {  // a: {row, row + 8} at the first half of a share, then at the second
                const unsigned x = all[row * 4 + holder][late * 2 + i / 2];
                const unsigned y = all[(column + i % 2) * 4 + holder][4 + late];
                for (int k = 0; k < OPERANDS_OF_WORD; k++) sum += left_operand(x, k) * right_operand(y, k);
            }
        d[i] = static_cast<Sum>(sum);
    }
}
inline int to_nearest(float x) { return x == x ? static_cast<int>(__builtin_rintf(x)) : 0; }

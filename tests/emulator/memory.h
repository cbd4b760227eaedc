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
inline unsigned permute_bytes(unsigned low, unsigned high, unsigned selector) {
    const unsigned long long bytes = (static_cast<unsigned long long>(high) << 32) | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++)
        result |= static_cast<unsigned>((bytes >> (8 * ((selector >> (4 * i)) & 7))) & 255) << (8 * i);
    return result;
}
inline float exp2_fast(float x) { return __builtin_exp2f(x); }
inline float log2_fast(float x) { return __builtin_log2f(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }
inline float inverse_sqrt(float x) { return 1.0f / __builtin_sqrtf(x); }

struct Element {
    unsigned short bits;
};
#if defined(ELEMENT_BFLOAT16)
inline float low_half(unsigned word) { return as_float(word << 16); }
inline float high_half(unsigned word) { return as_float(word & 0xffff0000u); }
inline Element to_element(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, 4);
    if (x != x) return {0x7fff};
    return {static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};  // to nearest, ties to even
}
#else
inline float half_to_float(unsigned short bits) {
    _Float16 half;
    __builtin_memcpy(&half, &bits, 2);
    return static_cast<float>(half);
}
inline float low_half(unsigned word) { return half_to_float(static_cast<unsigned short>(word)); }
inline float high_half(unsigned word) { return half_to_float(static_cast<unsigned short>(word >> 16)); }
inline Element to_element(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    Element e;
    __builtin_memcpy(&e.bits, &half, 2);
    return e;
}
#endif
inline float to_float(Element e) { return low_half(e.bits); }

// The memory layer: everything that plain C++ cannot say. All inline PTX of the kernels is in this file, and
// tests/emulator/memory.h gives the same names on a CPU, so that the kernels' sources are proven without a GPU.
//
// No CUDA header is included: NVRTC needs nothing but this text.

#define DEVICE __device__ __forceinline__
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define PARAMETER(type) const __grid_constant__ type  // its address may be taken without a copy in local memory

struct alignas(16) Word4 {
    unsigned x[4];
};
struct alignas(16) Float4 {
    float x[4];
};

// ---- Where a thread stands ----

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_index() { return blockIdx.x; }
DEVICE int grid_blocks() { return gridDim.x; }

DEVICE unsigned char* shared_memory() {
    extern __shared__ Word4 words[];  // its type gives the alignment
    return reinterpret_cast<unsigned char*>(words);
}

// ---- Threads of one block ----

// A barrier for so many threads of the block; by another name it leaves the others alone.
template <int name, int threads>
DEVICE void sync_threads() {
    asm volatile("bar.sync %0, %1;" ::"n"(name), "n"(threads) : "memory");
}
DEVICE void sync_warp() { __syncwarp(); }
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE int shuffle(int value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// ---- Asynchronous copies ----
// ptxas sinks a plain load below griddepcontrol.wait; it cannot sink these. Each thread reads back only what it
// copied itself, so its own wait is enough.

DEVICE unsigned shared_address(const void* shared) { return static_cast<unsigned>(__cvta_generic_to_shared(shared)); }
DEVICE void copy_async16(void* shared, const void* global) {  // past L1: weights are read once
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
DEVICE void copy_async8(void* shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but this thread's latest `pending` groups have arrived.
template <int pending>
DEVICE void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- Memory that other blocks write while this one runs ----

DEVICE Float4 load_fresh4(const float* global) {
    Float4 v;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x[0]), "=f"(v.x[1]), "=f"(v.x[2]), "=f"(v.x[3])
                 : "l"(global)
                 : "memory");
    return v;
}
DEVICE float load_fresh(const float* global) {
    float v;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(global) : "memory");
    return v;
}
template <class T>
DEVICE void store(T* global, T value) {
    *global = value;
}
DEVICE unsigned load_acquire(const unsigned* global) {
    unsigned v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(global) : "memory");
    return v;
}
// Whatever this thread wrote, and what the threads it synchronised with wrote, is visible to who acquires the sum.
DEVICE void add_release(unsigned* global, unsigned value) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(global), "r"(value) : "memory");
}
DEVICE unsigned add_acquire_release(unsigned* global, unsigned value) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(global), "r"(value) : "memory");
    return before;
}
DEVICE void add_shared(unsigned* shared, unsigned value) {
    asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(shared_address(shared)), "r"(value) : "memory");
}
DEVICE void add_shared(unsigned long long* shared, unsigned long long value) {
    asm volatile("red.shared.add.u64 [%0], %1;" ::"r"(shared_address(shared)), "l"(value) : "memory");
}
DEVICE unsigned add_relaxed(unsigned* global, unsigned value) {
    unsigned before;
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(global), "r"(value) : "memory");
    return before;
}
DEVICE void relax() { __nanosleep(32); }

// ---- Programmatic dependent launch: nothing before sm_90, where kernels simply follow each other ----

// Returns when the kernel before has ended and its writes are visible. Every thread that reads them must call it.
DEVICE void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the kernel after start its own prologue. It is no fence: that kernel still has to wait.
DEVICE void let_successor_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- Numbers ----

DEVICE float as_float(unsigned bits) { return __uint_as_float(bits); }
DEVICE unsigned as_bits(float x) { return __float_as_uint(x); }
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float inverse_sqrt(float x) { return rsqrtf(x); }

// ---- Products of matrices ----
// A warp's d (16, 8) += a (16, K) times b (K, 8). Lane l holds of d the rows l/4 and l/4 + 8 in columns 2(l%4) and the
// next; of a those two rows, and of b column l/4, at its SHARE of K: a is {row, row + 8} at the first half of the
// share, then at the second, and b the two halves.

#if BITS == 16
#if defined(ELEMENT_BFLOAT16)
#define OPERAND "bf16"
#else
#define OPERAND "f16"
#endif
DEVICE unsigned operands(float low, float high) {  // two in a word
    unsigned word;
    asm("cvt.rn." OPERAND "x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
typedef float Sum;
DEVICE void multiply_matrices(Sum (&d)[4], const Word4& a, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." OPERAND "." OPERAND ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}
#else
typedef int Sum;
DEVICE void multiply_matrices(Sum (&d)[4], const Word4& a, unsigned b0, unsigned b1) {  // signed bytes by unsigned ones
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}
#endif
DEVICE int to_nearest(float x) {
    int y;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}

struct Element {  // bfloat16 or float16
    unsigned short bits;
};
#if defined(ELEMENT_BFLOAT16)
DEVICE float low_half(unsigned word) { return as_float(word << 16); }
DEVICE float high_half(unsigned word) { return as_float(word & 0xffff0000u); }
DEVICE Element to_element(float x) {
    Element e;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(e.bits) : "f"(x));
    return e;
}
#elif defined(ELEMENT_FLOAT16)
DEVICE float half_to_float(unsigned short bits) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
    return y;
}
DEVICE float low_half(unsigned word) { return half_to_float(static_cast<unsigned short>(word)); }
DEVICE float high_half(unsigned word) { return half_to_float(static_cast<unsigned short>(word >> 16)); }
DEVICE Element to_element(float x) {
    Element e;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(e.bits) : "f"(x));
    return e;
}
#endif
DEVICE float to_float(Element e) { return low_half(e.bits); }

// The kernels of a build by name, and its constants: what comes after the kernels' text.

static bool same(const char* a, const char* b) { return __builtin_strcmp(a, b) == 0; }

Kernel kernel_named(const char* name) {
#define TAKES(kernel, A, B)                                                                         \
    if (same(name, #kernel))                                                                        \
        return [](const void* first, const void* second) {                                          \
            kernel(*static_cast<const A*>(first), *static_cast<const B*>(second));                  \
        };
    KERNELS
#undef TAKES
    return nullptr;
}

extern "C" long long constant(const char* name) {
#define IS(value) \
    if (same(name, #value)) return value;
    CONSTANTS
#undef IS
    return -1;
}

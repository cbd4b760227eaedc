// A small adversarial GPU: every CUDA thread is a fiber, and the order of everything that a GPU leaves open is
// drawn at random by a seed.
//
// - A block drawn at random runs alone until it spins, waits for its predecessor, or ends; and, by chance, until it
//   lets its successor start or adds to a counter. Inside it a warp drawn at random runs until it cannot.
// - Shared memory starts as NaN. An asynchronous copy happens at once or when it is waited for, by chance.
// - A store reaches other blocks at once or when it is released, by chance: a release publishes the thread's own
//   stores and those of the threads it synchronised with, as the PTX memory model has it.
// - Every access must lie in a registered buffer. Bytes that copies read from it are counted.
// - Kernels of a chain overlap as programmatic dependent launch lets them.

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "machine.h"

struct Store {
    unsigned char* address;
    unsigned char bytes[16];
    int size;
};
struct Copy {
    void* shared;
    const void* global;
    int size;
};
struct Buffer {
    unsigned char* start;
    long long size;
    bool constant;           // no kernel writes it
    unsigned short* reads;   // of each 4 bytes, by asynchronous copies; or null
};

struct Block;
struct Warp {
    unsigned values[2][32];
    unsigned sixes[2][32][6];
    int arrived = 0, turn = 0;       // of the exchange
    int synced = 0, sync_turn = 0;   // of sync_warp
    std::vector<Store> stores;       // synchronised within the warp, seen by no other block yet
};
enum class State { ready, blocked, spinning, ended };
struct Fiber : Thread {
    Block* block;
    State state = State::ready;
    std::function<bool()> wakes;  // when blocked
    bool started = false;
    jmp_buf at;
    unsigned char* stack = nullptr;
    std::vector<Store> stores;
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> open;
};
struct Grid {
    Kernel kernel;
    const void *first, *second;
    int blocks, threads, shared, ended = 0, started = 0;
};
struct Named {
    int arrived = 0, turn = 0;
};
struct Block {
    Grid* grid;
    int index;
    bool lets_successor = false;
    int ended = 0;
    std::vector<unsigned char> shared_bytes;
    unsigned char* shared;  // in it, aligned
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<Store> stores;  // synchronised within the block
    Named barriers[16];
};

struct Machine;
static Machine* machine = nullptr;

struct Machine {
    static constexpr int STACK = 64 * 1024, PATIENCE = 20000;
    std::mt19937 random;
    std::vector<Buffer> buffers;
    std::vector<Grid> grids;
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<unsigned char*> stacks;
    Fiber* current = nullptr;
    jmp_buf scheduler;
    ucontext_t home;
    std::string failure;
    int idle = 0;  // spins since anything changed

    explicit Machine(unsigned seed) : random(seed) {}
    ~Machine() {
        for (unsigned char* stack : stacks) munmap(stack, STACK);
    }
    bool chance() { return random() & 1; }

    // ---- Fibers ----

    static void enter() {
        Machine& m = *machine;
        const Grid& grid = *m.current->block->grid;
        grid.kernel(grid.first, grid.second);
        m.current->state = State::ended;
        m.leave();
    }
    void leave() {  // back to the scheduler, for good or until resumed
        if (current->state == State::ended || _setjmp(current->at) == 0) _longjmp(scheduler, 1);
    }
    void resume(Fiber& fiber) {
        current = &fiber;
        current_thread = &fiber;
        fiber.state = State::ready;
        if (_setjmp(scheduler) != 0) return;
        if (fiber.started) _longjmp(fiber.at, 1);
        fiber.started = true;
        if (stacks.empty()) {
            fiber.stack = static_cast<unsigned char*>(
                mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        } else {
            fiber.stack = stacks.back();
            stacks.pop_back();
        }
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = fiber.stack;
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, enter, 0);
        swapcontext(&home, &context);
    }
    void block_until(std::function<bool()> wakes) {
        current->wakes = std::move(wakes);
        current->state = State::blocked;
        leave();
    }
    void fail(const std::string& why) {
        if (failure.empty()) failure = why;
        current->state = State::ended;
        leave();
    }

    // ---- What the memory layer calls ----

    void give_way() {  // another block may run now
        current->state = State::spinning;
        leave();
    }
    void let_successor_start() {
        if (current->block->lets_successor) return;
        current->block->lets_successor = true;
        give_way();
    }

    void spin() {
        idle++;
        current->state = State::spinning;
        leave();
    }
    void wait_for_predecessor() {
        Grid* before = current->block->grid - 1;
        if (before < grids.data()) return;
        if (before->ended == before->blocks) return;
        block_until([before] { return before->ended == before->blocks; });
    }
    void barrier(int name, int threads) {
        Block* block = current->block;
        Named& named = block->barriers[name];
        Warp& warp = block->warps[current->index / 32];
        move(current->stores, block->stores);
        move(warp.stores, block->stores);
        const int turn = named.turn;
        if (++named.arrived == threads) {
            named.arrived = 0;
            named.turn++;
            idle = 0;
            return;
        }
        block_until([&named, turn] { return named.turn != turn; });
    }
    void sync_warp() {
        Warp& warp = current->block->warps[current->index / 32];
        move(current->stores, warp.stores);
        const int turn = warp.sync_turn;
        if (++warp.synced == 32) {
            warp.synced = 0;
            warp.sync_turn++;
            return;
        }
        block_until([&warp, turn] { return warp.sync_turn != turn; });
    }
    int meet(Warp& warp) {  // all lanes come here; the turn that it was
        const int turn = warp.turn;
        if (++warp.arrived == 32) {
            warp.arrived = 0;
            warp.turn++;
            idle = 0;
        } else {
            block_until([&warp, turn] { return warp.turn != turn; });
        }
        return turn;
    }
    unsigned exchange(unsigned value, int from) {
        Warp& warp = current->block->warps[current->index / 32];
        warp.values[warp.turn & 1][current->index % 32] = value;
        return warp.values[meet(warp) & 1][from];
    }
    const unsigned (*exchange_six(const unsigned* values))[6] {
        Warp& warp = current->block->warps[current->index / 32];
        std::memcpy(warp.sixes[warp.turn & 1][current->index % 32], values, 24);
        return warp.sixes[meet(warp) & 1];
    }

    Buffer* buffer_of(const void* address, int size) {
        const unsigned char* at = static_cast<const unsigned char*>(address);
        for (Buffer& buffer : buffers)
            if (at >= buffer.start && at + size <= buffer.start + buffer.size) return &buffer;
        fail("an access outside every buffer");
        return nullptr;
    }
    void copy(void* shared, const void* global, int size) {
        Buffer* buffer = buffer_of(global, size);
        const unsigned char* start = current->block->shared;
        const unsigned char* to = static_cast<unsigned char*>(shared);
        if (to < start || to + size > start + current->block->grid->shared) fail("a copy outside shared memory");
        if (reinterpret_cast<uintptr_t>(shared) % size || reinterpret_cast<uintptr_t>(global) % size)
            fail("a copy that is not aligned");
        for (int i = 0; buffer->reads && i < size; i += 4)
            buffer->reads[(static_cast<const unsigned char*>(global) - buffer->start + i) / 4]++;
        const Copy copy{shared, global, size};
        if (chance())
            perform(copy);
        else
            current->open.push_back(copy);
    }
    void perform(const Copy& copy) {
        Word bytes;
        load(bytes.x, copy.global, copy.size);
        std::memcpy(copy.shared, bytes.x, copy.size);
    }
    struct Word {
        unsigned char x[16];
    };
    void commit() {
        current->groups.push_back(std::move(current->open));
        current->open.clear();
    }
    void wait(int pending) {
        while (static_cast<int>(current->groups.size()) > pending) {
            for (const Copy& copy : current->groups.front()) perform(copy);
            current->groups.pop_front();
        }
    }

    void load(void* to, const void* from, int size) {
        const Buffer* buffer = buffer_of(from, size);
        std::memcpy(to, from, size);
        if (buffer->constant) return;
        overlay(to, from, size, current->block->stores);
        overlay(to, from, size, current->block->warps[current->index / 32].stores);
        overlay(to, from, size, current->stores);
    }
    static void overlay(void* to, const void* from, int size, const std::vector<Store>& stores) {
        unsigned char* out = static_cast<unsigned char*>(to);
        const unsigned char* start = static_cast<const unsigned char*>(from);
        for (const Store& store : stores) {
            if (store.address >= start + size || store.address + store.size <= start) continue;
            for (int i = 0; i < store.size; i++)
                if (store.address + i >= start && store.address + i < start + size)
                    out[store.address + i - start] = store.bytes[i];
        }
    }
    void store(void* to, const void* from, int size) {
        if (buffer_of(to, size)->constant) fail("a store to constant memory");
        Store store{static_cast<unsigned char*>(to), {}, size};
        std::memcpy(store.bytes, from, size);
        if (chance())
            current->stores.push_back(store);
        else
            std::memcpy(to, from, size);
        idle = 0;
    }
    static void move(std::vector<Store>& from, std::vector<Store>& to) {
        to.insert(to.end(), from.begin(), from.end());
        from.clear();
    }
    static void publish(std::vector<Store>& stores) {
        for (const Store& store : stores) std::memcpy(store.address, store.bytes, store.size);
        stores.clear();
    }
    void release() {
        publish(current->block->stores);
        publish(current->block->warps[current->index / 32].stores);
        publish(current->stores);
    }
    unsigned atomic_load(const unsigned* address) {
        buffer_of(address, 4);
        return *address;
    }
    unsigned atomic_add(unsigned* address, unsigned value) {
        buffer_of(address, 4);
        const unsigned before = *address;
        *address += value;
        idle = 0;
        if (random() % 4 == 0) give_way();
        return before;
    }

    // ---- The schedule ----

    void start_grid(Grid& grid) {
        for (int i = 0; i < grid.blocks; i++) {
            auto block = std::make_unique<Block>();
            block->grid = &grid;
            block->index = i;
            block->shared_bytes.assign(grid.shared + 16, 0xff);  // NaN as float, bfloat16 and float16
            const uintptr_t base = reinterpret_cast<uintptr_t>(block->shared_bytes.data());
            block->shared = reinterpret_cast<unsigned char*>((base + 15) / 16 * 16);
            block->warps.resize(grid.threads / 32);
            block->fibers.resize(grid.threads);
            for (int t = 0; t < grid.threads; t++) {
                static_cast<Thread&>(block->fibers[t]) = {t, i, grid.blocks, block->shared};
                block->fibers[t].block = block.get();
            }
            blocks.push_back(std::move(block));
        }
        grid.started = grid.blocks;
    }
    bool may_start(size_t at) {  // every block of the grid before has ended or lets its successor start
        if (at == 0) return true;
        const Grid* before = &grids[at - 1];
        if (before->started != before->blocks) return false;
        int letting = before->ended;
        for (const auto& block : blocks)
            if (block->grid == before && block->lets_successor && block->ended < before->threads) letting++;
        return letting == before->blocks;
    }
    // Runs one warp of a block until it cannot go on; says whether anything ran.
    bool run_warp(Block& block, int warp, bool& spun) {
        bool ran = false;
        for (bool again = true; again && failure.empty();) {
            again = false;
            for (int lane = 0; lane < 32 && failure.empty(); lane++) {
                Fiber& fiber = block.fibers[warp * 32 + lane];
                if (fiber.state == State::ended) continue;
                if (fiber.state == State::blocked && !fiber.wakes()) continue;
                if (fiber.state == State::spinning && ran) continue;
                resume(fiber);
                ran = true;
                if (fiber.state == State::ended) end(fiber);
                else if (fiber.state == State::spinning) spun = true;
                if (fiber.state != State::spinning) again = true;
            }
            if (spun) break;
        }
        return ran;
    }
    void end(Fiber& fiber) {
        idle = 0;
        stacks.push_back(fiber.stack);
        Block& block = *fiber.block;
        move(fiber.stores, block.stores);
        if (++block.ended < block.grid->threads) return;
        for (Warp& warp : block.warps) move(warp.stores, block.stores);
        if (++block.grid->ended < block.grid->blocks) return;
        for (const auto& other : blocks)  // a kernel's end makes all it wrote visible
            if (other->grid == block.grid) publish(other->stores);
    }
    void run() {
        size_t next = 0;
        while (failure.empty()) {
            while (next < grids.size() && may_start(next)) start_grid(grids[next++]);
            for (size_t i = blocks.size(); i-- > 0;)
                if (blocks[i]->ended == blocks[i]->grid->threads && blocks[i]->grid->ended == blocks[i]->grid->blocks)
                    blocks.erase(blocks.begin() + i);
            if (blocks.empty() && next == grids.size()) return;
            Block& block = *blocks[random() % blocks.size()];
            bool spun = false, ran = true;
            while (ran && !spun && failure.empty()) {
                ran = false;
                const int warps = static_cast<int>(block.warps.size()), first = random() % warps;
                for (int i = 0; i < warps && !ran; i++) ran = run_warp(block, (first + i) % warps, spun);
            }
            if (!spun) idle++;
            if (idle > PATIENCE) failure = "no block can go on";
        }
        for (const auto& block : blocks)  // after a failure: give the stacks back
            for (Fiber& fiber : block->fibers)
                if (fiber.started && fiber.state != State::ended) stacks.push_back(fiber.stack);
    }
};

Thread* current_thread;
void machine_barrier(int name, int threads) { machine->barrier(name, threads); }
void machine_sync_warp() { machine->sync_warp(); }
unsigned machine_exchange(unsigned value, int from) { return machine->exchange(value, from); }
const unsigned (*machine_exchange_six(const unsigned* values))[6] { return machine->exchange_six(values); }
void machine_copy(void* shared, const void* global, int size) { machine->copy(shared, global, size); }
void machine_commit() { machine->commit(); }
void machine_wait(int pending) { machine->wait(pending); }
void machine_load(void* to, const void* from, int size) { machine->load(to, from, size); }
void machine_store(void* to, const void* from, int size) { machine->store(to, from, size); }
void machine_release() { machine->release(); }
unsigned machine_atomic_load(const unsigned* address) { return machine->atomic_load(address); }
unsigned machine_atomic_add(unsigned* address, unsigned value) { return machine->atomic_add(address, value); }
void machine_spin() { machine->spin(); }
void machine_wait_for_predecessor() { machine->wait_for_predecessor(); }
void machine_let_successor_start() { machine->let_successor_start(); }

struct Launch {
    const char* kernel;
    int blocks, threads, shared;
    const void *first, *second;  // the kernel's parameters
};
struct Region {
    void* start;
    long long size;
    long long constant;
    unsigned short* reads;
};

// Null when every kernel of the chain ran to its end, else why not.
extern "C" const char* emulate(const Launch* launches, int count, const Region* regions, int region_count, unsigned seed) {
    static std::string failure;
    Machine here(seed);
    machine = &here;
    for (int i = 0; i < region_count; i++)
        here.buffers.push_back({static_cast<unsigned char*>(regions[i].start), regions[i].size, regions[i].constant != 0,
                                regions[i].reads});
    for (int i = 0; i < count; i++) {
        const Launch& launch = launches[i];
        here.grids.push_back({kernel_named(launch.kernel), launch.first, launch.second, launch.blocks, launch.threads,
                              launch.shared});
    }
    here.run();
    machine = nullptr;
    failure = here.failure;
    return failure.empty() ? nullptr : failure.c_str();
}

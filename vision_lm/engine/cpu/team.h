// A few threads that share out pieces of work as they come to them, and sleep when there is none.
//
// Nobody waits for a thread that has not begun: beside other programs' threads, or a server's own, one of ours may
// stand still for milliseconds, in which the others do all of the work.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vlm {

constexpr int SPINS = 300;       // looks before a waiting thread lets others run: some microseconds
constexpr int64_t MOST = 60000;  // pieces at once

class Team {
  public:
    explicit Team(int size) : size_(size) {
        for (int rank = 1; rank < size; ++rank) threads_.emplace_back([this, rank] { help(rank); });
    }

    ~Team() {
        ending_ = true;
        state_.fetch_add(GENERATION, std::memory_order_release);
        state_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    int size() const { return size_; }

    // `piece(number, rank)` for every number below `count`, at most MOST, by whichever thread is free; returns when all
    // are done. One caller at a time; it has rank 0.
    template <class Piece>
    void each(int64_t count, const Piece& piece) {
        if (size_ == 1 || count <= 1) {
            for (int64_t number = 0; number < count; ++number) piece(number, 0);
            return;
        }
        const uint64_t generation = (state_.load(std::memory_order_relaxed) / GENERATION + 1) * GENERATION;
        state_.store(generation | CLOSED, std::memory_order_seq_cst);  // from here on nobody takes what is being written
        call_.store([](const void* work, int64_t number, int rank) { (*static_cast<const Piece*>(work))(number, rank); },
                    std::memory_order_relaxed);
        work_.store(&piece, std::memory_order_relaxed);
        count_.store(count, std::memory_order_relaxed);
        state_.store(generation + GENERATION, std::memory_order_seq_cst);
        state_.notify_all();
        while (take(0)) {}
        for (int spins = 0; (state_.load(std::memory_order_acquire) & DONE) != (uint64_t)count; ++spins) pause(spins);
    }

  private:
    // One word: how often there was new work, how many pieces have been taken, and how many are done.
    static constexpr uint64_t DONE = 0xffff, TAKEN = 0x10000, CLOSED = 0xffff0000, GENERATION = 0x100000000;

    // Take a piece and do it; false where there is none. A state that is still the same when the piece is taken says that
    // what was read between belongs to it; and until it is done, its caller keeps all that it needs.
    bool take(int rank) {
        uint64_t state = state_.load(std::memory_order_acquire);
        for (;;) {
            if ((state & CLOSED) == CLOSED) return false;
            const auto call = call_.load(std::memory_order_relaxed);
            const void* const work = work_.load(std::memory_order_relaxed);
            const int64_t count = count_.load(std::memory_order_relaxed), number = (state & CLOSED) / TAKEN;
            if (number >= count) return false;
            if (!state_.compare_exchange_weak(state, state + TAKEN, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
            call(work, number, rank);
            state_.fetch_add(1, std::memory_order_release);
            return true;
        }
    }

    static void pause(int spins) {
#if defined(__x86_64__)
        _mm_pause();
#endif
        if (spins % SPINS == SPINS - 1) std::this_thread::yield();  // more threads than cores: the others must run
    }

    void help(int rank) {
        for (int spins = 0; !ending_.load(std::memory_order_relaxed);) {
            const uint64_t seen = state_.load(std::memory_order_acquire);
            if (take(rank)) {
                spins = 0;
            } else if (++spins < SPINS) {
                pause(0);
            } else {
                asleep(seen);
                spins = 0;
            }
        }
    }

    // Until there is new work. What others take and finish changes the state too, and is no reason to wake.
    void asleep(uint64_t seen) {
        while (state_.load(std::memory_order_acquire) / GENERATION == seen / GENERATION && !ending_) {
            const uint64_t now = state_.load(std::memory_order_acquire);
            if (now / GENERATION != seen / GENERATION) return;
            state_.wait(now, std::memory_order_acquire);
        }
    }

    const int size_;
    std::vector<std::thread> threads_;
    std::atomic<uint64_t> state_{CLOSED};
    std::atomic<bool> ending_{false};
    std::atomic<void (*)(const void*, int64_t, int)> call_{nullptr};
    std::atomic<const void*> work_{nullptr};
    std::atomic<int64_t> count_{0};
};

}  // namespace vlm

// A few threads that share out pieces of work as they come to them, and sleep when there is none.
//
// Nobody waits for a thread that has not begun: beside other programs' threads, or a server's own, one of ours may
// stand still for milliseconds, in which the others do all of the work.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vlm {

constexpr int SPINS = 300;  // looks before a waiting thread lets others run: some microseconds

class Team {
  public:
    // Of as many threads, the caller's own among them; or of fewer where the system has no more to give.
    explicit Team(int size) {
        threads_.reserve(size - 1);
        try {
            for (int rank = 1; rank < size; ++rank) threads_.emplace_back([this, rank] { help(rank); });
        } catch (const std::system_error&) {
        }
    }

    ~Team() {
        ending_ = true;
        state_ += GENERATION;
        state_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    int size() const { return (int)threads_.size() + 1; }

    // `piece(number, rank)` for every number below `count`, by whichever thread is free; returns when all are done.
    // One caller at a time, and none from within a piece; it has rank 0. A piece must not throw.
    template <class Piece>
    void each(int64_t count, const Piece& piece) {
        if (size() == 1 || count <= 1) {
            for (int64_t number = 0; number < count; ++number) piece(number, 0);
            return;
        }
        for (int64_t first = 0; first < count; first += MOST)
            share(std::min(count - first, MOST), [&](int64_t number, int rank) { piece(first + number, rank); });
    }

  private:
    // One word: how often there was new work, how many pieces have been taken, and how many are done.
    static constexpr uint64_t DONE = 0xffff, TAKEN = 0x10000, CLOSED = 0xffff0000, GENERATION = 0x100000000;
    static constexpr int64_t MOST = 0xfffe;  // pieces that it can count

    // The work is written while the state is closed, and each part with release: who reads a part of it, with acquire,
    // finds the old state gone.
    template <class Piece>
    void share(int64_t count, const Piece& piece) {
        const uint64_t generation = (state_.load(std::memory_order_relaxed) / GENERATION + 1) * GENERATION;
        state_.store(generation | CLOSED, std::memory_order_relaxed);
        call_.store([](const void* work, int64_t number, int rank) { (*static_cast<const Piece*>(work))(number, rank); },
                    std::memory_order_release);
        work_.store(&piece, std::memory_order_release);
        count_.store(count, std::memory_order_release);
        state_.store(generation + GENERATION, std::memory_order_seq_cst);
        state_.notify_all();
        while (take(0)) {}
        for (int spins = 0; (state_.load(std::memory_order_acquire) & DONE) != (uint64_t)count; ++spins) pause(spins);
    }

    // Take a piece and do it; false where there is none. A state that is still the same when the piece is taken says that
    // what was read between belongs to it; and until it is done, its caller keeps all that it needs.
    bool take(int rank) {
        uint64_t state = state_.load(std::memory_order_acquire);
        for (;;) {
            if ((state & CLOSED) == CLOSED) return false;
            const auto call = call_.load(std::memory_order_acquire);
            const void* const work = work_.load(std::memory_order_acquire);
            const int64_t count = count_.load(std::memory_order_acquire), number = (state & CLOSED) / TAKEN;
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
                sleep(seen);
                spins = 0;
            }
        }
    }

    // Until there is new work, or none ever again. What others take and finish changes the state too, and is no reason to
    // wake.
    void sleep(uint64_t seen) {
        for (uint64_t now = seen; now / GENERATION == seen / GENERATION && !ending_; now = state_.load(std::memory_order_acquire))
            state_.wait(now, std::memory_order_acquire);
    }

    std::vector<std::thread> threads_;
    std::atomic<uint64_t> state_{CLOSED};
    std::atomic<bool> ending_{false};
    std::atomic<void (*)(const void*, int64_t, int)> call_{nullptr};
    std::atomic<const void*> work_{nullptr};
    std::atomic<int64_t> count_{0};
};

}  // namespace vlm

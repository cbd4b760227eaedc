// A few threads that compute one step together, and sleep between steps.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vlm {

constexpr int SPINS = 4000;  // looks before a waiting thread lets others run: some ten microseconds

class Team {
  public:
    explicit Team(int size) : size_(size) {
        for (int rank = 1; rank < size; ++rank) threads_.emplace_back([this, rank] { work(rank); });
    }

    ~Team() {
        ending_ = true;
        step_.fetch_add(1);
        step_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    int size() const { return size_; }

    // `job(rank)` in every thread, 0 in this one; returns when all are done. One caller at a time.
    template <class Job>
    void run(Job& job) {
        call_ = [](void* work, int rank) { (*static_cast<Job*>(work))(rank); };
        job_ = &job;
        step_.fetch_add(1);
        step_.notify_all();
        job(0);
        meet();
    }

    // Nobody passes before all have come.
    void meet() {
        const uint32_t round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) pause(spins);
    }

    // Worker `rank`'s part of `count` items, in whole blocks: begin and end.
    void part(int rank, int64_t count, int64_t block, int64_t& begin, int64_t& end) const {
        const int64_t blocks = (count + block - 1) / block;
        begin = blocks * rank / size_ * block;
        end = blocks * (rank + 1) / size_ * block;
        begin = begin < count ? begin : count;
        end = end < count ? end : count;
    }

  private:
    static void pause(int spins) {
#if defined(__x86_64__)
        _mm_pause();
#endif
        if (spins % SPINS == SPINS - 1) std::this_thread::yield();  // more threads than cores: the others must run
    }

    void work(int rank) {
        for (uint32_t seen = 0;;) {
            for (int spins = 0; step_.load(std::memory_order_acquire) == seen && spins < SPINS; ++spins) pause(0);
            step_.wait(seen);
            ++seen;
            if (ending_) return;
            call_(job_, rank);
            meet();
        }
    }

    const int size_;
    std::vector<std::thread> threads_;
    std::atomic<uint32_t> step_{0}, round_{0};
    std::atomic<int> arrived_{0};
    std::atomic<bool> ending_{false};
    void (*call_)(void*, int) = nullptr;
    void* job_ = nullptr;
};

}  // namespace vlm

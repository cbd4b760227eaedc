// Runs teams of 1 to 8 threads through pieces of every number and length: every piece must be done once, by a rank that
// no other piece has at the time, and be done when `each` returns.

#include "../vision_lm/engine/cpu/team.h"

#include <chrono>
#include <cstdio>
#include <memory>

namespace {

void wait(unsigned microseconds) {
    if (microseconds) std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

bool right(vlm::Team& team, int64_t count, unsigned chance) {
    std::vector<int> done(count);  // not atomic: what a piece writes is seen when `each` has returned
    std::unique_ptr<std::atomic<bool>[]> busy(new std::atomic<bool>[team.size()]{});
    std::atomic<int> wrong{0};
    team.each(count, [&](int64_t number, int rank) {
        if (number < 0 || number >= count || rank < 0 || rank >= team.size() || busy[rank].exchange(true)) {
            ++wrong;
            return;
        }
        ++done[number];
        if (count < 100 && (number * 31 + chance) % 61 == 0) wait(chance % 50);
        busy[rank] = false;
    });
    for (int times : done) wrong += times != 1;
    if (wrong) std::printf("%d threads, %lld pieces: %d wrong\n", team.size(), (long long)count, wrong.load());
    return !wrong;
}

}  // namespace

int main() {
    unsigned chance = 1;
    for (int size : {1, 2, 3, 8}) {
        for (int life = 0; life < 5; ++life) {
            vlm::Team team(size);
            for (int round = 0; round < 400; ++round) {
                chance = chance * 1664525 + 1013904223;
                if (!right(team, (chance >> 16) % 40, chance >> 8)) return 1;
                if (round % 40 == 0) wait(500);  // asleep by then
            }
        }
        vlm::Team team(size);
        for (int64_t count : {65533, 65534, 65535, 65536, 65537, 200000})
            if (!right(team, count, 0)) return 1;
    }
}

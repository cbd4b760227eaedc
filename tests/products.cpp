// Products by every kind of weight against sums in double precision, and each row alone against the same row among others.
// A program, so that it can run where Python does not: compiled for another processor, under an emulator.

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../vision_lm/engine/cpu/integers.h"
#include "../vision_lm/engine/cpu/team.h"

using namespace vlm;

extern "C" {
Team* vlm_team(int threads);
int vlm_product(Team* team, const Matrix* matrix, const float* x, int64_t rows, float* y);
int vlm_rows();
}

namespace {

constexpr int64_t N = 70, K = 256, PANELS = (N + LANES - 1) / LANES;

// A weight (N, K) as it lies in panels (matrix.h), and what it is.
struct Weight {
    std::vector<char> stored = std::vector<char>(PANELS * LANES * K * 4);
    std::vector<float> scale = std::vector<float>(PANELS * LANES * K / GROUP), zero = scale;
    std::vector<float> bias = std::vector<float>(PANELS * LANES);
    std::vector<double> exact = std::vector<double>(N * K);

    template <class Element>
    void put(int64_t at, Element value) { std::memcpy(stored.data() + at * sizeof value, &value, sizeof value); }

    Weight(int32_t kind, std::mt19937& chance) {
        std::normal_distribution<float> draw;
        for (int64_t n = 0; n < N; ++n) {
            bias[n] = draw(chance);
            for (int64_t k = 0; k < K; ++k) exact[n * K + k] = set(kind, n, k, draw(chance), chance());
        }
    }

    double set(int32_t kind, int64_t n, int64_t k, float value, uint32_t bits) {
        const int64_t panel = n / LANES, lane = n % LANES;
        const int64_t single = (panel * K + k) * LANES + lane, paired = (panel * K + k / 2 * 2) * LANES + lane * 2 + k % 2;
        const int64_t group = (panel * (K / GROUP) + k / GROUP) * LANES + lane;
        switch (kind) {
            case FLOAT16: {
                const Half16 half = (Half16)value;
                put(single, half);
                return (float)half;
            }
            case BFLOAT16: {
                Bfloat16 half;
                store(&half, value);
                put(paired, half);
                const uint32_t word = (uint32_t)half.bits << 16;
                std::memcpy(&value, &word, sizeof value);
                return value;
            }
            case INT8: {
                const int8_t code = (int8_t)(bits % 255) - 127;
                put(paired, code);
                scale[n] = 0.01f * (1 + n % 3);
                return code * (double)scale[n];
            }
            case INT4: {
                const uint8_t code = bits % 16;
                const int64_t at = (panel * (K / 4) + k / 4) * 2 * LANES + lane * 2 + k % 2;
                stored[at] |= k % 4 < 2 ? code : code << 4;
                scale[group] = 0.02f * (1 + (n + k / GROUP) % 3);
                zero[group] = -0.1f * (n % 5);
                return code * (double)scale[group] + zero[group];
            }
            default:
                put(single, value);
                return value;
        }
    }
};

// How many results are wrong.
int wrong(Team* team, int32_t kind, int64_t rows, std::mt19937& chance) {
    const Weight weight(kind, chance);
    const Matrix matrix{weight.stored.data(), weight.scale.data(), weight.zero.data(), weight.bias.data(), N, K, kind, true, false};
    std::normal_distribution<float> draw;
    std::vector<float> x(rows * K), y(rows * N, NAN), alone(N, NAN);
    for (float& one : x) one = draw(chance);
    vlm_product(team, &matrix, x.data(), rows, y.data());
    int found = 0;
    for (int64_t m = 0; m < rows; ++m) {
        vlm_product(team, &matrix, x.data() + m * K, 1, alone.data());
        found += std::memcmp(alone.data(), y.data() + m * N, N * sizeof(float)) != 0;
        float most = 0;
        for (int64_t k = 0; k < K; ++k) most = std::max(most, std::fabs(x[m * K + k]));
        for (int64_t n = 0; n < N; ++n) {
            double truth = weight.bias[n], size = 1e-6, total = 0;
            for (int64_t k = 0; k < K; ++k) {
                const double w = weight.exact[n * K + k];
                truth += w * x[m * K + k];
                size += std::fabs(w * x[m * K + k]);
                total += std::fabs(w);
            }
            const double rounded = kind >= INT8 ? 0.51 * most / LARGEST * total : 0;  // of the activations
            found += !(std::fabs(y[m * N + n] - truth) <= 4e-6 * size + rounded);
        }
    }
    if (found) std::printf("kind %d, %lld rows: %d wrong\n", kind, (long long)rows, found);
    return found;
}

}  // namespace

int main() {
    std::mt19937 chance(1);
    Team* const team = vlm_team(2);
    int found = 0;
    for (const int32_t kind : {FLOAT32, BFLOAT16, FLOAT16, INT8, INT4}) {
        if (vlm_rows() && (kind == BFLOAT16 || kind == FLOAT16)) continue;  // these lie otherwise
        for (const int64_t rows : {1, 2, 3, 5, 7, 16, 130}) found += wrong(team, kind, rows, chance);
    }
    std::fflush(stdout);
    _exit(found != 0);
}

// One decoding step of Phi (arXiv 2309.05463) on a CPU: a token more for each of B sequences.
//
// In a block one LayerNorm feeds attention and MLP and both add to the residual, so there are three phases a layer,
// between which the threads meet: project, attend, add. Activations are float32 throughout.

#include <algorithm>

#include "attention.h"
#include "product.h"
#include "team.h"

using namespace vlm;

namespace {

constexpr int64_t KEPT = 64;  // rows of activations at a time, so that they stay in a core's cache

struct Norm {
    const float *weight, *bias;  // (Dt,)
};

struct Layer {
    Norm norm;
    Matrix into;  // rows q, k, v, fc1
    Matrix out;   // columns dense, fc2
};

struct Model {
    const Layer* layers;
    int32_t count, width, heads, key_heads, head_width, turned;
    Norm norm;
    Matrix head;
    const void* embedding;  // (V, Dt)
    int32_t embedding_kind;
    float epsilon;
    const float* rotary;  // cos and sin, (2, T, hd)
    int64_t positions;
};

struct Batch {
    int32_t rows;
    int32_t table_width;
    const int64_t* ids;      // (B,)
    const int32_t* lengths;  // (B,): tokens in the cache
    const int32_t* table;    // (B, table_width): pages
    void* cache;             // (L, 2 Hkv, slots, hd)
    int64_t slots;
    int32_t cache_kind;
    float* logits;  // (B, V)
};

template <class Element>
void copy_row(const void* table, int64_t row, int width, float* to) {
    for (int i = 0; i < width; i += LANES) write(to + i, load((const Element*)table + row * width + i));
}

void normalise(const float* x, const Norm& norm, int width, float epsilon, float* y) {
    Floats total = {};
    for (int i = 0; i < width; i += LANES) total += load(x + i);
    const float mean = sum(total) / width;
    Floats squares = {};
    for (int i = 0; i < width; i += LANES) {
        const Floats off = load(x + i) - mean;
        squares += off * off;
    }
    const float scale = 1.f / std::sqrt(sum(squares) / width + epsilon);
    for (int i = 0; i < width; i += LANES)
        write(y + i, (load(x + i) - mean) * scale * load(norm.weight + i) + load(norm.bias + i));
}

class Decoder {
  public:
    Decoder(const Model& model, Team& team)
        : model_(model), team_(team), layers_(model.layers, model.layers + model.count), own_(team.size()) {}

    void step(const Batch& batch) {
        const int64_t rows = batch.rows, width = model_.width;
        longest_ = 0;
        for (int64_t b = 0; b < rows; ++b) longest_ = std::max<int64_t>(longest_, batch.lengths[b] + 1);
        const int64_t mixed = layers_[0].out.inputs;
        hidden_.resize(rows * width);
        project_.resize(rows * projected());
        mixed_.resize(rows * mixed);
        for (Own& own : own_) {  // here, not in the threads, which could not say that memory ran out
            own.normed.resize(rows * width);
            own.scores.resize(longest_ + 2 * LANES);
            own.heads.resize((model_.heads / model_.key_heads + 1) * model_.head_width);
            if (layers_[0].into.kind >= INT8) own.rounded.reserve(rows, std::max(width, mixed));
        }
        auto job = [&](int rank) {
            switch (batch.cache_kind) {
                case FLOAT32: return run<float>(batch, rank);
                case BFLOAT16: return run<Bfloat16>(batch, rank);
                case FLOAT16: return run<Float16>(batch, rank);
            }
        };
        team_.run(job);
    }

  private:
    struct Own {  // of one thread
        std::vector<float> normed, scores, heads;
        Rounded rounded;

        Activations activations(const std::vector<float>& x, int64_t rows, const Matrix& matrix) {
            return Activations{x.data(), rows, &rounded}.for_matrix(matrix);
        }
    };

    int64_t projected() const { return (int64_t)(model_.heads + 2 * model_.key_heads) * model_.head_width; }

    template <class Element>
    void run(const Batch& batch, int rank) {
        Own& own = own_[rank];
        const int64_t rows = batch.rows, width = model_.width;
        for (int64_t b = rank; b < rows; b += team_.size()) embed(batch.ids[b], hidden_.data() + b * width);
        team_.meet();
        for (int number = 0; number < model_.count; ++number) {
            const Layer& layer = layers_[number];
            project(layer, rows, own, rank);
            team_.meet();
            attention<Element>(batch, number, own, rank);
            team_.meet();
            add(layer.out, rows, own, rank);
            team_.meet();
        }
        norm_all(model_.norm, rows, own);
        int64_t begin, end;
        const Matrix& head = model_.head;
        team_.part(rank, head.outputs, ROWS, begin, end);
        multiply(head, own.activations(own.normed, rows, head), begin, end, Target{batch.logits, head.outputs});
    }

    void embed(int64_t id, float* to) const {
        switch (model_.embedding_kind) {
            case FLOAT32: return copy_row<float>(model_.embedding, id, model_.width, to);
            case BFLOAT16: return copy_row<Bfloat16>(model_.embedding, id, model_.width, to);
            case FLOAT16: return copy_row<Float16>(model_.embedding, id, model_.width, to);
        }
    }

    // Every thread for itself: cheaper than to meet once more.
    void norm_all(const Norm& norm, int64_t rows, Own& own) const {
        for (int64_t b = 0; b < rows; ++b)
            normalise(hidden_.data() + b * model_.width, norm, model_.width, model_.epsilon, own.normed.data() + b * model_.width);
    }

    // Queries, keys and values to `project_` (B, .), gelu(fc1) to the right part of `mixed_` (B, Hq hd + F).
    void project(const Layer& layer, int64_t rows, Own& own, int rank) {
        norm_all(layer.norm, rows, own);
        const int64_t first = projected(), mixed = layer.out.inputs;
        const int64_t shift = (int64_t)model_.heads * model_.head_width - first;
        int64_t begin, end;
        team_.part(rank, layer.into.outputs, LANES, begin, end);
        const Activations normed = own.activations(own.normed, rows, layer.into);
        multiply(layer.into, normed, begin, std::min(end, first), Target{project_.data(), first});
        multiply(layer.into, normed, std::max(begin, first), end, Target{mixed_.data() + shift, mixed});
        for (int64_t b = 0; b < rows; ++b)
            for (int64_t n = std::max(begin, first); n < end; n += LANES) {
                float* at = mixed_.data() + b * mixed + n + shift;
                write(at, gelu(load(at)));
            }
    }

    // Each thread has some (sequence, key-value head) pairs: the key is turned and kept, then the queries look.
    template <class Element>
    void attention(const Batch& batch, int number, Own& own, int rank) {
        const int width = model_.head_width, groups = model_.heads / model_.key_heads;
        const int64_t layer_size = (int64_t)2 * model_.key_heads * batch.slots * width;
        const Cache<Element> cache{(Element*)batch.cache + number * layer_size, batch.slots, model_.key_heads, width};
        const float scale = 1.f / std::sqrt((float)width);
        for (int64_t item = rank; item < (int64_t)batch.rows * model_.key_heads; item += team_.size()) {
            const int64_t b = item / model_.key_heads;
            const int head = item % model_.key_heads;
            const int64_t position = batch.lengths[b];
            const int32_t* pages = batch.table + b * batch.table_width;
            const float *cos = model_.rotary + position * width, *sin = cos + model_.positions * width;
            const float* from = project_.data() + b * projected();
            float* key = own.heads.data();
            std::memcpy(key, from + (int64_t)(model_.heads + head) * width, width * sizeof(float));
            turn(key, cos, sin, model_.turned);
            const float* value = from + (int64_t)(model_.heads + model_.key_heads + head) * width;
            const int64_t slot = (int64_t)pages[position / PAGE] * PAGE + position % PAGE;
            for (int i = 0; i < width; ++i) {
                store(cache.key(head, slot) + i, key[i]);
                store(cache.value(head, slot) + i, value[i]);
            }
            for (int g = 0; g < groups; ++g) {
                float* query = own.heads.data() + (g + 1) * width;
                std::memcpy(query, from + (int64_t)(head * groups + g) * width, width * sizeof(float));
                turn(query, cos, sin, model_.turned);
                for (int i = 0; i < width; ++i) query[i] *= scale;
                float* result = mixed_.data() + b * layers_[number].out.inputs + (int64_t)(head * groups + g) * width;
                look(query, cache, head, pages, position + 1, own.scores.data(), result);
            }
        }
    }

    template <class Element>
    static void look(const float* query, const Cache<Element>& cache, int head, const int32_t* pages, int64_t tokens,
                     float* scores, float* result) {
        switch (cache.width / LANES) {
            case 1: return attend<1>(query, cache, head, pages, tokens, scores, result);
            case 2: return attend<2>(query, cache, head, pages, tokens, scores, result);
            case 3: return attend<3>(query, cache, head, pages, tokens, scores, result);
            case 4: return attend<4>(query, cache, head, pages, tokens, scores, result);
            case 5: return attend<5>(query, cache, head, pages, tokens, scores, result);
            case 6: return attend<6>(query, cache, head, pages, tokens, scores, result);
            case 8: return attend<8>(query, cache, head, pages, tokens, scores, result);
        }
    }

    void add(const Matrix& out, int64_t rows, Own& own, int rank) {
        int64_t begin, end;
        team_.part(rank, out.outputs, ROWS, begin, end);
        multiply(out, own.activations(mixed_, rows, out), begin, end, Target{hidden_.data(), out.outputs, true});
    }

    const Model model_;
    Team& team_;
    const std::vector<Layer> layers_;
    std::vector<Own> own_;
    std::vector<float> hidden_;   // (B, Dt)
    std::vector<float> project_;  // (B, (Hq + 2 Hkv) hd)
    std::vector<float> mixed_;    // (B, Hq hd + F)
    int64_t longest_ = 0;         // tokens of the longest sequence, the new one included
};

// x (M, K) by a matrix alone -> y (M, N).
void product(Team& team, const Matrix& matrix, const float* x, int64_t rows, float* y) {
    std::vector<Rounded> rounded(team.size());
    if (matrix.kind >= INT8)
        for (Rounded& own : rounded) own.reserve(std::min(KEPT, rows), matrix.inputs);
    auto job = [&](int rank) {
        int64_t begin, end;
        team.part(rank, matrix.outputs, ROWS, begin, end);
        for (int64_t first = 0; first < rows; first += KEPT) {
            const Activations some{x + first * matrix.inputs, std::min(KEPT, rows - first), &rounded[rank]};
            const Target target{y + first * matrix.outputs, matrix.outputs};
            multiply(matrix, some.for_matrix(matrix), begin, end, target);
        }
    };
    team.run(job);
}

template <class Call>
int tried(Call call) {
    try {
        call();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace

// What is called from Python. Work that finds no memory returns 1; nothing else can fail.
extern "C" {
Team* vlm_team(int threads) { return new Team(threads); }
void vlm_team_end(Team* team) { delete team; }
Decoder* vlm_decoder(const Model* model, Team* team) { return new Decoder(*model, *team); }
void vlm_decoder_end(Decoder* decoder) { delete decoder; }

int vlm_step(Decoder* decoder, const Batch* batch) {
    return tried([&] { decoder->step(*batch); });
}

int vlm_product(Team* team, const Matrix* matrix, const float* x, int64_t rows, float* y) {
    return tried([&] { product(*team, *matrix, x, rows, y); });
}
}

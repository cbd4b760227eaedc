// One step of Phi (arXiv 2309.05463) on a CPU: some tokens of some sequences, be it one each or whole prompts.
//
// In a block one LayerNorm feeds attention and MLP and both add to the residual, so there are three phases a layer,
// each shared out to the threads: project, attend, add. Activations are float32 throughout.

#include <algorithm>

#include "attention.h"
#include "model.h"
#include "shared_product.h"

using namespace vlm;

namespace {

class Decoder {
  public:
    Decoder(const Model& model, Team& team)
        : model_(model), team_(team), layers_(model.layers, model.layers + model.count), products_(team), own_(team.size()) {}

    void step(const Batch& batch) {
        switch (batch.cache_kind) {
            case FLOAT32: return run<float>(batch);
            case BFLOAT16: return run<Bfloat16>(batch);
            case FLOAT16: return run<Float16>(batch);
        }
    }

  private:
    struct Own {  // of one thread
        std::vector<float> scores, query;
    };

    int64_t projected() const { return (int64_t)(model_.heads + 2 * model_.key_heads) * model_.head_width; }

    template <class Element>
    void run(const Batch& batch) {
        const int64_t rows = batch.rows, width = model_.width;
        hidden_.resize(rows * width);
        project_.resize(rows * projected());
        mixed_.resize(rows * layers_[0].out.inputs);
        const int64_t longest = rows ? *std::max_element(batch.seen, batch.seen + rows) : 0;
        for (Own& own : own_) {
            own.scores.resize(longest + 2 * LANES);
            own.query.resize(model_.head_width);
        }
        for (int64_t b = 0; b < rows; ++b) {
            float* to = hidden_.data() + b * width;
            if (batch.ids)
                embed(model_, batch.ids[b], to);
            else
                std::memcpy(to, batch.embeddings + b * width, width * sizeof(float));
        }
        const int last = model_.count - 1;
        for (int number = 0; number < last; ++number) block<Element>(batch, number, hidden_.data());
        if (batch.logit_rows == rows) {
            block<Element>(batch, last, hidden_.data());
            return logits(rows, hidden_.data(), batch.logits);
        }
        // Of the other tokens the last layer's keys and values are wanted, and no more.
        project_keys(layers_[last], rows);
        keep_all(batch, cache_of<Element>(batch, last));
        gather_last(batch);
        block<Element>(last_.batch(batch), last, last_.hidden.data());
        logits(batch.logit_rows, last_.hidden.data(), batch.logits);
    }

    // The tokens whose logits are wanted, by themselves.
    struct Last {
        std::vector<float> hidden;                        // (R, Dt)
        std::vector<int32_t> sequences, positions, seen;  // (R,)

        Batch batch(Batch all) const {
            all.rows = all.logit_rows;
            all.sequences = sequences.data();
            all.positions = positions.data();
            all.seen = seen.data();
            return all;
        }
    };

    void gather_last(const Batch& batch) {
        const auto gather = [&](std::vector<int32_t>& to, const int32_t* from) {
            to.resize(batch.logit_rows);
            for (int i = 0; i < batch.logit_rows; ++i) to[i] = from[batch.last[i]];
        };
        gather(last_.sequences, batch.sequences);
        gather(last_.positions, batch.positions);
        gather(last_.seen, batch.seen);
        const int64_t width = model_.width;
        last_.hidden.resize(batch.logit_rows * width);
        for (int64_t i = 0; i < batch.logit_rows; ++i)
            std::memcpy(last_.hidden.data() + i * width, hidden_.data() + batch.last[i] * width, width * sizeof(float));
    }

    // One layer, of the tokens whose hidden states (N, Dt) these are.
    template <class Element>
    void block(const Batch& batch, int number, float* hidden) {
        const Layer& layer = layers_[number];
        const Cache<Element> cache = cache_of<Element>(batch, number);
        project(layer, batch.rows, hidden);
        if (batch.together) keep_all(batch, cache);
        attend_all(batch, cache);
        add(layer.out, batch.rows, hidden);
    }

    // Queries, keys and values to `project_` (N, .), gelu(fc1) to the right part of `mixed_` (N, Hq hd + F).
    void project(const Layer& layer, int64_t rows, const float* hidden) {
        const Matrix& into = layer.into;
        const int64_t first = projected(), mixed = layer.out.inputs;
        const int64_t shift = (int64_t)model_.heads * model_.head_width - first;
        products_.run(into, 0, into.outputs, &layer.norm, model_.epsilon, hidden, rows,
                      [&](const Activations& x, int64_t m, int64_t begin, int64_t end) {
                          multiply(into, x, begin, std::min(end, first), Target{project_.data() + m * first, first});
                          const int64_t fc1 = std::max(begin, first);
                          multiply(into, x, fc1, end, Target{mixed_.data() + m * mixed + shift, mixed});
                          for (int64_t b = m; b < m + x.rows; ++b)
                              for (int64_t n = fc1; n < end; n += LANES) {
                                  float* at = mixed_.data() + b * mixed + n + shift;
                                  write(at, gelu(load(at)));
                              }
                      });
    }

    void project_keys(const Layer& layer, int64_t rows) {
        const int64_t all = projected(), first = (int64_t)model_.heads * model_.head_width;
        products_.run(layer.into, first, all, &layer.norm, model_.epsilon, hidden_.data(), rows,
                      [&](const Activations& x, int64_t m, int64_t begin, int64_t end) {
                          multiply(layer.into, x, begin, end, Target{project_.data() + m * all, all});
                      });
    }

    void add(const Matrix& out, int64_t rows, float* hidden) {
        products_.run(out, 0, out.outputs, nullptr, 0, mixed_.data(), rows,
                      [&](const Activations& x, int64_t m, int64_t begin, int64_t end) {
                          multiply(out, x, begin, end, Target{hidden + m * out.outputs, out.outputs, true});
                      });
    }

    void logits(int64_t rows, const float* hidden, float* to) {
        const Matrix& head = model_.head;
        products_.run(head, 0, head.outputs, &model_.norm, model_.epsilon, hidden, rows,
                      [&](const Activations& x, int64_t m, int64_t begin, int64_t end) {
                          multiply(head, x, begin, end, Target{to + m * head.outputs, head.outputs});
                      });
    }

    template <class Element>
    Cache<Element> cache_of(const Batch& batch, int number) const {
        const int64_t layer_size = (int64_t)2 * model_.key_heads * batch.slots * model_.head_width;
        return {(Element*)batch.cache + number * layer_size, batch.slots, model_.key_heads, model_.head_width};
    }

    // Every (key-value head, token): `work(head, token, rank)`. Pieces are of one head, whose keys then stay near.
    template <class Work>
    void every_head(const Batch& batch, const Work& work) {
        const int64_t parts = std::max<int64_t>(batch.rows / BLOCK, 1), heads = model_.key_heads;
        team_.each(heads * parts, [&](int64_t number, int rank) {
            const int64_t part = number % parts;
            for (int64_t b = batch.rows * part / parts; b < batch.rows * (part + 1) / parts; ++b) work(number / parts, b, rank);
        });
    }

    template <class Element>
    void keep_all(const Batch& batch, const Cache<Element>& cache) {
        every_head(batch, [&](int head, int64_t b, int) { keep(batch, cache, head, b); });
    }

    template <class Element>
    void attend_all(const Batch& batch, const Cache<Element>& cache) {
        every_head(batch, [&](int head, int64_t b, int rank) {
            if (!batch.together) keep(batch, cache, head, b);
            queries(batch, cache, head, b, own_[rank]);
        });
    }

    void turn_to(float* head, int64_t position) const {
        const float* cos = model_.rotary + position * model_.head_width;
        turn(head, cos, cos + model_.positions * model_.head_width, model_.turned);
    }

    template <class Element>
    void keep(const Batch& batch, const Cache<Element>& cache, int head, int64_t b) {
        const int width = model_.head_width;
        float* key = project_.data() + b * projected() + (int64_t)(model_.heads + head) * width;
        const float* value = key + (int64_t)model_.key_heads * width;
        const int64_t position = batch.positions[b];
        turn_to(key, position);
        const int64_t slot = slot_of(batch.table + (int64_t)batch.sequences[b] * batch.table_width, position);
        for (int i = 0; i < width; ++i) {
            store(cache.key(head, slot) + i, key[i]);
            store(cache.value(head, slot) + i, value[i]);
        }
    }

    template <class Element>
    void queries(const Batch& batch, const Cache<Element>& cache, int head, int64_t b, Own& own) {
        const int width = model_.head_width, groups = model_.heads / model_.key_heads;
        const float scale = 1.f / std::sqrt((float)width);
        const int32_t* pages = batch.table + (int64_t)batch.sequences[b] * batch.table_width;
        for (int g = 0; g < groups; ++g) {
            const int64_t at = (int64_t)(head * groups + g) * width;
            float* query = own.query.data();
            std::memcpy(query, project_.data() + b * projected() + at, width * sizeof(float));
            turn_to(query, batch.positions[b]);
            for (int i = 0; i < width; ++i) query[i] *= scale;
            attend_as(query, cache, head, pages, batch.seen[b], own.scores.data(), mixed_.data() + b * layers_[0].out.inputs + at);
        }
    }

    template <class Element>
    static void attend_as(const float* query, const Cache<Element>& cache, int head, const int32_t* pages, int64_t tokens,
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

    const Model model_;
    Team& team_;
    const std::vector<Layer> layers_;
    Products products_;
    std::vector<Own> own_;
    std::vector<float> hidden_;   // (N, Dt)
    std::vector<float> project_;  // (N, (Hq + 2 Hkv) hd)
    std::vector<float> mixed_;    // (N, Hq hd + F)
    Last last_;
};

// x (M, K) by a matrix alone -> y (M, N).
void product(Team& team, const Matrix& matrix, const float* x, int64_t rows, float* y) {
    Products(team).run(matrix, 0, matrix.outputs, nullptr, 0, x, rows, [&](const Activations& some, int64_t m, int64_t begin, int64_t end) {
        multiply(matrix, some, begin, end, Target{y + m * matrix.outputs, matrix.outputs});
    });
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

int vlm_tiles() { return has_tiles(); }

// Whether weights of 16 bits are to lie in rows, where not in tiles.
int vlm_rows() {
#if defined(__AVX512F__)
    return true;
#else
    return false;
#endif
}

int vlm_step(Decoder* decoder, const Batch* batch) {
    return tried([&] { decoder->step(*batch); });
}

int vlm_product(Team* team, const Matrix* matrix, const float* x, int64_t rows, float* y) {
    return tried([&] { product(*team, *matrix, x, rows, y); });
}
}

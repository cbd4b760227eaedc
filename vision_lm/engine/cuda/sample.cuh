// Sampling from the logits of K3: temperature, top-k, top-p, min-p and one uniform draw a row. A block a row.
//
// Weights exp((logit - best) / temperature) are 40-bit fixed-point numbers, so that sums of them are exact in any
// order: the same draw gives the same token on any GPU. The cut of top-k and top-p is found by radix selection over
// the logits' bits, four times eight; of equal logits at the cut those of lower id stay.

typedef unsigned long long Mass;

struct Sampler {
    const float* logits;    // (count, VOCAB)
    const float* settings;  // (count, 4): temperature, 0 to leave the likeliest; top_p; min_p; the draw in [0, 1)
    const int* top_k;       // (count); VOCAB keeps all
    long long* next;        // (count) the likeliest token -> the drawn one
    float* logprobs;        // (count) of that token, to the model itself
    float* rivals;          // (count) of the likeliest other one
};

struct Cut {  // tokens above `key` are kept, and the first `room` that have it
    unsigned key;
    long long room;
    DEVICE bool is_below(const Cut& other) const { return key < other.key || (key == other.key && room > other.room); }
};

constexpr float ONE = 1099511627776.0f;  // 2^40, the weight of the likeliest token
constexpr int SAMPLE_BYTES = 256 * 16 + STREAMERS * 16 + 64;

// Larger for larger logits.
DEVICE unsigned key_of(float logit) {
    const unsigned bits = as_bits(logit);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Draw {
    const float* logits;  // (VOCAB)
    float best, scale;    // log2(e) / temperature
    Mass* masses;         // (256) of a digit's tokens
    Mass* threads;        // (STREAMERS)
    unsigned* counts;     // (256), then (STREAMERS)
    Mass* found;          // (4) what one thread tells the others

    DEVICE Mass mass(float logit) const { return static_cast<Mass>(exp2_fast((logit - best) * scale) * ONE); }

    // Where tokens, the largest first, come to `enough` of count or mass; also the mass up to there.
    DEVICE Cut cut(bool by_mass, Mass enough, Mass& mass_kept) const {
        unsigned prefix = 0;
        Mass count_above = 0, mass_above = 0;
        for (int shift = 24; shift >= 0; shift -= 8) {
            for (int i = thread_index(); i < 256; i += STREAMERS) masses[i] = 0, counts[i] = 0;
            sync_streamers();
            for (int id = thread_index(); id < VOCAB; id += STREAMERS) {
                const unsigned key = key_of(logits[id]);
                if (shift < 24 && key >> (shift + 8) != prefix >> (shift + 8)) continue;
                add_shared(counts + (key >> shift & 255), 1u);
                add_shared(masses + (key >> shift & 255), mass(logits[id]));
            }
            sync_streamers();
            for (int digit = thread_index(); digit < 256; digit += STREAMERS) {
                Mass count = count_above, sum = mass_above;
                for (int above = 255; above > digit; above--) count += counts[above], sum += masses[above];
                const Mass before = by_mass ? sum : count, here = by_mass ? masses[digit] : counts[digit];
                if (before < enough && before + here >= enough) found[0] = digit, found[1] = count, found[2] = sum;
            }
            sync_streamers();
            prefix |= static_cast<unsigned>(found[0]) << shift;
            count_above = found[1], mass_above = found[2];
        }
        const Mass equal = counts[prefix & 255], each = masses[prefix & 255] / equal;
        const Mass taken = by_mass ? (enough - mass_above + each - 1) / each : enough - count_above;
        mass_kept = mass_above + taken * each;
        sync_streamers();  // all have read what the next cut overwrites
        return {prefix, static_cast<long long>(taken)};
    }

    DEVICE Mass total() const {  // of all tokens
        Mass sum = 0;
        for (int id = thread_index(); id < VOCAB; id += STREAMERS) sum += mass(logits[id]);
        threads[thread_index()] = sum;
        sync_streamers();
        sum = 0;
        for (int i = 0; i < STREAMERS; i++) sum += threads[i];
        sync_streamers();
        return sum;
    }

    // The first token at which the kept tokens' mass, in the order of ids, passes `uniform` of their sum.
    DEVICE int choose_id(const Cut& least, Mass smallest, double uniform) const {
        const int share = (VOCAB + STREAMERS - 1) / STREAMERS, first = thread_index() * share;
        const int last = smaller(first + share, VOCAB);
        unsigned equal = 0;
        for (int id = first; id < last; id++) equal += key_of(logits[id]) == least.key;
        counts[256 + thread_index()] = equal;
        sync_streamers();
        long long room = least.room;
        for (int i = 0; i < thread_index(); i++) room -= counts[256 + i];
        const auto kept = [&](int id, long long& left) -> Mass {
            const unsigned key = key_of(logits[id]);
            const Mass weight = mass(logits[id]);
            return weight >= smallest && (key > least.key || (key == least.key && left-- > 0)) ? weight : 0;
        };
        Mass sum = 0;
        long long left = room;
        for (int id = first; id < last; id++) sum += kept(id, left);
        threads[thread_index()] = sum;
        sync_streamers();
        Mass before = 0, all = 0;
        for (int i = 0; i < STREAMERS; i++) {
            if (i < thread_index()) before += threads[i];
            all += threads[i];
        }
        Mass target = static_cast<Mass>(uniform * static_cast<double>(all));
        if (target >= all) target = all - 1;
        left = room;
        if (before <= target && target < before + sum)
            for (int id = first; id < last; id++) {
                before += kept(id, left);
                if (before > target) {
                    found[3] = id;
                    break;
                }
            }
        sync_streamers();
        return static_cast<int>(found[3]);
    }
};

KERNEL(STREAMERS) sample_kernel(PARAMETER(Sampler) sampler, PARAMETER(Step) step) {
    wait_for_predecessor();
    const int row = block_index();
    const float temperature = sampler.settings[4 * row], top_p = sampler.settings[4 * row + 1];
    const float min_p = sampler.settings[4 * row + 2], uniform = sampler.settings[4 * row + 3];
    if (step.lengths[row] < 0 || temperature == 0.0f) return;
    const float known = sampler.logprobs[row];
    if (!(known - known == 0.0f)) return;  // of what is no number nothing can be drawn
    unsigned char* shared = shared_memory();
    Draw draw;
    draw.logits = sampler.logits + static_cast<long long>(row) * VOCAB;
    const long long likeliest = sampler.next[row];
    draw.best = draw.logits[likeliest];
    draw.scale = LOG2E / temperature;
    draw.masses = reinterpret_cast<Mass*>(shared);
    draw.threads = draw.masses + 256;
    draw.found = draw.threads + STREAMERS;
    draw.counts = reinterpret_cast<unsigned*>(draw.found + 4);
    Cut least{0, VOCAB};
    Mass mass = 0;
    if (sampler.top_k[row] < VOCAB) least = draw.cut(false, sampler.top_k[row], mass);
    if (top_p < 1.0f) {
        if (mass == 0) mass = draw.total();
        const Mass enough = larger(static_cast<Mass>(1), static_cast<Mass>(static_cast<double>(top_p) * mass));
        const Cut by_mass = draw.cut(true, enough, mass);
        if (least.is_below(by_mass)) least = by_mass;
    }
    const int id = draw.choose_id(least, static_cast<Mass>(min_p * ONE), uniform);
    if (thread_index() == 0) {
        store(sampler.next + row, static_cast<long long>(id));
        const float most = sampler.logprobs[row];
        store(sampler.logprobs + row, most + (draw.logits[id] - draw.best));
        if (id != likeliest) store(sampler.rivals + row, most);
    }
}

// A product shared out to a team: by outputs, or of many rows by rows.
#pragma once

#include <algorithm>
#include <vector>

#include "model.h"
#include "product.h"
#include "team.h"

namespace vlm {

// Pieces of a product that threads take: enough that one which comes late or is held up leaves the rest to the others.
constexpr int64_t PIECES = 4;      // for each thread
constexpr int64_t BLOCK = 48;      // rows of activations at a time, so that they stay in a core's cache
constexpr int64_t ROWS_TAKEN = 8;  // of activations, at a time, where they are made ready for all
// For a thread, from which on rows are shared out rather than outputs.
#if defined(__AVX512F__)
constexpr int64_t ROWS_EACH = 8;
#else
constexpr int64_t ROWS_EACH = 64;
#endif

// A product's work by pieces: some outputs of every row, or every output of some rows. Tiles cost so little for another row
// that each weight is better read by one thread alone.
class Pieces {
  public:
    Pieces(int threads, int64_t rows, int64_t outputs, bool tiled)
        : rows_(rows), outputs_(outputs), by_rows_(rows >= ROWS_EACH * threads && !tiled) {
        const int64_t whole = by_rows_ ? rows : outputs, grain = by_rows_ ? FloatTiling::ROWS : (tiled ? TILED_PANELS : FloatTiling::PANELS) * LANES;
        const int64_t even = (whole + threads * PIECES - 1) / (threads * PIECES);
        size_ = (even + grain - 1) / grain * grain;
        if (by_rows_) size_ = std::min(size_, BLOCK);
    }

    // In which case every piece needs all rows' inputs: better made once, before.
    bool by_outputs() const { return !by_rows_; }

    // `piece(m, rows, begin, end, rank)`: rows from m on, outputs begin to end.
    template <class Piece>
    void run(Team& team, const Piece& piece) const {
        const int64_t whole = by_rows_ ? rows_ : outputs_;
        team.each((whole + size_ - 1) / size_, [&](int64_t number, int rank) {
            const int64_t first = number * size_, last = std::min(first + size_, whole);
            if (by_rows_)
                piece(first, last - first, 0, outputs_, rank);
            else
                piece(0, rows_, first, last, rank);
        });
    }

  private:
    int64_t rows_, outputs_, size_;
    bool by_rows_;
};

// What a product reads: rows of activations, normalised first if there is a norm, and their codes or halves if a matrix wants them.
struct Inputs {
    std::vector<float> normed;
    Rounded rounded;
    Halves halves;
    Bfloat16s room;

    void reserve(const Norm* norm, int64_t rows, const Matrix& matrix) {
        if (norm) normed.resize(std::max<size_t>(normed.size(), rows * matrix.inputs));
        if (wants_codes(matrix)) rounded.reserve(rows, matrix.inputs);
        if (wants_halves(matrix)) halves.reserve(rows, matrix.inputs);
    }

    // Of `count` rows from the first on. There must be room for them.
    void take(const Norm* norm, const float* x, int64_t first, int64_t count, const Matrix& matrix, float epsilon) {
        const int64_t inputs = matrix.inputs;
        for (int64_t m = first; norm && m < first + count; ++m)
            normalise(x + m * inputs, *norm, inputs, epsilon, normed.data() + m * inputs);
        if (norm) x = normed.data();
        if (wants_codes(matrix)) rounded.take(x, first, count, inputs);
        if (wants_halves(matrix)) halves.take(x, first, count, inputs);
    }

    Activations taken(const Norm* norm, const float* x, int64_t rows, Bfloat16* to_unpack) const {
        return {norm ? normed.data() : x, rows, &rounded, &halves, to_unpack};
    }
};

// norm(x) (M, K) by outputs begin to end of a matrix: `results(activations, m, begin, end)` for each piece.
class Products {
  public:
    explicit Products(Team& team) : team_(team), own_(team.size()) {}

    template <class Results>
    void run(const Matrix& matrix, int64_t first, int64_t last, const Norm* norm, float epsilon, const float* x, int64_t rows,
             const Results& results) {
        const Pieces pieces(team_.size(), rows, last - first, wants_halves(matrix));
        if (pieces.by_outputs()) {
            Inputs& all = own_[0];
            all.reserve(norm, rows, matrix);
            team_.each((rows + ROWS_TAKEN - 1) / ROWS_TAKEN, [&](int64_t number, int) {
                const int64_t m = number * ROWS_TAKEN;
                all.take(norm, x, m, std::min(ROWS_TAKEN, rows - m), matrix, epsilon);
            });
        } else {
            for (Inputs& own : own_) own.reserve(norm, std::min(rows, BLOCK), matrix);  // here: a piece must not throw
        }
        for (Inputs& own : own_)
            if (matrix.unpacked) own.room.resize(std::max<size_t>(own.room.size(), tiled_block(matrix.inputs) * matrix.inputs));
        pieces.run(team_, [&](int64_t m, int64_t count, int64_t begin, int64_t end, int rank) {
            const float* from = x + m * matrix.inputs;
            Inputs& some = own_[pieces.by_outputs() ? 0 : rank];
            if (!pieces.by_outputs()) some.take(norm, from, 0, count, matrix, epsilon);
            results(some.taken(norm, from, count, own_[rank].room.data()), m, first + begin, first + end);
        });
    }

  private:
    Team& team_;
    std::vector<Inputs> own_;  // of each thread
};

}  // namespace vlm

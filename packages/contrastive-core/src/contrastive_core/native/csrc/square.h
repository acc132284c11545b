// Square form for |S| small enough to need no row maximum, which computes every similarity once for both of its rows.
#pragma once
#include <cmath>

#include "blocks.h"

namespace contrastive {

template <class T>
class Square {
 public:
  // `scale` is the scale of S; exp(S) = exp2(f z . f z) with a factor f on both sides.
  Square(const Kernels<T>& kernels, const T* z, int64_t count, int64_t depth, double scale, const Candidates& candidates)
      : kernels_(kernels), z_(z), count_(count), depth_(depth), candidates_(candidates),
        block_(block_of<T>(count, depth)), blocks_(pieces(count, block_)),
        threads_(threads_for(0.5 * count * count * depth, blocks_)),
        packed_(pieces(count, kernels.panel) * kernels.panel * depth), strips_(threads_ * Desk::strip) {
    candidates_.upper = true;
    pack(z, count, depth, static_cast<T>(std::sqrt(scale * M_LOG2E)), kernels.panel, threads_, packed_.at());
  }

  // Computes lse [count].
  void forward(double* lse) const {
    std::fill_n(lse, count_, 0.0);
    const Scratch<double> sums(threads_ * 2 * kLargestBlock);
    const auto row_sums = [&](int64_t slot) { return sums.at(slot * 2 * kLargestBlock); };
    const auto column_sums = [&](int64_t slot) { return row_sums(slot) + kLargestBlock; };
    const auto add = [&](int64_t block, const double* sums) {
      for (int64_t i = 0; i < size(block); ++i) lse[block * block_ + i] += sums[i];
    };
    rounds(
        [&](int64_t slot, const Turn& turn) {
          kernels_.square_forward(tile(slot, turn), row_sums(slot), column_sums(slot));
        },
        [&](int64_t slot, const Turn& turn) {
          add(turn.row, row_sums(slot));
          if (turn.row == turn.column) add(turn.column, column_sums(slot));
        },
        [&](int64_t slot, const Turn& turn) { add(turn.column, column_sums(slot)); });
    for (int64_t i = 0; i < count_; ++i) lse[i] = std::log(lse[i]);
  }

  // Computes out [count, depth] = sum_j exp(S_ij) (weight_i + weight_j) z_j; `weight` is padded. Entries of a row whose
  // total size is at most `omit` may be omitted.
  void backward(const T* weight, double omit, T* out) const {
    const T each = static_cast<T>(omit / count_);
    std::fill_n(out, count_ * depth_, T(0));
    const int64_t matrix = Desk::matrix(block_);
    const Scratch<T> matrices(threads_ * matrix);
    const Features<T> vectors(z_, count_, depth_, block_, kernels_.gradient_panel, threads_);
    std::vector<char> any(threads_);
    const auto add = [&](int64_t slot, int64_t from, int64_t to, const Turn& turn, bool transposed) {
      if (!any[slot]) return;
      const Matrix<T> weights = {matrices.at(slot * matrix), static_cast<int>(size(turn.row)),
                                static_cast<int>(size(turn.column)), turn.row == turn.column};
      kernels_.add_product(weights, transposed, vectors.of(from), depth_, each, out + to * block_ * depth_);
    };
    rounds(
        [&](int64_t slot, const Turn& turn) {
          any[slot] = kernels_.square_weights(
              tile(slot, turn), weight + turn.row * block_, weight + turn.column * block_,
              matrices.at(slot * matrix));
        },
        [&](int64_t slot, const Turn& turn) {
          add(slot, turn.column, turn.row, turn, false);
          if (turn.row == turn.column) add(slot, turn.row, turn.column, turn, true);
        },
        [&](int64_t slot, const Turn& turn) { add(slot, turn.row, turn.column, turn, true); });
  }

 private:
  int64_t size(int64_t block) const { return std::min(block_, count_ - block * block_); }

  Tile<T> tile(int64_t slot, const Turn& turn) const {
    const int64_t row = turn.row * block_, column = turn.column * block_;
    return {packed_.at(row * depth_),
            packed_.at(column * depth_),
            depth_,
            row,
            column,
            static_cast<int>(size(turn.row)),
            static_cast<int>(size(turn.column)),
            &candidates_,
            strips_.at(slot * Desk::strip)};
  }

  template <class Compute, class AddRow, class AddColumn>
  void rounds(const Compute& compute, const AddRow& add_row, const AddColumn& add_column) const {
    Turns turns(blocks_);
    in_rounds(SquareRounds{blocks_}, threads_, turns, turns, compute, add_row, add_column);
  }

  const Kernels<T>& kernels_;
  const T* z_;
  int64_t count_, depth_;
  Candidates candidates_;
  int64_t block_, blocks_, threads_;
  Scratch<T> packed_, strips_;
};

}  // namespace contrastive

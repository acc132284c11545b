// Rectangular form, which tracks the maximum of every row, so that any scale is safe.
#pragma once
#include <cmath>

#include "blocks.h"

namespace contrastive {

template <class T>
class Rectangle {
 public:
  Rectangle(
      const Kernels<T>& kernels, const T* q, int64_t rows, const T* k, int64_t columns, int64_t depth, double scale,
      const Candidates& candidates)
      : kernels_(kernels), q_(q), k_(k), rows_(rows), columns_(columns), depth_(depth), candidates_(candidates),
        row_block_(block_of<T>(rows, depth)), column_block_(block_of<T>(columns, depth)),
        row_blocks_(pieces(rows, row_block_)), column_blocks_(pieces(columns, column_block_)),
        threads_(threads_for(static_cast<double>(rows) * columns * depth, row_blocks_ * column_blocks_)),
        queries_(pieces(rows, kernels.panel) * kernels.panel * depth),
        keys_(pieces(columns, kernels.panel) * kernels.panel * depth), strips_(threads_ * Desk::strip) {
    pack(q, rows, depth, static_cast<T>(scale * M_LOG2E), kernels.panel, threads_, queries_.at());
    pack(k, columns, depth, T(1), kernels.panel, threads_, keys_.at());
  }

  // Computes lse [rows].
  void forward(double* lse) const {
    const Scratch<double> totals(rows_), sums(threads_ * kLargestBlock);
    const Scratch<T> tops(threads_ * kLargestBlock);
    std::fill_n(totals.at(), rows_, 0.0);
    std::fill_n(lse, rows_, -HUGE_VAL);  // holds the maximum until the end
    rounds(
        [&](int64_t slot, const Turn& turn) {
          kernels_.rectangle_forward(tile(slot, turn), tops.at(slot * kLargestBlock), sums.at(slot * kLargestBlock));
        },
        [&](int64_t slot, const Turn& turn) {
          for (int64_t i = 0; i < row_size(turn.row); ++i) {
            double &top = lse[turn.row * row_block_ + i], &total = *totals.at(turn.row * row_block_ + i);
            const double new_top = *tops.at(slot * kLargestBlock + i), sum = *sums.at(slot * kLargestBlock + i);
            const double highest = std::fmax(top, new_top);
            if (highest == -HUGE_VAL) {
              total += sum;  // 0, or NaN
            } else {
              total = total * std::exp2(top - highest) + sum * std::exp2(new_top - highest);
              top = highest;
            }
          }
        },
        [](int64_t, const Turn&) {});
    for (int64_t i = 0; i < rows_; ++i) lse[i] = (lse[i] + std::log2(*totals.at(i))) * M_LN2;
  }

  // Computes dq [rows, depth] = sum_j P_ij k_j and dk [columns, depth] = sum_i P_ij q_i, unless they are null, with
  // P_ij = exp2(S'_ij - shift_i) weight_i and S' = S log2 e. `shift` and `weight` are padded. `omit` bounds the total size
  // of the omitted entries, in the Euclidean norm over all rows of a result.
  void backward(const T* shift, const T* weight, double omit, T* dq, T* dk) const {
    const T each_key = static_cast<T>(omit / std::sqrt(static_cast<double>(rows_)) / columns_);
    const T each_query = static_cast<T>(omit / std::sqrt(static_cast<double>(columns_)) / rows_);
    if (dq) std::fill_n(dq, rows_ * depth_, T(0));
    if (dk) std::fill_n(dk, columns_ * depth_, T(0));
    const int64_t matrix = Desk::matrix(row_block_), panel = kernels_.gradient_panel;
    const Scratch<T> matrices(threads_ * matrix);
    const Features<T> keys(k_, dq ? columns_ : 0, depth_, column_block_, panel, threads_);
    const Features<T> queries(q_, dk ? rows_ : 0, depth_, row_block_, panel, threads_);
    std::vector<char> any(threads_);
    const auto add = [&](int64_t slot, const Turn& turn, bool transposed, const T* vectors, T each, T* out) {
      const Matrix<T> weights = {matrices.at(slot * matrix), static_cast<int>(row_size(turn.row)),
                                static_cast<int>(column_size(turn.column)), false};
      if (any[slot]) kernels_.add_product(weights, transposed, vectors, depth_, each, out);
    };
    rounds(
        [&](int64_t slot, const Turn& turn) {
          const int64_t row = turn.row * row_block_;
          any[slot] = kernels_.rectangle_weights(
              tile(slot, turn), shift + row, weight + row, matrices.at(slot * matrix));
        },
        [&](int64_t slot, const Turn& turn) {
          if (dq) add(slot, turn, false, keys.of(turn.column), each_key, dq + turn.row * row_block_ * depth_);
        },
        [&](int64_t slot, const Turn& turn) {
          if (dk) add(slot, turn, true, queries.of(turn.row), each_query, dk + turn.column * column_block_ * depth_);
        });
  }

 private:
  int64_t row_size(int64_t block) const { return std::min(row_block_, rows_ - block * row_block_); }
  int64_t column_size(int64_t block) const { return std::min(column_block_, columns_ - block * column_block_); }

  Tile<T> tile(int64_t slot, const Turn& turn) const {
    const int64_t row = turn.row * row_block_, column = turn.column * column_block_;
    return {queries_.at(row * depth_),
            keys_.at(column * depth_),
            depth_,
            row,
            column,
            static_cast<int>(row_size(turn.row)),
            static_cast<int>(column_size(turn.column)),
            &candidates_,
            strips_.at(slot * Desk::strip)};
  }

  template <class Compute, class AddRow, class AddColumn>
  void rounds(const Compute& compute, const AddRow& add_row, const AddColumn& add_column) const {
    Turns rows(row_blocks_), columns(column_blocks_);
    in_rounds(
        RectangleRounds{row_blocks_, column_blocks_}, threads_, rows, columns, compute, add_row, add_column);
  }

  const Kernels<T>& kernels_;
  const T *q_, *k_;
  int64_t rows_, columns_, depth_;
  Candidates candidates_;
  int64_t row_block_, column_block_, row_blocks_, column_blocks_, threads_;
  Scratch<T> queries_, keys_, strips_;
};

}  // namespace contrastive

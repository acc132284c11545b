// Distribute tiles over threads such that results do not depend on the number of threads.
//
// A tile contributes to a block of rows and to a block of columns. Tiles are distributed in rounds in which no block occurs
// twice, and contributions are added to a block in the order of the rounds, which is fixed whichever thread computes them.
// A thread waits for the turn of its block but not for a whole round, so that the other threads continue if another program
// occupies a core.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "torch_abi.h"

namespace contrastive {

struct Turn {
  int64_t row, column;            // blocks
  int64_t row_turn, column_turn;  // number of tiles that contribute to these blocks before
};

// All pairs row <= column of blocks of a symmetric matrix. Round r has the pairs with row + column = r modulo their number.
struct SquareRounds {
  int64_t blocks;
  int64_t count() const { return blocks * blocks; }
  bool get(int64_t index, Turn& turn) const {
    const int64_t round = index / blocks, row = index % blocks, column = (round - row + blocks) % blocks;
    turn = {row, column, round, round};
    return row <= column;
  }
};

// All pairs of a block of rows and a block of columns. In round r, block i of the smaller set meets block i + r of the other.
struct RectangleRounds {
  int64_t rows, columns;
  int64_t count() const { return rows * columns; }
  bool get(int64_t index, Turn& turn) const {
    const bool fewer_rows = rows <= columns;
    const int64_t few = std::min(rows, columns), many = std::max(rows, columns);
    const int64_t round = index / few, i = index % few, j = (i + round) % many;
    // Block j has met block (j - r') modulo `many` in the earlier rounds r' in which this is a block of the smaller set.
    const int64_t down = std::min(round, j + 1);
    int64_t met = std::max<int64_t>(0, std::min(j, few - 1) - (j - down));
    if (round > j + 1) met += std::max<int64_t>(0, few - (many - (round - j - 1)));
    turn = fewer_rows ? Turn{i, j, round, met} : Turn{j, i, met, round};
    return true;
  }
};

class Turns {
 public:
  explicit Turns(int64_t blocks) : done_(blocks) {}
  void wait(int64_t block, int64_t turn) const {
    while (done_[block].load(std::memory_order_acquire) != turn) std::this_thread::yield();
  }
  void pass(int64_t block, int64_t turn) { done_[block].store(turn + 1, std::memory_order_release); }

 private:
  std::vector<std::atomic<int64_t>> done_;
};

// Returns the number of threads that pay off for a number of multiply-adds.
inline int64_t threads_for(double work, int64_t tiles) {
  constexpr double kWorthAThread = 2e6;
  const int64_t most = std::min<int64_t>(torch::stable::get_num_threads(), tiles);
  return std::max<int64_t>(1, std::min<int64_t>(most, static_cast<int64_t>(work / kWorthAThread)));
}

// Calls compute(slot, turn) for every tile at any time, and then add_row(slot, turn) and add_column(slot, turn) in turn.
// `slot` numbers the threads that work at the same time. In the square form, rows and columns have the same blocks, and
// add_row does everything for a tile on the diagonal.
template <class Rounds, class Compute, class AddRow, class AddColumn>
void in_rounds(
    const Rounds& rounds, int64_t threads, Turns& rows, Turns& columns, const Compute& compute, const AddRow& add_row,
    const AddColumn& add_column) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t slot, int64_t) {
    Turn turn{};
    for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < rounds.count();) {
      if (!rounds.get(index, turn)) continue;
      compute(slot, turn);
      rows.wait(turn.row, turn.row_turn);
      add_row(slot, turn);
      rows.pass(turn.row, turn.row_turn);
      if (&rows == &columns && turn.row == turn.column) continue;
      columns.wait(turn.column, turn.column_turn);
      add_column(slot, turn);
      columns.pass(turn.column, turn.column_turn);
    }
  });
}

}  // namespace contrastive

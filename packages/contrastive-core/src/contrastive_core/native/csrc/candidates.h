// Determine which entries of a strip of rows are candidates: all, some or none of a panel of columns, and which of them.
#pragma once
#include "kernels.h"

namespace {

enum class Share { none, some, all };

class Rows {
 public:
  template <class T>
  Rows(const contrastive::Tile<T>& t, int row, int count)
      : c_(*t.candidates), row_(t.row + row), column_(t.column), end_(t.column + t.width), ragged_(row + count > t.height),
        last_row_(t.row + (row + count < t.height ? row + count : t.height) - 1) {}

  // Returns whether all, some or none of the columns [column, column + count) of the tile are candidates.
  Share share(int column, int count) const {
    const int64_t left = column_ + column, right = left + count;  // one past the last column
    bool some = ragged_ || right > end_;
    if (c_.upper) {
      if (right - 1 <= row_) return Share::none;
      some |= left <= last_row_;
    }
    for (int i = 0; i < c_.omitted; ++i) some |= row_ + c_.omit[i] < right && last_row_ + c_.omit[i] >= left;
    if (c_.first) {
      // Classes ascend with rows and columns, so that the two ends of the strip are sufficient.
      const bool disjoint = c_.last[last_row_] <= left || c_.first[row_] >= right;
      const bool inside = c_.first[last_row_] <= left && right <= c_.last[row_];
      if (c_.same ? disjoint : inside) return Share::none;
      some |= c_.same ? !inside : !disjoint;
    }
    return some ? Share::some : Share::all;
  }

  // Returns the mask of the candidates in row r for the columns from `column`, one register wide.
  template <class L>
  typename L::Mask mask(int r, int column) const {
    const int64_t row = row_ + r, left = column_ + column;
    if (row > last_row_) return L::before(0);
    typename L::Mask keep = before<L>(end_ - left);
    if (c_.upper) keep = L::without(keep, before<L>(row + 1 - left));
    for (int i = 0; i < c_.omitted; ++i) {
      const int64_t at = row + c_.omit[i] - left;
      keep = L::without(keep, L::without(before<L>(at + 1), before<L>(at)));
    }
    if (c_.first) {
      const typename L::Mask inside = L::without(before<L>(c_.last[row] - left), before<L>(c_.first[row] - left));
      keep = c_.same ? L::both(keep, inside) : L::without(keep, inside);
    }
    return keep;
  }

 private:
  template <class L>
  static typename L::Mask before(int64_t n) {
    return L::before(n < 0 ? 0 : n > L::width ? L::width : static_cast<int>(n));
  }

  const contrastive::Candidates& c_;
  int64_t row_, column_, end_;
  bool ragged_;
  int64_t last_row_;
};

}  // namespace

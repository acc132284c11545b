// Divide vectors into blocks and pack them for the kernels.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "rounds.h"

namespace contrastive {

// Tests reduce it, so that small inputs have many blocks. It is a multiple of 48, and thus of the width of every panel.
inline int64_t largest_block = kLargestBlock;

constexpr int kPadding = 64;  // numbers that kernels may read beyond the end of a row of weights

// Number of rows of a block. It depends only on the problem, because it determines the order of all sums. A block of
// vectors and a block of weights share the second-level cache; small problems need several blocks for several threads.
template <class T>
int64_t block_of(int64_t vectors, int64_t depth) {
  const int64_t bytes = depth * static_cast<int64_t>(sizeof(T));
  int64_t block = bytes <= 1024 ? 384 : bytes <= 2048 ? 192 : 96;
  if (sizeof(T) == 8) block = std::min<int64_t>(block, 192);
  while (block > 96 && vectors < 8 * block) block /= 2;
  return std::min(block, largest_block);
}

inline int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Packed vectors [panel][depth][vectors of the panel], multiplied by `factor`, with zeros after the last vector.
template <class T>
void pack(const T* from, int64_t vectors, int64_t depth, T factor, int64_t panel, int64_t threads, T* to) {
  constexpr int64_t kLine = 64 / sizeof(T);  // numbers of a vector in a cache line, which are copied at a time
  torch::stable::parallel_for(0, threads, 1, [&](int64_t slot, int64_t) {
    for (int64_t p = slot; p * panel < vectors; p += threads) {
      const int64_t count = std::min(panel, vectors - p * panel);
      const T* in = from + p * panel * depth;
      T* out = to + p * panel * depth;
      for (int64_t first = 0; first < depth; first += kLine) {
        const int64_t last = std::min(depth, first + kLine);
        for (int64_t i = 0; i < count; ++i)
          for (int64_t k = first; k < last; ++k) out[k * panel + i] = in[i * depth + k] * factor;
        for (int64_t k = first; k < last; ++k) std::fill_n(out + k * panel + count, panel - count, T(0));
      }
    }
  });
}

// Vectors in the form of the right operand of add_product: [block][panel of features][vector of the block][features].
template <class T>
class Features {
 public:
  Features(const T* from, int64_t vectors, int64_t depth, int64_t block, int64_t panel, int64_t threads)
      : step_(block * pieces(depth, panel) * panel), packed_(pieces(vectors, block) * step_) {
    torch::stable::parallel_for(0, threads, 1, [&](int64_t slot, int64_t) {
      for (int64_t b = slot; b * block < vectors; b += threads) {
        T* to = packed_.at(b * step_);
        for (int64_t f = 0; f < depth; f += panel) {
          const int64_t count = std::min(panel, depth - f);
          const T* in = from + b * block * depth + f;
          for (int64_t i = std::min(block, vectors - b * block); i > 0; --i, in += depth, to += panel)
            std::fill_n(std::copy_n(in, count, to), panel - count, T(0));
        }
      }
    });
  }
  const T* of(int64_t block) const { return packed_.at(block * step_); }

 private:
  int64_t step_;
  Scratch<T> packed_;
};

// Scratch memory of one thread.
struct Desk {
  static constexpr int64_t strip = 8 * kStride;
  static int64_t matrix(int64_t rows) { return rows * kStride; }
};

}  // namespace contrastive

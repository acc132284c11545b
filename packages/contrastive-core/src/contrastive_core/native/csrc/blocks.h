// Vectors cut into blocks and packed for the kernels.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "rounds.h"

namespace contrastive {

// Tests set it lower, so that little inputs have many blocks: a multiple of 48, which is one of every panel.
inline int64_t largest_block = kLargestBlock;

constexpr int kPadding = 64;  // numbers that kernels may read beyond the last of a row of weights

// Rows of a block: a function of the problem alone, for the order of all sums depends on it. A block of vectors and one
// of weights share the second-level cache; small problems need several blocks for several threads.
template <class T>
int64_t block_of(int64_t vectors, int64_t depth) {
  const int64_t bytes = depth * static_cast<int64_t>(sizeof(T));
  int64_t block = bytes <= 1024 ? 384 : bytes <= 2048 ? 192 : 96;
  if (sizeof(T) == 8) block = std::min<int64_t>(block, 192);
  while (block > 96 && vectors < 8 * block) block /= 2;
  return std::min(block, largest_block);
}

inline int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

// [panel][depth][vectors of the panel], times `factor`, zeros after the last vector.
template <class T>
void pack(const T* from, int64_t vectors, int64_t depth, T factor, int64_t panel, int64_t threads, T* to) {
  torch::stable::parallel_for(0, threads, 1, [&](int64_t slot, int64_t) {
    for (int64_t p = slot; p * panel < vectors; p += threads) {
      const int64_t count = std::min(panel, vectors - p * panel);
      const T* in = from + p * panel * depth;
      T* out = to + p * panel * depth;
      for (int64_t k = 0; k < depth; ++k, out += panel) {
        for (int64_t i = 0; i < count; ++i) out[i] = in[i * depth + k] * factor;
        for (int64_t i = count; i < panel; ++i) out[i] = 0;
      }
    }
  });
}

// A block of vectors as the right side of add_product: [panel of features][vector][features of the panel].
template <class T>
void pack_features(const T* from, int64_t vectors, int64_t depth, int64_t panel, T* to) {
  for (int64_t f = 0; f < depth; f += panel) {
    const int64_t count = std::min(panel, depth - f);
    for (int64_t i = 0; i < vectors; ++i, to += panel) {
      const T* in = from + i * depth + f;
      for (int64_t c = 0; c < count; ++c) to[c] = in[c];
      for (int64_t c = count; c < panel; ++c) to[c] = 0;
    }
  }
}

// What one thread works with.
struct Desk {
  static constexpr int64_t strip = 8 * kStride;
  static int64_t matrix(int64_t rows) { return rows * kStride; }
  static int64_t vectors(int64_t block, int64_t depth) { return block * (depth + kPadding); }
};

}  // namespace contrastive

// Products of a tile of half-precision vectors on tensor cores. Products of such numbers are exact in float, in which they
// are summed: nothing is lost against ordinary arithmetic. Compiled only, never run by the tests.
#pragma once
#include <mma.h>

#include "rectangle.cuh"

namespace contrastive {

template <class T>
struct Mma {
  static constexpr int kFragment = 16, kWarp = 32;
  static_assert(kDepth == kFragment && kThreads == 8 * kWarp, "8 warps share 4 x 4 fragments");
  struct Shared {
    alignas(32) T a[kTile][kDepth];
    alignas(32) T b[kTile][kDepth];
    alignas(32) float s[kTile][kTile];
  };

  // As Simt::product.
  static __device__ void product(
      const T* a, int64_t rows, int64_t row, const T* b, int64_t columns, int64_t column, int64_t depth,
      Shared& shared, float (&s)[kOwn][kOwn]) {
    namespace wmma = nvcuda::wmma;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int down = warp / 2 * kFragment, across = warp % 2 * 2 * kFragment;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums[2];
    wmma::fill_fragment(sums[0], 0.0f);
    wmma::fill_fragment(sums[1], 0.0f);
    for (int64_t from = 0; from < depth; from += kDepth) {
      load_rows(a, rows, depth, row, from, shared.a);
      load_rows(b, columns, depth, column, from, shared.b);
      __syncthreads();
      wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> left;
      wmma::load_matrix_sync(left, shared.a[down], kDepth);
      for (int n = 0; n < 2; ++n) {
        wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> right;
        wmma::load_matrix_sync(right, shared.b[across + n * kFragment], kDepth);
        wmma::mma_sync(sums[n], left, right, sums[n]);
      }
      __syncthreads();
    }
    for (int n = 0; n < 2; ++n)
      wmma::store_matrix_sync(&shared.s[down][across + n * kFragment], sums[n], kTile, wmma::mem_row_major);
    __syncthreads();
    const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
    UNROLL for (int r = 0; r < kOwn; ++r)
      UNROLL for (int c = 0; c < kOwn; ++c) s[r][c] = shared.s[y + r * kSide][x + c * kSide];
    __syncthreads();
  }

 private:
  static __device__ void load_rows(
      const T* x, int64_t rows, int64_t depth, int64_t first, int64_t from, T (*to)[kDepth]) {
    for (int n = static_cast<int>(threadIdx.x); n < kTile * kDepth; n += kThreads) {
      const int r = n / kDepth, c = n % kDepth;
      const bool inside = first + r < rows && from + c < depth;
      to[r][c] = inside ? x[(first + r) * depth + from + c] : T(0.0f);
    }
  }
};

}  // namespace contrastive

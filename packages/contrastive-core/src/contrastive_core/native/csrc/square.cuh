// The square form on a GPU, where |S| is so small that no maximum is needed: every similarity is computed once for both its
// rows. Kernels are launched round by round: in a round no tile of rows occurs twice, and the rounds follow each other in
// order. So both sides of a tile are added to without atomics, in a fixed order: the same bits every time, memory O(N D).
//
// No torch in this file: see rectangle.cuh. Queries and keys of a problem are the same here.
#pragma once
#include "rectangle.cuh"

namespace contrastive {

// In round r the tiles meet whose numbers add up to r modulo their count; so many rounds are there as tiles.
__host__ __device__ inline int64_t tiles_of(int64_t rows) { return (rows + kTile - 1) / kTile; }

// The first rows of the two tiles of this block; false if another block has the pair.
template <class T>
__device__ bool pair_of_tiles(const Problem<T>& p, int64_t round, int64_t& row, int64_t& column) {
  const int64_t tiles = tiles_of(p.queries), first = blockIdx.x, second = (round + tiles - first) % tiles;
  row = first * kTile, column = second * kTile;
  return GUARD(first <= second);
}

// total [N] += sums of exp(S) over the rows of one tile and, of another one beside the diagonal, over its columns.
template <class T, class Product>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) square_sums(Problem<T> p, int64_t round, double* total) {
  using W = typename Wide<T>::type;
  __shared__ typename Product::Shared shared;
  __shared__ W across[kSide][kTile], down[kSide][kTile];  // what a thread has of a row, of a column
  int64_t row, column;
  if (!pair_of_tiles(p, round, row, column)) return;
  const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
  const W log2_scale = static_cast<W>(p.scale * 1.4426950408889634);
  W s[kOwn][kOwn];
  Product::product(p.q, p.queries, row, p.q, p.queries, column, p.depth, shared, s);
  UNROLL for (int r = 0; r < kOwn; ++r)
    UNROLL for (int c = 0; c < kOwn; ++c)
      s[r][c] = p.counts(row + y + r * kSide, column + x + c * kSide) ? power(s[r][c] * log2_scale) : W(0);
  UNROLL for (int r = 0; r < kOwn; ++r) {
    W of_row = 0, of_column = 0;
    UNROLL for (int c = 0; c < kOwn; ++c) of_row += s[r][c], of_column += s[c][r];
    across[x][y + r * kSide] = of_row;
    down[y][x + r * kSide] = of_column;
  }
  __syncthreads();  // every part of a row and of a column is there
  const int own = static_cast<int>(threadIdx.x);
  if (GUARD(own < kTile) && GUARD(row + own < p.queries)) {
    double sum = 0;
    for (int part = 0; part < kSide; ++part) sum += across[part][own];
    total[row + own] += sum;
  }
  if (GUARD(own < kTile) && GUARD(column + own < p.queries) && GUARD(row != column)) {
    double sum = 0;
    for (int part = 0; part < kSide; ++part) sum += down[part][own];
    total[column + own] += sum;
  }
}

// lse [N] from the sums, in place.
__global__ void __launch_bounds__(kThreads) square_logs(int64_t rows, double* lse) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x;
  if (GUARD(threadIdx.x < kTile) && GUARD(i < rows)) lse[i] = log2(lse[i]) * 0.6931471805599453;
}

// out [N, depth] += the share of one pair of tiles in
//   dz_i = sum_j exp(S_ij) (a_i + a_j) z_j,    a_i = scale g_i exp(-lse_i).
template <class T, class Product>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) square_gradient(
    Problem<T> p, int64_t round, const double* gradient, const double* lse, typename Wide<T>::type* out) {
  using W = typename Wide<T>::type;
  __shared__ typename Product::Shared shared;
  __shared__ W weights[kTile][kTile];
  int64_t row, column;
  if (!pair_of_tiles(p, round, row, column)) return;
  const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
  W s[kOwn][kOwn];
  Product::product(p.q, p.queries, row, p.q, p.queries, column, p.depth, shared, s);
  W(*part)[kTile] = reinterpret_cast<W(*)[kTile]>(&shared);  // the product needs it no more
  const int own = static_cast<int>(threadIdx.x) % kTile, side = static_cast<int>(threadIdx.x) / kTile;
  const int64_t at = (side == 0 ? row : column) + own;
  if (side < 2 && GUARD(at < p.queries))
    part[side][own] = static_cast<W>(p.scale * gradient[at] * power(-lse[at] * 1.4426950408889634));
  __syncthreads();  // a is there, of the rows and of the columns
  UNROLL for (int r = 0; r < kOwn; ++r)
    UNROLL for (int c = 0; c < kOwn; ++c) {
      W weight = 0;
      if (p.counts(row + y + r * kSide, column + x + c * kSide))
        weight = power(s[r][c] * static_cast<W>(p.scale * 1.4426950408889634)) *
                 (part[0][y + r * kSide] + part[1][x + c * kSide]);
      weights[y + r * kSide][x + c * kSide] = weight;
    }
  add_weighted<false>(weights, p.q, p.queries, column, p.depth, p.queries, row, part, out);
  if (GUARD(row != column)) add_weighted<true>(weights, p.q, p.queries, row, p.depth, p.queries, column, part, out);
}

}  // namespace contrastive

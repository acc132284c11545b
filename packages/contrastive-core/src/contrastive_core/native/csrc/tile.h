// Kernels of one instruction set in terms of `Lanes` (its registers). Each file compiled for an instruction set includes
// this file once.
//
// A tile of the similarity matrix consists of strips of a few rows, and a strip consists of panels of a few registers. A
// product of `Lanes::rows` x `panel` similarities remains in registers until it has become a sum or a gradient weight.
#pragma once
#include "candidates.h"
#include "vectors.h"

namespace {

using contrastive::Matrix;
using contrastive::Tile;
using contrastive::kStride;

constexpr int kPartialDepth = 256;  // number of products in a partial sum, because rounding grows with the length of a sum

// Computes acc[r][v] = sum over depth of a[r] b[v], with a and b stored column by column.
template <class L, int R, int V>
inline __attribute__((always_inline)) void multiply(
    const typename L::T* a, int64_t row_step, int64_t depth_step, const typename L::T* b, int64_t depth,
    typename L::V (&acc)[R][V]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[r][v] = L::all(0);
  for (int64_t k = 0; k < depth; ++k, a += depth_step, b += V * L::width) {
    typename L::V column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = L::load(b + v * L::width);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename L::V row = L::all(a[r * row_step]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] = L::fma(row, column[v], acc[r][v]);
    }
  }
}

template <class L>
struct Strips {
  using T = typename L::T;
  using V = typename L::V;
  static constexpr int R = L::rows, N = L::vectors, W = L::width, panel = N * W;

  static constexpr T nothing = -__builtin_inff();

  // Calls use(column, similarities) for every panel of a strip that has a candidate, from left to right, with -inf for
  // entries that are not candidates, and skip(column) for the other panels.
  template <class Use, class Skip>
  static inline __attribute__((always_inline)) void over(const Tile<T>& t, int row, const Use& use, const Skip& skip) {
    const T* a = t.rows + (row / panel) * t.depth * panel + row % panel;
    const Rows rows(t, row, R);
    for (int column = 0; column < t.width; column += panel) {
      const Share share = rows.share(column, panel);
      if (share == Share::none) {
        skip(column);
        continue;
      }
      const T* b = t.columns + column * t.depth;
      V s[R][N];
      multiply<L, R, N>(a, 1, panel, b, t.depth < kPartialDepth ? t.depth : kPartialDepth, s);
      for (int64_t k = kPartialDepth; k < t.depth; k += kPartialDepth) {
        V more[R][N];
        const int64_t rest = t.depth - k;
        multiply<L, R, N>(a + k * panel, 1, panel, b + k * panel, rest < kPartialDepth ? rest : kPartialDepth, more);
        for (int r = 0; r < R; ++r)
          for (int v = 0; v < N; ++v) s[r][v] = s[r][v] + more[r][v];
      }
      if (share == Share::some) {
        V copy[R][N];  // passed to the call, so that s remains in registers
        for (int r = 0; r < R; ++r)
          for (int v = 0; v < N; ++v) copy[r][v] = s[r][v];
        blank(rows, column, copy);
        for (int r = 0; r < R; ++r)
          for (int v = 0; v < N; ++v) s[r][v] = copy[r][v];
      }
      use(column, s);
    }
  }

  static __attribute__((noinline)) void blank(const Rows& rows, int column, V (&s)[R][N]) {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < N; ++v)
        s[r][v] = L::pick(rows.template mask<L>(r, column + v * W), s[r][v], L::all(nothing));
  }

  static inline __attribute__((always_inline)) V exp2(V x) { return L::exp2(L::max(L::all(L::lowest), x)); }
};

template <class L>
void square_forward(const Tile<typename L::T>& t, double* row_sums, double* column_sums) {
  using S = Strips<L>;
  using T = typename L::T;
  using V = typename L::V;
  T* columns = t.strip;
  for (int c = 0; c < t.width; c += L::width) L::store(columns + c, L::all(0));
  for (int row = 0; row < t.height; row += S::R) {
    V sums[S::R];
    for (int r = 0; r < S::R; ++r) sums[r] = L::all(0);
    const auto use = [&](int column, V(&s)[S::R][S::N]) __attribute__((always_inline)) {
      V down[S::N];
#pragma GCC unroll 4
      for (int v = 0; v < S::N; ++v) down[v] = L::load(columns + column + v * S::W);
#pragma GCC unroll 16
      for (int r = 0; r < S::R; ++r) {
        V across = sums[r];
#pragma GCC unroll 4
        for (int v = 0; v < S::N; ++v) {
          const V e = S::exp2(s[r][v]);
          across = across + e;
          down[v] = down[v] + e;
        }
        sums[r] = across;
      }
#pragma GCC unroll 4
      for (int v = 0; v < S::N; ++v) L::store(columns + column + v * S::W, down[v]);
    };
    S::over(t, row, use, [](int) {});
    for (int r = 0; r < S::R && row + r < t.height; ++r) row_sums[row + r] = L::sum(sums[r]);
  }
  for (int c = 0; c < t.width; ++c) column_sums[c] = columns[c];
}

template <class L>
void rectangle_forward(const Tile<typename L::T>& t, typename L::T* tops, double* sums) {
  using S = Strips<L>;
  using T = typename L::T;
  using V = typename L::V;
  for (int row = 0; row < t.height; row += S::R) {
    V top[S::R];
    for (int r = 0; r < S::R; ++r) top[r] = L::all(S::nothing);
    const auto use = [&](int column, V(&s)[S::R][S::N]) __attribute__((always_inline)) {
#pragma GCC unroll 16
      for (int r = 0; r < S::R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < S::N; ++v) {
          top[r] = L::max(s[r][v], top[r]);
          L::store(t.strip + r * kStride + column + v * S::W, s[r][v]);
        }
    };
    const auto skip = [&](int column) {
      for (int r = 0; r < S::R; ++r)
        for (int v = 0; v < S::N; ++v) L::store(t.strip + r * kStride + column + v * S::W, L::all(S::nothing));
    };
    S::over(t, row, use, skip);
    for (int r = 0; r < S::R && row + r < t.height; ++r) {
      const T highest = L::top(top[r]);
      const V shift = L::all(highest == S::nothing ? 0 : highest);
      V sum = L::all(0);
      for (int column = 0; column < t.width; column += S::W)
        sum = sum + S::exp2(L::load(t.strip + r * kStride + column) - shift);
      tops[row + r] = highest;
      sums[row + r] = L::sum(sum);
    }
  }
}

// Computes out = weight(s, r, column, v), a function of registers, with 0 for entries that are not candidates.
template <class L, class Weight>
inline __attribute__((always_inline)) bool weights(
    const Tile<typename L::T>& t, typename L::T* out, const Weight& weight) {
  using S = Strips<L>;
  using V = typename L::V;
  bool any = false;
  for (int row = 0; row < t.height; row += S::R) {
    typename L::T* at = out + row * kStride;
    const auto use = [&](int column, V(&s)[S::R][S::N]) __attribute__((always_inline)) {
      any = true;
#pragma GCC unroll 16
      for (int r = 0; r < S::R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < S::N; ++v) {
          L::store(at + r * kStride + column + v * S::W, weight(s[r][v], row + r, column + v * S::W));
        }
    };
    const auto skip = [&](int column) {
      for (int r = 0; r < S::R; ++r)
        for (int v = 0; v < S::N; ++v) L::store(at + r * kStride + column + v * S::W, L::all(0));
    };
    S::over(t, row, use, skip);
  }
  return any;
}

template <class L>
bool square_weights(
    const Tile<typename L::T>& t, const typename L::T* row_weight, const typename L::T* column_weight,
    typename L::T* out) {
  using V = typename L::V;
  return weights<L>(t, out, [&](V s, int row, int column) __attribute__((always_inline)) {
    return Strips<L>::exp2(s) * (L::all(row_weight[row]) + L::load(column_weight + column));
  });
}

template <class L>
bool rectangle_weights(
    const Tile<typename L::T>& t, const typename L::T* shift, const typename L::T* weight, typename L::T* out) {
  using V = typename L::V;
  return weights<L>(t, out, [&](V s, int row, int) __attribute__((always_inline)) {
    return Strips<L>::exp2(s - L::all(shift[row])) * L::all(weight[row]);
  });
}

}  // namespace

#include "product.h"

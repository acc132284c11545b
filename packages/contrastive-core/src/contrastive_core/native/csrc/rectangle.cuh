// Rectangular log-sum-exp and its gradients on a GPU. Every block of threads owns kTile rows of its result and goes over
// the other side in a fixed order: no atomics, the same bits every time.
//
// No torch in this file: tests run these bodies on the CPU, thread by thread, with barriers and guards left out one at a
// time. GUARD marks the conditions that keep ragged ends, the row itself and other classes out.
#pragma once
#include <cmath>
#include <cstdint>

#ifndef GUARD
#define GUARD(condition) (condition)
#endif

// Arrays stay in registers only if no variable indexes them.
#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

namespace contrastive {

constexpr int kTile = 64;      // rows and columns of a tile of similarities
constexpr int kDepth = 16;     // features in shared memory at a time
constexpr int kSide = 16;      // threads along either side of a tile, each with
constexpr int kOwn = kTile / kSide;  // 4 x 4 entries: rows y, y + 16, ...; columns x, x + 16, ...
constexpr int kThreads = kSide * kSide;

// Queries i and keys j; an entry counts unless j - i is one of `omit`, or its classes are (not) the same.
template <class T>
struct Problem {
  const T *q, *k;
  int64_t queries, keys, depth;
  double scale;
  int omitted;
  int64_t omit[3];
  const int64_t *q_class, *k_class;  // null: there are none
  bool same;

  __device__ bool counts(int64_t i, int64_t j) const {
    bool keep = GUARD(j < keys) && GUARD(i < queries);
    // A fixed number, so that `omit` is never indexed by a variable, which would put it on the stack.
    for (int n = 0; n < 3; ++n) keep = keep && GUARD(n >= omitted || j - i != omit[n]);
    if (keep && q_class != nullptr) keep = GUARD((q_class[i] == k_class[j]) == same);
    return keep;
  }
};

// float for all that is not double.
template <class T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

// Blocks on a multiprocessor at least: 128 registers per thread, 255 for double, with which nothing is spilled.
template <class T>
constexpr int kBlocks = sizeof(typename Wide<T>::type) == 8 ? 1 : 2;

__device__ inline float power(float x) { return exp2f(x); }
__device__ inline double power(double x) { return exp2(x); }

// Rows [first, first + kTile) and features [from, from + kDepth) of x, transposed; zeros outside.
template <class T, class W>
__device__ void load(const T* x, int64_t rows, int64_t depth, int64_t first, int64_t from, W (*to)[kTile]) {
  for (int n = static_cast<int>(threadIdx.x); n < kTile * kDepth; n += kThreads) {
    const int r = n / kDepth, c = n % kDepth;
    const bool inside = GUARD(first + r < rows) && GUARD(from + c < depth);
    to[c][r] = inside ? static_cast<W>(x[(first + r) * depth + from + c]) : W(0);
  }
}

// Products of a tile in ordinary arithmetic.
template <class T>
struct Simt {
  using W = typename Wide<T>::type;
  struct Shared {
    W a[kDepth][kTile], b[kDepth][kTile];
  };

  // s[r][c] = a_i . b_j for the entries of this thread. Ends behind a barrier.
  static __device__ void product(
      const T* a, int64_t rows, int64_t row, const T* b, int64_t columns, int64_t column, int64_t depth,
      Shared& shared, W (&s)[kOwn][kOwn]) {
    const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
    UNROLL for (int r = 0; r < kOwn; ++r)
      UNROLL for (int c = 0; c < kOwn; ++c) s[r][c] = 0;
    for (int64_t from = 0; from < depth; from += kDepth) {
      load(a, rows, depth, row, from, shared.a);
      load(b, columns, depth, column, from, shared.b);
      __syncthreads();  // both are there
      for (int f = 0; f < kDepth; ++f)
        UNROLL for (int r = 0; r < kOwn; ++r)
          UNROLL for (int c = 0; c < kOwn; ++c) s[r][c] += shared.a[f][y + r * kSide] * shared.b[f][x + c * kSide];
      __syncthreads();  // nobody needs them any more
    }
  }
};

// lse [queries]: a thread sums its columns of a row about their running maximum, and the 16 of a row meet at the end.
template <class T, class Product>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) rows_lse(Problem<T> p, double* lse) {
  using W = typename Wide<T>::type;
  __shared__ typename Product::Shared shared;
  __shared__ W tops[kSide][kTile];
  __shared__ double totals[kSide][kTile];
  const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kTile;
  const W log2_scale = static_cast<W>(p.scale * 1.4426950408889634);
  W top[kOwn];
  double total[kOwn];
  UNROLL for (int r = 0; r < kOwn; ++r) top[r] = -HUGE_VALF, total[r] = 0;
  for (int64_t column = 0; column < p.keys; column += kTile) {
    W s[kOwn][kOwn];
    Product::product(p.q, p.queries, row, p.k, p.keys, column, p.depth, shared, s);
    UNROLL for (int r = 0; r < kOwn; ++r) {
      W highest = top[r];
      UNROLL for (int c = 0; c < kOwn; ++c) {
        const bool keep = p.counts(row + y + r * kSide, column + x + c * kSide);
        s[r][c] = keep ? s[r][c] * log2_scale : -HUGE_VALF;
        highest = s[r][c] > highest ? s[r][c] : highest;
      }
      // -inf: nothing counted so far, and -inf - -inf would be NaN.
      const W shift = highest == -HUGE_VALF ? W(0) : highest;
      W sum = 0;
      UNROLL for (int c = 0; c < kOwn; ++c) sum += power(s[r][c] - shift);
      total[r] = total[r] * power(top[r] - shift) + sum;
      top[r] = highest;
    }
  }
  UNROLL for (int r = 0; r < kOwn; ++r) tops[x][y + r * kSide] = top[r], totals[x][y + r * kSide] = total[r];
  __syncthreads();  // every part of a row is there
  const int own = static_cast<int>(threadIdx.x);
  if (GUARD(own < kTile) && GUARD(row + own < p.queries)) {
    W highest = -HUGE_VALF;
    for (int part = 0; part < kSide; ++part) highest = tops[part][own] > highest ? tops[part][own] : highest;
    const double shift = highest == -HUGE_VALF ? 0.0 : static_cast<double>(highest);
    double sum = 0;
    for (int part = 0; part < kSide; ++part) sum += totals[part][own] * power(static_cast<double>(tops[part][own]) - shift);
    lse[row + own] = (shift + log2(sum)) * 0.6931471805599453;
  }
}

// Adds to rows [row, row + kTile) of out [owns, depth] the weights of a tile, or transposed those of its other side, times
// rows [column, ...) of `other`. Begins with a barrier, ends without one.
template <bool kTransposed, class T, class W>
__device__ void add_weighted(
    const W (*weights)[kTile], const T* other, int64_t others, int64_t column, int64_t depth, int64_t owns, int64_t row,
    W (*part)[kTile], W* out) {
  const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
  for (int64_t feature = 0; feature < depth; feature += kTile) {
    W sum[kOwn][kOwn];
    UNROLL for (int r = 0; r < kOwn; ++r)
      UNROLL for (int c = 0; c < kOwn; ++c) sum[r][c] = 0;
    for (int from = 0; from < kTile; from += kDepth) {
      __syncthreads();  // weights are there; nobody needs the last part any more
      for (int n = static_cast<int>(threadIdx.x); n < kDepth * kTile; n += kThreads) {
        const int r = n / kTile, c = n % kTile;
        const bool inside = GUARD(column + from + r < others) && GUARD(feature + c < depth);
        part[r][c] = inside ? static_cast<W>(other[(column + from + r) * depth + feature + c]) : W(0);
      }
      __syncthreads();  // the part is there
      for (int f = 0; f < kDepth; ++f)
        UNROLL for (int r = 0; r < kOwn; ++r)
          UNROLL for (int c = 0; c < kOwn; ++c) {
            const W weight = kTransposed ? weights[from + f][y + r * kSide] : weights[y + r * kSide][from + f];
            sum[r][c] += weight * part[f][x + c * kSide];
          }
    }
    UNROLL for (int r = 0; r < kOwn; ++r)
      UNROLL for (int c = 0; c < kOwn; ++c) {
        const int64_t i = row + y + r * kSide, f = feature + x + c * kSide;
        if (GUARD(i < owns) && GUARD(f < depth)) out[i * depth + f] += sum[r][c];
      }
  }
}

// The gradient of the queries (kOfQueries) or of the keys, added to out: with P_ij = exp(S_ij - lse_i),
//   dq_i = scale g_i sum_j P_ij k_j,    dk_j = scale sum_i g_i P_ij q_i.
template <class T, class Product, bool kOfQueries>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) rows_gradient(
    Problem<T> p, const double* gradient, const double* lse, typename Wide<T>::type* out) {
  using W = typename Wide<T>::type;
  __shared__ typename Product::Shared shared;
  __shared__ W weights[kTile][kTile];  // [own rows][other side]
  const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kTile;
  const T *own = kOfQueries ? p.q : p.k, *other = kOfQueries ? p.k : p.q;
  const int64_t owns = kOfQueries ? p.queries : p.keys, others = kOfQueries ? p.keys : p.queries;
  for (int64_t column = 0; column < others; column += kTile) {
    W s[kOwn][kOwn];
    Product::product(own, owns, row, other, others, column, p.depth, shared, s);
    UNROLL for (int r = 0; r < kOwn; ++r)
      UNROLL for (int c = 0; c < kOwn; ++c) {
        const int64_t a = row + y + r * kSide, b = column + x + c * kSide;
        const int64_t i = kOfQueries ? a : b, j = kOfQueries ? b : a;
        W weight = 0;
        if (p.counts(i, j)) {
          const double exact = lse[i] * 1.4426950408889634;
          const W shift = static_cast<W>(exact);
          // What rounding takes from the exponent, the same for a whole row, goes into its factor.
          const W factor = static_cast<W>(p.scale * gradient[i] * power(static_cast<double>(shift) - exact));
          weight = power(s[r][c] * static_cast<W>(p.scale * 1.4426950408889634) - shift) * factor;
        }
        weights[y + r * kSide][x + c * kSide] = weight;
      }
    W(*part)[kTile] = reinterpret_cast<W(*)[kTile]>(&shared);
    add_weighted<false>(weights, other, others, column, p.depth, owns, row, part, out);
    __syncthreads();  // nobody needs weights or part any more
  }
}

}  // namespace contrastive

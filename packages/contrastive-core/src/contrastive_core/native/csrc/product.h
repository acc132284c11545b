// Matrix products of the gradient, which multiply the weights of a tile by vectors. Included by tile.h.
#pragma once

namespace {

// Entries of a strip that are not negligible. In every row of the result, the sizes of the others add up to at most `omit`
// for each entry of the strip, which is less than the rounding of the gradient (see cpu.cpp).
template <class L>
struct Sieve {
  using T = typename L::T;
  using V = typename L::V;
  static constexpr int W = L::width, R = L::gradient_rows, N = (R + W - 1) / W;

  // Selects among the columns [first, last) of `rows` rows of the matrix, one register at a time. Every lane has an equal
  // part of the size that may be omitted.
  static int columns(const T* at, int rows, int first, int last, T omit, int* kept) {
    const V share = L::all(omit * (last - first) / W);
    V omitted = L::all(0);
    int count = 0;
    for (int column = first; column < last; column += W) {
      V largest = L::abs(L::load(at + column));
      for (int r = 1; r < rows; ++r) largest = L::max(largest, L::abs(L::load(at + r * kStride + column)));
      const V sum = omitted + largest;
      const typename L::Mask keep = L::above(sum, share);
      omitted = L::pick(keep, omitted, sum);
      unsigned bits = L::bits(keep);
      if (last - column < W) bits &= (1u << (last - column)) - 1;
      for (; bits; bits &= bits - 1) kept[count++] = column + __builtin_ctz(bits);
    }
    return count;
  }

  // Selects among the rows [first, last) of R columns of the matrix. A large entry must not use the allowance of small ones.
  static int rows(const T* at, int first, int last, T omit, int* kept) {
    constexpr int kLargestPart = 8;
    const V share = L::all(omit * (last - first)), largest = L::all(omit * (last - first) / kLargestPart);
    V omitted[N];
    for (int n = 0; n < N; ++n) omitted[n] = L::all(0);
    int count = 0;
    for (int row = first; row < last; ++row) {
      V sum[N];
      unsigned keep = 0;
      for (int n = 0; n < N; ++n) {
        V x = L::abs(L::load(at + row * kStride + n * W));
        if (R - n * W < W) x = L::pick(L::before(R - n * W), x, L::all(0));
        sum[n] = omitted[n] + x;
        keep |= L::bits(L::above(x, largest)) | L::bits(L::above(sum[n], share));
      }
      if (keep) {
        kept[count++] = row;
      } else {
        for (int n = 0; n < N; ++n) omitted[n] = sum[n];
      }
    }
    return count;
  }
};

// Multiplies as `multiply` does, but only for the depths listed in `kept`.
template <class L, int R, int V>
inline __attribute__((always_inline)) void multiply_kept(
    const typename L::T* a, int64_t row_step, int64_t depth_step, const typename L::T* b, const int* kept, int count,
    typename L::V (&acc)[R][V]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[r][v] = L::all(0);
  for (int i = 0; i < count; ++i) {
    const typename L::T *rows = a + kept[i] * depth_step, *vector = b + static_cast<int64_t>(kept[i]) * V * L::width;
    typename L::V column[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) column[v] = L::load(vector + v * L::width);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename L::V row = L::all(rows[r * row_step]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[r][v] = L::fma(row, column[v], acc[r][v]);
    }
  }
}

// Entries of a strip: [first, last), or those listed in `kept`.
struct Entries {
  int first, last;
  const int* kept;
  int count;
};

// Multiplies one strip, R rows of the (transposed) matrix, by every panel of features. The steps are known at compile time.
template <class L, bool Transposed, bool Sieved>
inline __attribute__((always_inline)) void product_strip(
    const typename L::T* a, const Entries& entries, int depth, int rows_left, const typename L::T* vectors,
    int64_t features, typename L::T* out) {
  using T = typename L::T;
  constexpr int N = L::gradient_vectors, R = L::gradient_rows, panel = N * L::width;
  constexpr int64_t row_step = Transposed ? 1 : kStride, depth_step = Transposed ? kStride : 1;
  for (int64_t f = 0; f < features; f += panel) {
    typename L::V acc[R][N];
    if (Sieved)
      multiply_kept<L, R, N>(a, row_step, depth_step, vectors + f * depth, entries.kept, entries.count, acc);
    else
      multiply<L, R, N>(
          a + entries.first * depth_step, row_step, depth_step, vectors + f * depth + entries.first * panel,
          entries.last - entries.first, acc);
    if (rows_left >= R && f + panel <= features) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          T* at = out + r * features + f + v * L::width;
          L::store(at, L::load(at) + acc[r][v]);
        }
      continue;
    }
    T edge[R * panel];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < N; ++v) L::store(edge + r * panel + v * L::width, acc[r][v]);
    for (int r = 0; r < R && r < rows_left; ++r)
      for (int c = 0; c < panel && f + c < features; ++c) out[r * features + f + c] += edge[r * panel + c];
  }
}

template <class L, bool Transposed>
void add_strips(
    const contrastive::Matrix<typename L::T>& m, const typename L::T* vectors, int64_t features, typename L::T omit,
    typename L::T* out) {
  constexpr int R = L::gradient_rows;
  constexpr int kRest = 15;  // number of strips that are not checked after one in which few entries are negligible
  int kept[contrastive::kLargestBlock], rest = 0;
  const int strips = Transposed ? m.width : m.height, depth = Transposed ? m.height : m.width;
  for (int strip = 0; strip < strips; strip += R) {
    Entries entries = {0, depth, kept, 0};
    if (m.upper && Transposed && strip + R < depth) entries.last = strip + R;  // above the diagonal: row < column
    if (m.upper && !Transposed) entries.first = strip;
    const int left = strips - strip, first = entries.first, last = entries.last;
    const typename L::T* a = m.at + strip * (Transposed ? 1 : kStride);
    if (omit > 0 && rest-- <= 0) {
      entries.count = Transposed ? Sieve<L>::rows(a, first, last, omit, kept)
                                 : Sieve<L>::columns(a, left < R ? left : R, first, last, omit, kept);
      if (8 * entries.count < 7 * (last - first)) {
        rest = 0;
        product_strip<L, Transposed, true>(a, entries, depth, left, vectors, features, out + strip * features);
        continue;
      }
      rest = kRest;
    }
    product_strip<L, Transposed, false>(a, entries, depth, left, vectors, features, out + strip * features);
  }
}

template <class L>
void add_product(
    const contrastive::Matrix<typename L::T>& m, bool transposed, const typename L::T* vectors, int64_t features,
    typename L::T omit, typename L::T* out) {
  if (transposed)
    add_strips<L, true>(m, vectors, features, omit, out);
  else
    add_strips<L, false>(m, vectors, features, omit, out);
}

template <class L>
constexpr contrastive::Kernels<typename L::T> kernels() {
  return {Strips<L>::panel, L::gradient_vectors * L::width, square_forward<L>, rectangle_forward<L>,
          square_weights<L>, rectangle_weights<L>, add_product<L>};
}

template <class Single, class Double>
constexpr contrastive::InstructionSet instruction_set(const char* name) {
  return {name,
          kernels<Single>(),
          kernels<Double>(),
          {unit_vectors<float, float>, unit_gradient<float, float>},
          {unit_vectors<float, double>, unit_gradient<float, double>},
          {unit_vectors<double, double>, unit_gradient<double, double>},
          {pairs<float>, pairs_gradient<float>},
          {pairs<double>, pairs_gradient<double>}};
}

}  // namespace
